"""Changes that several processes make to one host at once, each of which must last."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import HostId, HostName, HostState
from support import changes
from support.provider import ProviderLab, copy_machine, states

TIMEOUT_SECONDS = 540.0
IS_LONG_RUN = os.environ.get("MNGR_FAULTS") == "all"


@pytest.fixture(scope="module")
def host_id(lab: ProviderLab) -> HostId:
    return lab.process().create_host(HostName("shared")).id


@pytest.fixture
def host(lab: ProviderLab, host_id: HostId) -> Iterator[Host]:
    """The host, running, with nothing that an earlier test gave it."""
    provider = lab.process()
    host = provider.start_host(host_id)
    yield host
    for snapshot in provider.list_snapshots(provider.start_host(host_id)):
        provider.delete_snapshot(host_id, snapshot.id)
    provider.set_host_tags(host_id, {})
    for agent in provider.list_persisted_agent_data_for_host(host_id):
        provider.remove_persisted_agent_data(host_id, agent["id"])


def change_at_once(
    lab: ProviderLab, host_id: HostId, processes: int, changes_each: int, machines: tuple[str, ...] = ("here",)
) -> list[dict[str, Any]]:
    """Let so many processes on these machines make so many changes each, and return what each has made."""
    programs = [
        subprocess.Popen(
            [
                *(sys.executable, changes.__file__, lab.folder / machines[number % len(machines)]),
                *(lab.account, host_id, f"w{number}", str(changes_each)),
            ],
            env=os.environ | {"PYTHONPATH": str(Path(changes.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        with ThreadPoolExecutor(len(programs)) as pool:
            ends = list(pool.map(lambda program: program.communicate("go\n", timeout=TIMEOUT_SECONDS), programs))
    finally:
        for program in programs:
            program.kill()
            program.communicate()
    assert [program.returncode for program in programs] == [0] * len(programs), "\n".join(end[1] for end in ends)
    return [json.loads(end[0]) for end in ends]


def assert_all_is_there(lab: ProviderLab, host: Host, made: list[dict[str, Any]]) -> None:
    """What the processes made is in the record and in data.json, as a new process reads them, and nothing else."""
    process = lab.process()
    assert states(process) == {host.id: HostState.RUNNING}
    fresh = process.get_host(host.id)
    assert isinstance(fresh, Host)
    assert fresh.get_certified_data().host_name == process.to_offline_host(host.id).get_name()
    for data in (fresh.get_certified_data(), process.to_offline_host(host.id).get_certified_data()):
        assert data.user_tags == {key: value for one in made for key, value in one["tags"].items()}
        assert sorted(snapshot.name for snapshot in data.snapshots) == sorted(
            name for one in made for name in one["snapshots"]
        )
        # Somebody's last one was the last of all.
        assert data.host_name in [one["names"][-1] for one in made]
        assert data.idle_timeout_seconds in [one["limits"][-1] for one in made]
        assert set(data.generated_work_dirs) >= {folder for one in made for folder in one["work_dirs"]}
        assert data.plugin.items() >= {name: value for one in made for name, value in one["plugins"].items()}.items()
    agents = process.list_persisted_agent_data_for_host(host.id)
    by_id = sorted((agent for one in made for agent in one["agents"]), key=lambda agent: str(agent["id"]))
    assert sorted(agents, key=lambda agent: str(agent["id"])) == by_id
    images = lab.on_vps(host.id, "docker images --format {{.Repository}}:{{.Tag}} mngr-snapshot").split()
    assert {snapshot.id for snapshot in process.list_snapshots(host.id)} == set(images)


# Fifty each take minutes, and so are part of `make test-faults`.
@pytest.mark.parametrize(("processes", "changes_each"), [(2, 50), (8, 50)] if IS_LONG_RUN else [(2, 24), (6, 12)])
def test_what_each_of_several_processes_changes_lasts(
    lab: ProviderLab, host: Host, processes: int, changes_each: int
) -> None:
    made = change_at_once(lab, host.id, processes, changes_each)
    assert_all_is_there(lab, host, made)


def test_what_several_machines_change_lasts(lab: ProviderLab, host: Host) -> None:
    copy_machine(lab, "elsewhere")
    made = change_at_once(lab, host.id, processes=4, changes_each=12, machines=("here", "elsewhere"))
    assert_all_is_there(lab, host, made)
