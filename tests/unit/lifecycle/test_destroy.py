"""Nothing that costs money is left or forgotten, however little is known of it and whatever fails."""

import errno
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import HostId, HostName, HostState
from imbue.mngr_vps_docker.errors import VpsApiError, VpsDockerError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.cloud_resources import key_name
from imbue.mngr_vps_docker.lifecycle.destroy import destroy_host
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, replace
from imbue.mngr_vps_docker.ssh import known_hosts
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.state import local_store as journals
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultMoment, FaultyClient
from support.builders import LONG_AGO, local_record_of, record_of
from support.memory_provider import MemoryCloud
from support.provider import collect_garbage, states
from support.world import ADDRESS, CASES, World

REFUSED = VpsApiError(500, "out of stock")
UNANSWERED = ConnectionError("connection reset by peer")


def type_name(error: Exception) -> str:
    return type(error).__name__


@pytest.fixture(autouse=True)
def impatience(world: World) -> None:
    world.network.timings = replace(world.network.timings, listing_lag_seconds=0.2, cloud_poll_seconds=0.01)


@pytest.fixture
def host_id() -> HostId:
    return HostId.generate()


def ordered(world: World, host_id: HostId, **changes: object) -> LocalHostRecord:
    """What a create leaves that was killed right after it ordered the VPS."""
    context, now = world.context, datetime.now(UTC)
    context.keys.create_vps_host_key(host_id)
    world.cloud.add_key(host_id, now)
    values = {"created_at": now, "is_vps_ordered": True, "vps_ordered_at": now, **changes}
    key = key_name(host_id, now, 3600.0)
    return context.local_store.write(local_record_of(host_id, HostPhase.CREATING, ssh_key_name=key, **values))


def check_that_nothing_is_left(world: World) -> None:
    context = world.context
    assert (world.cloud.instances, world.cloud.keys, states(world.process(), include_destroyed=True)) == ({}, {}, {})
    assert list(context.keys.hosts_folder.glob("host-*")) == []


# --- other processes change the host


def test_destroy_uses_what_the_owner_of_the_host_saved(world: World, host_id: HostId) -> None:
    world.cloud.is_listing = False
    context = world.context
    seen = ordered(world, host_id, is_vps_ordered=False)
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    context.local_store.update(
        host_id,
        lambda known: replace(known, is_vps_ordered=True, vps_instance_id=VpsInstanceId(ADDRESS), vps_ip=ADDRESS),
    )
    destroy_host(context, seen)
    check_that_nothing_is_left(world)


def test_a_host_removed_while_destroy_waited_is_not_saved_again(
    world: World, host_id: HostId, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.remember(host_id)
    context = world.context
    entry = context.local_store.read(host_id)
    assert entry is not None
    owned = journals.LocalHostStore.ownership

    def owned_after_its_end(local_store: journals.LocalHostStore, host_id: HostId) -> object:
        local_store.forget(host_id)
        return owned(local_store, host_id)

    monkeypatch.setattr(journals.LocalHostStore, "ownership", owned_after_its_end)
    client = FaultyClient(real=world.cloud)
    world.process(client).destroy_host(host_id)
    assert client.calls == ()
    assert list(context.keys.hosts_folder.glob("host-*")) == []


def test_a_host_that_is_being_destroyed_has_an_owner(world: World) -> None:
    host_id = world.add_silent_host()
    local_store = world.local_store
    owners: list[bool] = []

    class WatchedClient(FaultyClient):
        def destroy_instance(self, instance_id: VpsInstanceId) -> None:
            owners.append(local_store.is_owned(host_id))
            super().destroy_instance(instance_id)

    world.process(WatchedClient(real=world.cloud)).destroy_host(host_id)
    assert owners == [True]


# --- a cloud whose listing lags


def test_a_vps_that_the_listing_shows_late_is_removed_once_it_does(world: World, host_id: HostId) -> None:
    client = FaultyClient(real=world.cloud, listing_lag_calls=100)
    client.find_instances({})
    ordered(world, host_id)
    world.cloud.add_vps(host_id, ADDRESS, datetime.now(UTC))
    for _ in range(2):
        with pytest.raises(MngrError, match="may still appear"):
            collect_garbage(world.process(client))
        assert states(world.process(client)) == {host_id: HostState.FAILED}
        assert (len(world.cloud.instances), len(world.cloud.keys)) == (1, 1)
    client.listing_lag_calls = 0
    collect_garbage(world.process(client))
    check_that_nothing_is_left(world)


def test_a_vps_that_never_appears_is_waited_for_until_the_deadline(world: World, host_id: HostId) -> None:
    ordered(world, host_id)
    with pytest.raises(MngrError, match="may still appear"):
        world.process().destroy_host(host_id)
    world.network.timings = replace(world.network.timings, appearing_seconds=0.0)
    collect_garbage(world.process())
    check_that_nothing_is_left(world)


def test_a_vps_whose_id_the_cloud_does_not_know_yet_may_still_appear(world: World, host_id: HostId) -> None:
    ordered(world, host_id, vps_instance_id=VpsInstanceId(ADDRESS))
    with pytest.raises(MngrError, match="may still appear"):
        world.process().destroy_host(host_id)
    assert states(world.process()) == {host_id: HostState.FAILED}
    world.cloud.add_vps(host_id, ADDRESS, datetime.now(UTC))
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)


