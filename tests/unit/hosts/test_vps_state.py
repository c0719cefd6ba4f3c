import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from loguru import logger

from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.docker.errors import DaemonNotRunningError, DockerError
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.hosts import vps_state
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.vps_state import NEEDS_REBOOT_SCRIPT, read_vps
from imbue.mngr_vps_docker.state import volume_scripts
from support.builders import container_of, local_record_of, record_of
from support.local_machine import LocalMachine

# linux/fcntl.h, linux/fs.h
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _write_record(machine: LocalMachine, host_id: HostId, **config: object) -> None:
    VpsDockerHostStore(machine, "state").write_host_record(record_of(host_id, config=config))


def _set_containers(machine: LocalMachine, *containers: dict[str, Any]) -> None:
    (machine.volumes / ".container-ids").write_text("".join(f"{container['Id']}\n" for container in containers))
    (machine.volumes / ".containers").write_text(json.dumps(containers))
    for container in containers:
        (machine.volumes / f".container-{container['Name'].removeprefix('/')}").write_text(json.dumps([container]))


def _host_volume(machine: LocalMachine, name: str, agents: list[dict[str, Any]]) -> Path:
    volume = machine.volume(name)
    (volume / "data.json").write_text('{"host_name": "live"}')
    (volume / "stop_reason").write_text("PAUSED\n")
    for agent in agents:
        (volume / "agents" / agent["id"]).mkdir(parents=True)
        (volume / "agents" / agent["id"] / "data.json").write_text(json.dumps(agent))
    return volume


def _read(machine: LocalMachine, host_id: HostId, container: str | None = None) -> ObservedHost:
    seen = ObservedHost(local_record_of(host_id, record=None))
    return read_vps(seen, machine, state_volume="state", container=container)


def test_an_empty_vps_says_nothing_of_its_host(machine: LocalMachine) -> None:
    assert not _read(machine, HostId()).is_read


def test_all_of_a_host_is_read_in_one_round_trip(machine: LocalMachine) -> None:
    host_id = HostId()
    live, kept = {"id": AgentId(), "name": "a1", "labels": {"k": "é' \n"}}, {"id": AgentId()}
    machine.volume("state")
    _write_record(machine, host_id)
    VpsDockerHostStore(machine, "state").persist_agent_data(host_id, kept)
    _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [live])
    _set_containers(machine, container_of(host_id))
    machine.commands.clear()
    found = _read(machine, host_id)
    assert len(machine.commands) == 1
    assert found.vps_record is not None and found.vps_record.host_id == host_id
    assert found.kept_agents == (kept,)
    assert found.live_agents == (live,)
    assert found.data_json == {"host_name": "live"}
    assert found.stop_word == "PAUSED"
    assert found.is_volume_read
    assert found.container is not None and found.container.is_running
    assert found.container.memory_bytes == 64 << 20
    assert found.container.finished_at is None


@pytest.mark.parametrize(("said", "expected"), [("echo reboot\n", True), ("", False)])
def test_a_reboot_that_a_vps_needs_is_read_with_its_hosts(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch, said: str, expected: bool
) -> None:
    monkeypatch.setattr(vps_state, "NEEDS_REBOOT_SCRIPT", said)
    machine.volume("state")
    host_id = HostId()
    _write_record(machine, host_id)
    assert _read(machine, host_id).needs_reboot is expected


def test_a_volume_of_any_name_is_found_by_the_record(machine: LocalMachine) -> None:
    host_id = HostId()
    machine.volume("state")
    _write_record(machine, host_id, volume_name="an.old_name")
    _host_volume(machine, "an.old_name", [])
    _host_volume(machine, "somebody-elses", [])
    assert _read(machine, host_id).data_json == {"host_name": "live"}


def test_a_host_without_a_record_is_known_by_its_container_and_volume(machine: LocalMachine) -> None:
    host_id = HostId()
    _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [])
    _set_containers(machine, container_of(host_id, "exited"), container_of("nonsense", container_id="c2"))
    found = _read(machine, host_id)
    assert (found.host_id, found.vps_record, found.stop_word) == (host_id, None, "PAUSED")
    assert found.container is not None and not found.container.is_running


