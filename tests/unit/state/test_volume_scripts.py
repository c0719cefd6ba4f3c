"""A script's answer about a volume's files is read whole or not at all, with bounded cost."""

import os
import subprocess
import tracemalloc
from base64 import b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr_vps_docker.state import volume_scripts
from imbue.mngr_vps_docker.state.volume_scripts import SmallFiles, archive_small_files, parse_files


def said(contents: dict[str, bytes]) -> bytes:
    files = b"".join(b"%s:%s " % (b64encode(name.encode()), b64encode(text)) for name, text in contents.items())
    return files + b"end\n"


def script_of(*patterns: str) -> str:
    return archive_small_files(patterns, file_limit_bytes=1000, total_limit_bytes=5000, count_limit=10)


def listed(folder: Path, *patterns: str) -> SmallFiles:
    script = script_of(*(patterns or "*"))
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, check=True, timeout=60)
    return parse_files(done.stdout)


def test_files_of_any_name_and_content_are_read(tmp_path: Path) -> None:
    contents = {"f": b"1", "x" * 200: bytes(1000), "é \n'": b"\xff", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "large").write_bytes(bytes(1001))
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert listed(tmp_path) == SmallFiles(contents, frozenset({"large", "link", "pipe"}))


def test_names_are_followed_part_by_part_and_through_no_link(tmp_path: Path) -> None:
    for name in ("d/a.json", "d/b.txt", "d/e/c.json", "x/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "l").symlink_to("d")
    assert listed(tmp_path, "d/*.json").contents.keys() == {"d/a.json"}
    assert listed(tmp_path, "*/a.json").contents.keys() == {"d/a.json", "x/a.json"}
    assert listed(tmp_path, "*/*/*.json", "d/b.txt").contents.keys() == {"d/e/c.json", "d/b.txt"}
    assert listed(tmp_path, "l/a.json", "none/a.json", "d/a.json/x") == SmallFiles({}, frozenset())


def test_no_code_is_taken_from_the_volume(tmp_path: Path) -> None:
    for module in ("binascii", "collections", "errno", "os", "stat", "sitecustomize"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('this is the volume')")
    assert "os.py" in listed(tmp_path).contents


def test_a_vps_without_python_is_said_to_be_so(tmp_path: Path) -> None:
    empty = {"PATH": str(tmp_path)}
    done = subprocess.run(["/bin/sh", "-c", script_of("*")], env=empty, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"python3 is missing on the VPS: install it\n")


def test_nothing_is_read_of_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == SmallFiles({}, frozenset())


def test_more_files_than_are_counted_are_not_read(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert len(listed(tmp_path).contents) == 10
    (tmp_path / "one more").touch()
    with pytest.raises(ValueError, match="more than"):
        listed(tmp_path)


def test_more_bytes_than_are_wanted_of_all_files_are_not_read(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / str(number)).write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="more than can be read"):
        listed(tmp_path)


def test_a_search_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "python3"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nprintf 'Zg==:Zg== '; exec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(volume_scripts, "_READ_TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    with pytest.raises(ValueError, match="more than"):
        listed(tmp_path)


def test_more_bytes_than_are_taken_are_not_read(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes(1000))
    assert len(listed(tmp_path).contents) == 5
    (tmp_path / "one more").write_bytes(b"1")
    with pytest.raises(ValueError, match="more than"):
        listed(tmp_path)


@pytest.mark.parametrize("line", [b" " * (1 << 20), b"Zg== " * 30_000 + b"end"])
def test_more_files_than_any_volume_may_have_are_refused_at_no_cost(line: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match="more files than"):
        parse_files(line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("value", [b"{},", b"[],", b"1," * 5])
def test_files_that_would_fill_the_memory_once_they_are_read_are_not(value: bytes) -> None:
    with pytest.raises(ValueError, match="too many values"):
        parse_files(said({"f": value * 150_000, "g": value * 150_000}))


@pytest.mark.parametrize("text", [b'"%s"' % (b"{[," * 400_000), b'"' + b'\\"{' * 400_000])
def test_what_stands_in_text_is_no_value(text: bytes) -> None:
    assert parse_files(said({"f": text})).contents == {"f": text}


@given(st.dictionaries(st.text(), st.binary(max_size=600)), st.data())
def test_an_answer_that_is_cut_off_anywhere_is_an_error(contents: dict[str, bytes], data: st.DataObject) -> None:
    line = said(contents).rstrip()
    assert parse_files(line) == SmallFiles(contents, frozenset())
    with pytest.raises(ValueError):
        parse_files(line[: data.draw(st.integers(0, len(line) - 1))])


@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=6), st.binary())
def test_damage_of_any_kind_is_no_other_error(changes: list[tuple[int, int]], noise: bytes) -> None:
    line = bytearray(said({"f": bytes(1600)}))
    for position, value in changes:
        line[position] = value
    for damaged in (bytes(line), noise, noise + b" end", noise + b":" + noise + b" end"):
        try:
            parse_files(damaged)
        except ValueError:
            continue
