import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from imbue.mngr.interfaces.data_types import VolumeFileType
from imbue.mngr_vps_docker.docker.errors import NoSuchVolumeError
from imbue.mngr_vps_docker.errors import RemoteCommandError, RemoteOutputError
from imbue.mngr_vps_docker.state.host_volume import HostVolumeOverSsh, UnsafeVolumePathError, write_volume_files
from support.local_machine import LocalMachine

_NASTY = "a $(b) 'c' \"d\" -e é"


@pytest.fixture
def files(machine: LocalMachine) -> Path:
    return machine.volume("v")


@pytest.fixture
def volume(machine: LocalMachine, files: Path) -> HostVolumeOverSsh:
    return HostVolumeOverSsh(connection=machine, volume_name="v")


@pytest.mark.parametrize("content", [b"", b"\0\xff\n'", b"x" * 3_000_001])
def test_files_come_back_as_they_were_written(volume: HostVolumeOverSsh, files: Path, content: bytes) -> None:
    volume.write_files({f"deep/{_NASTY}/f": content, "/top": b"1"})
    assert volume.read_file(f"/deep/{_NASTY}/f") == content
    assert (files / "deep" / _NASTY / "f").read_bytes() == content
    assert (files / "top").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in files.iterdir()) == ["deep", "top"]


def test_many_files_are_one_round_trip_and_have_the_mode_asked_for(machine: LocalMachine, files: Path) -> None:
    write_volume_files(machine, "v", {f"d/{number}": b"%d" % number for number in range(50)}, 0o600)
    assert len(machine.commands) == 1
    assert {path.read_text() for path in (files / "d").iterdir()} == {str(number) for number in range(50)}
    assert (files / "d" / "7").stat().st_mode & 0o777 == 0o600
    write_volume_files(machine, "v", {})
    assert len(machine.commands) == 1


def test_a_listing_has_types_sizes_and_times(volume: HostVolumeOverSsh, files: Path) -> None:
    (files / "a" / "b").mkdir(parents=True)
    (files / "a" / "c\nd").write_text("123")
    os.utime(files / "a" / "c\nd", (5, 1_700_000_000.5))
    (files / "a" / "link").symlink_to("/etc")
    entries = {entry.path: entry for entry in volume.listdir("/a/")}
    assert set(entries) == {"a/b", "a/c\nd", "a/link"}
    assert entries["a/b"].file_type is VolumeFileType.DIRECTORY
    assert entries["a/link"].file_type is VolumeFileType.FILE
    assert (entries["a/c\nd"].size, entries["a/c\nd"].mtime) == (3, 1_700_000_000)
    assert [entry.path for entry in volume.listdir("")] == ["a"]
    assert [entry.path for entry in volume.scoped("a").listdir("")] == ["b", "c\nd", "link"]


def test_files_and_directories_are_removed(volume: HostVolumeOverSsh, files: Path) -> None:
    (files / "a" / "b").mkdir(parents=True)
    (files / "a" / "f").write_text("1")
    volume.remove_file("a/f")
    with pytest.raises(RemoteCommandError, match="a file is where"):
        volume.remove_file("a")
    volume.remove_directory("a")
    assert not list(files.iterdir())


def test_what_is_not_there_is_told_apart_from_a_failure(volume: HostVolumeOverSsh, machine: LocalMachine) -> None:
    for operation in (volume.read_file, volume.listdir, volume.remove_file, volume.remove_directory):
        with pytest.raises(FileNotFoundError):
            operation("no/such")
        with pytest.raises(NoSuchVolumeError):
            getattr(HostVolumeOverSsh(connection=machine, volume_name="w"), operation.__name__)("x")


