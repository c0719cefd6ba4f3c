"""The containers of a host are started so that they cannot harm their VPS, whatever its record says."""

import json
import re
from typing import Any

import pytest
from pyinfra.api.host import Host as PyinfraHost

from imbue.mngr.primitives import HostId, HostState, SnapshotId
from imbue.mngr_vps_docker.docker.containers import run_words
from imbue.mngr_vps_docker.docker.errors import DockerError
from imbue.mngr_vps_docker.errors import BuildArgumentError, VpsDockerError
from imbue.mngr_vps_docker.hosts import outer_host
from imbue.mngr_vps_docker.lifecycle import create
from imbue.mngr_vps_docker.lifecycle.container import setup_command, state_container
from imbue.mngr_vps_docker.lifecycle.creation import Creation
from imbue.mngr_vps_docker.ssh.pipeline import Pending, Pipeline
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from support.builders import create_request
from support.world import World

SNAPSHOT = "mngr-snapshot:1"


def test_the_state_container_can_do_nothing_but_look_at_the_records(world: World) -> None:
    context = world.context
    argv = run_words(state_container(context, image="the-agents-own"))
    options = argv[: argv.index("the-agents-own")]
    assert f"{context.state_volume_name}:/mngr-state:ro" in options
    assert {
        "--user=0:0",
        "--workdir=/",
        "--network=none",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--pids-limit=64",
        "--memory=64m",
        "--log-driver=local",
    } < set(options)


def test_start_arguments_of_a_record_are_checked_before_use(world: World, corrupted: HostId) -> None:
    path = world.record_path(corrupted)
    record = json.loads(path.read_text())
    record["config"]["start_args"] = ["--memory=1g", "--privileged"]
    record["certified_host_data"]["snapshots"] = [{"id": SNAPSHOT, "name": "s1", "created_at": "2026-01-02T03:04:05Z"}]
    path.write_text(json.dumps(record))
    asked: list[str] = []
    world.vps(corrupted).before_command = asked.append
    with pytest.raises(BuildArgumentError, match="'--privileged' is refused"):
        world.process().start_host(corrupted, SnapshotId(SNAPSHOT))
    assert set(asked) == {"read the state of the VPS", f"inspect image {SNAPSHOT}"}
    with pytest.raises(DockerError, match=r"unexpected command line: docker (rename|run|inspect|container)"):
        world.process(allowed_start_args=("--privileged",)).start_host(corrupted, SnapshotId(SNAPSHOT))


def test_a_failed_setup_is_reported_with_the_names_of_start_arguments(world: World) -> None:
    context = world.context
    request = create_request(start_args=("--dns=192.0.2.1", "--env=TOKEN=secret", "--env=A=b"))
    creation = Creation(context, request, create._new_entry(context, request))
    for step, said in (
        ("Ordering the VPS", ""),
        ("Logging in to the container", ". Start arguments .*: --dns, --env"),
    ):
        creation.failed_step = step
        assert re.fullmatch(
            f"{step} failed: no answer{said}", str(create._explained(creation, VpsDockerError("no answer")))
        )


def test_the_command_of_a_setup_carries_its_script(world: World, corrupted: HostId) -> None:
    command = setup_command(world.access(corrupted))
    (script,) = command.secrets.values()
    assert "sshd" in script.revealed


def test_the_lock_of_a_setup_is_out_of_the_containers_reach(world: World, corrupted: HostId) -> None:
    command = setup_command(world.access(corrupted))
    before, _, inside = command.script.partition("docker exec")
    assert "flock" in before and f"9>/run/mngr-{corrupted}.lock" in command.script
    assert "flock" not in inside and "flock" not in before.partition("printf")[2]


def test_a_start_waits_while_a_snapshot_has_the_container_paused(
    world: World, healthy: HostId, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[RemoteCommand[Any]] = []
    add, run = Pipeline.add, Pipeline.run

    def noting(pipeline: Pipeline, command: RemoteCommand[Any]) -> Pending[Any]:
        added.append(command)
        return add(pipeline, command)

    def answering_questions(pipeline: Pipeline, **options: float) -> None:
        if any("/run/mngr-" in command.script for command in added):
            raise VpsDockerError("no answer")
        run(pipeline, **options)

    monkeypatch.setattr(Pipeline, "add", noting)
    monkeypatch.setattr(Pipeline, "run", answering_questions)
    world.start(healthy)
    process = world.process()
    for act in (process.create_snapshot, process.start_host):
        with pytest.raises(VpsDockerError, match="no answer"):
            act(healthy)
    locked = [command.purpose for command in added if command.script.endswith(f"9>/run/mngr-{healthy}.lock")]
    assert [purpose.partition(" container")[0] for purpose in locked] == ["commit", "start", "set up the"]


def test_listing_asks_neither_pyinfra_nor_the_users_ssh_configuration(
    world: World, healthy: HostId, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, names = outer_host.create_pyinfra_host, list[str]()
    asked: list[str] = []

    def noted(name: str, *rest: Any) -> PyinfraHost:
        names.append(name)
        return made(name, *rest)

    monkeypatch.setattr(outer_host, "create_pyinfra_host", noted)
    monkeypatch.setattr(outer_host, "refuse_forwarding", lambda _user, host, *_rest: asked.append(host))
    world.start(healthy)
    assert world.rows()[healthy][0].state is HostState.RUNNING
    process = world.process()
    assert not names and not asked
    connector = process.get_connector(healthy)
    assert (connector.name, names, asked) == ("localhost", ["localhost"], ["localhost"])
    assert connector.data.get("ssh_strict_host_key_checking") == "yes"
