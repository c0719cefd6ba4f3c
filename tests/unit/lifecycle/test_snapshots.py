"""Which snapshot `mngr create --snapshot` means."""

import pytest

from imbue.mngr.interfaces.data_types import SnapshotRecord
from imbue.mngr.primitives import HostId, SnapshotName
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.snapshots import find_snapshot
from support.builders import LONG_AGO, local_record_of, record_of
from support.world import World

NAME = SnapshotName("s1")


@pytest.fixture
def context(world: World) -> ProviderContext:
    return world.context


def observed(address: str, image: str, *, is_gone: bool = False) -> ObservedHost:
    """A host that has, or had, a snapshot."""
    host_id = HostId.generate()
    snapshot = SnapshotRecord(id=image, name=NAME, created_at=LONG_AGO.isoformat())
    record = record_of(host_id, snapshots=[snapshot])
    return ObservedHost(entry=local_record_of(host_id, vps_ip=address, record=record), is_gone=is_gone)


def test_snapshots_of_hosts_that_are_gone_count_for_nothing(context: ProviderContext) -> None:
    gone, here = observed("192.0.2.1", "image:1", is_gone=True), observed("192.0.2.2", "image:2")
    found = find_snapshot(context, [gone, here], NAME)
    assert (found.image_id, found.connection.target.host) == ("image:2", "192.0.2.2")
    with pytest.raises(BuildArgumentError, match="There is no snapshot 's1'"):
        find_snapshot(context, [gone], NAME)


def test_a_snapshot_that_two_hosts_have_is_to_be_named_by_its_id(context: ProviderContext) -> None:
    hosts = [observed("192.0.2.1", "image:1"), observed("192.0.2.2", "image:2")]
    with pytest.raises(BuildArgumentError, match=r"Several hosts .*image:1.*image:2"):
        find_snapshot(context, hosts, NAME)
    assert find_snapshot(context, hosts, SnapshotName("image:2")).image_id == "image:2"


def test_a_name_that_no_snapshot_can_have_is_one_clear_line(context: ProviderContext) -> None:
    with pytest.raises(BuildArgumentError) as raised:
        find_snapshot(context, [], SnapshotName("a\nb\x1b[2J"))
    assert str(raised.value).isprintable()
