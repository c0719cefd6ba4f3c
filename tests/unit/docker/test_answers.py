"""What real engines of several versions answered (answers/capture.py), read as what it means."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr_vps_docker.docker import errors as errors
from imbue.mngr_vps_docker.docker.models import ImageInfo, PublishedPort, parse_containers, parse_images, parse_info

VERSIONS = {path.stem: path for path in Path(__file__).with_name("answers").glob("*.json")}

KINDS = {
    errors.NoSuchContainerError: (
        *("inspect no container", "start no container", "stop no container", "remove no container"),
        *("commit no container", "exec in no container"),
    ),
    errors.ContainerNotRunningError: ("exec in a stopped container",),
    errors.NoSuchImageError: ("inspect no image", "remove no image"),
    errors.NoSuchVolumeError: ("inspect no volume", "remove no volume"),
    errors.NameInUseError: ("take a name again",),
    errors.PortInUseError: ("publish a port again", "publish a port of another program"),
    errors.UnknownRuntimeError: ("use no runtime",),
    errors.InvalidDockerArgumentError: (
        *("give an unknown option", "give an option without its value", "give CPUs that are no number"),
        *("give more CPUs than there are", "give memory that is no number", "give too little memory"),
        *("give a name with a space", "name no image", "mount at a relative path", "publish no port"),
        *("restart in no known way", "add no capability"),
    ),
    errors.DockerForbiddenError: ("ask as another user",),
    errors.DaemonNotRunningError: ("ask no daemon",),
}


@pytest.fixture(params=sorted(VERSIONS))
def answers(request: pytest.FixtureRequest) -> dict[str, Any]:
    """All answers of one engine."""
    answers: dict[str, Any] = json.loads(VERSIONS[request.param].read_text())
    assert answers["info"]["ServerVersion"].startswith(request.param)
    return answers


def test_the_engines_of_debian_12_and_13_are_among_them() -> None:
    assert {"20.10", "26.1"} <= VERSIONS.keys()


def test_containers_are_read(answers: dict[str, Any]) -> None:
    running, stopped, created = parse_containers(json.dumps(answers["containers"]))
    assert [container.name for container in (running, stopped, created)] == ["running", "stopped", "created"]
    assert [container.status for container in (running, stopped, created)] == ["running", "exited", "created"]
    assert (running.is_running, stopped.is_running, stopped.exit_code) == (True, False, 3)
    assert (running.labels["host"], running.image) == ("h1", "mngr-agent:bookworm")
    assert (running.nano_cpus, running.memory_bytes) == (500_000_000, 64 << 20)
    assert (stopped.nano_cpus, stopped.memory_bytes) == (None, None)
    assert running.ports == (PublishedPort(host_port=2222, container_port=22, host_ip=None),)
    assert running.volumes == {"/data": "data"}
    assert running.image_id == stopped.image_id == created.image_id
    assert (running.finished_at, created.started_at, created.finished_at) == (None, None, None)
    assert stopped.started_at is not None and stopped.finished_at is not None
    assert timedelta() < stopped.finished_at - stopped.started_at < timedelta(minutes=1)


def test_images_are_read(answers: dict[str, Any]) -> None:
    (image,) = parse_images(json.dumps(answers["images"]))
    assert image.tags == ("snapshot:1",)
    assert image.id.startswith("sha256:")
    assert image.labels["kept"] == "yes"
    assert image.created_at is not None
    assert image.size_bytes > 50 << 20


@pytest.mark.parametrize(
    "created", ['""', "null", '"0001-01-01T00:00:00Z"', '"2026-01-02T03:04:05"', '"unknown"', "{}"]
)
def test_what_is_not_known_of_an_image_is_no_error(created: str) -> None:
    (image,) = parse_images(
        f'[{{"Id": "sha256:1", "Created": {created}, "Config": null, "RepoTags": null, "Size": null}}]'
    )
    assert image == ImageInfo(id="sha256:1", tags=(), created_at=None, size_bytes=0, labels={})
    assert parse_images('[{"Id": "sha256:1", "Config": {"Labels": null}}]') == (image,)


def test_nor_is_what_is_not_known_of_a_container() -> None:
    state = '{"Status": "created", "ExitCode": null, "StartedAt": "", "FinishedAt": ""}'
    (container,) = parse_containers(
        '[{"Id": "1", "Name": "/c", "Created": "2026-01-02T03:04:05Z", "Image": null, "Mounts": null, "Config": null,'
        f' "HostConfig": null, "State": {state}}}]'
    )
    assert (container.started_at, container.finished_at) == (None, None)
    assert (container.memory_bytes, container.ports, container.volumes) == (None, (), {})


def test_the_engine_is_read(answers: dict[str, Any]) -> None:
    info = parse_info(json.dumps(answers["info"]))
    assert info.server_version == answers["info"]["ServerVersion"]
    assert (info.driver, info.root_dir) == ("overlay2", "/var/lib/docker")
    assert "runc" in info.runtimes
    assert info.cpus > 0
    assert info.memory_bytes > 0


def test_a_volume_is_where_its_mountpoint_says(answers: dict[str, Any]) -> None:
    (volume,) = answers["volumes"]
    assert volume["Mountpoint"] == f"{parse_info(json.dumps(answers['info'])).root_dir}/volumes/data/_data"


def test_every_refusal_is_recognised(answers: dict[str, Any]) -> None:
    recognised = {what: errors.classify(said)[0] for what, said in answers["refusals"].items()}
    assert recognised == {what: kind for kind, refusals in KINDS.items() for what in refusals}
