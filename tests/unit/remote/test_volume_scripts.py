"""What a script says of a volume's files is read whole or not at all, at little cost, whoever wrote them."""

import base64
import io
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr_vps_docker import volume_scripts
from imbue.mngr_vps_docker.volume_scripts import SmallFiles
from imbue.mngr_vps_docker.volume_scripts import parse_files
from imbue.mngr_vps_docker.volume_scripts import small_files


def said(tar: bytes, names: bytes = b"./f\0end\0") -> bytes:
    return base64.b64encode(names) + b" " + base64.b64encode(tar) + b"\n"


def listed(folder: Path) -> SmallFiles:
    script = small_files("-mindepth 1", file_limit_bytes=1000, total_limit_bytes=100_000, count_limit=10)
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, check=True, timeout=60)
    return parse_files(done.stdout)


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def tar_of(content: bytes, name: str = "./f") -> bytes:
    return header(name, tarfile.REGTYPE, len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


END = bytes(1024)


def test_files_of_any_name_and_content_are_read(tmp_path: Path) -> None:
    contents = {"f": b"1", "x" * 200: bytes(1000), "é \n'": b"\xff", "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "large").write_bytes(bytes(1001))
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert listed(tmp_path) == SmallFiles(contents, frozenset({"large", "link"}))


def test_nothing_is_read_of_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path) == SmallFiles({}, frozenset())


def test_more_files_than_are_counted_are_not_read(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).touch()
    assert len(listed(tmp_path).contents) == 10
    (tmp_path / "one more").touch()
    with pytest.raises(ValueError, match="more files than"):
        listed(tmp_path)


def test_a_search_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "find"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nprintf './f\\0'; exec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(volume_scripts, "_FIND_TIMEOUT_SECONDS", 1)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    with pytest.raises(ValueError, match="more files than"):
        listed(tmp_path)


CRAFTED = {
    "a chain of long names": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2) + b"a".ljust(512, b"\0")) * 5000,
    "a size beyond the end": header("./f", tarfile.REGTYPE, 1 << 40),
    "a size beyond all": header("./f", tarfile.REGTYPE, 1 << 80),
    "no end": tar_of(b"1"),
    "a damaged header": tar_of(b"1").replace(b"ustar", b"xxxxx") + END,
    "noise": b"\x01" * 5000,
}


@pytest.mark.parametrize("what", CRAFTED)
def test_an_archive_that_no_tar_wrote(what: str) -> None:
    with pytest.raises(ValueError):
        parse_files(said(CRAFTED[what]))


def test_a_sparse_file_is_not_taken_for_what_it_stands_for() -> None:
    member = bytearray(header("./f", tarfile.GNUTYPE_SPARSE, 0))
    # The old GNU form: an empty piece at the end of 6 GiB, and that as the real size.
    member[386:410] = b"%011o\0%011o\0" % (6 << 30, 0)
    member[483:495] = b"%011o\0" % (6 << 30)
    member[148:156] = b"%06o\0 " % (sum(member[:148]) + sum(member[156:]) + 8 * 32)
    tracemalloc.start()
    files = parse_files(said(bytes(member) + END))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert files == SmallFiles({}, frozenset({"f"}))
    assert peak < 1 << 20


@pytest.mark.parametrize("value", [b"{},", b"[],", b"1," * 5])
def test_files_that_would_fill_the_memory_once_they_are_read_are_not(value: bytes) -> None:
    with pytest.raises(ValueError, match="more values"):
        parse_files(said(tar_of(value * 150_000) + tar_of(value * 150_000, "./g") + END))


@pytest.mark.parametrize("text", [b'"%s"' % (b"{[," * 400_000), b'"' + b'\\"{' * 400_000])
def test_what_stands_in_text_is_no_value(text: bytes) -> None:
    assert parse_files(said(tar_of(text) + END)).contents == {"f": text}


@given(st.binary(max_size=600), st.data())
def test_an_archive_that_is_cut_off_anywhere_is_an_error(content: bytes, data: st.DataObject) -> None:
    archive = tar_of(content)
    cut = data.draw(st.integers(1, len(archive)))
    with pytest.raises(ValueError):
        parse_files(said(archive[:cut]))


@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=6), st.binary())
def test_damage_of_any_kind_is_no_other_error(changes: list[tuple[int, int]], noise: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("./f", "./" + "long" * 60):
            tar.addfile(tarfile.TarInfo(name))
    archive = bytearray(buffer.getvalue())
    for position, value in changes:
        archive[position] = value
    for line in (said(bytes(archive)), said(noise), noise, noise + b" " + noise):
        try:
            parse_files(line)
        except ValueError:
            continue
