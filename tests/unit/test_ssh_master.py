"""Why a login failed is told from ssh's words, and sockets lie only where nobody else can reach them."""

import os
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.master import login_failure
from imbue.mngr_vps_docker.ssh.master import socket_folder
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason

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
def test_sshs_words_name_the_reason(messages: str) -> None:
    failure = login_failure(messages)
    assert failure.reason is MESSAGES[messages]
    assert failure.detail
    assert "\n" not in failure.detail


@pytest.mark.timeout(60)
def test_a_greeting_without_end_does_not_take_for_ever_to_judge() -> None:
    failure = login_failure("No " * 300_000 + "\nPermission denied (publickey).")
    assert failure.reason is NotStartedReason.AUTHENTICATION
    assert len(login_failure("x" * 300_000).detail) < 2000


def test_sockets_have_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = socket_folder()
    assert folder.parent in (tmp_path, Path("/tmp"))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_too_deep_for_sockets_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert socket_folder().parent == Path("/tmp")


@pytest.mark.parametrize("place", ["/proc", "relative", "/nowhere", f"/tmp/{'é' * 34}"])
def test_a_folder_where_no_socket_can_lie_is_passed_over(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(place)
    if place.startswith("/tmp"):
        path.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", place)
    try:
        assert socket_folder().parent == Path("/tmp")
    finally:
        if place.startswith("/tmp"):
            path.rmdir()


def test_a_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    # Who it belongs to cannot be changed without being root; who asks can.
    somebody_else = os.getuid() + 100_000
    monkeypatch.setattr("os.getuid", lambda: somebody_else)
    folder = Path(f"/tmp/mngr-vps-{somebody_else}")
    folder.mkdir(mode=0o700)
    try:
        with pytest.raises(VpsDockerError, match="must be a folder of yours"):
            socket_folder()
    finally:
        folder.rmdir()


@pytest.mark.parametrize("kind", ["open to others", "link", "file"])
def test_a_folder_that_is_not_private_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"t{tmp_path.stat().st_ino}"
    short.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        folder = socket_folder()
        folder.rmdir()
        if kind == "open to others":
            folder.mkdir()
            folder.chmod(0o755)
        elif kind == "link":
            folder.symlink_to(tmp_path)
        else:
            folder.touch()
        with pytest.raises(VpsDockerError, match="must be a folder of yours"):
            socket_folder()
    finally:
        folder.chmod(0o700) if folder.is_dir() and not folder.is_symlink() else None
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()
        short.rmdir()
