"""What mngr's list and gc see of a host, from what the cloud, this machine and its VPS say."""

import errno
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from loguru import logger
from pydantic import ConfigDict, Field

from imbue.mngr.errors import HostNameConflictError, MngrError, ProviderUnavailableError
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.primitives import HostId, HostName, HostState
from imbue.mngr_vps_docker.errors import VpsApiError, VpsConnectionError, VpsDockerError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.vps_reader import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.primitives import VpsInstanceId, replace
from imbue.mngr_vps_docker.state import keys, local_store
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from support.builders import LONG_AGO, record_of
from support.local_machine import LocalMachine
from support.memory_provider import SILENT, MemoryCloud
from support.provider import collect_garbage, states
from support.world import ADDRESS, CASES, World, discovered


@pytest.mark.parametrize("name", CASES)
def test_a_host(world: World, name: str) -> None:
    case = CASES[name]
    host_id = world.arrange(case)
    local_store = world.local_store
    with local_store.ownership(host_id) if case.is_owned else nullcontext():
        assert states(world.process()) == ({} if case.state is None else {host_id: case.state})


def test_many_silent_vpses_cost_one_timeout(world: World) -> None:
    for number in range(MAX_PARALLEL_READINGS):
        world.add_silent_host(address=f"192.0.2.{number}")
    # No reading continues before all have begun.
    world.network.before_login = threading.Barrier(MAX_PARALLEL_READINGS, timeout=60).wait
    process = world.process()
    found = discovered(process)
    assert [host.host_state for host in found] == [HostState.RUNNING] * MAX_PARALLEL_READINGS
    for host, agents in found.items():
        assert isinstance(process.get_host(host.host_id), OfflineHost)
        shown, _agents = process.get_host_and_agent_details(host, agents)
        assert "Connection timed out" in (shown.failure_reason or "")
    assert len(world.network.logins) == len(set(world.network.logins)) == MAX_PARALLEL_READINGS


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is logged in to every VPS that answers."""
    monkeypatch.setattr(LocalMachine, "is_open", True)


def known_vps(world: World, address: str = ADDRESS) -> LocalMachine:
    """A VPS that answers, of a host that this machine and the cloud know to be there."""
    return world.vps(world.add_host(address=address))


class SlowCloud(MemoryCloud):
    """A cloud that answers once something else has happened."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    may_answer: threading.Event = Field(default_factory=threading.Event)

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        assert self.may_answer.wait(30)
        return super().find_instances(tags)


@pytest.fixture
def is_asked(world: World) -> threading.Event:
    """What the cloud waits for."""
    world.cloud = cloud = SlowCloud()
    return cloud.may_answer


@pytest.mark.usefixtures("logged_in")
def test_a_vps_with_a_login_is_asked_while_the_cloud_is(world: World, is_asked: threading.Event) -> None:
    vps = known_vps(world)
    vps.before_command = lambda _: is_asked.set()
    assert list(states(world.process()).values()) == [HostState.STOPPED]
    assert len(vps.commands) == 1


@pytest.mark.usefixtures("logged_in")
def test_an_answer_is_discarded_if_the_local_record_changed(world: World, is_asked: threading.Event) -> None:
    vps, local_store = known_vps(world), world.local_store
    (entry,) = local_store.read_all()

    def rename(_purpose: str) -> None:
        if not is_asked.is_set():
            local_store.update(entry.host_id, lambda known: replace(known, host_name="renamed"))
        is_asked.set()

    vps.before_command = rename
    states(world.process())
    assert len(vps.commands) == 2


@pytest.mark.usefixtures("logged_in")
def test_an_answer_that_is_not_needed_is_not_waited_for(world: World) -> None:
    vps, is_over = known_vps(world), threading.Event()

    def answer_late(_purpose: str) -> None:
        assert is_over.wait(30)

    vps.before_command = answer_late
    down = FaultyClient(real=world.cloud, faults=(Fault("find_instances", ConnectionError("no route")),))
    with pytest.raises(ProviderUnavailableError):
        states(world.process(down))
    asking = [thread for thread in threading.enumerate() if thread.name == "ask-ahead"]
    is_over.set()
    for thread in asking:
        thread.join(30)
    # Python waits for others as it ends.
    assert asking and all(thread.daemon for thread in asking)


