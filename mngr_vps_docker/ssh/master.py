"""The shared connection to one machine: opened once, by whoever needs it first, and used by all until it is idle.

ssh's own ``ControlMaster=auto`` logs in once per thread when many start at once, so the master is opened explicitly,
under a lock that holds across processes.
"""

import os
import re
import signal
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.files import locked
from imbue.mngr_vps_docker.ssh.mux import master_process_id
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.process import ProcessRunner
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.ssh.target import exit_argv
from imbue.mngr_vps_docker.ssh.target import master_argv
from imbue.mngr_vps_docker.ssh.version import installed_openssh

# sockaddr_un.sun_path less the suffix of 17 bytes that ssh adds while it binds (measured with OpenSSH 9.2).
_LONGEST_CONTROL_PATH_BYTES: Final = 76 if sys.platform == "darwin" else 90
# A master answers in milliseconds. One that is stopped (SIGSTOP) or wedged accepts connections and answers nothing.
_ANSWER_SECONDS: Final = 1.0
_EXIT_TIMEOUT_SECONDS: Final = 2.0
# What authentication may take after ConnectTimeout, which covers the TCP connection and the banner.
_LOGIN_SECONDS: Final = 20.0
_MESSAGES_BYTES: Final = 1 << 20

_TRACES_KEPT_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class LoginFailure:
    """Why the shared connection could not be opened, in a word and in ssh's own words."""

    reason: NotStartedReason
    detail: str


