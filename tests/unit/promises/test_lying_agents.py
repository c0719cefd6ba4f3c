"""What mngr decides of an agent when it makes it, the agent cannot change by what it writes in its container."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.agents.base_agent import BaseAgent
from imbue.mngr.config.agent_class_registry import reset_agent_class_registry, set_default_agent_class
from imbue.mngr.primitives import AgentId
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.state.agent_data import believed, checked_agent_data
from imbue.mngr_vps_docker.state.record import encode_agent_data
from support.pair import Pair, ScriptedMachine

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
LIES = {
    "name": "lie",
    "type": "claude",
    "command": "lie",
    "work_dir": "/lie",
    "create_time": "2021-01-01T00:00:00+00:00",
    "created_branch_name": "lie",
}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with ExitStack() as groups:
        monkeypatch.setenv("XDG_RUNTIME_DIR", groups.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        set_default_agent_class(BaseAgent)
        groups.callback(reset_agent_class_registry)
        yield Pair(tmp_path, groups)


def keep(pair: Pair, **changes: object) -> None:
    """Put an agent into the record of the host, as mngr on some machine left it there."""
    path = pair.record_path(pair.corrupted).with_suffix("") / f"{ID}.json"
    path.write_bytes(encode_agent_data(TRUE | changes))


def lie(pair: Pair, **lies: object) -> None:
    """Let the agent write something else on the volume and in its container."""
    content = json.dumps(TRUE | lies)
    pair.write_agent(pair.corrupted, ID, content.encode())
    container = pair.start(pair.corrupted)
    container.stdout = (
        f"---MNGR_AGENT_START:0---\n---MNGR_AGENT_DATA_START---\n{content}\n---MNGR_AGENT_DATA_END---\n"
        "---MNGR_AGENT_END---\n"
    ).encode()


def every_way(pair: Pair) -> list[dict[str, Any]]:
    """The agent's data as each way of mngr's to it has it: listed, shown, as an object, and read in the container."""
    process = pair.process()
    found = process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)
    (host_ref,) = (host for host in found if host.host_id == pair.corrupted)
    (listed,) = (agent for agent in found[host_ref] if agent.agent_id == ID)
    (shown,) = process.get_host_and_agent_details(host_ref, [listed])[1]
    (kept,) = (agent for agent in process.list_persisted_agent_data_for_host(pair.corrupted) if agent["id"] == ID)
    host = pair.process().get_host(pair.corrupted)
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
    container = pair.network.containers[pair.address(pair.corrupted)]
    assert isinstance(container, ScriptedMachine)
    container.stdout = (pair.volume(pair.corrupted) / f"agents/{ID}/data.json").read_bytes()
    read = json.loads(host.read_text_file(host.host_dir / f"agents/{ID}/data.json"))
    return [dict(listed.certified_data), row, kept, object_data, read]


@pytest.mark.parametrize("name", LIES)
def test_no_agent_changes_what_mngr_decided(pair: Pair, name: str) -> None:
    keep(pair)
    lie(pair, **{name: LIES[name]})
    for way, data in enumerate(every_way(pair)):
        assert data.get(name, TRUE[name]) == TRUE[name], way
    # It is noted as it is, for when the VPS does not answer.
    pair.network.machines.pop(pair.address(pair.corrupted))
    (noted,) = (
        agent for agent in pair.process().list_persisted_agent_data_for_host(pair.corrupted) if agent["id"] == ID
    )
    assert noted[name] == TRUE[name]


@pytest.mark.parametrize("name", LIES)
def test_what_mngr_changes_from_another_machine_is_seen_at_once(pair: Pair, name: str) -> None:
    keep(pair)
    lie(pair)
    every_way(pair)
    keep(pair, **{name: LIES[name]})
    lie(pair, **{name: LIES[name]})
    for way, data in enumerate(every_way(pair)):
        assert data.get(name, LIES[name]) == LIES[name], way


def test_what_changes_while_an_agent_runs_is_as_its_container_has_it(pair: Pair) -> None:
    keep(pair)
    lie(pair, labels={"is": "new"}, start_on_boot=True)
    for way, data in enumerate(every_way(pair)):
        assert data.get("labels", {"is": "new"}) == {"is": "new"}, way


def test_what_this_process_kept_just_now_is_believed(pair: Pair) -> None:
    keep(pair)
    lie(pair)
    process = pair.process()
    container = pair.start(pair.corrupted)
    host = process.get_host(pair.corrupted)
    assert isinstance(host, VpsDockerHost)
    renamed = TRUE | {"name": "renamed"}
    process.persist_agent_data(pair.corrupted, renamed)
    container.stdout = json.dumps(renamed).encode()
    assert json.loads(host.read_text_file(host.host_dir / f"agents/{ID}/data.json"))["name"] == "renamed"


def test_an_agent_that_mngr_did_not_make_has_made_no_branch(pair: Pair) -> None:
    lie(pair)
    for way, data in enumerate(every_way(pair)):
        assert data.get("created_branch_name") is None, way
        assert data.get("work_dir", "/true") == "/true", way


def test_a_branch_is_not_believed_without_the_work_directory_it_belongs_to() -> None:
    kept = {name: value for name, value in TRUE.items() if name != "work_dir"}
    assert "created_branch_name" not in believed(TRUE | {"work_dir": "/code"}, kept)
    assert believed(LIES | {"id": ID}, TRUE)["created_branch_name"] == "mngr/true"


def test_no_branch_of_this_machine_is_that_of_an_agent_elsewhere(pair: Pair, tmp_path: Path) -> None:
    """Whatever the VPS itself says: mngr deletes the branch in the repository of a worktree at that path here."""
    (tmp_path / ".git").write_text("gitdir: /repository/.git/worktrees/x\n")
    keep(pair, work_dir=str(tmp_path))
    lie(pair, work_dir=str(tmp_path))
    assert every_way(pair)[-1].get("created_branch_name") is None


BRANCHES = ["main", "mngr/a1", "a-b", "é", "a.b", "@a", "a@", "v1.lock.x", "-D", "--all", "", "/a", "a/", "a//b"]
BRANCHES += [".a", "a/.b", "a..b", "a.lock", "a.lock/b", "a.", "a@{b", "a b", "a~b", "a^b", "a:b", "a?b", "a*b"]
BRANCHES += ["a[b", "a\\b", "a\nb", "a\x7fb", "a\n"]


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_is_called_what_git_lets_one_be_called(branch: str) -> None:
    done = subprocess.run(["git", "check-ref-format", f"refs/heads/{branch}"], check=False)
    is_valid = done.returncode == 0 and not branch.startswith("-")
    data = checked_agent_data({"id": ID, "created_branch_name": branch})
    assert data.get("created_branch_name") == (branch if is_valid else None)