@pytest.mark.usefixtures("logged_in")
def test_hosts_that_need_a_login_are_not_queued_behind_others(world: World) -> None:
    silent, has_begun = HostId.generate(), threading.Event()
    world.network.before_login = has_begun.set

    def answer_late(_purpose: str) -> None:
        assert has_begun.wait(30)

    for number in range(2, 2 + MAX_PARALLEL_READINGS):
        known_vps(world, f"192.0.2.{number}").before_command = answer_late
    # The youngest is the last in order.
    world.remember(silent, created_at=datetime.now(UTC))
    world.cloud.add_vps(silent, ADDRESS, LONG_AGO)
    assert states(world.process())[silent] is HostState.RUNNING


def test_a_vps_without_a_login_is_asked_at_the_clouds_address(world: World) -> None:
    vps = known_vps(world)
    down = FaultyClient(real=world.cloud, faults=(Fault("find_instances", ConnectionError("no route")),))
    with pytest.raises(ProviderUnavailableError):
        states(world.process(down))
    assert vps.commands == []


@pytest.mark.usefixtures("logged_in")
def test_what_answers_where_a_vps_was_is_not_taken_for_it_where_it_is(world: World) -> None:
    was, now = known_vps(world), known_vps(world, "192.0.2.2")
    (moved,) = (entry.host_id for entry in world.local_store.read_all() if entry.vps_ip == ADDRESS)
    world.cloud.change(ADDRESS, address="192.0.2.3")
    world.network.refusals["192.0.2.3"] = SILENT
    found = states(world.process())
    assert (found[moved], sorted(found.values())) == (HostState.RUNNING, [HostState.RUNNING, HostState.STOPPED])
    assert (len(was.commands), len(now.commands)) == (1, 1)


def test_one_silent_vps_hides_no_other_and_keeps_every_volume(world: World) -> None:
    silent, stopped = world.add_silent_host(address="192.0.2.2"), world.add_host()
    process = world.process()
    assert states(process) == {silent: HostState.RUNNING, stopped: HostState.STOPPED}
    with pytest.raises(MngrError, match="Volumes are not listed"):
        process.list_volumes()
    process.destroy_host(silent)
    assert [volume.host_id for volume in process.list_volumes()] == [stopped]


def test_a_cloud_that_leaves_out_the_time_zone_is_understood(world: World) -> None:
    here, elsewhere = world.add_silent_host(address="192.0.2.2"), HostId.generate()
    world.cloud.add_vps(elsewhere, ADDRESS, LONG_AGO.replace(tzinfo=None))
    world.cloud.add_key(elsewhere, LONG_AGO)
    assert states(world.process()) == {here: HostState.RUNNING, elsewhere: HostState.FAILED}


@pytest.mark.parametrize("call", ["find_instances", "get_instance_status"])
def test_a_cloud_that_does_not_answer_is_no_empty_list(world: World, call: str) -> None:
    host_id = world.add_silent_host()
    world.cloud.is_listing = call == "find_instances"
    down = FaultyClient(real=world.cloud, faults=(Fault(call, ConnectionError("no route to the API")),))
    with pytest.raises(ProviderUnavailableError, match="no route to the API"):
        states(world.process(down))
    assert states(world.process()) == {host_id: HostState.RUNNING}


def test_hosts_are_listed_where_the_cloud_does_not_tell_its_keys(world: World) -> None:
    host_id = HostId.generate()
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    world.cloud.add_key(host_id, LONG_AGO)
    down = FaultyClient(real=world.cloud, faults=(Fault("list_ssh_keys", VpsApiError(503, "busy")),))
    assert states(world.process(down)) == {host_id: HostState.FAILED}
    collect_garbage(world.process(down))
    assert list(world.cloud.instances) == [ADDRESS]


