"""Login failures are classified, sockets are private, an unfit ssh is refused, and only a living master counts."""

import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.master import installed_openssh, login_failure, master_process_id, socket_folder
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.process import ProcessResult

ANOTHER_USER = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")

MESSAGES = {
    "ssh: connect to host 192.0.2.1 port 22: Connection refused": NotStartedReason.REFUSED,
    "ssh: connect to host 192.0.2.1 port 22: Connection timed out": NotStartedReason.CONNECT_TIMEOUT,
    "Connection timed out during banner exchange": NotStartedReason.CONNECT_TIMEOUT,
    "ssh: connect to host 192.0.2.1 port 22: No route to host": NotStartedReason.NO_ROUTE,
    "ssh: connect to host 2001:db8::1 port 22: Network is unreachable": NotStartedReason.NO_ROUTE,
    "ssh: Could not resolve hostname nowhere.invalid: Name or service not known": NotStartedReason.UNKNOWN_NAME,
    "root@192.0.2.1: Permission denied (publickey).": NotStartedReason.AUTHENTICATION,
    "Received disconnect from 192.0.2.1: 2: Too many authentication failures": NotStartedReason.AUTHENTICATION,
    "No ED25519 host key is known for host-1 and you have requested strict checking.\nHost key verification failed.": (
        NotStartedReason.HOST_KEY_UNKNOWN
    ),
    "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n@@@@\nHost key verification failed.": (
        NotStartedReason.HOST_KEY_CHANGED
    ),
    "kex_exchange_identification: read: Connection reset by peer": NotStartedReason.CLOSED_BY_PEER,
    "Connection closed by 192.0.2.1 port 2222": NotStartedReason.CLOSED_BY_PEER,
    "mux_client_request_session: session request failed: Session open refused by peer": (
        NotStartedReason.SESSION_REFUSED
    ),
    "something new": NotStartedReason.OTHER,
    "": NotStartedReason.OTHER,
}


@pytest.mark.parametrize("messages", MESSAGES)
def test_messages_of_ssh_name_the_reason(messages: str) -> None:
    failure = login_failure(messages)
    assert failure.reason is MESSAGES[messages]
    assert failure.detail
    assert "\n" not in failure.detail


@pytest.mark.timeout(60)
def test_a_greeting_without_end_is_judged_quickly() -> None:
    failure = login_failure("No " * 300_000 + "\nPermission denied (publickey).")
    assert failure.reason is NotStartedReason.AUTHENTICATION
    assert len(login_failure("x" * 300_000).detail) < 2000


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder with what stands for the runtime folder, /tmp and the home of this user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        for place in ("run", "shared", "home"):
            (folder / place).mkdir()
        (folder / "shared").chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        monkeypatch.setenv("HOME", str(folder / "home"))
        yield folder


def test_sockets_have_a_private_folder(places: Path) -> None:
    folder = socket_folder(places / "shared")
    assert folder.parent == places / "run"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert socket_folder(places / "shared") == folder


@pytest.mark.parametrize("place", ["/proc", "relative", "/nowhere", "é" * 34, ""])
def test_an_unfit_runtime_folder_is_passed_over(places: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.startswith("é"):
        (places / place).mkdir()
        place = str(places / place)
    monkeypatch.setenv("XDG_RUNTIME_DIR", place)
    assert socket_folder(places / "shared").parent == places / "shared"


def spoil(folder: Path, how: str, elsewhere: Path) -> None:
    """Put something else in the place of a private folder."""
    match how:
        case "open to others":
            folder.mkdir()
            folder.chmod(0o755)
        case "link":
            folder.symlink_to(elsewhere)
        case "file":
            folder.touch()
        case "another user's":
            folder.mkdir(mode=0o700)
            os.chown(folder, ANOTHER_USER, -1)


WAYS = ["open to others", "link", "file", pytest.param("another user's", marks=as_root)]


@pytest.mark.parametrize("how", WAYS)
def test_another_user_who_takes_the_place_first_locks_nobody_out(
    places: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    spoil(places / "shared" / f"mngr-vps-{os.getuid()}", how, places / "home")
    assert socket_folder(places / "shared").is_relative_to(places / "home")


@pytest.mark.parametrize("how", WAYS)
def test_a_missing_place_for_sockets_is_reported(places: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("run", "shared"):
        spoil(places / place / f"mngr-vps-{os.getuid()}", how, places / "home")
    (places / "home" / ".cache").touch()
    with pytest.raises(VpsDockerError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        socket_folder(places / "shared")


@pytest.mark.parametrize("how", ["writable by all", pytest.param("another user's", marks=as_root)])
def test_a_runtime_folder_that_another_user_can_change_is_passed_over(places: Path, how: str) -> None:
    """As root has it after ``sudo -E``: its owner could exchange what is in it."""
    if how == "writable by all":
        (places / "run").chmod(0o1777)
    else:
        os.chown(places / "run", ANOTHER_USER, -1)
    assert socket_folder(places / "shared").parent == places / "shared"


@pytest.mark.parametrize("how", ["writable by all", pytest.param("another user's", marks=as_root)])
def test_a_home_that_another_user_can_change_is_passed_over(places: Path, how: str) -> None:
    for place in ("run", "shared"):
        spoil(places / place / f"mngr-vps-{os.getuid()}", "file", places)
    (places / "home" / ".cache").mkdir()
    if how == "writable by all":
        (places / "home" / ".cache").chmod(0o777)
    else:
        os.chown(places / "home" / ".cache", ANOTHER_USER, -1)
    with pytest.raises(VpsDockerError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        socket_folder(places / "shared")


def says(text: str) -> Any:
    """A runner of an ssh whose ``-V`` says ``text``."""
    return lambda *_arguments, **_options: ProcessResult(exit_code=0, stdout=b"", stderr=text.encode())


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025", (9, 2)),
        ("OpenSSH_10.0p2, LibreSSL 3.3.6", (10, 0)),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", (9, 5)),
    ],
)
def test_the_version_is_read_from_what_ssh_says(text: str, version: tuple[int, int]) -> None:
    assert installed_openssh(says(text)) == version


@pytest.mark.parametrize("text", ["OpenSSH_7.9p1", "Dropbear v2022.83", ""])
def test_another_ssh_is_refused_in_its_own_words(text: str) -> None:
    with pytest.raises(VpsDockerError, match=f"must be OpenSSH 8.4 or newer, but says that it is: {text}"):
        installed_openssh(says(text))


def test_the_installed_ssh_will_do() -> None:
    assert installed_openssh() >= (8, 4)


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
def test_another_answer_is_not_that_of_a_master(control_path: Path) -> None:
    assert master_process_id(control_path, timeout_seconds=10) is None


def test_a_silent_socket_is_not_a_master(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        assert master_process_id(tmp_path / "socket", timeout_seconds=0.1) is None


def test_a_missing_socket_is_not_a_master(tmp_path: Path) -> None:
    assert master_process_id(tmp_path / "none", timeout_seconds=10) is None