@pytest.mark.parametrize("code", [404, 410])
def test_a_vps_that_the_cloud_has_shown_once_and_knows_no_more_is_gone(
    world: World, host_id: HostId, code: int
) -> None:
    ordered(world, host_id, vps_instance_id=VpsInstanceId(ADDRESS), vps_ip=ADDRESS)
    gone = VpsApiError(code, "gone")
    client = FaultyClient(
        real=world.cloud, faults=tuple(Fault(call, gone) for call in ("destroy_instance", "delete_ssh_key"))
    )
    world.process(client).destroy_host(host_id)
    client.check_that_all_happened()
    world.cloud.keys.clear()
    check_that_nothing_is_left(world)


def test_a_host_whose_order_got_no_answer_is_kept_until_its_vps_appears(world: World) -> None:
    class LateCloud(MemoryCloud):
        def create_instance(self, *_arguments: Any, **order: Any) -> VpsInstanceId:
            by_name = dict(tag.split("=", 1) for tag in order["tags"])
            self.add_vps(HostId(by_name["mngr-host-id"]), ADDRESS, datetime.now(UTC))
            self.unlisted = {ADDRESS}
            raise TimeoutError("the answer was lost")

    world.cloud = LateCloud()
    with pytest.raises(VpsProvisioningError, match=r"the answer was lost.*may still appear.*mngr gc"):
        world.process().create_host(HostName("h1"))
    assert list(states(world.process()).values()) == [HostState.FAILED]
    assert len(world.cloud.keys) == 1
    world.cloud.unlisted = set()
    collect_garbage(world.process())
    check_that_nothing_is_left(world)


# --- a call fails


def test_every_vps_is_tried_and_the_key_stays_as_long_as_one_remains(world: World, host_id: HostId) -> None:
    twin = "192.0.2.2"
    ordered(world, host_id, vps_instance_id=VpsInstanceId(ADDRESS), vps_ip=ADDRESS)
    for address in (ADDRESS, twin):
        world.cloud.add_vps(host_id, address, LONG_AGO)
    busy = Fault("destroy_instance", VpsApiError(503, "busy"), times=1)
    with pytest.raises(VpsDockerError, match=f"h1 is not fully destroyed.*{ADDRESS}.*may still exist.*busy"):
        world.process(FaultyClient(real=world.cloud, faults=(busy,))).destroy_host(host_id)
    # It says to other machines that what remains is of a host that was never finished.
    assert (list(world.cloud.instances), len(world.cloud.keys)) == ([ADDRESS], 1)
    assert states(world.process()) == {host_id: HostState.FAILED}
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)


def test_a_known_vps_is_destroyed_though_the_listing_fails(world: World) -> None:
    host_id = world.add_silent_host()
    down = FaultyClient(real=world.cloud, faults=(Fault("find_instances", ConnectionError("no route")),))
    with pytest.raises(VpsDockerError, match="no route"):
        world.process(down).destroy_host(host_id)
    assert world.cloud.instances == {}
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)