def test_paths_do_not_leave_the_volume(volume: HostVolumeOverSsh, files: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (files / "out").symlink_to(outside)
    (files / "up").symlink_to("../..")
    (files / "file").symlink_to(outside / "secret")
    for path in ("../outside/secret", "a/../../outside/secret", "out/secret", "up/outside/secret", "file"):
        with pytest.raises(UnsafeVolumePathError):
            volume.read_file(path)
    for path in ("../outside/new", "out/new", "up/outside/new"):
        with pytest.raises(UnsafeVolumePathError):
            volume.write_files({path: b"x"})
        with pytest.raises(UnsafeVolumePathError):
            volume.listdir(path.rpartition("/")[0])
    with pytest.raises(UnsafeVolumePathError):
        volume.remove_directory("out/secret")
    volume.remove_directory("up")
    volume.remove_file("out")
    assert [path.name for path in outside.iterdir()] == ["secret"]
    volume.write_files({"file": b"mine"})
    assert (outside / "secret").read_text() == "s"
    assert (files / "file").read_text() == "mine" and not (files / "file").is_symlink()


@pytest.mark.parametrize("name", ["0", "tar"])
def test_a_link_planted_during_a_write_leads_nowhere(
    volume: HostVolumeOverSsh, files: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    is_over = threading.Event()

    def plant_links() -> None:
        while not is_over.is_set():
            for new in files.iterdir():
                with suppress(OSError):
                    (new / name).symlink_to(victim)

    with ThreadPoolExecutor(1) as pool:
        planting = pool.submit(plant_links)
        for number in range(10):
            volume.write_files({"f": b"%d" % number})
            digest = hashlib.sha256(b"%d" % number).hexdigest()
            command = volume.replace_file_command("f", b"replaced", expected_sha256=digest)
            assert volume.connection.call(command)
        is_over.set()
        planting.result()
    assert victim.read_text() == "untouched"
    assert (files / "f").read_text() == "replaced"
    assert {path.name for path in files.iterdir()} == {"f"}
    assert not list(files.parent.rglob(".mngr-new*"))


def test_links_inside_the_volume_are_followed_to_directories(volume: HostVolumeOverSsh, files: Path) -> None:
    (files / "real").mkdir()
    (files / "real" / "f").write_text("1")
    (files / "alias").symlink_to("real")
    assert volume.read_file("alias/f") == b"1"


def test_pipes_and_directories_are_not_read(volume: HostVolumeOverSsh, files: Path) -> None:
    os.mkfifo(files / "pipe")
    (files / "d").mkdir()
    for path in ("pipe", "d"):
        with pytest.raises(RemoteCommandError, match="a file is where"):
            volume.read_file(path)
    with pytest.raises(RemoteCommandError, match="a file is where"):
        volume.write_files({"d": b""})


def test_more_of_a_file_than_was_asked_for_is_not_read(volume: HostVolumeOverSsh, files: Path) -> None:
    (files / "f").write_bytes(bytes(1000))
    assert volume.read_file("f", limit_bytes=1000) == bytes(1000)
    with pytest.raises(RemoteOutputError, match="too large"):
        volume.read_file("f", limit_bytes=999)
    with (files / "sparse").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(RemoteOutputError, match="too large"):
        volume.read_file("sparse")


@pytest.mark.parametrize("listing", ["x", "f 1 2", "f one 2 name", f"f 1 {'9' * 5000} name", "f -1 2 name"])
def test_a_listing_that_find_never_printed_is_an_error(
    volume: HostVolumeOverSsh, machine: LocalMachine, files: Path, listing: str
) -> None:
    find = machine.volumes.parent / "bin" / "find"
    find.write_text(f"#!/bin/sh\nprintf '%s\\0' '{listing}'\n")
    find.chmod(0o755)
    with pytest.raises(RemoteCommandError, match="lists something that is not a file"):
        volume.listdir("")


def test_a_failed_write_leaves_nothing_and_changes_nothing(volume: HostVolumeOverSsh, files: Path) -> None:
    (files / "f").write_text("old")
    (files / "file").write_text("")
    with pytest.raises(RemoteCommandError):
        volume.write_files({"file/below": b"1", "f": b"new"})
    assert (files / "f").read_text() == "old"
    assert sorted(path.name for path in files.iterdir()) == ["f", "file"]


def test_a_file_is_replaced_only_while_it_is_what_was_expected(volume: HostVolumeOverSsh, files: Path) -> None:
    assert volume.replace_file("d/f", b"first", expected=b"")
    assert not volume.replace_file("d/f", b"second", expected=b"")
    assert (files / "d" / "f").read_bytes() == b"first"
    assert volume.replace_file("d/f", b"second", expected=b"first")
    assert (files / "d" / "f").read_bytes() == b"second"
    (files / "d" / "f").unlink()
    os.mkfifo(files / "d" / "f")
    assert not volume.replace_file("d/f", b"third", expected=b"second")
    assert sorted(path.name for path in files.rglob("*")) == ["d", "f"]


def test_a_command_replaces_a_file_only_while_it_is_what_was_expected(volume: HostVolumeOverSsh, files: Path) -> None:
    def replace(content: bytes, expected: bytes) -> bool:
        digest = hashlib.sha256(expected).hexdigest()
        return volume.connection.call(volume.replace_file_command("d/f", content, expected_sha256=digest))

    assert replace("it's $HOME\n é".encode(), b"")
    assert not replace(b"second", b"first")
    assert (files / "d" / "f").read_text() == "it's $HOME\n é"
    assert list(files.parent.rglob(".mngr-new*")) == []


def test_replacements_at_once_lose_nothing(volume: HostVolumeOverSsh, files: Path) -> None:
    def add_five_lines(name: int) -> None:
        left = 5
        while left:
            found = (files / "f").read_bytes()
            left -= volume.replace_file("f", found + b"%d\n" % name, expected=found)

    volume.write_files({"f": b""})
    with ThreadPoolExecutor() as pool:
        list(pool.map(add_five_lines, range(3)))
    assert sorted((files / "f").read_text().split()) == ["0"] * 5 + ["1"] * 5 + ["2"] * 5
