"""What one process of a machine destroys, its other processes neither wait for nor fail at."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loguru import logger

from imbue.mngr.primitives import HostId, HostState
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.state import local_store as journals
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.fleet import ADDRESS, CASES, Fleet
from support.provider import collect_garbage, states

AT_ONCE = {"min_online_host_age_seconds": 0.0, "ssh_connect_timeout": 1.0}


@pytest.fixture
def host_id(fleet: Fleet) -> HostId:
    """A host that runs."""
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["running, without a way in"])
    return host_id


@contextmanager
def being_destroyed(fleet: Fleet, host_id: HostId) -> Iterator[None]:
    """As while another process waits for the cloud."""
    local_store = fleet.process()._context.local_store
    with local_store.owned(host_id):
        local_store.update(host_id, phase=HostPhase.DESTROYING)
        fleet.network.machines.clear()
        yield


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    said = list[str]()
    sink = logger.add(said.append, level="WARNING", format="{message}")
    yield said
    logger.remove(sink)


def test_a_host_that_was_seen_running_is_building_and_then_gone(fleet: Fleet, host_id: HostId) -> None:
    process = fleet.process()
    assert states(process) == {host_id: HostState.RUNNING}
    with being_destroyed(fleet, host_id):
        assert not isinstance(process.get_host(host_id), VpsDockerHost)
        assert process._hosts.get(host_id).state is HostState.BUILDING
        fleet.process()._context.local_store.forget(host_id)
        assert not isinstance(process.get_host(host_id), VpsDockerHost)
        assert process._hosts.get(host_id).state is HostState.DESTROYED


def test_a_note_that_somebody_removed_does_not_hide_a_vps_that_the_cloud_lists(fleet: Fleet, host_id: HostId) -> None:
    process = fleet.process()
    assert states(process) == {host_id: HostState.RUNNING}
    fleet.note_path(host_id).unlink()
    assert states(process) == {host_id: HostState.RUNNING}
    process.destroy_host(host_id)
    assert fleet.cloud.instances == {}


def test_a_command_for_it_fails_without_a_login_and_files_are_missing(fleet: Fleet, host_id: HostId) -> None:
    host = fleet.process(**AT_ONCE).get_host(host_id)
    assert isinstance(host, VpsDockerHost)
    with being_destroyed(fleet, host_id):
        done = host.execute_idempotent_command("true")
        assert (done.success, "is being destroyed" in done.stderr) == (False, True)
        with pytest.raises(FileNotFoundError, match="is being destroyed"):
            host.read_file(Path("/x"))
        assert host._get_file_mtime(Path("/x")) is None
        # What was to be kept is not: that must not pass for done.
        with pytest.raises(VpsConnectionError, match="is being destroyed"):
            host.write_file(Path("/x"), b"")
    assert fleet.network.logins == []


def test_gc_passes_over_a_host_that_is_destroyed_while_it_looks(
    fleet: Fleet, host_id: HostId, warnings: list[str]
) -> None:
    with being_destroyed(fleet, host_id):
        fleet.process()._context.local_store.update(host_id, phase=HostPhase.READY)

        def destroy(listed: object) -> object:
            fleet.process()._context.local_store.update(host_id, phase=HostPhase.DESTROYING)
            return listed

        client = FaultyClient(real=fleet.cloud, faults=(Fault("find_instances", lie=destroy),))
        collect_garbage(fleet.process(client, **AT_ONCE))
    assert warnings == []
    assert ADDRESS in fleet.cloud.instances


def test_destroying_waits_for_who_is_changing_the_host(
    fleet: Fleet, host_id: HostId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_USE_SECONDS", 60.0)
    local_store = fleet.process()._context.local_store
    destroying = threading.Thread(target=fleet.process().destroy_host, args=(host_id,))
    # Two at once, as two commands of a user may.
    with local_store.in_use(host_id), fleet.process()._context.local_store.in_use(host_id):
        destroying.start()
        destroying.join(0.3)
        assert ADDRESS in fleet.cloud.instances
    destroying.join(60)
    assert fleet.cloud.instances == {}


def test_destroying_does_not_wait_for_ever(fleet: Fleet, host_id: HostId, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "_USE_SECONDS", 0.1)
    with fleet.process()._context.local_store.in_use(host_id):
        fleet.process().destroy_host(host_id)
    assert fleet.cloud.instances == {}
