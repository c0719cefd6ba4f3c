"""Files and streams between machines arrive whole."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.ssh.transfer import pipe, upload
from support.loopback_sshd import LoopbackSshd
from support.remote import processes_with, run, wait_for

_WRITER = """\
import pickle, sys
from imbue.mngr_vps_docker.ssh.connection import SshConnection

SshConnection(pickle.load(sys.stdin.buffer)).write_file(sys.argv[1], bytes(400 << 20), is_atomic=True)
"""


@pytest.mark.usefixtures("both_homes")
def test_files_are_written_and_read_whole(connection: SshConnection, tmp_path: Path) -> None:
    path, content = tmp_path / "new folder" / "it's a file", os.urandom(5 << 20)
    connection.write_file(str(path), content, mode=0o640, is_atomic=True)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    assert connection.read_file(str(path)) == content
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_writer_that_is_killed_leaves_the_old_file(connection: SshConnection, tmp_path: Path) -> None:
    run(connection, "true")
    path = tmp_path / "data"
    path.write_bytes(b"old")
    program = "import pickle, sys\nfrom imbue.mngr_vps_docker.ssh.connection import SshConnection\n"
    program += (
        f"SshConnection(pickle.load(sys.stdin.buffer)).write_file({str(path)!r}, bytes(400 << 20), is_atomic=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(pickle.dumps(connection.target))
        writer.stdin.close()
        wait_for(lambda: any(part.stat().st_size > 1 << 20 for part in tmp_path.glob("data.*")))
        writer.kill()
    wait_for(lambda: not list(tmp_path.glob("data.*")))
    assert path.read_bytes() == b"old"


def test_a_missing_file_is_a_file_not_found_error(connection: SshConnection, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connection.read_file(str(tmp_path / "none"))


def test_one_machine_feeds_another(connection: SshConnection, tmp_path: Path) -> None:
    pipe(
        connection,
        "head -c 5000000 /dev/urandom | tee " + str(tmp_path / "sent"),
        connection,
        f"cat >{tmp_path}/received",
        purpose="test",
        timeout_seconds=30,
    )
    assert (tmp_path / "received").read_bytes() == (tmp_path / "sent").read_bytes()


@pytest.mark.parametrize(("source", "sink"), [("echo x; echo broken >&2; exit 7", "cat"), ("yes", "exit 7")])
def test_a_broken_end_of_a_pipe_is_an_error(connection: SshConnection, source: str, sink: str) -> None:
    with pytest.raises(Exception, match="exit code 7"):
        pipe(connection, source, connection, sink, purpose="test", timeout_seconds=10)


def test_a_source_that_is_silent_is_waited_for_and_ended_with_its_sink(
    connection: SshConnection, sshd: LoopbackSshd
) -> None:
    quiet = SshConnection(sshd.target(connect_timeout_seconds=1))
    pipe(connection, "sleep 1.5; echo x", quiet, "grep x", purpose="test", timeout_seconds=30)
    silent = f"sleep 6400.{sshd.port}"
    with pytest.raises(Exception, match="exit code 7"):
        pipe(connection, silent, connection, "exit 7", purpose="test", timeout_seconds=9000)
    wait_for(lambda: not processes_with(silent))


def blocks_of(size_bytes: int, chunk_bytes: int = 70_001) -> tuple[bytes, Iterator[bytes]]:
    data = os.urandom(size_bytes)
    return data, (data[start : start + chunk_bytes] for start in range(0, size_bytes, chunk_bytes))


Upload = Callable[[str, Iterable[bytes]], CommandOutcome]


@pytest.fixture
def upload_to(connection: SshConnection, tmp_path: Path) -> Upload:
    """``upload`` over the connection, with FIFOs in a folder of the test's own."""
    return partial(upload, connection, fifos=f"{tmp_path}/fifos", purpose="test", timeout_seconds=30)


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20, (23 << 20) + 7])
def test_a_stream_over_several_sessions_of_one_login_arrives_in_order(
    upload_to: Upload, sshd: LoopbackSshd, tmp_path: Path, size_bytes: int
) -> None:
    data, chunks = blocks_of(size_bytes)
    assert upload_to(f"cat >{tmp_path}/got; echo done", chunks).checked().stdout == b"done\n"
    assert (tmp_path / "got").read_bytes() == data
    assert sshd.login_count == 1


def test_a_command_that_fails_before_the_end_of_its_stream_ends_the_whole(upload_to: Upload) -> None:
    _, chunks = blocks_of(20 << 20)
    outcome = upload_to("head -c 100 >/dev/null; echo full >&2; exit 7", chunks)
    assert (outcome.exit_code, outcome.stderr) == (7, b"full\n")


def test_the_words_of_a_command_that_fails_count_even_if_it_ends_last(upload_to: Upload) -> None:
    def paused() -> Iterator[bytes]:
        # So little that all of it is on its way when the sessions end.
        yield bytes(6 << 20)
        time.sleep(1)

    outcome = upload_to("exec </dev/null; sleep 0.5; echo full >&2; exit 7", paused())
    assert (outcome.exit_code, outcome.stderr) == (7, b"full\n")


def test_a_stream_that_breaks_off_here_ends_the_command(upload_to: Upload, sshd: LoopbackSshd) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        upload_to(f"cat >/dev/null; sleep 6500.{sshd.port}", broken())
    wait_for(lambda: not processes_with(f"sleep 6500.{sshd.port}"))


def test_a_stream_whose_machine_goes_is_not_taken_for_whole(upload_to: Upload, connection: SshConnection) -> None:
    def lost() -> Iterator[bytes]:
        # More than is held here, so that the machine has begun to take it.
        yield bytes(60 << 20)
        connection.close()
        yield bytes(9 << 20)

    assert upload_to("cat >/dev/null", lost()).status is OutcomeStatus.LOST


@pytest.mark.parametrize("number", [1, 4])
def test_a_stream_that_loses_one_session_is_not_taken_for_whole(
    upload_to: Upload, tmp_path: Path, number: int
) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(60 << 20)
        for output in Path("/proc").glob("[0-9]*/fd/1"):
            with suppress(OSError):
                if output.readlink() == tmp_path / "fifos" / str(number):
                    os.kill(int(output.parts[2]), signal.SIGKILL)
        yield bytes(20 << 20)

    assert not upload_to("cat >/dev/null", broken()).is_success
