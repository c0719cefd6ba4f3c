"""An agent cannot change what mngr decided when it created it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.state.agent_data import believed, checked_agent_data
from imbue.mngr_vps_docker.state.record import encode_agent_data
from support.world import ScriptedMachine, World, discovered

pytestmark = pytest.mark.usefixtures("agent_types")

ID = AgentId.generate()
TRUE = {
    "id": ID,
    "name": "true",
    "type": "generic",
    "command": "true",
    "work_dir": "/true",
    "create_time": "2020-01-01T00:00:00+00:00",
    "created_branch_name": "mngr/true",
    "labels": {"is": "old"},
}
FORGED = {
    "name": "forged",
    "type": "claude",
    "command": "forged",
    "work_dir": "/forged",
    "create_time": "2021-01-01T00:00:00+00:00",
    "created_branch_name": "forged",
}


def keep(world: World, corrupted: HostId, **changes: object) -> None:
    """Put an agent into the record of the host, as mngr on some machine left it there."""
    path = world.record_path(corrupted).with_suffix("") / f"{ID}.json"
    path.write_bytes(encode_agent_data(TRUE | changes))


def forge(world: World, corrupted: HostId, **forged: object) -> None:
    """Write other data of the agent on the volume and in its container, as the agent can."""
    content = json.dumps(TRUE | forged)
    world.write_agent(corrupted, ID, content.encode())
    container = world.start(corrupted)
    container.stdout = (
        f"---MNGR_AGENT_START:0---\n---MNGR_AGENT_DATA_START---\n{content}\n---MNGR_AGENT_DATA_END---\n"
        "---MNGR_AGENT_END---\n"
    ).encode()


def every_way(world: World, corrupted: HostId) -> list[dict[str, Any]]:
    """The agent's data as each way of mngr's to it has it: listed, shown, as an object, and read in the container."""
    process = world.process()
    found = discovered(process)
    (host_ref,) = (host for host in found if host.host_id == corrupted)
    (listed,) = (agent for agent in found[host_ref] if agent.agent_id == ID)
    (shown,) = process.get_host_and_agent_details(host_ref, [listed])[1]
    (kept,) = (agent for agent in process.list_persisted_agent_data_for_host(corrupted) if agent["id"] == ID)
    host = world.process().get_host(corrupted)
    assert isinstance(host, VpsDockerHost)
    (loaded,) = (agent for agent in host.get_agents() if agent.id == ID)
    row = shown.model_dump(mode="json") | {"created_branch_name": shown.initial_branch, "id": str(shown.id)}
    row["create_time"] = shown.create_time.isoformat()
    object_data = {
        "id": str(loaded.id),
        "name": str(loaded.name),
        "type": str(loaded.agent_type),
        "work_dir": str(loaded.work_dir),
        "create_time": loaded.create_time.isoformat(),
    }
    container = world.network.containers[world.address(corrupted)]
    assert isinstance(container, ScriptedMachine)
    container.stdout = (world.volume(corrupted) / f"agents/{ID}/data.json").read_bytes()
    read = json.loads(host.read_text_file(host.host_dir / f"agents/{ID}/data.json"))
    return [dict(listed.certified_data), row, kept, object_data, read]


@pytest.mark.parametrize("name", FORGED)
def test_no_agent_changes_what_mngr_decided(world: World, corrupted: HostId, name: str) -> None:
    keep(world, corrupted)
    forge(world, corrupted, **{name: FORGED[name]})
    for way, data in enumerate(every_way(world, corrupted)):
        assert data.get(name, TRUE[name]) == TRUE[name], way
    # What is remembered, for when the VPS does not answer, is the true value.
    world.network.machines.pop(world.address(corrupted))
    (noted,) = (agent for agent in world.process().list_persisted_agent_data_for_host(corrupted) if agent["id"] == ID)
    assert noted[name] == TRUE[name]


@pytest.mark.parametrize("name", FORGED)
def test_what_mngr_changes_from_another_machine_is_seen_at_once(world: World, corrupted: HostId, name: str) -> None:
    keep(world, corrupted)
    forge(world, corrupted)
    every_way(world, corrupted)
    keep(world, corrupted, **{name: FORGED[name]})
    forge(world, corrupted, **{name: FORGED[name]})
    for way, data in enumerate(every_way(world, corrupted)):
        assert data.get(name, FORGED[name]) == FORGED[name], way


def test_what_changes_while_an_agent_runs_is_as_its_container_has_it(world: World, corrupted: HostId) -> None:
    keep(world, corrupted)
    forge(world, corrupted, labels={"is": "new"}, start_on_boot=True)
    for way, data in enumerate(every_way(world, corrupted)):
        assert data.get("labels", {"is": "new"}) == {"is": "new"}, way


def test_what_this_process_kept_just_now_is_believed(world: World, corrupted: HostId) -> None:
    keep(world, corrupted)
    forge(world, corrupted)
    process = world.process()
    container = world.start(corrupted)
    host = process.get_host(corrupted)
    assert isinstance(host, VpsDockerHost)
    renamed = TRUE | {"name": "renamed"}
    process.persist_agent_data(corrupted, renamed)
    container.stdout = json.dumps(renamed).encode()
    assert json.loads(host.read_text_file(host.host_dir / f"agents/{ID}/data.json"))["name"] == "renamed"


def test_an_agent_that_mngr_did_not_make_has_made_no_branch(world: World, corrupted: HostId) -> None:
    forge(world, corrupted)
    for way, data in enumerate(every_way(world, corrupted)):
        assert data.get("created_branch_name") is None, way
        assert data.get("work_dir", "/true") == "/true", way


def test_a_branch_is_not_believed_without_its_work_directory() -> None:
    kept = {name: value for name, value in TRUE.items() if name != "work_dir"}
    assert "created_branch_name" not in believed(TRUE | {"work_dir": "/code"}, kept)
    assert believed(FORGED | {"id": ID}, TRUE)["created_branch_name"] == "mngr/true"


def test_no_branch_of_this_machine_is_that_of_an_agent_elsewhere(
    world: World, corrupted: HostId, tmp_path: Path
) -> None:
    """Whatever the VPS itself says: mngr deletes the branch in the repository of a worktree at that path here."""
    (tmp_path / ".git").write_text("gitdir: /repository/.git/worktrees/x\n")
    keep(world, corrupted, work_dir=str(tmp_path))
    forge(world, corrupted, work_dir=str(tmp_path))
    assert every_way(world, corrupted)[-1].get("created_branch_name") is None


BRANCHES = ["main", "mngr/a1", "a-b", "é", "a.b", "@a", "a@", "v1.lock.x", "-D", "--all", "", "/a", "a/", "a//b"]
BRANCHES += [".a", "a/.b", "a..b", "a.lock", "a.lock/b", "a.", "a@{b", "a b", "a~b", "a^b", "a:b", "a?b", "a*b"]
BRANCHES += ["a[b", "a\\b", "a\nb", "a\x7fb", "a\n"]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_is_called_what_git_lets_one_be_called(branch: str) -> None:
    done = subprocess.run(["git", "check-ref-format", f"refs/heads/{branch}"], check=False)
    is_valid = done.returncode == 0 and not branch.startswith("-")
    data = checked_agent_data({"id": ID, "created_branch_name": branch})
    assert data.get("created_branch_name") == (branch if is_valid else None)
