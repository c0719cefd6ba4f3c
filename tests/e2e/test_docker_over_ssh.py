"""Docker's verbs and the state of a VPS, over a real ssh to this machine and its own engine."""

import json
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_local_vps.images import image_of_base
from imbue.mngr_vps_docker.docker.commands import load_script, save_script
from imbue.mngr_vps_docker.docker.containers import replace_container
from imbue.mngr_vps_docker.docker.errors import (
    ContainerNotRunningError,
    DockerError,
    InvalidDockerArgumentError,
    NameInUseError,
    NoSuchContainerError,
    NoSuchImageError,
    NoSuchVolumeError,
    PortInUseError,
    UnknownRuntimeError,
)
from imbue.mngr_vps_docker.docker_over_ssh import ContainerSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import HostRecordError, VpsConnectionError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord, VpsDockerHostStore
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.vps_state import read_vps
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.shell import join, shell_argv
from imbue.mngr_vps_docker.state.host_volume import HostVolumeOverSsh
from support.builders import local_record_of
from support.loopback_sshd import LoopbackSshd

IMAGE = image_of_base("bookworm")
_KEEP_RUNNING = ("-c", "trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done")


@dataclass(frozen=True)
class Engine:
    """Docker over ssh, and a prefix for all names of one test module."""

    docker: DockerOverSsh
    prefix: str

    def spec(self, name: str, **changes: object) -> ContainerSpec:
        values = {
            "name": f"{self.prefix}-{name}",
            "image": IMAGE,
            "entrypoint": "sh",
            "command": _KEEP_RUNNING,
            "labels": {self.prefix: name},
        }
        return ContainerSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sshd(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path_factory.mktemp("sshd"), options=("MaxStartups 100",)) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def connection(sshd: LoopbackSshd) -> Iterator[SshConnection]:
    connection = SshConnection(sshd.target(label="this machine"))
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def real(connection: SshConnection, vps_image: None) -> Iterator[Engine]:
    prefix = f"mngr-e2e-{secrets.token_hex(4)}"
    docker = DockerOverSsh(connection)
    yield Engine(docker, prefix)
    for container in docker.list_containers({prefix: None}):
        docker.remove_container(container.id, is_missing_ok=True)
    names = f"docker volume ls -q --filter name={prefix}; docker image ls -q --filter reference='{prefix}*'"
    found = connection.run(names, purpose="find what is left", timeout_seconds=60).checked().text.split()
    for name in found:
        if name.startswith(prefix):
            docker.remove_volume(name)
        else:
            subprocess.run(["docker", "image", "rm", "--force", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def running(real: Engine) -> str:
    return real.docker.run_container(real.spec("running"))


def replaced(real: Engine, spec: ContainerSpec) -> str:
    return real.docker.connection.call(replace_container(spec, aside=f"{spec.name}.replaced", timeout_seconds=120))


def test_a_container_that_is_replaced_is_there_until_the_new_one_runs(real: Engine) -> None:
    docker, spec = real.docker, real.spec("changed")
    old = docker.run_container(spec)
    for image in ("mngr-no-such-image:1", IMAGE):
        broken = replace(spec, image=image, entrypoint="/no/such/program")
        with pytest.raises(DockerError):
            replaced(real, broken)
        assert [found.id for found in docker.list_containers({real.prefix: "changed"})] == [old]
        assert docker.inspect_container(spec.name) is not None
    docker.start_container(spec.name)
    new = replaced(real, spec)
    assert [found.id for found in docker.list_containers({real.prefix: "changed"})] == [new] != [old]
    # Cut short after the old one was set aside, and before the new one ran.
    subprocess.run(("docker", "rename", spec.name, f"{spec.name}.replaced"), check=True, capture_output=True)
    newest = replaced(real, spec)
    assert [found.id for found in docker.list_containers({real.prefix: "changed"})] == [newest] != [new]


def test_a_containers_life(real: Engine) -> None:
    docker = real.docker
    spec = real.spec("life", extra_args=("--cpus", "0.5", "--memory", "64m"), published_ports={0: 22})
    spec_id = docker.run_container(spec)
    info = docker.inspect_container(spec.name)
    assert info is not None
    assert (info.id, info.name, info.status, info.is_running) == (spec_id, spec.name, "running", True)
    assert (info.nano_cpus, info.memory_bytes) == (500_000_000, 64 << 20)
    assert (info.image, info.labels) == (IMAGE, {**info.labels, real.prefix: "life"})
    assert info.started_at is not None and info.finished_at is None
    docker.start_container(spec.name)
    docker.stop_container(spec.name)
    docker.stop_container(spec.name)
    stopped = docker.inspect_container(spec_id)
    assert stopped is not None
    assert (stopped.status, stopped.exit_code) == ("exited", 7)
    assert stopped.finished_at is not None and stopped.finished_at > info.started_at
    docker.start_container(spec.name)
    assert [found.id for found in docker.list_containers({real.prefix: "life"})] == [spec_id]
    docker.remove_container(spec.name)
    assert docker.inspect_container(spec.name) is None
    assert docker.list_containers({real.prefix: "life"}) == ()
    docker.remove_container(spec.name, is_missing_ok=True)
    with pytest.raises(NoSuchContainerError):
        docker.remove_container(spec.name)
    with pytest.raises(NoSuchContainerError):
        docker.start_container(spec.name)


def test_what_docker_refuses_to_run_leaves_no_container(real: Engine, running: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        table = {
            PortInUseError: real.spec("refused", published_ports={port: 22}, publish_address="127.0.0.1"),
            UnknownRuntimeError: real.spec("refused", extra_args=("--runtime", "no-such-runtime")),
            InvalidDockerArgumentError: real.spec("refused", extra_args=("--no-such-option",)),
            DockerError: real.spec("refused", entrypoint="/no/such/program"),
        }
        for error, spec in table.items():
            with pytest.raises(error):
                real.docker.run_container(spec)
            assert real.docker.inspect_container(spec.name) is None
    for argument in ("--cpus=lots", "--memory=1", "--restart=sometimes", "-e", "--publish=x:y"):
        with pytest.raises(InvalidDockerArgumentError):
            real.docker.run_container(real.spec("refused", extra_args=(argument,)))
    with pytest.raises(InvalidDockerArgumentError):
        real.docker.run_container(real.spec("refused", image="Bad Image"))
    with pytest.raises(NameInUseError):
        real.docker.run_container(real.spec("running"))
    still = real.docker.inspect_container(running)
    assert still is not None and still.is_running


def test_exec_gives_the_commands_own_outcome(real: Engine, running: str) -> None:
    nasty = "a 'b' \"c\" $d \\ \n e"
    outcome = real.docker.exec(
        running,
        'cat; printf %s "$X"; pwd; id -un >&2; exit 3',
        purpose="try",
        timeout_seconds=20,
        stdin=b"\0in\n",
        user="nobody",
        workdir="/tmp",
        env={"X": nasty},
    )
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (
        3,
        b"\0in\n" + nasty.encode() + b"/tmp\n",
        b"nobody\n",
    )
    quiet = real.docker.exec(running, "cat; exit 1", purpose="try", timeout_seconds=20)
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (1, b"", b"")
    long = real.docker.exec(running, f"x='{'é' * 200_000}'; echo ${{#x}}; cat", purpose="try", timeout_seconds=20)
    assert long.text.strip() in ("200000", "400000")


def test_any_words_survive_on_their_way_through_ssh_docker_and_two_shells(real: Engine, running: str) -> None:
    words = [
        "-n",
        "a 'b' \"c\"",
        "$HOME `id` $(id)",
        "\\",
        "\n\nEOF\n",
        "*",
        "",
        "!x; exit 9 #",
        "\x1b[2J",
        "e\u0301 \U0001f600",
    ]
    command = join(shell_argv(join(("printf", r"%s\0", *words))))
    outcome = real.docker.exec(running, command, purpose="try", timeout_seconds=20)
    assert outcome.stdout.decode().split("\0")[:-1] == words


def test_exec_streams_lines_as_they_come(real: Engine, running: str) -> None:
    lines: list[tuple[str, str]] = []
    outcome = real.docker.exec(
        running,
        "echo out; echo err >&2",
        purpose="try",
        timeout_seconds=20,
        on_line=lambda line, stream: lines.append((line.rstrip("\n"), stream.name)),
    )
    assert outcome.is_success
    assert sorted(lines) == [("err", "STDERR"), ("out", "STDOUT")]


def test_dockers_refusal_is_never_taken_for_the_commands_exit_code(real: Engine, running: str) -> None:
    def run(container: str, command: str = "true", **rest: str) -> int | None:
        return real.docker.exec(container, command, purpose="try", timeout_seconds=20, **rest).exit_code  # type: ignore[arg-type]

    with pytest.raises(NoSuchContainerError):
        run(f"{real.prefix}-none")
    with pytest.raises(DockerError):
        run(running, user="nosuchuser")
    stopped = real.docker.run_container(real.spec("stopped", command=("-c", "exit 0")))
    while (info := real.docker.inspect_container(stopped)) is None or info.is_running:
        time.sleep(0.05)
    with pytest.raises(ContainerNotRunningError):
        run(stopped)
    # What the command itself prints and returns may look the same.
    assert run(running, "echo 'Error response from daemon: No such container: x' >&2; exit 1") == 1


def test_a_deadline_ends_the_process_in_the_container_too(real: Engine, running: str) -> None:
    outcome = real.docker.exec(running, "sleep 98765", purpose="sleep", timeout_seconds=1)
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.TIMED_OUT, None)
    deadline = time.monotonic() + 10
    is_there = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q 'sleep [9]8765'"
    while real.docker.exec(running, is_there, purpose="look", timeout_seconds=20).is_success:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_logs_have_both_streams(real: Engine) -> None:
    container = real.docker.run_container(
        real.spec("logs", command=("-c", "for i in 1 2 3; do echo $i; done; echo e >&2"))
    )
    deadline = time.monotonic() + 10
    while "e" not in real.docker.logs(container):
        assert time.monotonic() < deadline
    assert sorted(real.docker.logs(container).split()) == ["1", "2", "3", "e"]
    assert len(real.docker.logs(container, tail_lines=2).split()) == 2
    with pytest.raises(NoSuchContainerError):
        real.docker.logs(f"{real.prefix}-none")


def test_images_are_committed_inspected_and_removed(real: Engine, running: str) -> None:
    docker = real.docker
    docker.exec(running, "echo kept > /etc/kept", purpose="write", timeout_seconds=20).checked()
    image = f"{real.prefix}:snap"
    image_id = docker.commit(running, image=image, labels={"k": 'v "x" $y'})
    info = docker.inspect_image(image)
    assert info is not None
    assert (info.id, info.tags, info.labels["k"]) == (image_id, (image,), 'v "x" $y')
    assert docker.list_images(real.prefix) == (info,)
    assert docker.list_images(f"{real.prefix}-none") == ()
    copy = docker.connection.run(f"{save_script(image)} | {load_script()}", purpose="copy", timeout_seconds=120)
    assert image in copy.checked().text
    docker.remove_image(image)
    assert docker.inspect_image(image) is None
    docker.remove_image(image, is_missing_ok=True)
    with pytest.raises(NoSuchImageError):
        docker.remove_image(image)


def test_volumes(real: Engine) -> None:
    docker, name = real.docker, f"{real.prefix}-v"
    with pytest.raises(NoSuchVolumeError):
        docker.volume_mountpoint(name)
    docker.create_volume(name, labels={"k": "v"})
    docker.create_volume(name)
    assert docker.volume_mountpoint(name).endswith(f"/{name}/_data")
    docker.remove_volume(name)
    docker.remove_volume(name, is_missing_ok=True)
    with pytest.raises(NoSuchVolumeError):
        docker.remove_volume(name)


def test_the_daemon_describes_itself(real: Engine) -> None:
    info = real.docker.info()
    assert info.server_version and info.root_dir.startswith("/") and "runc" in info.runtimes
    assert info.cpus >= 1 and info.memory_bytes > 1 << 28


def test_an_unreachable_machine_is_not_reported_as_empty(real: Engine, tmp_path: Path) -> None:
    target = real.docker.connection.target
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        connection = SshConnection(replace(target, port=free.getsockname()[1], label="nobody"))
        docker = DockerOverSsh(connection)
        for question in (
            lambda: docker.inspect_container("x"),
            lambda: docker.inspect_image("x"),
            lambda: docker.list_containers({"x": None}),
            lambda: docker.exec("x", "true", purpose="try", timeout_seconds=5).checked(),
            lambda: VpsDockerHostStore(connection, "x").list_all_host_records(),
            lambda: read_vps(ObservedHost(local_record_of(HostId())), connection, state_volume="x"),
        ):
            with pytest.raises(VpsConnectionError):
                question()


def test_records_and_the_files_of_a_stopped_host(real: Engine) -> None:
    docker, connection, host_id = real.docker, real.docker.connection, HostId()
    state_volume, now, agent = f"{real.prefix}-state", datetime.now(UTC), {"id": AgentId(), "name": "a1"}
    store = VpsDockerHostStore(connection, state_volume)
    with pytest.raises(HostRecordError, match="no such volume"):
        store.list_all_host_records()
    seen_before = ObservedHost(local_record_of(host_id, record=None))
    assert not read_vps(seen_before, connection, state_volume=state_volume).is_read
    docker.create_volume(state_volume)
    data = CertifiedHostData(host_id=host_id, host_name="h1", created_at=now, updated_at=now)
    store.write_host_record(VpsDockerHostRecord(certified_host_data=data, vps_ip="::1"))
    store.persist_agent_data(host_id, agent)
    host_volume = f"mngr-host-vol-{host_id.get_uuid().hex}"
    container = docker.run_container(
        real.spec(
            "host",
            labels={real.prefix: "host", "com.imbue.mngr.host-id": host_id},
            volumes={host_volume: "/mngr-vol", state_volume: "/state"},
        )
    )
    try:
        seen = docker.exec(container, "cat /state/host_state/*.json", purpose="look", timeout_seconds=20).checked()
        assert json.loads(seen.text)["vps_ip"] == "::1"
        volume = HostVolumeOverSsh(connection=connection, volume_name=host_volume)
        volume.write_files({"data.json": b'{"x": 1}', f"agents/{agent['id']}/data.json": json.dumps(agent).encode()})
        assert docker.exec(container, "cat /mngr-vol/data.json", purpose="look", timeout_seconds=20).text == '{"x": 1}'
        docker.exec(container, "echo PAUSED > /mngr-vol/stop_reason", purpose="write", timeout_seconds=20).checked()
        docker.stop_container(container, timeout_seconds=1)
        found = read_vps(seen_before, connection, state_volume=state_volume)
        assert found.vps_record is not None and found.vps_record.vps_ip == "::1"
        assert (found.data_json, found.stop_word) == ({"x": 1}, "PAUSED")
        assert found.live_agents == found.kept_agents == (agent,)
        assert found.container is not None and (found.container.id, found.container.status) == (container, "exited")
        assert volume.read_file("stop_reason") == b"PAUSED\n"
    finally:
        docker.remove_container(container)
        docker.remove_volume(host_volume)


def test_the_example_of_the_readme_works(
    sshd: LoopbackSshd, running: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = (example for example in examples if "DockerOverSsh(" in example)
    target = sshd.target()
    there = f'SshTarget("127.0.0.1", {str(target.identity_file)!r}, {str(target.known_hosts_file)!r}'
    there += f', port={target.port}, user={target.user!r}, host_key_alias="loopback")'
    example, replaced = re.subn(r"SshTarget\(.*?known_hosts\"\)", lambda _: there, example)
    assert replaced == 1
    exec(compile(example, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "-running running" in said
