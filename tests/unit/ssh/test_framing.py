"""A command's own output and end are found in any surrounding output, cut into any pieces."""

import itertools
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr_vps_docker.ssh.framing import Framing, LineSplitter, OutputLimitError, OutputReader, is_time_out
from imbue.mngr_vps_docker.ssh.process import Stream

FRAMING = Framing("0123456789abcdef")
MARKER = FRAMING.marker
START = MARKER + b":4711\n"


def end_line(exit_code: int, began_at: str = "0", ended_at: str = "0") -> bytes:
    return MARKER + f" {exit_code} {began_at} {ended_at}\n".encode()


def feed(reader: OutputReader, data: bytes, cuts: list[int], stream: Stream) -> None:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        reader(data[begin:end], stream)


@given(
    noise=st.binary(max_size=40),
    out=st.binary(max_size=200),
    err=st.binary(max_size=200),
    code=st.integers(0, 255),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_any_output_in_any_pieces_is_read_exactly(
    noise: bytes, out: bytes, err: bytes, code: int, cuts: list[int]
) -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    end = end_line(code, "12.5", "14.75")
    feed(reader, noise + START + out + end, cuts, Stream.STDOUT)
    assert reader.exit_code is None
    feed(reader, noise + START + err + end, cuts, Stream.STDERR)
    reader.finish()
    assert reader.ran_seconds == 2.25
    assert (reader.stdout, reader.stderr, reader.exit_code) == (out, err, code)


@given(err=st.binary(max_size=100), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_without_the_end_marker_there_is_no_exit_code(err: bytes, cuts: list[int]) -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    feed(reader, START + err, cuts, Stream.STDERR)
    reader.finish()
    assert reader.has_started
    assert reader.process_id == 4711
    assert reader.exit_code is None
    assert reader.stderr == err


@given(said=st.lists(st.sampled_from([MARKER, b":", b" ", b"\n", b"0", b"9" * 5000, b"x", b"\x1e", b"-1"])))
def test_any_bytes_may_follow_a_marker(said: list[bytes]) -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    for stream in Stream:
        for piece in said:
            reader(piece, stream)
    reader.finish()
    assert reader.exit_code is None or 0 <= reader.exit_code <= 999


def test_output_may_come_after_the_end() -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    late = end_line(7) + b"late\n" + end_line(0)
    for stream in Stream:
        reader(START + b"own\n" + late, stream)
        reader(b"later\n", stream)
    assert (reader.exit_code, reader.stdout.startswith(b"own\n"), reader.stderr[:9]) == (7, True, b"own\nlate\n")


def test_output_over_the_limit_raises() -> None:
    reader = OutputReader(limit_bytes=10)
    for _attempt in range(2):
        reader.begin(FRAMING)
        reader(START + b"12345", Stream.STDOUT)
        with pytest.raises(OutputLimitError, match="more than 10 bytes"):
            reader(START + b"123456", Stream.STDERR)
        assert reader.excess == "it printed more than 10 bytes"


def test_a_greeting_without_end_raises() -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    with pytest.raises(OutputLimitError, match="before it started"):
        for _ in range(200_000):
            reader(b"x" * 9, Stream.STDOUT)


def test_messages_before_the_start_are_not_output() -> None:
    reader = OutputReader()
    reader.begin(FRAMING)
    reader(b"ssh: connect to host x port 22: Connection refused\n", Stream.STDERR)
    reader.finish()
    assert not reader.has_started
    assert "refused" in reader.messages
    assert reader.stderr == b""


def test_output_is_passed_on_at_once_and_its_end_is_kept() -> None:
    seen: list[bytes] = []
    reader = OutputReader(on_chunk=lambda chunk, _stream: seen.append(chunk), tail_bytes=10)
    reader.begin(FRAMING)
    reader(START, Stream.STDOUT)
    for number in range(100):
        reader(b"%03d\n" % number, Stream.STDOUT)
    assert b"".join(seen).startswith(b"000\n001\n")
    assert reader.stdout.endswith(b"098\n099\n")
    assert len(reader.stdout) < 30


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(("command", "code"), [("exit 255", 255), ("kill -9 $$", 137), ("it's(a", 2), ("true", 0)])
def test_a_real_shell_frames_a_command(shell: str, command: str, code: int) -> None:
    script = FRAMING.script(command)
    argv = [shell, "-c", FRAMING.wrap(len(script), 20)]
    done = subprocess.run(argv, input=script, capture_output=True, check=False, timeout=20)
    reader = OutputReader()
    reader.begin(FRAMING)
    reader(b"noise of a login shell" + done.stdout, Stream.STDOUT)
    reader(done.stderr, Stream.STDERR)
    reader.finish()
    assert (reader.exit_code, reader.stdout) == (code, b"")


@given(
    text=st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), cuts=st.lists(st.integers(0))
)
def test_lines_survive_cuts_inside_characters(text: str, cuts: list[int]) -> None:
    lines: list[str] = []
    splitter = LineSplitter(lambda line, _stream: lines.append(line))
    data = f"{text}\nlast {text}".encode()
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    for begin, end in itertools.pairwise(edges):
        splitter(data[begin:end], Stream.STDOUT)
    splitter.flush()
    assert lines == [text, f"last {text}"]


def test_a_line_cut_inside_a_character_does_not_leak_into_the_next() -> None:
    lines: list[str] = []
    splitter = LineSplitter(lambda line, _stream: lines.append(line))
    for _attempt in range(2):
        splitter(b"first\nsec\xc3", Stream.STDOUT)
        splitter.flush()
    assert lines == ["first", "sec\ufffd"] * 2


@pytest.mark.parametrize("code", [124, 137, 143])
def test_an_exit_code_of_timeout_counts_only_at_the_deadline(code: int) -> None:
    assert is_time_out(code, 3.0, 3.0)
    assert is_time_out(code, 2.99, 3.0)
    assert not is_time_out(code, 2.9, 3.0)
    assert not is_time_out(1, 4.0, 3.0)
