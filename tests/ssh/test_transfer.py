"""Files and streams between machines arrive whole."""

import os
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.pipe import pipe


def test_files_are_written_and_read_whole(connection: SshConnection, tmp_path: Path) -> None:
    path, content = tmp_path / "new folder" / "it's a file", os.urandom(5 << 20)
    connection.write_file(str(path), content, mode=0o640, is_atomic=True)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    assert connection.read_file(str(path)) == content
    assert [found.name for found in path.parent.iterdir()] == [path.name]


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
