"""What follows for mngr's list and gc from what the cloud lists, this machine remembers and a VPS answers."""

import errno
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from loguru import logger
from pydantic import PrivateAttr

from imbue.mngr.errors import HostNameConflictError, MngrError, ProviderUnavailableError
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.primitives import AgentId, HostId, HostName, HostState
from imbue.mngr_vps_docker.errors import VpsApiError, VpsConnectionError, VpsDockerError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.vps_reader import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.state import keys, local_store
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from support.fleet import ADDRESS, CASES, LONG_AGO, Fleet
from support.local_machine import LocalMachine
from support.memory_provider import SILENT, MemoryCloud, record_of
from support.provider import collect_garbage, states


@pytest.mark.parametrize("name", CASES)
def test_a_host(fleet: Fleet, name: str) -> None:
    case, host_id = CASES[name], HostId.generate()
    fleet.set_up(host_id, case)
    local_store = fleet.process()._context.local_store
    with local_store.owned(host_id) if case.is_owned else nullcontext():
        assert states(fleet.process()) == ({} if case.state is None else {host_id: case.state})


def test_many_vpses_that_do_not_answer_cost_one_time_out_and_are_asked_once(fleet: Fleet) -> None:
    for number in range(MAX_PARALLEL_READINGS):
        host_id, address = HostId.generate(), f"192.0.2.{number}"
        fleet.note(host_id, address=address)
        fleet.cloud.order(host_id, address, LONG_AGO)
    # Nobody goes on before all have begun.
    fleet.network.before_login = threading.Barrier(MAX_PARALLEL_READINGS, timeout=60).wait
    process = fleet.process()
    found = process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)
    assert [host.host_state for host in found] == [HostState.RUNNING] * MAX_PARALLEL_READINGS
    for host, agents in found.items():
        assert isinstance(process.get_host(host.host_id), OfflineHost)
        shown, _agents = process.get_host_and_agent_details(host, agents)
        assert "Connection timed out" in (shown.failure_reason or "")
    assert len(fleet.network.logins) == len(set(fleet.network.logins)) == MAX_PARALLEL_READINGS


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is logged in to every VPS that answers."""
    monkeypatch.setattr(LocalMachine, "is_open", True)


def known_vps(fleet: Fleet, address: str = ADDRESS) -> LocalMachine:
    """A VPS that answers, of a host that this machine and the cloud know to be there."""
    host_id = HostId.generate()
    fleet.note(host_id, address=address)
    fleet.cloud.order(host_id, address, LONG_AGO)
    fleet.machine(host_id, address)
    vps = fleet.network.machines[address]
    assert isinstance(vps, LocalMachine)
    vps.commands.clear()
    return vps


class SlowCloud(MemoryCloud):
    """A cloud that answers once something else has happened."""

    _before_answer: threading.Event = PrivateAttr()

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        assert self._before_answer.wait(30)
        return super().find_instances(tags)


@pytest.fixture
def is_asked(fleet: Fleet) -> threading.Event:
    """What the cloud of the fleet waits for."""
    fleet.cloud = cloud = SlowCloud(account="test")
    cloud._before_answer = threading.Event()
    return cloud._before_answer


@pytest.mark.usefixtures("logged_in")
def test_a_vps_that_we_are_logged_in_to_answers_once_while_the_cloud_is_asked(
    fleet: Fleet, is_asked: threading.Event
) -> None:
    vps = known_vps(fleet)
    vps.before_command = lambda _: is_asked.set()
    assert list(states(fleet.process()).values()) == [HostState.STOPPED]
    assert len(vps.commands) == 1


@pytest.mark.usefixtures("logged_in")
def test_an_answer_does_not_count_once_this_machine_knows_something_else(
    fleet: Fleet, is_asked: threading.Event
) -> None:
    vps, local_store = known_vps(fleet), fleet.process()._context.local_store
    (entry,) = local_store.read_all()

    def rename(_purpose: str) -> None:
        if not is_asked.is_set():
            local_store.update(entry.host_id, host_name="renamed")
        is_asked.set()

    vps.before_command = rename
    states(fleet.process())
    assert len(vps.commands) == 2


@pytest.mark.usefixtures("logged_in")
def test_nobody_waits_for_an_answer_that_is_not_needed(fleet: Fleet) -> None:
    vps, is_over = known_vps(fleet), threading.Event()

    def answer_late(_purpose: str) -> None:
        assert is_over.wait(30)

    vps.before_command = answer_late
    down = FaultyClient(real=fleet.cloud, faults=(Fault("find_instances", ConnectionError("no route")),))
    with pytest.raises(ProviderUnavailableError):
        states(fleet.process(down))
    asking = [thread for thread in threading.enumerate() if thread.name == "ask-ahead"]
    is_over.set()
    for thread in asking:
        thread.join(30)
    # Python waits for others as it ends.
    assert asking and all(thread.daemon for thread in asking)


@pytest.mark.usefixtures("logged_in")
def test_who_has_to_log_in_does_not_wait_for_who_has_not(fleet: Fleet) -> None:
    silent, has_begun = HostId.generate(), threading.Event()
    fleet.network.before_login = has_begun.set

    def answer_late(_purpose: str) -> None:
        assert has_begun.wait(30)

    for number in range(2, 2 + MAX_PARALLEL_READINGS):
        known_vps(fleet, f"192.0.2.{number}").before_command = answer_late
    # The youngest is the last in order.
    fleet.note(silent, created_at=datetime.now(UTC))
    fleet.cloud.order(silent, ADDRESS, LONG_AGO)
    assert states(fleet.process())[silent] is HostState.RUNNING


def test_a_vps_that_we_are_not_logged_in_to_is_asked_where_the_cloud_says_that_it_is(fleet: Fleet) -> None:
    vps = known_vps(fleet)
    down = FaultyClient(real=fleet.cloud, faults=(Fault("find_instances", ConnectionError("no route")),))
    with pytest.raises(ProviderUnavailableError):
        states(fleet.process(down))
    assert vps.commands == []


@pytest.mark.usefixtures("logged_in")
def test_what_answers_where_a_vps_was_is_not_taken_for_it_where_it_is(fleet: Fleet) -> None:
    was, now = known_vps(fleet), known_vps(fleet, "192.0.2.2")
    (moved,) = (entry.host_id for entry in fleet.process()._context.local_store.read_all() if entry.vps_ip == ADDRESS)
    fleet.cloud.change(ADDRESS, address="192.0.2.3")
    fleet.network.refusals["192.0.2.3"] = SILENT
    found = states(fleet.process())
    assert (found[moved], sorted(found.values())) == (HostState.RUNNING, [HostState.RUNNING, HostState.STOPPED])
    assert (len(was.commands), len(now.commands)) == (1, 1)


def test_one_silent_vps_hides_no_other_and_keeps_every_volume(fleet: Fleet) -> None:
    silent, stopped = HostId.generate(), HostId.generate()
    fleet.note(silent, address="192.0.2.2")
    fleet.note(stopped)
    fleet.machine(stopped)
    fleet.cloud.order(silent, "192.0.2.2", LONG_AGO)
    fleet.cloud.order(stopped, ADDRESS, LONG_AGO)
    process = fleet.process()
    assert states(process) == {silent: HostState.RUNNING, stopped: HostState.STOPPED}
    with pytest.raises(MngrError, match="Volumes are not listed"):
        process.list_volumes()
    process.destroy_host(silent)
    assert [volume.host_id for volume in process.list_volumes()] == [stopped]


def test_a_cloud_that_leaves_out_the_time_zone_is_understood(fleet: Fleet) -> None:
    here, elsewhere = HostId.generate(), HostId.generate()
    fleet.note(here, address="192.0.2.2")
    fleet.cloud.order(here, "192.0.2.2", LONG_AGO)
    fleet.cloud.order(elsewhere, ADDRESS, LONG_AGO.replace(tzinfo=None))
    fleet.cloud.take_key(elsewhere, LONG_AGO)
    assert states(fleet.process()) == {here: HostState.RUNNING, elsewhere: HostState.FAILED}


@pytest.mark.parametrize("call", ["find_instances", "get_instance_status"])
def test_a_cloud_that_does_not_answer_is_no_empty_list(fleet: Fleet, call: str) -> None:
    host_id = HostId.generate()
    fleet.note(host_id)
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    fleet.cloud.is_listing = call == "find_instances"
    down = FaultyClient(real=fleet.cloud, faults=(Fault(call, ConnectionError("no route to the API")),))
    with pytest.raises(ProviderUnavailableError, match="no route to the API"):
        states(fleet.process(down))
    assert states(fleet.process()) == {host_id: HostState.RUNNING}


def test_hosts_are_listed_where_the_cloud_does_not_tell_its_keys(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    fleet.cloud.take_key(host_id, LONG_AGO)
    down = FaultyClient(real=fleet.cloud, faults=(Fault("list_ssh_keys", VpsApiError(503, "busy")),))
    assert states(fleet.process(down)) == {host_id: HostState.FAILED}
    collect_garbage(fleet.process(down))
    assert list(fleet.cloud.instances) == [ADDRESS]


def test_a_key_that_the_create_of_a_host_could_not_take_back_is_taken_back_by_the_next_command(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    fleet.cloud.take_key(host_id, LONG_AGO)
    local_store = fleet.process()._context.local_store
    local_store.update(host_id, ssh_key_id=f"key of {host_id}", ssh_key_name=fleet.cloud.keys[f"key of {host_id}"])
    busy = FaultyClient(real=fleet.cloud, faults=(Fault("delete_ssh_key", VpsApiError(503, "busy")),))
    assert states(fleet.process(busy)) == {host_id: HostState.STOPPED}
    assert len(fleet.cloud.keys) == 1
    assert states(fleet.process()) == {host_id: HostState.STOPPED}
    assert fleet.cloud.keys == {}
    entry = local_store.read(host_id)
    assert entry is not None and entry.ssh_key_name is None


def test_a_key_is_nobodys_only_if_no_provider_of_the_account_has_its_vps(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO, provider="another")
    fleet.cloud.take_key(host_id, LONG_AGO)
    assert states(fleet.process()) == {}
    collect_garbage(fleet.process())
    assert (len(fleet.cloud.instances), len(fleet.cloud.keys)) == (1, 1)
    fleet.cloud.instances.clear()
    assert states(fleet.process()) == {host_id: HostState.FAILED}
    collect_garbage(fleet.process())
    assert fleet.cloud.keys == {}


def test_a_note_that_cannot_be_read_is_made_anew_from_the_vps_and_kept(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["with a note that cannot be read"])
    states(fleet.process())
    assert fleet.note_path(host_id).with_suffix(".unreadable").read_text() == "torn"
    fleet.network.machines.clear()
    ((_host, agents),) = fleet.listed().items()
    assert [agent.agent_name for agent in agents] == ["a1"]


def test_a_note_that_cannot_be_read_is_told_of_once(fleet: Fleet) -> None:
    fleet.set_up(HostId.generate(), CASES["with a note that cannot be read, unlisted"])
    said: list[str] = []
    handler = logger.add(said.append, level="WARNING", format="{message}")
    try:
        states(fleet.process())
    finally:
        logger.remove(handler)
    assert sum("cannot be read" in line for line in said) == 1


def test_a_vps_that_may_exist_is_not_forgotten_where_the_cloud_cannot_list(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["with a note that cannot be read, unlisted"])
    for _ in range(2):
        with pytest.raises(MngrError, match=f"may have a VPS.*mngr-host-id={host_id}"):
            fleet.process().destroy_host(host_id)
        assert states(fleet.process()) == {host_id: HostState.FAILED}
    fleet.cloud.is_listing = True
    fleet.process().destroy_host(host_id)
    assert (states(fleet.process()), fleet.cloud.instances) == ({}, {})


def test_looking_at_a_host_takes_nothing_back_from_who_destroys_it(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    local_store = fleet.process()._context.local_store
    machine = fleet.network.machines[ADDRESS]
    assert isinstance(machine, LocalMachine)
    machine.before_command = lambda _purpose: local_store.update(host_id, phase=HostPhase.DESTROYING)
    states(fleet.process())
    entry = local_store.read(host_id)
    assert entry is not None
    assert (entry.phase, [agent["name"] for agent in entry.agents]) == (HostPhase.DESTROYING, ["a1"])


def test_the_name_of_a_host_that_is_gone_can_be_taken(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.note(host_id)
    full = FaultyClient(real=fleet.cloud, faults=(Fault("upload_ssh_key", VpsApiError(403, "no more keys")),))
    with pytest.raises(VpsProvisioningError, match="no more keys"):
        fleet.process(full).create_host(HostName("h1"))
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    with pytest.raises(HostNameConflictError):
        fleet.process(full).create_host(HostName("h1"))


def test_a_record_that_is_spoiled_again_and_again_is_replaced_and_the_spoiled_one_kept(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    states(fleet.process())
    path = fleet.record_path(host_id)
    for number in range(2):
        path.write_text(f"spoiled {number}")
        fleet.process().add_tags_to_host(host_id, {f"k{number}": "v"})
        assert path.with_name(f"{path.name}.unreadable").read_text() == f"spoiled {number}"
    assert fleet.process().get_host_tags(host_id) == {"k0": "v", "k1": "v"}


def test_what_the_cloud_does_not_say_of_one_vps_hides_no_other(fleet: Fleet) -> None:
    lost, other = HostId.generate(), HostId.generate()
    fleet.note(lost, address="192.0.2.2")
    fleet.note(other)
    fleet.machine(other).persist_agent_data(other, {"id": AgentId.generate(), "name": "a1"})
    fleet.cloud.order(lost, "192.0.2.2", LONG_AGO)
    fleet.cloud.order(other, ADDRESS, LONG_AGO)
    fleet.cloud.unlisted = {"192.0.2.2"}
    failing = FaultyClient(real=fleet.cloud, faults=(Fault("get_instance_status", VpsApiError(500, "oops")),))
    assert states(fleet.process(failing)) == {lost: HostState.RUNNING, other: HostState.STOPPED}
    collect_garbage(fleet.process(failing))
    assert len(fleet.cloud.instances) == 2


def test_a_damaged_key_is_the_trouble_of_its_host_alone(fleet: Fleet) -> None:
    damaged, other = HostId.generate(), HostId.generate()
    fleet.note(damaged)
    fleet.note(other, address="192.0.2.2")
    fleet.machine(damaged)
    fleet.machine(other, "192.0.2.2")
    fleet.cloud.order(damaged, ADDRESS, LONG_AGO)
    fleet.cloud.order(other, "192.0.2.2", LONG_AGO)
    fleet.note_path(damaged).with_name("container_ssh_key").write_text("spoiled")
    process = fleet.process()
    assert states(process) == {damaged: HostState.STOPPED, other: HostState.STOPPED}
    with pytest.raises(VpsDockerError, match="holds no private key"):
        process.start_host(damaged)


def test_hosts_are_listed_while_the_disk_of_this_machine_is_full(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (local_store, keys):
        monkeypatch.setattr(module, "write_atomically", full)
    ((host, agents),) = fleet.listed().items()
    assert (host.host_state, [agent.agent_name for agent in agents]) == (HostState.STOPPED, ["a1"])


def test_a_vps_that_did_not_answer_a_listing_is_asked_once_more_by_a_command_on_its_host(fleet: Fleet) -> None:
    for number in (1, 2):
        host_id, address = HostId.generate(), f"192.0.2.{number}"
        fleet.note(host_id, address=address)
        fleet.cloud.order(host_id, address, LONG_AGO)
    process = fleet.process()
    host = process.get_host(host_id)
    assert fleet.network.logins == ["192.0.2.2"]
    process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)
    fleet.network.logins.clear()
    for act in (process.start_host, process.stop_host, process.create_snapshot):
        with pytest.raises(VpsConnectionError):
            act(host)
    assert fleet.network.logins == ["192.0.2.2"]
    fleet.network.logins.clear()
    process.reset_caches()
    with pytest.raises(VpsConnectionError):
        process.start_host(host)
    assert fleet.network.logins == ["192.0.2.2"]


def test_of_two_vpses_of_one_host_the_one_that_is_noted_is_used(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, "192.0.2.2", LONG_AGO)
    fleet.set_up(host_id, CASES["stopped with an agent"])
    fleet.cloud.order(host_id, "192.0.2.3", LONG_AGO)
    assert states(fleet.process()) == {host_id: HostState.STOPPED}
    assert fleet.network.logins == []


def test_of_two_vpses_of_one_host_the_one_with_its_record_is_used_and_noted(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, "192.0.2.2", LONG_AGO)
    fleet.set_up(host_id, CASES["of another machine that shares its keys"])
    fleet.cloud.order(host_id, "192.0.2.3", LONG_AGO)
    assert states(fleet.process()) == {host_id: HostState.STOPPED}
    assert fleet.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


def test_many_threads_may_ask_for_a_host_while_others_forget_theirs(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.note(host_id, HostPhase.FAILED)
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    host_cache = fleet.process()._hosts
    (found,) = host_cache.discover()
    others = [
        replace(
            found, entry=found.entry.model_copy(update={"host_id": HostId.generate(), "host_name": f"other-{number}"})
        )
        for number in range(500)
    ]
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            for observed in others:
                host_cache.note(observed)
            for observed in others:
                host_cache.forget(observed.host_id)

    usual = sys.getswitchinterval()
    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        sys.setswitchinterval(1e-5)
        try:
            for _ in range(300):
                assert host_cache.get(HostName("h1")) == host_cache.get(found.host_id) == found
        finally:
            sys.setswitchinterval(usual)
            is_over.set()
        changing.result()


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_new_address_is_noted(fleet: Fleet, is_silent: bool) -> None:
    host_id = HostId.generate()
    fleet.note(host_id, address="192.0.2.77", record=None)
    if not is_silent:
        fleet.machine(host_id)
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    fleet.cloud.instances["192.0.2.77"] = fleet.cloud.instances.pop(ADDRESS)
    fleet.cloud.change("192.0.2.77", id=VpsInstanceId("192.0.2.77"))
    for _ in range(2):
        states(fleet.process())
        assert fleet.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


@pytest.mark.parametrize("is_listing", [True, False])
def test_one_host_is_found_at_its_new_address(fleet: Fleet, is_listing: bool) -> None:
    host_id = HostId.generate()
    fleet.note(host_id, address="192.0.2.77")
    fleet.machine(host_id)
    fleet.cloud.order(host_id, "192.0.2.77", LONG_AGO)
    fleet.cloud.change("192.0.2.77", address=ADDRESS)
    fleet.cloud.is_listing = is_listing
    assert fleet.process().get_host(host_id).get_state() is HostState.STOPPED
    assert fleet.network.logins == ["192.0.2.77"]
    assert fleet.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


def test_looking_at_a_host_does_not_bring_it_back_when_another_process_destroys_it(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    machine = fleet.network.machines[ADDRESS]
    assert isinstance(machine, LocalMachine)

    def destroy(_purpose: str) -> None:
        machine.before_command = None
        fleet.process().destroy_host(host_id)

    machine.before_command = destroy
    states(fleet.process())
    assert states(fleet.process(), include_destroyed=True) == {}


@pytest.mark.parametrize(("takes_seconds", "state"), [(10.0, HostState.FAILED), (1e6, HostState.BUILDING)])
def test_whether_another_machine_has_given_up_is_told_by_its_own_time_outs(
    fleet: Fleet, takes_seconds: float, state: HostState
) -> None:
    host_id, begun = HostId.generate(), datetime.now(UTC) - timedelta(seconds=60 if takes_seconds < 60 else 90_000)
    fleet.cloud.order(host_id, ADDRESS, begun)
    fleet.cloud.take_key(host_id, begun, takes_seconds)
    assert states(fleet.process()) == {host_id: state}


def test_a_vps_is_not_taken_for_the_one_that_had_its_address_before(fleet: Fleet) -> None:
    gone, older, newer = (HostId.generate() for _ in range(3))
    fleet.note(older, created_at=LONG_AGO)
    fleet.note(newer, created_at=LONG_AGO + timedelta(days=1))
    fleet.note(gone, created_at=LONG_AGO + timedelta(days=2), gone_since=LONG_AGO)
    with fleet.process()._make_outer_for_vps_ip(ADDRESS) as outer:
        assert outer.id == newer


@pytest.mark.parametrize("claimed", ["production", "../h1", "-", "", "h1\n", "x" * 70])
def test_a_vps_cannot_give_its_host_a_name_that_is_anothers_or_none(fleet: Fleet, claimed: str) -> None:
    bad, good = HostId.generate(), HostId.generate()
    fleet.note(bad)
    fleet.note(good, address="192.0.2.2", host_name="production", record=record_of(good, host_name="production"))
    store = fleet.machine(bad)
    fleet.cloud.order(bad, ADDRESS, LONG_AGO)
    fleet.cloud.order(good, "192.0.2.2", LONG_AGO)
    store.write_host_record(record_of(bad, host_name=claimed))
    assert {host.host_id: host.host_name for host in fleet.listed()} == {bad: "h1", good: "production"}
    process = fleet.process()
    assert process.get_host(bad).get_name() == "h1"
    assert process.get_host(HostName("production")).id == good


def test_a_host_that_another_machine_renamed_has_its_new_name(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.note(host_id)
    store = fleet.machine(host_id)
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    store.write_host_record(record_of(host_id, host_name="h2"))
    assert fleet.process().get_host(HostName("h2")).get_name() == "h2"
    fleet.network.machines.clear()
    assert [host.host_name for host in fleet.listed()] == ["h2"]


def test_a_name_that_two_hosts_have_is_refused(fleet: Fleet) -> None:
    for address in (ADDRESS, "192.0.2.2"):
        host_id = HostId.generate()
        fleet.note(host_id, address=address)
        fleet.cloud.order(host_id, address, LONG_AGO)
    with pytest.raises(MngrError, match=f"Several hosts are called h1.*{host_id}"):
        fleet.process().get_host(HostName("h1"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, even where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_who_interrupts_a_listing_does_not_wait_for_what_has_not_begun(fleet: Fleet) -> None:
    for number in range(2 * MAX_PARALLEL_READINGS):
        host_id, address = HostId.generate(), f"192.0.2.{number}"
        fleet.note(host_id, address=address)
        fleet.cloud.order(host_id, address, LONG_AGO)
    is_over, main_thread = threading.Event(), threading.main_thread().ident
    have_begun = threading.Barrier(MAX_PARALLEL_READINGS, lambda: signal.pthread_kill(main_thread, signal.SIGINT))

    def log_in() -> None:
        have_begun.wait(60)
        is_over.wait(60)

    fleet.network.before_login = log_in
    with pytest.raises(KeyboardInterrupt):
        states(fleet.process())
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "ask-vps":
            thread.join(60)
    assert len(fleet.network.logins) == MAX_PARALLEL_READINGS