def test_every_key_is_tried(world: World, host_id: HostId) -> None:
    ordered(world, host_id, ssh_key_id=f"key of {host_id}", is_vps_ordered=False)
    world.cloud.keys["twin"] = world.cloud.keys[f"key of {host_id}"]
    busy = Fault("delete_ssh_key", VpsApiError(503, "busy"), times=1)
    with pytest.raises(VpsDockerError, match=f"key of {host_id} of host h1 may still be there.*busy"):
        world.process(FaultyClient(real=world.cloud, faults=(busy,))).destroy_host(host_id)
    assert list(world.cloud.keys) == [f"key of {host_id}"]
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)


def spoil_key_of_vps(world: World, _monkeypatch: pytest.MonkeyPatch) -> None:
    world.context.keys.vps_client_key().private_key_path.write_text("garbage")


def fill_disk(_fleet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journals, "write_atomically", fail)
    monkeypatch.setattr(known_hosts, "write_atomically", fail)


@pytest.mark.parametrize(("spoil", "what_remains"), [(spoil_key_of_vps, None), (fill_disk, "No space left")])
def test_no_trouble_on_this_machine_keeps_a_vps_from_being_destroyed(
    world: World,
    host_id: HostId,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[World, pytest.MonkeyPatch], None],
    what_remains: str | None,
) -> None:
    world.remember(host_id)
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    world.context.pin_vps(host_id, ADDRESS, "ssh-ed25519 AAAA")
    with monkeypatch.context() as patches:
        spoil(world, patches)
        if what_remains is None:
            world.process().destroy_host(host_id)
        else:
            with pytest.raises(VpsDockerError, match=what_remains):
                world.process().destroy_host(host_id)
        assert world.cloud.instances == {}
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)
    assert world.context.vps_known_hosts.path.read_text() == ""


def test_a_host_is_known_until_the_cloud_says_that_its_vps_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.network.timings = replace(world.network.timings, gone_seconds=0.1)
    host_id = world.add_silent_host()
    lingering = Fault("get_instance_status", transform=lambda _status: VpsInstanceStatus.ACTIVE)
    client = FaultyClient(real=world.cloud, faults=(lingering,))
    monkeypatch.setattr(MemoryCloud, "destroy_instance", lambda *_: None)
    with pytest.raises(VpsDockerError, match="still reports it as ACTIVE"):
        world.process(client).destroy_host(host_id)
    assert states(world.process()) == {host_id: HostState.FAILED}


def test_a_key_whose_vps_is_gone_is_shown_as_what_it_is_left_of(world: World, host_id: HostId) -> None:
    ordered(world, host_id, vps_instance_id=VpsInstanceId(ADDRESS), vps_ip=ADDRESS)
    assert states(world.process()) == {host_id: HostState.FAILED}
    collect_garbage(world.process())
    check_that_nothing_is_left(world)


# --- a call fails during create


@pytest.mark.parametrize("error", [REFUSED, UNANSWERED, TimeoutError("no answer")], ids=type_name)
@pytest.mark.parametrize("moment", FaultMoment, ids=lambda moment: moment.name)
@pytest.mark.parametrize("call", ["upload_ssh_key", "create_instance", "wait_for_instance_active"])
def test_a_failing_call_during_create_is_explained_and_leaves_nothing(
    world: World, call: str, moment: FaultMoment, error: Exception
) -> None:
    world.network.timings = replace(world.network.timings, appearing_seconds=0.0)
    client = FaultyClient(real=world.cloud, faults=(Fault(call, error, moment),))
    with pytest.raises(VpsProvisioningError, match=f"failed.*{error.args[-1]}"):
        world.process(client).create_host(HostName("h1"))
    client.check_that_all_happened()
    assert client.calls.count("create_instance") == (0 if call == "upload_ssh_key" else 1)
    check_that_nothing_is_left(world)