# First match wins. OpenSSH's messages, as of versions 8 to 10.
_FAILURES: Final = (
    (NotStartedReason.HOST_KEY_CHANGED, r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed"),
    (NotStartedReason.HOST_KEY_UNKNOWN, r"No .* host key is known|Host key verification failed"),
    (NotStartedReason.AUTHENTICATION, r"Permission denied|Too many authentication failures"),
    (NotStartedReason.UNKNOWN_NAME, r"Could not resolve hostname"),
    (NotStartedReason.REFUSED, r"port \d+: Connection refused"),
    (NotStartedReason.NO_ROUTE, r"No route to host|Network is unreachable"),
    (NotStartedReason.CONNECT_TIMEOUT, r"timed out"),
    (NotStartedReason.SESSION_REFUSED, r"Session open refused by peer|Channel open failed"),
    (NotStartedReason.CLOSED_BY_PEER, r"Connection closed|Connection reset|kex_exchange_identification|Broken pipe"),
)
# Where ssh's own words do not say what it means here.
_EXPLANATIONS: Final = {
    NotStartedReason.HOST_KEY_CHANGED: (
        "it shows another host key than the pinned one, and was sent nothing. Either somebody answers in its place, or"
        " it was installed anew: if you know that it was, destroy the host"
    ),
    NotStartedReason.HOST_KEY_UNKNOWN: (
        "its host key is not pinned on this machine, and it was sent nothing. Use the machine that made it, or a copy"
        " of that one's profile"
    ),
}


def login_failure(messages: str) -> LoginFailure:
    """Tell from ssh's own messages why a login failed; ``detail`` is the one line that says it best."""
    lines = [line.strip() for line in messages.splitlines() if line.strip() and not line.startswith("debug")]
    for reason, pattern in _FAILURES:
        for line in lines:
            if re.search(pattern, line):
                return LoginFailure(reason, _EXPLANATIONS.get(reason, line.strip("@ ")))
    return LoginFailure(NotStartedReason.OTHER, lines[-1] if lines else "ssh gave no reason")


class SshMaster:
    """The shared connection to one target."""

    def __init__(self, target: SshTarget, runner: ProcessRunner) -> None:
        self.target = target
        self._runner = runner
        self._last_failure: tuple[float, LoginFailure] | None = None
        self._failure_lock = threading.Lock()

    @property
    def control_path(self) -> Path:
        """Where its socket is, whether it is open or not."""
        return socket_folder() / self.target.fingerprint

    def open(self) -> LoginFailure | None:
        """Make sure that it is open, logging in if it is not; return why, if that failed.

        However many threads and processes ask at once, there is one login. Threads that waited for an attempt that
        failed share its failure instead of each trying again.
        """
        asked_at = time.monotonic()
        control_path = self.control_path
        with locked(self._beside(".lock")):
            if self.is_alive():
                return None
            with self._failure_lock:
                if self._last_failure is not None and self._last_failure[0] > asked_at:
                    return self._last_failure[1]
            self._remove_dead(control_path)
            failure = self._log_in(control_path)
            with self._failure_lock:
                self._last_failure = None if failure is None else (time.monotonic(), failure)
            return failure

    def is_alive(self) -> bool:
        """Whether it answers; False for one that is gone, stale or wedged."""
        return master_process_id(self.control_path, _ANSWER_SECONDS) is not None

    def close(self) -> None:
        """End it, and with it every command that runs over it; nothing to do if it is not open."""
        control_path = self.control_path
        if not control_path.exists():
            return
        with locked(self._beside(".lock")):
            self._runner(exit_argv(self.target, control_path), timeout_seconds=_EXIT_TIMEOUT_SECONDS)
            self._remove_dead(control_path)
            self._beside(".pid").unlink(missing_ok=True)
            self._beside(".lock").unlink(missing_ok=True)

    def _log_in(self, control_path: Path) -> LoginFailure | None:
        installed_openssh()
        _remove_traces_of_ended_masters(control_path.parent)
        with tempfile.TemporaryDirectory(prefix="mngr-vps-ssh-") as folder:
            log_file = Path(folder) / "log"
            result = self._runner(
                master_argv(self.target, control_path, log_file),
                timeout_seconds=self.target.connect_timeout_seconds + _LOGIN_SECONDS,
            )
            messages = _beginning(log_file)
        if result.stop is not None:
            return LoginFailure(NotStartedReason.CONNECT_TIMEOUT, "ssh did not finish logging in")
        if result.exit_code != 0:
            return login_failure(messages + result.stderr.decode(errors="replace"))
        process_id = master_process_id(control_path, _ANSWER_SECONDS)
        if process_id is not None:
            self._beside(".pid").write_text(str(process_id))
        return None

    def _remove_dead(self, control_path: Path) -> None:
        """Remove what a master that does not answer has left; kill it first, if it is wedged rather than gone."""
        try:
            mode = control_path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise VpsDockerError(f"{control_path} is not a socket of ssh: remove it and try again")
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int(self._beside(".pid").read_text())
            if _has_in_command_line(pid, str(control_path)):
                os.kill(pid, signal.SIGKILL)
        control_path.unlink(missing_ok=True)
        self._beside(".pid").unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        control_path = self.control_path
        return control_path.with_name(control_path.name + suffix)


def socket_folder() -> Path:
    """The private folder of this user's sockets: short, because socket paths are limited, and nobody else's.

    Raises VpsDockerError if something else is at its place.
    """
    base = Path("/tmp") if sys.platform == "darwin" else Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    folder = base / f"mngr-vps-{os.getuid()}"
    if not base.is_dir() or len(str(folder)) + 1 + 16 > _LONGEST_CONTROL_PATH_BYTES:
        folder = Path("/tmp") / folder.name
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise VpsDockerError(f"{folder} must be a folder of yours that nobody else can enter (0700): remove it")
    return folder


def _beginning(log_file: Path) -> str:
    try:
        with log_file.open("rb") as file:
            return file.read(_MESSAGES_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _remove_traces_of_ended_masters(folder: Path) -> None:
    """Remove the files beside the sockets of masters that ended by themselves, some time after that."""
    for lock_path in folder.glob("*.lock"):
        with suppress(FileNotFoundError, BlockingIOError):
            is_recent = time.time() - lock_path.stat().st_mtime < _TRACES_KEPT_SECONDS
            if is_recent or lock_path.with_suffix("").exists():
                continue
            with locked(lock_path, is_waiting=False):
                lock_path.with_suffix(".pid").unlink(missing_ok=True)
                lock_path.unlink(missing_ok=True)


def _has_in_command_line(pid: int, text: str) -> bool:
    """Whether process ``pid`` is still the one that was started with ``text``, and not one that has its number now.

    Only Linux says; elsewhere a wedged master is left to its keepalives.
    """
    try:
        return text in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, PermissionError):
        return False
