"""Other processes of the machine neither wait for a host that one destroys nor fail on it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loguru import logger

from imbue.mngr.primitives import HostId, HostState
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.provider import collect_garbage, states
from support.world import ADDRESS, CASES, World

AT_ONCE = {"min_online_host_age_seconds": 0.0, "ssh_connect_timeout": 1.0}


@pytest.fixture
def host_id(world: World) -> HostId:
    """A host that runs."""
    return world.arrange(CASES["running, without a way in"])


@contextmanager
def being_destroyed(world: World, host_id: HostId) -> Iterator[None]:
    """As while another process waits for the cloud."""
    local_store = world.local_store
    with local_store.ownership(host_id):
        local_store.update(host_id, lambda known: replace(known, phase=HostPhase.DESTROYING))
        world.network.machines.clear()
        yield


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said = list[str]()
    sink = logger.add(said.append, level="WARNING", format="{message}")
    yield said
    logger.remove(sink)


def test_a_host_that_was_seen_running_is_building_and_then_gone(world: World, host_id: HostId) -> None:
    process = world.process()
    assert states(process) == {host_id: HostState.RUNNING}
    with being_destroyed(world, host_id):
        assert not isinstance(process.get_host(host_id), VpsDockerHost)
        assert process.hosts.get(host_id).state is HostState.BUILDING
        world.local_store.forget(host_id)
        assert not isinstance(process.get_host(host_id), VpsDockerHost)
        assert process.hosts.get(host_id).state is HostState.DESTROYED


def test_a_removed_local_record_does_not_hide_a_listed_vps(world: World, host_id: HostId) -> None:
    process = world.process()
    assert states(process) == {host_id: HostState.RUNNING}
    world.local_record_path(host_id).unlink()
    assert states(process) == {host_id: HostState.RUNNING}
    process.destroy_host(host_id)
    assert world.cloud.instances == {}


def test_a_command_for_it_fails_without_a_login_and_files_are_missing(world: World, host_id: HostId) -> None:
    host = world.process(**AT_ONCE).get_host(host_id)
    assert isinstance(host, VpsDockerHost)
    with being_destroyed(world, host_id):
        done = host.execute_idempotent_command("true")
        assert (done.success, "is being destroyed" in done.stderr) == (False, True)
        with pytest.raises(FileNotFoundError, match="is being destroyed"):
            host.read_file(Path("/x"))
        assert host._get_file_mtime(Path("/x")) is None
        # A failed write must not look like success.
        with pytest.raises(VpsConnectionError, match="is being destroyed"):
            host.write_file(Path("/x"), b"")
    assert world.network.logins == []


def test_gc_passes_over_a_host_that_is_destroyed_while_it_looks(
    world: World, host_id: HostId, warnings: list[str]
) -> None:
    with being_destroyed(world, host_id):
        world.local_store.update(host_id, lambda known: replace(known, phase=HostPhase.READY))

        def destroy(listed: object) -> object:
            world.local_store.update(host_id, lambda known: replace(known, phase=HostPhase.DESTROYING))
            return listed

        client = FaultyClient(real=world.cloud, faults=(Fault("find_instances", transform=destroy),))
        collect_garbage(world.process(client, **AT_ONCE))
    assert warnings == []
    assert ADDRESS in world.cloud.instances


def test_destroying_waits_for_changes_of_the_host(world: World, host_id: HostId) -> None:
    world.network.timings = replace(world.network.timings, use_seconds=60.0)
    local_store = world.local_store
    destroying = threading.Thread(target=world.process().destroy_host, args=(host_id,))
    # Two at once, as two commands of a user may.
    with local_store.in_use(host_id), world.local_store.in_use(host_id):
        destroying.start()
        destroying.join(0.3)
        assert ADDRESS in world.cloud.instances
    destroying.join(60)
    assert world.cloud.instances == {}


def test_destroying_does_not_wait_for_ever(world: World, host_id: HostId) -> None:
    world.network.timings = replace(world.network.timings, use_seconds=0.1)
    with world.local_store.in_use(host_id):
        world.process().destroy_host(host_id)
    assert world.cloud.instances == {}
