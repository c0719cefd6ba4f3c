"""Files and streams between machines arrive whole."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.pipe import pipe
from imbue.mngr_vps_docker.ssh.striped import upload_tars
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


@pytest.fixture
def meeting_point(sshd: LoopbackSshd, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sessions of a stream meet on the machine: a folder of this test's own, as others send streams too."""
    own = SimpleNamespace(token_hex=lambda _: f"test-{sshd.port}")
    monkeypatch.setattr("imbue.mngr_vps_docker.ssh.striped.secrets", own)
    return Path(f"/tmp/mngr-stream-test-{sshd.port}")


def blocks_of(size_bytes: int, chunk_bytes: int = 70_001) -> tuple[bytes, Iterator[bytes]]:
    data = os.urandom(size_bytes)
    return data, (data[start : start + chunk_bytes] for start in range(0, size_bytes, chunk_bytes))


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20, (23 << 20) + 7])
def test_a_stream_over_several_sessions_of_one_login_arrives_in_order(
    connection: SshConnection, sshd: LoopbackSshd, tmp_path: Path, meeting_point: Path, size_bytes: int
) -> None:
    data, chunks = blocks_of(size_bytes)
    outcome = upload_tars(connection, f"cat >{tmp_path}/got; echo done", chunks, purpose="test", timeout_seconds=30)
    assert outcome.checked().stdout == b"done\n"
    assert (tmp_path / "got").read_bytes() == data
    assert sshd.login_count == 1
    wait_for(lambda: not meeting_point.exists())


def test_a_command_that_fails_before_the_end_of_its_stream_ends_the_whole(connection: SshConnection) -> None:
    _, chunks = blocks_of(20 << 20)
    outcome = upload_tars(
        connection, "head -c 100 >/dev/null; echo full >&2; exit 7", chunks, purpose="test", timeout_seconds=30
    )
    assert (outcome.exit_code, outcome.stderr) == (7, b"full\n")


def test_the_words_of_a_command_that_fails_count_even_if_its_session_ends_last(tmp_path: Path) -> None:
    slow_rm = tmp_path / "bin" / "rm"
    slow_rm.parent.mkdir()
    slow_rm.write_text('#!/bin/sh\nsleep 0.5\nexec /bin/rm "$@"\n')
    slow_rm.chmod(0o755)

    def paused() -> Iterator[bytes]:
        # So little that all of it is on its way when the sessions end.
        yield bytes(6 << 20)
        time.sleep(1.5)

    with (
        LoopbackSshd(tmp_path, (f"SetEnv HOME={tmp_path} PATH={slow_rm.parent}:/usr/bin:/bin",)) as sshd,
        closing(SshConnection(sshd.target())) as connection,
    ):
        outcome = upload_tars(connection, "echo full >&2; exit 7", paused(), purpose="test", timeout_seconds=30)
    assert (outcome.exit_code, outcome.stderr) == (7, b"full\n")


def test_a_stream_that_breaks_off_here_ends_the_command(
    connection: SshConnection, tmp_path: Path, meeting_point: Path
) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        upload_tars(
            connection, f"cat >/dev/null; touch {tmp_path}/whole", broken(), purpose="test", timeout_seconds=30
        )
    assert not (tmp_path / "whole").exists()
    wait_for(lambda: not meeting_point.exists())


def test_a_stream_whose_machine_goes_is_not_taken_for_whole(connection: SshConnection, tmp_path: Path) -> None:
    def lost() -> Iterator[bytes]:
        # More than is held here, so that the machine has begun to take it.
        yield bytes(60 << 20)
        connection.close()
        yield bytes(9 << 20)

    outcome = upload_tars(
        connection, f"cat >/dev/null && touch {tmp_path}/whole", lost(), purpose="test", timeout_seconds=30
    )
    assert not outcome.is_success