def test_a_host_that_stops_just_then_has_stopped_in_order(machine: LocalMachine) -> None:
    host_id = HostId()
    machine.volume("state")
    volume = _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [])
    (volume / "stop_reason").unlink()
    described = machine.volumes / ".container-c"
    os.mkfifo(described)

    def stop_as_soon_as_docker_is_asked() -> None:
        with described.open("w") as file:
            (volume / "stop_reason").write_text("PAUSED")
            json.dump([container_of(host_id, "exited")], file)

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop_as_soon_as_docker_is_asked)
        found = _read(machine, host_id, "c")
        stopping.result(timeout=30)
    assert found.stop_word == "PAUSED"


def test_of_several_containers_the_recorded_one_counts(machine: LocalMachine) -> None:
    host_id = HostId()
    machine.volume("state")
    _write_record(machine, host_id)
    _set_containers(machine, container_of(host_id, container_id="c2"), container_of(host_id, "exited"))
    container = _read(machine, host_id).container
    assert container is not None and container.id == "c1"


def test_an_unreadable_record_is_not_an_absent_host(machine: LocalMachine) -> None:
    host_id = HostId()
    (machine.volume("state") / "host_state").mkdir()
    (machine.volumes / "state" / "host_state" / f"{host_id}.json").write_text("{")
    found = _read(machine, host_id)
    assert (found.is_read, found.is_record_unreadable) == (True, True)


def test_a_daemon_that_is_down_is_an_error(machine: LocalMachine) -> None:
    machine.volume("state")
    (machine.volumes / ".daemon-down").touch()
    with pytest.raises(DaemonNotRunningError):
        _read(machine, HostId())


def test_what_docker_says_of_containers_is_checked(machine: LocalMachine) -> None:
    (machine.volumes / ".container-ids").write_text("c1\n")
    (machine.volumes / ".containers").write_text('[{"Id": 1}]')
    with pytest.raises(DockerError, match="cannot be read"):
        _read(machine, HostId())


def test_what_a_container_wrote_cannot_lead_out_or_claim_to_be_another_agent(
    machine: LocalMachine, tmp_path: Path
) -> None:
    host_id, good, bad = HostId(), {"id": AgentId()}, AgentId()
    machine.volume("state")
    _write_record(machine, host_id)
    volume = _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [good])
    secret = tmp_path / "secret"
    (secret / AgentId()).mkdir(parents=True)
    (secret / "data.json").write_text('{"secret": 1}')
    (volume / "data.json").unlink()
    (volume / "data.json").symlink_to(secret / "data.json")
    (volume / "stop_reason").write_bytes(b"\x1b[31mSTOPPED" * 100_000)
    (volume / "agents" / bad).symlink_to(secret)
    (volume / "agents" / AgentId()).mkdir()
    os.mkfifo(next(path for path in (volume / "agents").iterdir() if not any(path.iterdir())) / "data.json")
    other = volume / "agents" / AgentId()
    other.mkdir()
    (other / "data.json").write_text(json.dumps(good))
    found = _read(machine, host_id)
    assert (found.data_json, found.stop_word, found.live_agents) == (None, None, (good,))


def test_a_volume_that_holds_too_much_costs_only_itself(machine: LocalMachine) -> None:
    host_id = HostId()
    machine.volume("state")
    _write_record(machine, host_id)
    volume = _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [])
    for _ in range(9):
        agent = volume / "agents" / AgentId()
        agent.mkdir(parents=True)
        (agent / "data.json").write_bytes(b"x" * (8 << 20))
    found = _read(machine, host_id)
    assert found.vps_record is not None
    assert not found.is_volume_read


def test_a_container_of_the_known_name_is_looked_at_alone(machine: LocalMachine) -> None:
    host_id, other_id = HostId.generate(), HostId.generate()
    _set_containers(machine, container_of(host_id), container_of(other_id, container_id="c2"))
    (machine.volumes / ".container-ids").unlink()
    assert _read(machine, host_id, "name-of-c1").container is not None
    assert _read(machine, host_id, "name-of-c3").container is None


def test_what_is_of_another_host_is_named_and_not_believed(machine: LocalMachine) -> None:
    host_id, other_id = HostId.generate(), HostId.generate()
    machine.volume("state")
    _write_record(machine, other_id)
    _set_containers(machine, container_of(other_id, container_id="c2"))
    _host_volume(machine, f"mngr-host-vol-{other_id.get_uuid().hex}", [{"id": AgentId()}])
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    found = _read(machine, host_id)
    logger.remove(sink)
    assert found == ObservedHost(found.entry)
    (line,) = said
    assert f"{other_id}.json" in line and "container name-of-c2" in line


