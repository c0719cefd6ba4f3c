"""What counts as the answer of a living master; the ssh tier asks real ones."""

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from imbue.mngr_vps_docker.ssh.mux import master_process_id

HELLO = struct.pack(">III", 8, 1, 4)


@pytest.fixture
def control_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a stand-in for a master listens, who says what the test names to the first that comes."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):
                connection.sendall(request.param)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = Thread(target=answer, daemon=True)
        thread.start()
        yield path
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "control_path", [HELLO + struct.pack(">IIII", 12, 0x80000005, 0, 4711)], indirect=True, ids=["alive"]
)
def test_a_master_tells_its_process_id(control_path: Path) -> None:
    assert master_process_id(control_path, timeout_seconds=10) == 4711


@pytest.mark.parametrize(
    "control_path",
    [b"", HELLO, HELLO + struct.pack(">II", 4, 0x80000005), b"HTTP/1.1 400 Bad Request\r\n", HELLO + b"\0\0"],
    indirect=True,
    ids=["hangs up", "says hello and hangs up", "half an answer", "another protocol", "is cut off"],
)
def test_who_answers_otherwise_is_no_master(control_path: Path) -> None:
    assert master_process_id(control_path, timeout_seconds=10) is None


def test_who_is_silent_is_no_master(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        assert master_process_id(tmp_path / "socket", timeout_seconds=0.1) is None


def test_where_nobody_listens_is_no_master(tmp_path: Path) -> None:
    assert master_process_id(tmp_path / "none", timeout_seconds=10) is None
