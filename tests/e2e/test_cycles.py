"""A host that is stopped, started and rebooted repeatedly does not change, and nothing accumulates."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import AgentId, HostId, HostName, HostState, SnapshotName
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.errors import VpsConnectionError
from support.provider import ProviderLab
from support.remote import wait_for

type Deed = Callable[[ProviderLab, HostId], None]

# Twenty take two minutes, and so are part of `make test-faults`.
CYCLES = 20 if os.environ.get("MNGR_FAULTS") == "all" else 5
REBOOTS = (2, 14)
ON_VOLUME, IN_CONTAINER = Path("/mngr/notes.txt"), Path("/root/notes.txt")
WATCHERS = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'bash /mngr/commands/activity_[w]atcher.sh' | wc -l"


@pytest.fixture(scope="module")
def host_id(lab: ProviderLab) -> HostId:
    """A host with one of everything."""
    provider = lab.process()
    host = provider.create_host(HostName("h1"), tags={"team": "a"})
    host.write_file(ON_VOLUME, b"on the volume")
    host.write_file(IN_CONTAINER, b"in the container")
    agent = {"id": AgentId.generate(), "name": "a1", "type": "command", "command": "sleep 1", "work_dir": "/"}
    host.write_file(Path(f"/mngr/agents/{agent['id']}/data.json"), json.dumps(agent).encode())
    host.set_certified_data(host.get_certified_data().model_copy(update={"idle_timeout_seconds": 77_777}))
    provider.create_snapshot(host, SnapshotName("s1"))
    return host.id


def identity(lab: ProviderLab, host: Host) -> dict[str, object]:
    """All that a host is and has, as a new process finds it."""
    provider = lab.process()
    data = host.get_certified_data()
    return {
        "id": host.id,
        "name": host.get_name(),
        "files": (host.read_file(ON_VOLUME), host.read_file(IN_CONTAINER)),
        "agents": provider.list_persisted_agent_data_for_host(host.id),
        "tags": (provider.get_host_tags(host.id), data.user_tags),
        "snapshots": provider.list_snapshots(host.id),
        "settings": (data.idle_timeout_seconds, data.activity_sources, data.created_at),
        "ssh": host.get_ssh_connection_info(),
        "pins": provider.context.container_known_hosts.path.read_text(),
        "containers": lab.on_vps(host.id, "docker ps -aq | wc -l"),
        "images": lab.on_vps(host.id, "docker images -aq | wc -l"),
        "volumes": lab.on_vps(host.id, "docker volume ls -q"),
    }


def test_cycles_and_reboots_change_nothing(lab: ProviderLab, host_id: HostId) -> None:
    host = lab.process().start_host(host_id)
    before = identity(lab, host)
    for cycle in range(CYCLES):
        if cycle in REBOOTS:
            run_docker("restart", lab.instance_of(host_id), timeout_seconds=120)
            lab.wait_for_vps(host_id)
            assert lab.state_of(host_id) is not HostState.RUNNING
        else:
            lab.process().stop_host(host_id, create_snapshot=False)
            assert lab.state_of(host_id) is HostState.STOPPED
        host = lab.process().start_host(host_id)
    assert identity(lab, host) == before
    wait_for(lambda: host.execute_idempotent_command(WATCHERS).stdout == "1")


def stop(lab: ProviderLab, host_id: HostId) -> None:
    lab.process().stop_host(host_id, create_snapshot=False)


def start(lab: ProviderLab, host_id: HostId) -> None:
    lab.process().start_host(host_id)


def snapshot(lab: ProviderLab, host_id: HostId) -> None:
    lab.process().create_snapshot(host_id)


def tag(lab: ProviderLab, host_id: HostId) -> None:
    lab.process().add_tags_to_host(host_id, {"at the same": "time"})


def rename(lab: ProviderLab, host_id: HostId) -> None:
    lab.process().rename_host(host_id, HostName("renamed"))


def limit(lab: ProviderLab, host_id: HostId) -> None:
    def try_it() -> bool:
        host = lab.process().get_host(host_id)
        with suppress(VpsConnectionError):
            host.set_certified_data(host.get_certified_data().model_copy(update={"idle_timeout_seconds": 88_888}))
            return True
        return False

    # It may stop between being found and being asked.
    wait_for(try_it, 30)


UP, DOWN = {HostState.RUNNING}, {HostState.STOPPED, HostState.PAUSED}


@pytest.mark.parametrize(
    ("begin", "deeds", "ends"),
    [
        (start, (stop, start), UP | DOWN),
        (stop, (start, stop), UP | DOWN),
        (start, (stop, stop), DOWN),
        (stop, (start, start, start), UP),
        (start, (start, start), UP),
        (start, (stop, snapshot, tag), DOWN),
        (stop, (start, snapshot, tag), UP),
    ],
    ids=lambda given: " and ".join(deed.__name__ for deed in given) if isinstance(given, tuple) else "",
)
def test_concurrent_operations_leave_a_state_that_was_asked_for(
    lab: ProviderLab, host_id: HostId, begin: Deed, deeds: tuple[Deed, ...], ends: set[HostState]
) -> None:
    begin(lab, host_id)
    do_at_once(lab, host_id, deeds)
    assert lab.state_of(host_id) in ends
    check_that_it_is_whole(lab, host_id)


def test_whatever_is_changed_during_an_idle_stop_lasts(lab: ProviderLab, host_id: HostId) -> None:
    start(lab, host_id)
    # What the activity watcher does, while the others are under way.
    lab.in_container(host_id, "(sleep 0.4; /mngr/commands/shutdown.sh) >/dev/null 2>&1 &")
    do_at_once(lab, host_id, (snapshot, tag, rename, limit))
    wait_for(lambda: lab.state_of(host_id) is HostState.PAUSED, 30)
    listed = [snapshot.id for snapshot in lab.process().list_snapshots(host_id)]
    host = lab.process().start_host(host_id)
    for data in (host.get_certified_data(), lab.process().to_offline_host(host_id).get_certified_data()):
        assert (data.host_name, data.user_tags["at the same"]) == ("renamed", "time")
        assert data.idle_timeout_seconds == 88_888
        assert sorted(snapshot.id for snapshot in data.snapshots) == sorted(listed)
    check_that_it_is_whole(lab, host_id)


def do_at_once(lab: ProviderLab, host_id: HostId, deeds: tuple[Deed, ...]) -> None:
    """Each by a process of its own."""
    with ThreadPoolExecutor(len(deeds)) as pool:
        for done in [pool.submit(deed, lab, host_id) for deed in deeds]:
            done.result(120)


def check_that_it_is_whole(lab: ProviderLab, host_id: HostId) -> None:
    """It starts and has its files, and each snapshot of it is there; all but the first are removed."""
    provider = lab.process()
    host = provider.start_host(host_id)
    assert (host.read_file(ON_VOLUME), host.read_file(IN_CONTAINER)) == (b"on the volume", b"in the container")
    listed = [snapshot.id for snapshot in provider.list_snapshots(host_id)]
    assert sorted(
        lab.on_vps(host_id, "docker images --format {{.Repository}}:{{.Tag}} mngr-snapshot").split()
    ) == sorted(listed)
    for snapshot_id in listed[:-1]:
        provider.delete_snapshot(host_id, snapshot_id)
