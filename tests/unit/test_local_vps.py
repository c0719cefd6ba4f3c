"""The parts of the local cloud that need no engine."""

import io
import json
import tarfile

import pytest
from pytest_subprocess import FakeProcess

from imbue.mngr_local_vps.__main__ import main
from imbue.mngr_local_vps.engine import api_error_of, describe
from imbue.mngr_local_vps.images import require_image
from imbue.mngr_local_vps.machine import hostname_of, seed_archive
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.errors import VpsApiError


@pytest.mark.parametrize(
    ("label", "hostname"),
    [("mngr-h1", "mngr-h1"), ("mngr-My_Host.2", "mngr-my-host-2"), ("x" * 80, "x" * 63), ("--", "vps"), ("", "vps")],
)
def test_any_label_makes_a_valid_host_name(label: str, hostname: str) -> None:
    assert hostname_of(label) == hostname


def test_the_seed_contains_the_user_data_byte_for_byte_and_the_keys() -> None:
    user_data = "#cloud-config\nnote: 'ümlaut, $HOME, `x`'\n\n"
    with tarfile.open(fileobj=io.BytesIO(seed_archive("i-1", "h", user_data, ["ssh-ed25519 AAAA a b"]))) as archive:
        contents = {member.name: archive.extractfile(member) for member in archive}
        texts = {name: file.read().decode() for name, file in contents.items() if file is not None}
    assert texts["user-data"] == user_data
    assert json.loads(texts["meta-data"]) == {
        "instance-id": "i-1",
        "local-hostname": "h",
        "public-keys": ["ssh-ed25519 AAAA a b"],
    }


@pytest.mark.parametrize(
    ("stderr", "status"),
    [
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?", 503),
        ("permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock", 503),
        ("error during connect: this error may indicate that the docker daemon is not running", 503),
        ("Error response from daemon: No such container: x", 404),
        ("Error: No such volume: x", 404),
        ("Error response from daemon: network x not found", 404),
        ('Error response from daemon: Conflict. The container name "/x" is already in use by container "y".', 409),
        ("Error response from daemon: dial tcp: lookup registry on 192.0.2.1:53: no such host", 500),
        ("", 500),
    ],
)
def test_a_failed_docker_command_has_the_status_that_a_cloud_would_give(stderr: str, status: int) -> None:
    assert api_error_of(["start", "x"], stderr).status_code == status


def test_an_object_that_vanishes_during_describe_is_left_out(fp: FakeProcess) -> None:
    fp.register(["docker", "container", "inspect", "a", "b"], returncode=1, stderr="Error: No such container: b\n")
    fp.register(["docker", "container", "inspect", "a"], stdout='[{"Id": "a"}]\n')
    fp.register(["docker", "container", "inspect", "b"], returncode=1, stderr="Error: No such container: b\n")
    assert describe("container", ["a", "b"]) == [{"Id": "a"}]
    assert len(fp.calls) == 3


def test_every_operating_system_has_an_agent_image_of_its_own_release() -> None:
    assert agent_image_of_os("debian-12") == agent_image_of_os("debian-12-no-docker") == "mngr-agent:bookworm"
    assert agent_image_of_os("debian-13") == agent_image_of_os("debian-13-no-docker") == "mngr-agent:trixie"
    assert agent_image_of_os("forky") == "mngr-agent:forky"


def test_an_unknown_operating_system_is_refused_before_any_docker_command(
    fp: FakeProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["image", "debian-12", "debian-11"]) == 1
    assert "unknown operating system 'debian-11'; valid: debian-12" in capsys.readouterr().err
    assert len(fp.calls) == 0


def test_the_error_for_a_missing_image_names_the_command_that_builds_it(fp: FakeProcess) -> None:
    fp.register([fp.program("docker"), fp.any()], returncode=1, stderr="Error: No such image: x\n")
    with pytest.raises(VpsApiError, match=r"run python -m imbue\.mngr_local_vps image debian-13$"):
        require_image("debian-13")
