"""Files of a machine are written whole or not at all, by a plain shell."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.file_scripts import CUT_OFF, replace_script, write_script
from imbue.mngr_vps_docker.ssh.shell import ShellText
from support.remote import heed_signals

SCRIPTS = pytest.mark.parametrize("script", [write_script, replace_script])
Script = Callable[[str, int, int | None], ShellText]


def feed(script: ShellText, data: bytes) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["sh", "-c", script], input=data, capture_output=True, check=False, timeout=20)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@SCRIPTS
@pytest.mark.parametrize("mode", [None, 0o600, 0o755, 0o400])
def test_a_new_file_has_its_content_its_mode_and_its_parents(tmp_path: Path, script: Script, mode: int | None) -> None:
    path = tmp_path / "new folder" / "-it's"
    done = feed(script(str(path), 3, mode), b"a\0b")
    assert (done.returncode, done.stderr) == (0, b"")
    assert path.read_bytes() == b"a\0b"
    assert mode_of(path) == (0o666 & ~_umask() if mode is None else mode)
    assert names_in(path.parent) == [path.name]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@SCRIPTS
def test_a_file_keeps_its_mode_where_none_is_given(tmp_path: Path, script: Script) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    assert feed(script(str(path), 1, None), b"x").returncode == 0
    assert (path.read_bytes(), mode_of(path)) == (b"x", 0o600)


@SCRIPTS
def test_what_is_cut_off_is_no_success(tmp_path: Path, script: Script) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    done = feed(script(str(path), 9, None), b"part")
    assert (done.returncode, done.stderr) == (CUT_OFF, b"not all 9 bytes arrived\n")
    if script is replace_script:
        assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["data"]


def test_a_folder_is_not_replaced_by_a_file_nor_gets_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert feed(replace_script(f"{tmp_path}/folder", 1, None), b"x").returncode != 0
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == []


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    assert feed(replace_script(f"{tmp_path}/link", 1, None), b"x").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


@SCRIPTS
def test_other_users_cannot_read_a_private_file_while_it_arrives(tmp_path: Path, script: Script) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o644)
    with subprocess.Popen(["sh", "-c", script(str(path), 2, 0o600)], stdin=subprocess.PIPE) as writing:
        assert writing.stdin is not None
        writing.stdin.write(b"k")
        writing.stdin.flush()
        while not any(part.stat().st_size for part in tmp_path.iterdir()):
            assert writing.poll() is None
        assert [mode_of(part) for part in tmp_path.iterdir() if part.stat().st_size] == [0o600]
        writing.stdin.write(b"y")
    assert writing.returncode == 0
    assert (path.read_bytes(), mode_of(path)) == (b"ky", 0o600)


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_write_that_is_ended_leaves_the_old_file_and_nothing_else(tmp_path: Path, number: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"old")
    writing = subprocess.Popen(
        ["sh", "-c", replace_script(str(path), 9, None)],
        stdin=subprocess.PIPE,
        process_group=0,
        preexec_fn=heed_signals,
    )
    assert writing.stdin is not None
    with writing.stdin:
        writing.stdin.write(b"part")
        writing.stdin.flush()
        while not any(new.stat().st_size for new in tmp_path.glob("data.*")):
            assert writing.poll() is None
        os.killpg(writing.pid, number)
        assert writing.wait(20) != 0
    assert (names_in(tmp_path), path.read_bytes()) == (["data"], b"old")
