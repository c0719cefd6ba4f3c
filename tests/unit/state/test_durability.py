"""What must be on disk before the next step is there, even if the machine loses power then."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.files import write_atomically
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.builders import record_of
from support.local_machine import LocalMachine
from support.world import World

type Said = list[str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is put on disk, and how, in order."""
    events: Said = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    return events


def test_a_file_is_on_disk_before_it_has_its_name(said: Said, tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "note", b"content")
    folder, temporary, *rest = said
    assert folder == f"sync {tmp_path.name}"
    assert temporary.startswith("sync .note.")
    assert rest == ["rename to note", "sync new"]


def test_a_local_record_is_on_disk_before_the_cloud_is_asked(world: World, said: Said) -> None:
    local_store = world.local_store
    noted: dict[str, list[LocalHostRecord]] = {}

    class WatchedClient(FaultyClient):
        def _call[Answer](self, name: str, act: Callable[[], Answer]) -> Answer:
            said.append(f"call {name}")
            noted[name] = local_store.read_all()
            return super()._call(name, act)

    client = WatchedClient(real=world.cloud, faults=(Fault("create_instance", VpsApiError(403, "no more VPSes")),))
    with pytest.raises(VpsProvisioningError, match="no more VPSes"):
        world.process(client).create_host(HostName("h1"))
    (before_key,), (before_vps,) = noted["upload_ssh_key"], noted["create_instance"]
    assert (before_key.ssh_key_name, before_key.is_vps_ordered) == (before_vps.ssh_key_name, False)
    assert (before_vps.ssh_key_id, before_vps.is_vps_ordered) == (f"id of {before_key.ssh_key_name}", True)
    for call in ("call upload_ssh_key", "call create_instance"):
        before = said[: said.index(call)]
        renamed = max(number for number, what in enumerate(before) if what == "rename to host.json")
        assert before[renamed - 1].startswith("sync .host.json.")
        assert before[renamed + 1] == f"sync {before_key.host_id}"


def test_a_record_is_on_the_disk_of_its_vps_before_it_has_its_name(tmp_path: Path) -> None:
    machine = LocalMachine(tmp_path)
    machine.volume("state")
    log = tmp_path / "said"
    for tool in ("sync", "mv"):
        wrapper = Path(machine.environment["PATH"].partition(":")[0]) / tool
        wrapper.write_text(f'#!/bin/sh\necho "{tool} $*" >>{log}\nexec {shutil.which(tool)} "$@"\n')
        wrapper.chmod(0o755)
    host_id = HostId.generate()
    VpsDockerHostStore(machine, "state").write_host_record(record_of(host_id))
    written, renamed, named = log.read_text().splitlines()
    assert re.fullmatch(r"sync host_state/\.new\.\w+", written)
    assert re.fullmatch(rf"mv -T host_state/\.new\.\w+ host_state/{host_id}\.json", renamed)
    assert named == "sync host_state host_state ."
