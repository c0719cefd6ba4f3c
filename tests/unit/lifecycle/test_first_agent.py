"""A host that mngr made and has no agent on yet is lost to nobody, however the process that made it ends."""

import gc
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import AgentId, HostId, HostState
from imbue.mngr_vps_docker.state.local_store import LocalHostStore
from support.fleet import ADDRESS, Fleet
from support.provider import states
from support.remote import wait_for

AWAITING = """\
import sys, time
from pathlib import Path
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.state.local_store import LocalHostStore
LocalHostStore(Path(sys.argv[1])).await_agent(HostId(sys.argv[2]))
sys.stdout.write("awaiting")
sys.stdout.flush()
time.sleep(300)
"""


@pytest.fixture
def made(fleet: Fleet) -> HostId:
    """A host as it is when mngr has just been handed it."""
    host_id = HostId.generate()
    fleet.cloud.order(host_id, ADDRESS, datetime.now(UTC))
    fleet.note(host_id, awaits_agent=True)
    fleet.machine(host_id)
    return host_id


def local_store(fleet: Fleet) -> LocalHostStore:
    return fleet.process()._context.local_store


def reason(fleet: Fleet, host_id: HostId) -> str | None:
    return fleet.process().get_host(host_id).get_failure_reason()


def test_it_is_finished_while_the_process_that_made_it_lives(fleet: Fleet, made: HostId) -> None:
    local_store(fleet).await_agent(made)
    # Whatever object of that process held it.
    gc.collect()
    assert states(fleet.process()) == {made: HostState.STOPPED}
    local_store(fleet).forget(made)


def test_it_is_failed_once_that_process_is_killed_and_can_be_found_by_its_name(fleet: Fleet, made: HostId) -> None:
    hosts_folder = fleet.note_path(made).parents[1]
    with subprocess.Popen([sys.executable, "-c", AWAITING, hosts_folder, made], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(len("awaiting")) == b"awaiting"
            assert states(fleet.process()) == {made: HostState.STOPPED}
        finally:
            process.kill()
    wait_for(lambda: not local_store(fleet).is_attended(made))
    ((host, agents),) = fleet.listed().items()
    assert (host.host_state, [agent.agent_name for agent in agents]) == (HostState.FAILED, ["h1"])
    assert "before there was an agent on it" in (reason(fleet, made) or "")
    with pytest.raises(MngrError, match="before there was an agent on it"):
        fleet.process().start_host(made)


def test_its_first_agent_makes_it_one_like_any_other_for_good(fleet: Fleet, made: HostId) -> None:
    local_store(fleet).await_agent(made)
    agent_id = AgentId.generate()
    fleet.process().persist_agent_data(made, {"id": agent_id, "name": "a1"})
    assert not local_store(fleet).is_attended(made)
    fleet.process().remove_persisted_agent_data(made, agent_id)
    assert states(fleet.process()) == {made: HostState.STOPPED}
    assert list(fleet.listed().values()) == [[]]


def test_an_agent_that_is_seen_on_it_does_so_too(fleet: Fleet, made: HostId) -> None:
    """Of a process that was killed between making it and noting it."""
    store = fleet.process()._context.store(fleet.network.machines[ADDRESS])
    agent_id = AgentId.generate()
    store.persist_agent_data(made, {"id": agent_id, "name": "a1"})
    assert states(fleet.process()) == {made: HostState.STOPPED}
    store.remove_persisted_agent_data(made, agent_id)
    assert states(fleet.process()) == {made: HostState.STOPPED}


def test_what_failed_first_on_it_is_told(fleet: Fleet, made: HostId) -> None:
    local_store(fleet).await_agent(made)
    local_store(fleet).note_failure(made, "The connection was lost during: git push")
    local_store(fleet).note_failure(made, "The lock could not be removed")
    local_store(fleet)._stop_awaiting(made)
    assert "The connection was lost during: git push" in (reason(fleet, made) or "")
    # That process has ended, so this is of another one.
    local_store(fleet).note_failure(made, "something else")
    assert "git push" in (reason(fleet, made) or "")


def test_hosts_of_earlier_versions_await_nothing(fleet: Fleet, made: HostId) -> None:
    path = fleet.note_path(made)
    note = json.loads(path.read_text())
    del note["awaits_agent"]
    path.write_text(json.dumps(note))
    assert states(fleet.process()) == {made: HostState.STOPPED}