@pytest.mark.parametrize("error", [REFUSED, UNANSWERED], ids=type_name)
@pytest.mark.parametrize(
    ("call", "what"), [("destroy_instance", "VPS 198.51.100.0"), ("delete_ssh_key", "Public key")]
)
def test_what_cannot_be_undone_is_named_and_removed_later(
    world: World, call: str, what: str, error: Exception
) -> None:
    faults = (Fault("wait_for_instance_active", VpsApiError(503, "overload")), Fault(call, error))
    client = FaultyClient(real=world.cloud, faults=faults)
    with pytest.raises(VpsProvisioningError, match=f"overload.*{what}.* may still .*mngr gc"):
        world.process(client).create_host(HostName("h1"))
    client.check_that_all_happened()
    ((host_id, state),) = states(world.process()).items()
    assert (state, what in str(world.process().get_host(host_id).get_failure_reason())) == (HostState.FAILED, True)
    with pytest.raises(MngrError, match=f"{what}.*{error.args[-1]}"):
        world.process(client).destroy_host(host_id)
    assert states(world.process()) == {host_id: HostState.FAILED}
    world.process().destroy_host(host_id)
    check_that_nothing_is_left(world)


def test_an_order_without_an_answer_is_named_by_its_tag_where_the_cloud_cannot_list(world: World) -> None:
    world.cloud.is_listing = False
    lost = Fault("create_instance", UNANSWERED, FaultMoment.ANSWER_LOST)
    with pytest.raises(VpsProvisioningError, match="look for the tag mngr-host-id=host-"):
        world.process(FaultyClient(real=world.cloud, faults=(lost,))).create_host(HostName("h1"))
    ((host_id, state),) = states(world.process()).items()
    assert state is HostState.FAILED
    assert "look for the tag" in str(world.process().get_host(host_id).get_failure_reason())


class LingeringCloud(MemoryCloud):
    """A cloud that takes an order to destroy and carries it out when it is asked for the status often enough."""

    status_calls_until_gone: int

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        self.get_instance_status(instance_id)

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        self.status_calls_until_gone -= 1
        if self.status_calls_until_gone == 0:
            del self.instances[instance_id]
        return super().get_instance_status(instance_id)

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        raise VpsProvisioningError("it does not boot")


@pytest.mark.parametrize(
    ("calls", "said", "is_known"), [(2, "it does not boot$", False), (99_999, "still reports it as ACTIVE", True)]
)
def test_a_vps_is_forgotten_only_when_the_cloud_says_that_it_is_gone(
    world: World, calls: int, said: str, is_known: bool
) -> None:
    world.network.timings = replace(world.network.timings, gone_seconds=0.1)
    world.cloud = LingeringCloud(status_calls_until_gone=calls)
    with pytest.raises(VpsProvisioningError, match=said):
        world.process().create_host(HostName("h1"))
    assert list(states(world.process()).values()) == ([HostState.FAILED] if is_known else [])


# --- keys, pins and connections of a host


@pytest.mark.parametrize("case", ["of another machine that shares its keys", "stopped"])
@pytest.mark.parametrize(("name", "what_remains"), [("mngr-h1", {}), ("laptop", {"key": "laptop"})])
def test_only_the_cloud_key_of_version_0_1_0_goes_with_its_host(
    world: World, host_id: HostId, case: str, name: str, what_remains: dict[str, str]
) -> None:
    """The record says which it is, and the VPS can write any of the account there."""
    world.arrange(CASES[case], host_id)
    world.write_record(record_of(host_id, config={"vps_ssh_key_id": "key"}))
    world.cloud.keys["key"] = name
    states(world.process())
    world.process().destroy_host(host_id)
    assert world.cloud.keys == what_remains
    world.cloud.keys.clear()
    check_that_nothing_is_left(world)


def test_forgetting_a_host_keeps_the_pin_of_the_new_host_at_its_address(world: World, host_id: HostId) -> None:
    other = HostId.generate()
    world.remember(host_id)
    world.remember(other)
    context = world.context
    context.pin_vps(host_id, ADDRESS, "ssh-ed25519 AAAA")
    context.pin_vps(other, ADDRESS, "ssh-ed25519 BBBB")
    world.process().destroy_host(host_id)
    assert f"{ADDRESS} ssh-ed25519 BBBB" in context.vps_known_hosts.path.read_text()


def test_the_shared_connections_of_a_host_are_closed(
    world: World, host_id: HostId, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.remember(host_id)
    closed: list[str] = []
    monkeypatch.setattr(SshConnection, "close", lambda connection: closed.append(connection.target.label))
    world.process().destroy_host(host_id)
    assert closed == [f"VPS {ADDRESS}", f"container {ADDRESS}:2222"]
