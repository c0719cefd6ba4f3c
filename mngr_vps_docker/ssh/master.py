"""The shared login to one machine: opened once, by the process that needs it first, and used by all until it is idle.

ssh's own ``ControlMaster=auto`` logs in once per thread when many start at once, so the master is opened explicitly,
under a lock that holds across processes.
"""

import json
import math
import os
import re
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.files import PRIVATE_FOLDER_MODE, locked, make_private_folder
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.process import ProcessRunner, run_process
from imbue.mngr_vps_docker.ssh.target import SshTarget, control_path_option, exit_argv, forward_argv, master_argv

# sockaddr_un.sun_path less the suffix of 17 bytes that ssh adds while it binds (measured with OpenSSH 9.2).
_LONGEST_CONTROL_PATH_BYTES: Final = 76 if sys.platform == "darwin" else 90
# A master answers in milliseconds; one that is stopped (SIGSTOP) or wedged accepts connections and stays silent.
_ANSWER_SECONDS: Final = 1.0
_EXIT_TIMEOUT_SECONDS: Final = 2.0
_FORWARD_TIMEOUT_SECONDS: Final = 10.0
# Authentication comes after ConnectTimeout, which covers the TCP connection and the banner (ssh_config(5)).
_LOGIN_SECONDS: Final = 20.0
_MESSAGES_BYTES: Final = 1 << 20
# ssh's own lines are shorter; a machine's may be longer, and patterns take the square of a line's length.
_LONGEST_LINE: Final = 1024

_STALE_AFTER_SECONDS: Final = 24 * 3600.0
# The files that belong to a socket; the lock is removed last.
_SUFFIXES: Final = (".failure", ".lock")
_CLIENT_LOG: Final = "client-"

# Debian 11's; the oldest whose behaviour with a shared connection is known to be the one described in this package.
_OLDEST_OPENSSH: Final = (8, 4)
_VERSION_TIMEOUT_SECONDS: Final = 10.0
_VERSION: Final = re.compile(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)")
# PROTOCOL.mux, sections 1 (hello) and 4 (health check); every packet is its length in bytes and big-endian words.
_MUX_VERSION: Final = 4
_HELLO: Final = 0x00000001
_ALIVE_CHECK: Final = 0x10000004
_ALIVE: Final = 0x80000005
_REQUEST_ID: Final = 0
_LONGEST_PACKET_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class LoginFailure:
    """Why a machine was not asked to run anything: the reason as a word, and a line that says more."""

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
# Plainer than ssh's own words.
_EXPLANATIONS: Final = {
    NotStartedReason.HOST_KEY_CHANGED: (
        "it shows another host key than the pinned one, and was sent nothing. Either it was reinstalled, or another"
        " machine answers in its place"
    ),
    NotStartedReason.HOST_KEY_UNKNOWN: "its host key is not pinned on this machine, and it was sent nothing",
}