def test_the_next_command_deletes_an_uploaded_key_that_create_left(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    world.cloud.add_key(host_id, LONG_AGO)
    local_store = world.local_store
    local_store.update(
        host_id,
        lambda known: replace(
            known, ssh_key_id=f"key of {host_id}", ssh_key_name=world.cloud.keys[f"key of {host_id}"]
        ),
    )
    busy = FaultyClient(real=world.cloud, faults=(Fault("delete_ssh_key", VpsApiError(503, "busy")),))
    assert states(world.process(busy)) == {host_id: HostState.STOPPED}
    assert len(world.cloud.keys) == 1
    assert states(world.process()) == {host_id: HostState.STOPPED}
    assert world.cloud.keys == {}
    entry = local_store.read(host_id)
    assert entry is not None and entry.ssh_key_name is None


def test_a_key_is_orphaned_only_if_no_provider_has_its_vps(world: World) -> None:
    host_id = HostId.generate()
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO, provider="another")
    world.cloud.add_key(host_id, LONG_AGO)
    assert states(world.process()) == {}
    collect_garbage(world.process())
    assert (len(world.cloud.instances), len(world.cloud.keys)) == (1, 1)
    world.cloud.instances.clear()
    assert states(world.process()) == {host_id: HostState.FAILED}
    collect_garbage(world.process())
    assert world.cloud.keys == {}


def test_a_host_with_an_unreadable_local_record_is_used_and_the_file_left_alone(world: World) -> None:
    host_id = world.arrange(CASES["with an unreadable local record"])
    ((_host, agents),) = world.discovered().items()
    assert [agent.agent_name for agent in agents] == ["a1"]
    world.process().add_tags_to_host(host_id, {"k": "v"})
    assert world.local_record_path(host_id).read_text() == "torn"
    world.network.machines.clear()
    ((host, agents),) = world.discovered().items()
    row, _ = world.process().get_host_and_agent_details(host, agents)
    assert str(world.local_record_path(host_id)) in (row.failure_reason or "")


def test_an_unreadable_local_record_is_reported_once(world: World) -> None:
    world.arrange(CASES["with an unreadable local record, unlisted"])
    said: list[str] = []
    handler = logger.add(said.append, level="WARNING", format="{message}")
    try:
        states(world.process())
    finally:
        logger.remove(handler)
    assert sum("cannot be read" in line for line in said) == 1


def test_a_vps_that_may_exist_is_not_forgotten(world: World) -> None:
    host_id = world.arrange(CASES["with an unreadable local record, unlisted"])
    for _ in range(2):
        with pytest.raises(MngrError, match=f"may have a VPS.*mngr-host-id={host_id}"):
            world.process().destroy_host(host_id)
        assert states(world.process()) == {host_id: HostState.FAILED}
    world.cloud.is_listing = True
    world.process().destroy_host(host_id)
    assert (states(world.process()), world.cloud.instances) == ({}, {})


