"""`mngr gc` and delete remove only hosts that are gone, unfinished, or hold nothing."""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest

from imbue.mngr.api.data_types import GcResult
from imbue.mngr.api.gc import gc_machines
from imbue.mngr.errors import MngrError
from imbue.mngr.interfaces.data_types import SnapshotRecord
from imbue.mngr.primitives import AgentId, ErrorBehavior, HostId, HostState, SnapshotId, VolumeId
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.builders import LONG_AGO
from support.provider import collect_garbage, states
from support.world import ADDRESS, CASES, World

AT_ONCE = {"destroyed_host_persisted_seconds": 0.0, "min_online_host_age_seconds": 0.0}


@pytest.mark.parametrize("settings", [{}, AT_ONCE], ids=["after its times", "at once"])
@pytest.mark.parametrize("name", CASES)
def test_gc_and_a_host(world: World, name: str, settings: Mapping[str, object]) -> None:
    case = CASES[name]
    host_id = world.arrange(case)
    local_store = world.local_store
    with local_store.ownership(host_id) if case.is_owned else nullcontext():
        collect_garbage(world.process(**settings))
    is_kept = case.age_seconds is not None and not case.is_garbage
    # The cloud is destroying it already.
    assert (ADDRESS in world.cloud.instances) is is_kept or case.is_going
    assert bool(world.cloud.keys) is (case.has_key and not case.is_garbage)


def test_gc_keeps_a_host_whose_create_ends_during_the_listing(world: World) -> None:
    host_id = HostId.generate()
    world.remember(host_id, HostPhase.CREATING)
    world.cloud.add_vps(host_id, ADDRESS, datetime.now(UTC))
    local_store = world.local_store
    create = local_store.ownership(host_id)
    create.__enter__()
    world.boot(host_id)
    world.add_agent(host_id)

    def end_create(listed: object) -> object:
        local_store.update(host_id, lambda known: replace(known, phase=HostPhase.READY))
        create.__exit__(None, None, None)
        return listed

    meanwhile = Fault("find_instances", transform=end_create, times=1)
    collect_garbage(world.process(FaultyClient(real=world.cloud, faults=(meanwhile,))))
    assert states(world.process()) == {host_id: HostState.STOPPED}


@pytest.mark.parametrize(
    "name", ["stopped with an agent", "silent", "refusing", "being created", "of another machine"]
)
def test_a_host_that_may_have_something_to_lose_is_not_deleted(world: World, name: str) -> None:
    case = CASES[name]
    host_id = world.arrange(case)
    process = world.process()
    with process.context.local_store.ownership(host_id) if case.is_owned else nullcontext():
        host = process.get_host(host_id)
        with pytest.raises(MngrError, match="is not deleted"):
            process.delete_host(host)
    assert ADDRESS in world.cloud.instances


def test_a_host_that_got_an_agent_since_gc_saw_it_is_not_deleted(world: World) -> None:
    host_id = world.arrange(CASES["stopped"])
    process = world.process()
    hosts = [(process, process.discover_hosts(process.mngr_ctx.concurrency_group, include_destroyed=True))]
    world.process().persist_agent_data(host_id, {"id": AgentId.generate(), "name": "a1"})
    with pytest.raises(MngrError, match="is not deleted: it is stopped and has 1 agents"):
        gc_machines(process.mngr_ctx, hosts, False, ErrorBehavior.ABORT, GcResult())
    assert ADDRESS in world.cloud.instances


def test_the_volume_of_a_host_that_exists_is_not_deleted(world: World) -> None:
    host_id = HostId.generate()
    volume_id = VolumeId(f"vol-{host_id.get_uuid().hex}")
    world.process().delete_volume(volume_id)
    world.arrange(CASES["stopped"], host_id)
    with pytest.raises(MngrError, match="destroy the host"):
        world.process().delete_volume(volume_id)
    world.cloud.instances.clear()
    world.network.machines.clear()
    world.process().delete_volume(volume_id)


def test_the_keys_of_a_host_outlive_a_wrong_answer_of_the_cloud(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    states(world.process())
    local_store = world.local_store
    real = world.cloud.instances.copy()
    world.cloud.instances.clear()
    collect_garbage(world.process())
    assert states(world.process(), include_destroyed=True) == {host_id: HostState.DESTROYED}
    world.cloud.instances |= real
    assert states(world.process()) == {host_id: HostState.STOPPED}
    (entry,) = local_store.read_all()
    assert entry.gone_since is None
    world.cloud.instances.clear()
    states(world.process())
    local_store.update(host_id, lambda known: replace(known, gone_since=datetime.now(UTC) - timedelta(days=8)))
    collect_garbage(world.process())
    assert not world.local_record_path(host_id).parent.exists()


def test_gc_continues_after_a_half_destroyed_host(world: World) -> None:
    half, other = HostId.generate(), HostId.generate()
    world.remember(half, HostPhase.DESTROYING, address="192.0.2.2")
    world.remember(other, HostPhase.FAILED)
    world.cloud.add_vps(other, ADDRESS, LONG_AGO)
    collect_garbage(world.process())
    assert (states(world.process(), include_destroyed=True), world.cloud.instances) == ({}, {})


def test_the_snapshots_of_a_host_that_is_gone_went_with_it(world: World) -> None:
    host_id = HostId.generate()
    world.remember(host_id, gone_since=datetime.now(UTC))
    local_store = world.local_store
    (entry,) = local_store.read_all()
    assert entry.record is not None
    snapshots = [SnapshotRecord(id="mngr-snapshot:1", name="s1", created_at="2020-01-01T00:00:00+00:00")]
    data = entry.record.certified_host_data.model_copy(update={"snapshots": snapshots})
    local_store.update(
        host_id, lambda known: replace(known, record=entry.record.model_copy(update={"certified_host_data": data}))
    )
    collect_garbage(world.process())
    process = world.process()
    assert process.list_snapshots(host_id) == []
    process.delete_snapshot(host_id, SnapshotId("mngr-snapshot:1"))
    process.delete_snapshot(HostId.generate(), SnapshotId("mngr-snapshot:1"))
    assert world.network.logins == []
