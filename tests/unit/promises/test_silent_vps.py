"""A VPS that does not answer delays no other host, and its own only as long as the settings say."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from imbue.mngr.errors import HostConnectionError, MngrError
from imbue.mngr.interfaces.data_types import HostDetails
from imbue.mngr.primitives import AgentId, HostId, HostState
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.hosts.timings import Patience, Timings
from imbue.mngr_vps_docker.primitives import replace
from support.memory_provider import MemoryProvider
from support.provider import states
from support.world import ADDRESS, CASES, Vps, World, discovered

OTHER = "192.0.2.2"


@pytest.fixture
def silent(world: World) -> Iterator[HostId]:
    """A host that ran when it was last seen, and whose VPS does not answer; another host answers."""
    host_id = world.arrange(CASES["silent"])
    world.add_host(address=OTHER)
    yield host_id
    world.network.before_login = lambda: None


def listed(process: MemoryProvider) -> dict[HostId, HostState | None]:
    return {host.host_id: host.host_state for host in discovered(process)}


def row(process: MemoryProvider, host_id: HostId) -> HostDetails:
    """What `mngr list` shows of a host."""
    (host,) = (host for host in discovered(process) if host.host_id == host_id)
    return process.get_host_and_agent_details(host, [])[0]


def test_a_listing_waits_briefly_and_for_less_once_it_knows(world: World, silent: HostId) -> None:
    for timeout in (3, 2, 2):
        row(world.process(), silent)
        assert world.network.connect_timeouts.pop() == timeout
        assert world.network.connect_timeouts == []


def test_its_row_shows_the_last_seen_state_and_the_outage(world: World, silent: HostId) -> None:
    first, second = row(world.process(), silent), row(world.process(), silent)
    assert (first.state, second.state) == (HostState.RUNNING, HostState.RUNNING)
    since = (first.failure_reason or "").partition(" UTC: ")[0]
    assert since.startswith("unreachable since 2")
    assert (second.failure_reason or "").startswith(since)
    assert world.process().get_host(silent).get_state() is HostState.RUNNING


@pytest.mark.parametrize(("vps", "state"), [(Vps.CRASHED, HostState.CRASHED), (Vps.STOPPED, HostState.STOPPED)])
def test_a_host_that_was_last_seen_down_is_not_said_to_run(world: World, vps: Vps, state: HostState) -> None:
    host_id = world.arrange(replace(CASES["crashed with an agent"], vps=vps))
    assert listed(world.process()) == {host_id: state}
    world.network.machines.clear()
    assert listed(world.process()) == {host_id: state}


def test_a_command_for_another_host_does_not_wait_for_it(world: World, silent: HostId) -> None:
    row(world.process(), silent)
    is_over = threading.Event()
    world.network.before_login = lambda: is_over.wait(60)
    process = world.process()
    assert listed(process)[silent] is HostState.RUNNING
    # A command that destroys it does not wait either.
    assert process.get_host(silent).get_state() is HostState.RUNNING
    process.destroy_host(silent)
    is_over.set()
    assert ADDRESS not in world.cloud.instances


def test_a_listing_ends_though_its_login_does_not(world: World, silent: HostId) -> None:
    is_over = threading.Event()
    world.network.before_login = lambda: is_over.wait(60)
    brief = Patience(connect_seconds=0.1, answer_seconds=0.1)
    world.network.timings = Timings(listing=brief, listing_of_silent=brief)
    for _ in range(2):
        assert "unreachable since" in (row(world.process(), silent).failure_reason or "")
    assert not is_over.is_set()
    is_over.set()


def test_once_it_answers_again_the_first_list_shows_it(world: World, silent: HostId) -> None:
    row(world.process(), silent)
    world.boot(silent)
    shown = row(world.process(), silent)
    assert (shown.state, shown.failure_reason) == (HostState.STOPPED, None)
    entry = world.local_store.read(silent)
    assert entry is not None
    assert entry.unreachable is None


def test_a_command_on_its_host_waits_once_as_long_as_the_settings_say(world: World, silent: HostId) -> None:
    process = world.process(ssh_connect_timeout=20.0)
    listed(process)
    assert world.network.connect_timeouts == [3]
    for act in (process.start_host, process.stop_host, process.create_snapshot):
        with pytest.raises(VpsConnectionError):
            act(silent)
    assert world.network.connect_timeouts == [3, 20]
    world.network.connect_timeouts.clear()
    with pytest.raises(VpsConnectionError):
        world.process(ssh_connect_timeout=20.0).start_host(silent)
    assert world.network.connect_timeouts == [20]


def test_what_a_listing_has_waited_counts_for_the_command_that_follows(world: World, silent: HostId) -> None:
    process = world.process(ssh_connect_timeout=20.0)
    listed(process)
    process.context.waited_seconds[silent] = 3.0
    with process.outer_host_for(silent) as outer:
        assert outer is not None
        with pytest.raises(VpsConnectionError):
            outer.execute_idempotent_command("true")
    with pytest.raises(VpsConnectionError):
        process.start_host(silent)
    assert world.network.connect_timeouts == [3, 17, 17]


def test_an_endless_answer_is_waited_for_like_a_silent_vps(world: World) -> None:
    host_id = HostId.generate()
    world.network.timings = Timings(listing=Patience(3.0, 0.5), listing_of_silent=Patience(2.0, 0.2))
    world.arrange(CASES["stopped with an agent"], host_id)
    vps = world.vps(host_id)
    docker = next(vps.volumes.parent.glob("bin/docker"))
    docker.write_text("#!/bin/sh\nsleep 3\n")
    listed(world.process())
    entry = world.local_store.read(host_id)
    assert entry is not None
    assert entry.is_silent


class PackageProvider(MemoryProvider):
    """Finds its hosts itself, as packages written against version 0.1.0 do."""

    def _discover_host_records_with_agents(
        self,
    ) -> tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]:
        with ThreadPoolExecutor() as pool:
            found = pool.map(self._read, [str(info.address) for info in self.vps_client.instances.values()])  # type: ignore[attr-defined]
        return [record for records in found for record in records], {}

    def _read(self, address: str) -> list[VpsDockerHostRecord]:
        try:
            with self._make_outer_for_vps_ip(address) as outer:
                store = self._get_existing_host_store(outer)
                return [] if store is None else store.list_all_host_records()
        except (HostConnectionError, MngrError):
            return []


@pytest.mark.parametrize("is_listing", [True, False])
def test_a_package_that_lists_by_itself_waits_no_longer(world: World, silent: HostId, is_listing: bool) -> None:
    world.cloud.is_listing = is_listing
    assert listed(world.process(provider_class=PackageProvider))[silent] is HostState.RUNNING
    # Once by the package; the second time in the background.
    assert world.network.connect_timeouts[0] == 3
    assert set(world.network.connect_timeouts[1:]) <= {2}
    is_over = threading.Event()
    world.network.before_login = lambda: is_over.wait(60)
    assert listed(world.process(provider_class=PackageProvider))[silent] is HostState.RUNNING
    is_over.set()


def test_agents_of_a_silent_host_stay_known(world: World, silent: HostId) -> None:
    agent = {"id": AgentId.generate(), "name": "a1"}
    world.local_store.update(silent, lambda known: replace(known, agents=(agent,)))
    for _ in range(2):
        assert world.listed()[silent] == ["a1"]
    assert states(world.process())[silent] is HostState.RUNNING