def login_failure(messages: str) -> LoginFailure:
    """Tell from ssh's own messages why a login failed; ``detail`` is the one line that says it best."""
    words = (line.strip()[:_LONGEST_LINE] for line in messages.splitlines() if not line.startswith("debug"))
    lines = [line for line in words if line]
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

    @property
    def control_path(self) -> Path:
        """The path of its socket, whether it is open or not."""
        return socket_folder() / self.target.fingerprint

    def open(
        self, wait_seconds: float = math.inf, connect_timeout_seconds: float | None = None
    ) -> LoginFailure | None:
        """Make sure that it is open, logging in if it is not; return why, if that failed.

        However many threads and processes ask at once, there is one login, and those that waited for it share its
        failure. They wait for at most ``wait_seconds``; a login of their own has ``connect_timeout_seconds``, or the
        target's connect timeout.
        """
        asked_at = time.monotonic()
        control_path = self.control_path
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._file(".lock"), timeout_seconds=wait_seconds))
            except BlockingIOError:
                return LoginFailure(NotStartedReason.BUSY, "another process has not finished logging in to it")
            if self.is_alive():
                return None
            connect_seconds = connect_timeout_seconds or self.target.connect_timeout_seconds
            failure = self._failure_since(asked_at, connect_seconds)
            if failure is not None:
                return failure
            # Another process has waited for the machine in this time.
            connect_seconds = max(1.0, connect_seconds - (time.monotonic() - asked_at))
            self._remove_dead(control_path)
            failure = self._log_in(control_path, connect_seconds)
            self._share(failure, connect_seconds)
            return failure

    def is_alive(self) -> bool:
        """Whether it answers; False for one that is gone, stale or wedged."""
        return master_process_id(self.control_path, _ANSWER_SECONDS) is not None

    def forward(self, local: tuple[str, int], remote: tuple[str, int]) -> bool:
        """Forward an address and port here to one that the machine sees, until it ends; return whether that worked.

        It must be open.
        """
        argv = forward_argv(self.target, self.control_path, local, remote)
        return self._runner(argv, timeout_seconds=_FORWARD_TIMEOUT_SECONDS).exit_code == 0

    def close(self) -> None:
        """End it, and with it every command that runs over it; idempotent."""
        control_path = self.control_path
        if not control_path.exists():
            return
        self._runner(exit_argv(self.target, control_path), timeout_seconds=_EXIT_TIMEOUT_SECONDS)
        # A process that holds the lock for longer is logging in, and owns the socket.
        with suppress(BlockingIOError), locked(self._file(".lock"), timeout_seconds=_EXIT_TIMEOUT_SECONDS):
            if not self.is_alive():
                self._remove_dead(control_path)
                for suffix in _SUFFIXES:
                    self._file(suffix).unlink(missing_ok=True)

    def _log_in(self, control_path: Path, connect_timeout_seconds: float) -> LoginFailure | None:
        installed_openssh()
        _remove_stale_files(control_path.parent)
        with tempfile.TemporaryDirectory(prefix="mngr-vps-ssh-") as folder:
            log_file = Path(folder) / "log"
            target = replace(self.target, connect_timeout_seconds=connect_timeout_seconds)
            result = self._runner(
                master_argv(target, control_path, log_file), timeout_seconds=connect_timeout_seconds + _LOGIN_SECONDS
            )
            messages = _beginning(log_file)
        if result.stop is not None:
            return LoginFailure(NotStartedReason.CONNECT_TIMEOUT, "ssh did not finish logging in")
        if result.exit_code != 0:
            return login_failure(messages + result.stderr.decode(errors="replace"))
        return None

    def _share(self, failure: LoginFailure | None, connect_seconds: float) -> None:
        """Leave a failure to those who wait for the lock, with its time and how long the machine was waited for."""
        path = self._file(".failure")
        if failure is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps([time.monotonic(), connect_seconds, failure.reason, failure.detail]))

    def _failure_since(self, asked_at: float, connect_seconds: float) -> LoginFailure | None:
        """The failure of a login that ended after ``asked_at``, on the monotonic clock that all processes share.

        One that gave a silent machine less than half of ``connect_seconds`` does not count.
        """
        try:
            failed_at, waited_seconds, word, detail = json.loads(self._file(".failure").read_text())
            reason = NotStartedReason(word)
            # A time in the future was written before this machine was rebooted.
            is_recent = asked_at < failed_at <= time.monotonic()
            is_hasty = reason is NotStartedReason.CONNECT_TIMEOUT and waited_seconds < connect_seconds / 2
            return LoginFailure(reason, str(detail)) if is_recent and not is_hasty else None
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _remove_dead(self, control_path: Path) -> None:
        """Remove the socket of a master that does not answer; kill the master first, if it is wedged and not gone."""
        try:
            mode = control_path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise VpsDockerError(f"{control_path} is not a socket of ssh: remove it and try again")
        for process_id in _masters_at(control_path):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process_id, signal.SIGKILL)
        control_path.unlink(missing_ok=True)

    def _file(self, suffix: str) -> Path:
        control_path = self.control_path
        return control_path.with_name(control_path.name + suffix)


def socket_folder(shared: Path = Path("/tmp")) -> Path:
    """The private folder of this user's sockets, with a short path, since that of a socket is limited.

    It is in XDG_RUNTIME_DIR, else in ``shared``, where every user may make a folder and cannot remove another user's;
    or in the home, where another user has taken the name in ``shared``. Raises VpsDockerError if none of them will do.
    """
    name = f"mngr-vps-{os.getuid()}"
    for parent in _possible_parents(shared):
        folder = parent / name
        if len(os.fsencode(folder)) + 1 + 16 <= _LONGEST_CONTROL_PATH_BYTES and _is_made_private(folder):
            return folder
    raise VpsDockerError(
        "There is no place for ssh's sockets: set XDG_RUNTIME_DIR to a folder of yours with a short path to which no"
        f" other user can write, or remove {shared / name}"
    )


