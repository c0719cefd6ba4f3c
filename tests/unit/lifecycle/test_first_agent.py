"""A host without its first agent stays known, however the process that made it ends."""

import gc
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import AgentId, HostId, HostState
from support.provider import states
from support.remote import wait_for
from support.world import ADDRESS, World

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
def made(world: World) -> HostId:
    """A host as it is when mngr has just been handed it."""
    host_id = HostId.generate()
    world.cloud.add_vps(host_id, ADDRESS, datetime.now(UTC))
    world.remember(host_id, awaits_agent=True)
    world.boot(host_id)
    return host_id


def reason(world: World, host_id: HostId) -> str | None:
    return world.process().get_host(host_id).get_failure_reason()


def test_it_is_finished_while_the_process_that_made_it_lives(world: World, made: HostId) -> None:
    world.local_store.await_agent(made)
    # Whatever object of that process held it.
    gc.collect()
    assert states(world.process()) == {made: HostState.STOPPED}
    world.local_store.forget(made)


def test_it_is_failed_once_that_process_is_killed(world: World, made: HostId) -> None:
    hosts_folder = world.local_record_path(made).parents[1]
    with subprocess.Popen([sys.executable, "-c", AWAITING, hosts_folder, made], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(len("awaiting")) == b"awaiting"
            assert states(world.process()) == {made: HostState.STOPPED}
        finally:
            process.kill()
    wait_for(lambda: not world.local_store.is_in_progress(made))
    ((host, agents),) = world.discovered().items()
    assert (host.host_state, [agent.agent_name for agent in agents]) == (HostState.FAILED, ["h1"])
    assert "before there was an agent on it" in (reason(world, made) or "")
    with pytest.raises(MngrError, match="before there was an agent on it"):
        world.process().start_host(made)


def test_its_first_agent_makes_it_one_like_any_other_for_good(world: World, made: HostId) -> None:
    world.local_store.await_agent(made)
    agent_id = AgentId.generate()
    world.process().persist_agent_data(made, {"id": agent_id, "name": "a1"})
    assert not world.local_store.is_in_progress(made)
    world.process().remove_persisted_agent_data(made, agent_id)
    assert states(world.process()) == {made: HostState.STOPPED}
    assert list(world.discovered().values()) == [[]]


def test_an_agent_that_is_seen_on_it_does_so_too(world: World, made: HostId) -> None:
    """Of a process that was killed between making it and noting it."""
    store = world.context.store(world.vps(made))
    agent_id = world.add_agent(made)
    assert states(world.process()) == {made: HostState.STOPPED}
    store.remove_persisted_agent_data(made, agent_id)
    assert states(world.process()) == {made: HostState.STOPPED}


def test_what_failed_first_on_it_is_told(world: World, made: HostId) -> None:
    world.local_store.await_agent(made)
    world.local_store.save_failure(made, "The connection was lost during: git push")
    world.local_store.save_failure(made, "The lock could not be removed")
    world.local_store._stop_awaiting(made)
    assert "The connection was lost during: git push" in (reason(world, made) or "")
    # That process has ended, so this is of another one.
    world.local_store.save_failure(made, "something else")
    assert "git push" in (reason(world, made) or "")


def test_hosts_of_earlier_versions_await_nothing(world: World, made: HostId) -> None:
    path = world.local_record_path(made)
    note = json.loads(path.read_text())
    del note["awaits_agent"]
    path.write_text(json.dumps(note))
    assert states(world.process()) == {made: HostState.STOPPED}
