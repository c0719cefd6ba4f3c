"""Tests of what this package relies on in a cloud's client. A provider package runs them on its own client.

::

    class TestMyClient(VpsClientConformance):
        region, plan, os_id = "fra", "small", 2136

        @pytest.fixture
        def client(self) -> MyClient:
            return MyClient(api_key=os.environ["MY_CLOUD_KEY"])

One test orders a VPS, at the price of some minutes, and destroys it.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import ClassVar

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.hosts.cloud_resources import key_name
from imbue.mngr_vps_docker.hosts.host_access import HOST_ID_TAG, HOST_NAME_TAG, PROVIDER_TAG
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.state.keys import new_key_pair
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsInstanceInfo

_POLL_SECONDS = 0.5


class VpsClientConformance:
    """The contract of VpsClientInterface. A subclass defines a fixture ``client`` and what to order.

    Set ``can_list`` or ``has_snapshots`` to False for a client without find_instances or without whole-machine
    snapshots. ``unknown_id`` has the form of an id of the cloud (instance, key, snapshot) and does not exist.
    """

    region: ClassVar[str]
    plan: ClassVar[str]
    os_id: ClassVar[int | str]
    can_list: ClassVar[bool] = True
    has_snapshots: ClassVar[bool] = True
    unknown_id: ClassVar[str] = "mngr-never-was"
    boot_timeout_seconds: ClassVar[float] = 300.0
    listing_lag_seconds: ClassVar[float] = 60.0

    def test_an_unknown_id_raises_404_or_410(self, client: VpsClientInterface) -> None:
        """So destroy knows that it is done."""
        unknown = VpsInstanceId(self.unknown_id)
        assert is_gone(lambda: client.get_instance_status(unknown))
        assert is_gone(lambda: client.destroy_instance(unknown))
        assert is_gone(lambda: client.delete_ssh_key(self.unknown_id))

    def test_a_public_key_is_listed_by_its_name_until_it_is_deleted(self, client: VpsClientInterface) -> None:
        """The name is unchanged: it tells other machines which host is unfinished."""
        name = key_name(HostId.generate(), datetime.now(UTC), 9999.0)
        key_id = client.upload_ssh_key(name, new_key_pair()[1])
        try:
            assert wait_for(lambda: key_id in listed_keys(client, name), self.listing_lag_seconds)
        finally:
            client.delete_ssh_key(key_id)
        assert wait_for(lambda: key_id not in listed_keys(client, name), self.listing_lag_seconds)
        assert is_gone(lambda: client.delete_ssh_key(key_id))

    def test_a_vps_is_found_from_order_to_destroy(self, client: VpsClientInterface) -> None:
        """By its tags and by its id; after destroy, by neither."""
        host_id = HostId.generate()
        tags = {HOST_ID_TAG: host_id, PROVIDER_TAG: "conformance", HOST_NAME_TAG: "conformance"}
        ordered_at = datetime.now(UTC)
        key_id = client.upload_ssh_key(key_name(host_id, ordered_at, 9999.0), new_key_pair()[1])
        instance_id = None
        try:
            instance_id = client.create_instance(
                label="mngr-conformance",
                region=self.region,
                plan=self.plan,
                os_id=self.os_id,
                user_data="#cloud-config\n".ljust(client.max_user_data_bytes - 1, "#") + "\n",
                ssh_key_ids=[key_id],
                tags=[f"{name}={value}" for name, value in tags.items()],
            )
            assert client.get_instance_status(instance_id) in set(VpsInstanceStatus) - {VpsInstanceStatus.DESTROYING}
            address = client.wait_for_instance_active(instance_id, self.boot_timeout_seconds)
            assert address and address == client.get_instance_ip(instance_id)
            assert client.get_instance_status(instance_id) is VpsInstanceStatus.ACTIVE
            if self.can_list:
                assert wait_for(lambda: len(self.found(client, host_id)) == 1, self.listing_lag_seconds)
                (info,) = self.found(client, host_id)
                assert (info.id, info.address, info.status) == (instance_id, address, VpsInstanceStatus.ACTIVE)
                assert tags.items() <= info.tags.items()
                assert abs((info.created_at - ordered_at).total_seconds()) < 600
                assert not client.find_instances({HOST_ID_TAG: host_id, PROVIDER_TAG: "another"})
            if self.has_snapshots:
                self.check_snapshots(client, instance_id)
        finally:
            with suppress(VpsApiError):
                client.delete_ssh_key(key_id)
            if instance_id is not None:
                client.destroy_instance(instance_id)
        assert wait_for(lambda: self.is_destroyed(client, instance_id), self.listing_lag_seconds)
        if self.can_list:
            assert wait_for(lambda: not self.found(client, host_id), self.listing_lag_seconds)

    def check_snapshots(self, client: VpsClientInterface, instance_id: VpsInstanceId) -> None:
        """Check that a whole-machine snapshot is listed until it is deleted."""
        description = f"conformance {secrets.token_hex(4)}"
        snapshot_id = client.create_snapshot(instance_id, description)

        def is_listed() -> bool:
            return (snapshot_id, description) in {(info.id, info.description) for info in client.list_snapshots()}

        try:
            assert wait_for(is_listed, self.listing_lag_seconds)
        finally:
            client.delete_snapshot(snapshot_id)
        assert wait_for(lambda: not is_listed(), self.listing_lag_seconds)
        assert is_gone(lambda: client.delete_snapshot(VpsSnapshotId(self.unknown_id)))

    @staticmethod
    def found(client: VpsClientInterface, host_id: HostId) -> Sequence[VpsInstanceInfo]:
        """The instances of a host that the cloud lists, except those being destroyed."""
        listed = client.find_instances({HOST_ID_TAG: host_id})
        assert listed is not None, "set can_list = False for a client that cannot list"
        return [info for info in listed if info.status is not VpsInstanceStatus.DESTROYING]

    @staticmethod
    def is_destroyed(client: VpsClientInterface, instance_id: VpsInstanceId) -> bool:
        """Whether the cloud says that an instance is gone or being destroyed."""
        try:
            return client.get_instance_status(instance_id) is VpsInstanceStatus.DESTROYING
        except VpsApiError as error:
            return error.is_gone


def is_gone(ask: Callable[[], object]) -> bool:
    """Whether the answer is that the object does not exist."""
    try:
        ask()
    except VpsApiError as error:
        return error.is_gone
    return False


def listed_keys(client: VpsClientInterface, name: str) -> set[str]:
    """The ids of the account's keys with this name."""
    return {key.id for key in client.list_ssh_keys() if key.name == name}


def wait_for(is_so: Callable[[], bool], timeout_seconds: float) -> bool:
    """Wait until it is so, because listings of clouds lag; return False at the time-out."""
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