def _possible_parents(shared: Path) -> Iterator[Path]:
    """Folders in which no other user can exchange this user's files, best first."""
    runtime_folder = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if sys.platform != "darwin" and _is_mine_alone(runtime_folder):
        yield runtime_folder
    yield shared
    with suppress(OSError, RuntimeError):
        cache = make_private_folder(Path.home() / ".cache")
        if _is_mine_alone(cache):
            yield cache


def _is_mine_alone(folder: Path) -> bool:
    """Whether only this user can write to a folder; after ``sudo -E`` it may belong to another."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return folder.is_absolute() and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _is_made_private(folder: Path) -> bool:
    """Make a folder if it is missing; return whether it belongs to this user, who alone can enter it."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=PRIVATE_FOLDER_MODE)
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def client_log_prefix() -> str:
    """The beginning of the names of files, in the socket's folder, to which the ssh clients of this process log."""
    return f"{_CLIENT_LOG}{os.getpid()}-"


def _beginning(log_file: Path) -> str:
    try:
        with log_file.open("rb") as file:
            return file.read(_MESSAGES_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _remove_stale_files(folder: Path) -> None:
    """Remove the files of masters that ended by themselves a day ago, and of processes that were killed."""
    for lock_path in folder.glob("*.lock"):
        with suppress(FileNotFoundError, BlockingIOError):
            is_recent = time.time() - lock_path.stat().st_mtime < _STALE_AFTER_SECONDS
            if is_recent or lock_path.with_suffix("").exists():
                continue
            with locked(lock_path, timeout_seconds=0):
                for suffix in _SUFFIXES:
                    lock_path.with_suffix(suffix).unlink(missing_ok=True)
    for log_path in folder.glob(f"{_CLIENT_LOG}*"):
        with suppress(ValueError, PermissionError):
            try:
                os.kill(int(log_path.name.removeprefix(_CLIENT_LOG).split("-")[0]), 0)
            except ProcessLookupError:
                log_path.unlink(missing_ok=True)


def _masters_at(control_path: Path) -> Iterator[int]:
    """The processes that were started to hold the connection at a socket.

    Only Linux has /proc; elsewhere a wedged master is left to its keepalives. The socket names the process that began
    to listen, which has handed it on to one in the background.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"-M" in words and os.fsencode(control_path_option(control_path)) in words:
                yield int(folder.name)


@cache
def installed_openssh(runner: ProcessRunner = run_process) -> tuple[int, int]:
    """The major and minor version of the OpenSSH client on PATH.

    Raises BinaryNotInstalledError if there is none, VpsDockerError if it is another ssh or too old a one.
    """
    result = runner(("ssh", "-V"), timeout_seconds=_VERSION_TIMEOUT_SECONDS)
    # OpenSSH answers on stderr ("OpenSSH_9.2p1 Debian-2, OpenSSL 3.0"), others on stdout.
    answer = (result.stderr or result.stdout).decode(errors="replace").strip()
    found = _VERSION.search(answer)
    version = (0, 0) if found is None else (int(found[1]), int(found[2]))
    if version < _OLDEST_OPENSSH:
        oldest = ".".join(map(str, _OLDEST_OPENSSH))
        raise VpsDockerError(f"The ssh on PATH must be OpenSSH {oldest} or newer, but says that it is: {answer}")
    return version


def master_process_id(control_path: Path, timeout_seconds: float) -> int | None:
    """The process that holds a shared connection, or None if none answers within ``timeout_seconds`` per packet.

    It speaks OpenSSH's PROTOCOL.mux. ``ssh -O check`` asks the same but costs a process, which a busy machine may take
    so long to start that a healthy master would be taken for wedged, and killed with all that runs over it.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_seconds)
        try:
            client.connect(str(control_path))
            client.sendall(_packet(_HELLO, _MUX_VERSION) + _packet(_ALIVE_CHECK, _REQUEST_ID))
            while True:
                match _words(client):
                    case [kind, _, process_id, *_] if kind == _ALIVE:
                        return process_id
        except (OSError, EOFError):
            return None


def _packet(*words: int) -> bytes:
    return struct.pack(f">{1 + len(words)}I", 4 * len(words), *words)


def _words(client: socket.socket) -> tuple[int, ...]:
    """The whole words of the next packet."""
    (length,) = struct.unpack(">I", _exactly(client, 4))
    if not 4 <= length <= _LONGEST_PACKET_BYTES:
        raise EOFError(f"a packet of {length} bytes")
    body = _exactly(client, length)
    return struct.unpack_from(f">{length // 4}I", body)


def _exactly(client: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        chunk = client.recv(size_bytes - len(data))
        if not chunk:
            raise EOFError("the master hung up")
        data += chunk
    return bytes(data)