def test_listing_does_not_overwrite_the_phase_of_a_host_being_destroyed(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    local_store = world.local_store
    machine = world.vps(host_id)
    machine.before_command = lambda _purpose: local_store.update(
        host_id, lambda known: replace(known, phase=HostPhase.DESTROYING)
    )
    states(world.process())
    entry = local_store.read(host_id)
    assert entry is not None
    assert (entry.phase, [agent["name"] for agent in entry.agents]) == (HostPhase.DESTROYING, ["a1"])


def test_the_name_of_a_host_that_is_gone_can_be_taken(world: World) -> None:
    host_id = HostId.generate()
    world.remember(host_id)
    full = FaultyClient(real=world.cloud, faults=(Fault("upload_ssh_key", VpsApiError(403, "no more keys")),))
    with pytest.raises(VpsProvisioningError, match="no more keys"):
        world.process(full).create_host(HostName("h1"))
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    with pytest.raises(HostNameConflictError):
        world.process(full).create_host(HostName("h1"))


def test_a_corrupted_record_is_replaced_and_a_copy_kept(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    states(world.process())
    path = world.record_path(host_id)
    for number in range(2):
        path.write_text(f"spoiled {number}")
        world.process().add_tags_to_host(host_id, {f"k{number}": "v"})
        assert path.with_name(f"{path.name}.unreadable").read_text() == f"spoiled {number}"
    assert world.process().get_host_tags(host_id) == {"k0": "v", "k1": "v"}


def test_what_the_cloud_does_not_say_of_one_vps_hides_no_other(world: World) -> None:
    lost, other = world.add_silent_host(address="192.0.2.2"), world.add_host()
    world.cloud.unlisted = {"192.0.2.2"}
    failing = FaultyClient(real=world.cloud, faults=(Fault("get_instance_status", VpsApiError(500, "oops")),))
    assert states(world.process(failing)) == {lost: HostState.RUNNING, other: HostState.STOPPED}
    collect_garbage(world.process(failing))
    assert len(world.cloud.instances) == 2


def test_a_damaged_key_is_the_trouble_of_its_host_alone(world: World) -> None:
    damaged, other = world.add_host(), world.add_host(address="192.0.2.2")
    world.local_record_path(damaged).with_name("container_ssh_key").write_text("spoiled")
    process = world.process()
    assert states(process) == {damaged: HostState.STOPPED, other: HostState.STOPPED}
    with pytest.raises(VpsDockerError, match="holds no private key"):
        process.start_host(damaged)


def test_hosts_are_listed_while_the_disk_of_this_machine_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.arrange(CASES["stopped with an agent"])

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in (local_store, keys):
        monkeypatch.setattr(module, "write_atomically", full)
    ((host, agents),) = world.discovered().items()
    assert (host.host_state, [agent.agent_name for agent in agents]) == (HostState.STOPPED, ["a1"])


def test_a_command_asks_the_silent_vps_of_its_host_once_more(world: World) -> None:
    for number in (1, 2):
        host_id = world.add_silent_host(address=f"192.0.2.{number}")
    process = world.process()
    host = process.get_host(host_id)
    assert world.network.logins == ["192.0.2.2"]
    discovered(process)
    world.network.logins.clear()
    for act in (process.start_host, process.stop_host, process.create_snapshot):
        with pytest.raises(VpsConnectionError):
            act(host)
    assert world.network.logins == ["192.0.2.2"]
    world.network.logins.clear()
    process.reset_caches()
    with pytest.raises(VpsConnectionError):
        process.start_host(host)
    assert world.network.logins == ["192.0.2.2"]


def test_of_two_vpses_of_one_host_the_remembered_one_is_used(world: World) -> None:
    host_id = HostId.generate()
    world.cloud.add_vps(host_id, "192.0.2.2", LONG_AGO)
    world.arrange(CASES["stopped with an agent"], host_id)
    world.cloud.add_vps(host_id, "192.0.2.3", LONG_AGO)
    assert states(world.process()) == {host_id: HostState.STOPPED}
    assert world.network.logins == []


def test_of_two_vpses_of_one_host_the_one_with_its_record_is_used(world: World) -> None:
    host_id = HostId.generate()
    world.cloud.add_vps(host_id, "192.0.2.2", LONG_AGO)
    world.arrange(CASES["of another machine that shares its keys"], host_id)
    world.cloud.add_vps(host_id, "192.0.2.3", LONG_AGO)
    assert states(world.process()) == {host_id: HostState.STOPPED}
    assert world.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


def test_many_threads_may_ask_for_a_host_while_others_forget_theirs(world: World) -> None:
    host_id = HostId.generate()
    world.remember(host_id, HostPhase.FAILED)
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    host_cache = world.process().hosts
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
                host_cache.remember(observed)
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
def test_a_new_address_is_saved(world: World, is_silent: bool) -> None:
    host_id = HostId.generate()
    world.remember(host_id, address="192.0.2.77", record=None)
    if not is_silent:
        world.boot(host_id)
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    world.cloud.instances["192.0.2.77"] = world.cloud.instances.pop(ADDRESS)
    world.cloud.change("192.0.2.77", id=VpsInstanceId("192.0.2.77"))
    for _ in range(2):
        states(world.process())
        assert world.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


@pytest.mark.parametrize("is_listing", [True, False])
def test_one_host_is_found_at_its_new_address(world: World, is_listing: bool) -> None:
    host_id = HostId.generate()
    world.remember(host_id, address="192.0.2.77")
    world.boot(host_id)
    world.cloud.add_vps(host_id, "192.0.2.77", LONG_AGO)
    world.cloud.change("192.0.2.77", address=ADDRESS)
    world.cloud.is_listing = is_listing
    assert world.process().get_host(host_id).get_state() is HostState.STOPPED
    assert world.network.logins == ["192.0.2.77"]
    assert world.process().outer_host_id_for(host_id) == f"outer:local-vps:{ADDRESS}"


def test_listing_does_not_restore_a_host_that_is_destroyed(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    machine = world.vps(host_id)

    def destroy(_purpose: str) -> None:
        machine.before_command = None
        world.process().destroy_host(host_id)

    machine.before_command = destroy
    states(world.process())
    assert states(world.process(), include_destroyed=True) == {}


@pytest.mark.parametrize(("takes_seconds", "state"), [(10.0, HostState.FAILED), (1e6, HostState.BUILDING)])
def test_another_machine_has_given_up_after_its_own_timeouts(
    world: World, takes_seconds: float, state: HostState
) -> None:
    host_id, begun = HostId.generate(), datetime.now(UTC) - timedelta(seconds=60 if takes_seconds < 60 else 90_000)
    world.cloud.add_vps(host_id, ADDRESS, begun)
    world.cloud.add_key(host_id, begun, takes_seconds)
    assert states(world.process()) == {host_id: state}


def test_a_vps_is_not_taken_for_the_one_that_had_its_address_before(world: World) -> None:
    gone, older, newer = (HostId.generate() for _ in range(3))
    world.remember(older, created_at=LONG_AGO)
    world.remember(newer, created_at=LONG_AGO + timedelta(days=1))
    world.remember(gone, created_at=LONG_AGO + timedelta(days=2), gone_since=LONG_AGO)
    with world.process()._make_outer_for_vps_ip(ADDRESS) as outer:
        assert outer.id == newer


@pytest.mark.parametrize("claimed", ["production", "../h1", "-", "", "h1\n", "x" * 70])
def test_a_vps_cannot_give_its_host_the_name_of_another(world: World, claimed: str) -> None:
    bad, good = world.add_host(), world.add_silent_host("production", "192.0.2.2")
    world.write_record(record_of(bad, host_name=claimed))
    assert {host.host_id: host.host_name for host in world.discovered()} == {bad: "h1", good: "production"}
    process = world.process()
    assert process.get_host(bad).get_name() == "h1"
    assert process.get_host(HostName("production")).id == good


def test_a_host_that_another_machine_renamed_has_its_new_name(world: World) -> None:
    host_id = world.add_host()
    world.write_record(record_of(host_id, host_name="h2"))
    assert world.process().get_host(HostName("h2")).get_name() == "h2"
    world.network.machines.clear()
    assert [host.host_name for host in world.discovered()] == ["h2"]


def test_a_name_that_two_hosts_have_is_refused(world: World) -> None:
    for address in (ADDRESS, "192.0.2.2"):
        host_id = world.add_silent_host(address=address)
    with pytest.raises(MngrError, match=f"Several hosts are called h1.*{host_id}"):
        world.process().get_host(HostName("h1"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, even where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_listing_asks_no_more_vpses(world: World) -> None:
    for number in range(2 * MAX_PARALLEL_READINGS):
        world.add_silent_host(address=f"192.0.2.{number}")
    is_over, main_thread = threading.Event(), threading.main_thread().ident
    have_begun = threading.Barrier(MAX_PARALLEL_READINGS, lambda: signal.pthread_kill(main_thread, signal.SIGINT))

    def log_in() -> None:
        have_begun.wait(60)
        is_over.wait(60)

    world.network.before_login = log_in
    with pytest.raises(KeyboardInterrupt):
        states(world.process())
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "ask-vps":
            thread.join(60)
    assert len(world.network.logins) == MAX_PARALLEL_READINGS