def test_a_state_volume_that_holds_too_much_is_one_clear_error(machine: LocalMachine) -> None:
    host_id = HostId.generate()
    machine.volume("state")
    _write_record(machine, host_id)
    folder = machine.volumes / "state" / "host_state" / host_id
    folder.mkdir()
    for _ in range(3):
        (folder / f"{AgentId()}.json").write_bytes(b"x" * (7 << 20))
    with pytest.raises(HostRecordError, match="more than can be read"):
        _read(machine, host_id)


def test_a_volume_that_takes_too_long_to_search_costs_only_itself(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_id = HostId()
    machine.volume("state")
    _write_record(machine, host_id)
    _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", [])
    slow = machine.volumes.parent / "bin" / "python3"
    slow.write_text('#!/bin/sh\ncase $(pwd) in *mngr-host-vol-*) exec sleep 600;; esac\nexec /usr/bin/python3 "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(volume_scripts, "_READ_TIMEOUT_SECONDS", 1)
    found = _read(machine, host_id)
    assert (found.vps_record is not None, found.is_volume_read) == (True, False)


@contextmanager
def _exchanged_all_the_time(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """Exchange the names of each pair as fast as can be, as code in the container may."""
    is_over = Event()

    def exchange() -> None:
        exchange_names = ctypes.CDLL(None, use_errno=True).renameat2
        while not is_over.is_set():
            for one, other in pairs:
                assert exchange_names(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE) == 0

    with ThreadPoolExecutor(1) as pool:
        exchanging = pool.submit(exchange)
        try:
            yield
        finally:
            is_over.set()
        exchanging.result(timeout=30)


def test_a_link_swapped_in_for_a_folder_or_file_leads_nowhere(machine: LocalMachine, tmp_path: Path) -> None:
    host_id = HostId()
    agents = [{"id": AgentId(), "labels": {"from": "the volume"}} for _ in range(2)]
    machine.volume("state")
    _write_record(machine, host_id)
    inside = _host_volume(machine, f"mngr-host-vol-{host_id.get_uuid().hex}", agents) / "agents"
    folder, file = inside / str(agents[0]["id"]), inside / str(agents[1]["id"]) / "data.json"
    for agent, link, is_folder in zip(agents, ("folder link", "file link"), (True, False), strict=True):
        secret = tmp_path / link / "data.json"
        secret.parent.mkdir()
        secret.write_text(json.dumps(agent | {"labels": {"from": "outside"}}))
        (inside / link).symlink_to(secret.parent if is_folder else secret)
    with _exchanged_all_the_time((folder, inside / "folder link"), (file, inside / "file link")):
        seen = [_read(machine, host_id) for _ in range(200)]
    assert {agent["labels"]["from"] for found in seen for agent in found.live_agents} == {"the volume"}


@pytest.mark.parametrize(
    ("running", "file", "expected"),
    [
        ("6.1.0-18-amd64", "run/reboot-required", "reboot\n"),
        ("6.1.0-18-amd64", "boot/vmlinuz-6.1.0-21-amd64", "reboot\n"),
        ("6.1.0-9-cloud-amd64", "boot/vmlinuz-6.1.0-10-cloud-amd64", "reboot\n"),
        ("6.12.41+deb13-cloud-amd64", "boot/vmlinuz-6.12.48+deb13-cloud-amd64", "reboot\n"),
        ("6.1.0-18-amd64", "boot/vmlinuz-6.1.0-18-amd64", ""),
        ("6.1.0-18-amd64", "boot/vmlinuz-5.10.0-33-amd64", ""),
        ("6.1.0-18-amd64", "boot/vmlinuz-6.1.0-21-cloud-amd64", ""),
        ("6.8.12-4-pve", "boot/vmlinuz-6.12.0-1-amd64", ""),
        ("6.1.0-18-amd64", "boot/config-6.1.0-21-amd64", ""),
    ],
)
def test_a_vps_needs_a_reboot_for_a_newer_kernel_of_its_flavour(
    tmp_path: Path, running: str, file: str, expected: str
) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).touch()
    script = NEEDS_REBOOT_SCRIPT.replace("/run/", f"{tmp_path}/run/").replace("/boot", f"{tmp_path}/boot")
    script = f"uname() {{ echo {running}; }}\n{script}"
    done = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (expected, "")
