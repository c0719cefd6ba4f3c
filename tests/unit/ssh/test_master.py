"""Why a login failed is told from ssh's words, and sockets lie only where nobody else can reach them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh import master
from imbue.mngr_vps_docker.ssh.master import login_failure, socket_folder
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason

SOMEBODY_ELSE = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")

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


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder with what stands for the runtime folder, /tmp and the home of this user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        for place in ("run", "shared", "home"):
            (folder / place).mkdir()
        (folder / "shared").chmod(0o1777)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        monkeypatch.setattr(master, "_SHARED", folder / "shared")
        monkeypatch.setenv("HOME", str(folder / "home"))
        yield folder


def test_sockets_have_a_private_folder(places: Path) -> None:
    folder = socket_folder()
    assert folder.parent == places / "run"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert socket_folder() == folder


@pytest.mark.parametrize("place", ["/proc", "relative", "/nowhere", "é" * 34, ""])
def test_a_runtime_folder_where_no_socket_can_lie_is_passed_over(
    places: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.startswith("é"):
        (places / place).mkdir()
        place = str(places / place)
    monkeypatch.setenv("XDG_RUNTIME_DIR", place)
    assert socket_folder().parent == places / "shared"


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
        case "somebody else's":
            folder.mkdir(mode=0o700)
            os.chown(folder, SOMEBODY_ELSE, -1)


WAYS = ["open to others", "link", "file", pytest.param("somebody else's", marks=as_root)]


@pytest.mark.parametrize("how", WAYS)
def test_nobody_who_takes_the_place_first_locks_this_user_out(
    places: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    spoil(places / "shared" / f"mngr-vps-{os.getuid()}", how, places / "home")
    assert socket_folder().is_relative_to(places / "home")


@pytest.mark.parametrize("how", WAYS)
def test_where_no_private_folder_can_be_is_said(places: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("run", "shared"):
        spoil(places / place / f"mngr-vps-{os.getuid()}", how, places / "home")
    (places / "home" / ".cache").touch()
    with pytest.raises(VpsDockerError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        socket_folder()


@pytest.mark.parametrize("how", ["writable by all", pytest.param("somebody else's", marks=as_root)])
def test_a_runtime_folder_that_another_user_can_change_is_passed_over(places: Path, how: str) -> None:
    """As root has it after ``sudo -E``: its owner could exchange what is in it."""
    if how == "writable by all":
        (places / "run").chmod(0o1777)
    else:
        os.chown(places / "run", SOMEBODY_ELSE, -1)
    assert socket_folder().parent == places / "shared"


@pytest.mark.parametrize("how", ["writable by all", pytest.param("somebody else's", marks=as_root)])
def test_so_is_a_home(places: Path, how: str) -> None:
    for place in ("run", "shared"):
        spoil(places / place / f"mngr-vps-{os.getuid()}", "file", places)
    (places / "home" / ".cache").mkdir()
    if how == "writable by all":
        (places / "home" / ".cache").chmod(0o777)
    else:
        os.chown(places / "home" / ".cache", SOMEBODY_ELSE, -1)
    with pytest.raises(VpsDockerError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        socket_folder()
