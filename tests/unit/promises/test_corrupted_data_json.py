"""However a container corrupts its data.json, its host can be changed, and only a file is opened."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.state.host_volume import HostVolumeOverSsh
from support.world import World


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def make_folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)


SPOILED: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "a folder": make_folder,
    "a file of gigabytes": make_sparse,
    "no JSON": lambda path: path.write_text("{"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "of something else": lambda path: path.write_text('{"host_id": 5}'),
}


def _make_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))


# Who can make a device at all: root in most containers, too.
with tempfile.TemporaryDirectory() as folder, suppress(PermissionError):
    _make_device(Path(folder) / "device")
    SPOILED["a device"] = _make_device


@pytest.mark.parametrize("what", SPOILED)
def test_a_data_json_that_is(world: World, corrupted: HostId, what: str) -> None:
    SPOILED[what](world.volume(corrupted) / "data.json")
    began = time.monotonic()
    world.process().add_tags_to_host(corrupted, {"k": "v"})
    world.process().rename_host(corrupted, HostName("other"))
    host = world.process().get_host(corrupted)
    host.set_certified_data(host.get_certified_data().model_copy(update={"idle_timeout_seconds": 7}))
    assert time.monotonic() - began < 20
    record = json.loads(world.record_path(corrupted).read_text())["certified_host_data"]
    assert (record["user_tags"], record["host_name"], record["idle_timeout_seconds"]) == ({"k": "v"}, "other", 7)
    path = world.volume(corrupted) / "data.json"
    assert path.is_file() and not path.is_symlink()
    assert CertifiedHostData.model_validate_json(path.read_bytes()).idle_timeout_seconds == 7
    assert not list(world.volume(corrupted).parent.rglob(".mngr-*"))


def test_a_folder_put_there_repeatedly_counts_as_a_change(world: World, corrupted: HostId) -> None:
    path = world.volume(corrupted) / "data.json"
    machine = world.vps(corrupted)
    wins = iter(range(3))
    (machine.volumes.parent / "bin" / "mv").write_text(
        f'#!/bin/sh\nif [ -e {path}.win ]; then rm {path}.win; mkdir {path}; fi\nexec /usr/bin/mv "$@"\n'
    )
    (machine.volumes.parent / "bin" / "mv").chmod(0o755)
    machine.before_command = lambda purpose: (
        Path(f"{path}.win").touch() if purpose.startswith("write data.json") and next(wins, None) is not None else None
    )
    volume = HostVolumeOverSsh(connection=machine, volume_name=world.volume(corrupted).name)
    assert not volume.replace_file("data.json", b"1", expected=b"")
    path.rmdir()
    host = world.process().get_host(corrupted)
    host.set_certified_data(host.get_certified_data().model_copy(update={"idle_timeout_seconds": 7}))
    assert CertifiedHostData.model_validate_json(path.read_bytes()).idle_timeout_seconds == 7
    assert next(wins, None) is None
