"""A real sshd on the loopback interface, for tests that need no root, no Docker and no network."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from imbue.mngr_vps_docker.ssh.known_hosts import KnownHostsFile
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair

_START_SECONDS: Final = 10.0
_HOST_KEY_ALIAS: Final = "loopback"


class LoopbackSshd:
    """One sshd that lets the present user in by key, from ``with`` to its end; everything it needs is in ``folder``.

    ``options`` are lines of sshd_config that come before its own, and so win.
    """

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.options = options
        self.port = _free_port()
        self.log_path = folder / "sshd.log"
        self._client_key = load_or_create_key_pair(folder / "client_key")
        self._known_hosts = KnownHostsFile(folder / "known_hosts")
        self._process: subprocess.Popen[bytes] | None = None
        self.change_host_key(is_pinned=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def target(self, **changes: object) -> SshTarget:
        """How to log in to it; ``changes`` are other values for fields of SshTarget."""
        fields: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity_file": self._client_key.private_key_path,
            "known_hosts_file": self._known_hosts.path,
            "host_key_alias": _HOST_KEY_ALIAS,
            "label": "loopback",
            "connect_timeout_seconds": 5.0,
            "persist_seconds": 30,
        }
        return SshTarget(**{**fields, **changes})  # type: ignore[arg-type]

    def start(self) -> None:
        """Start it, and wait until it listens."""
        config = self.folder / "sshd_config"
        config.write_text(
            "\n".join(
                [
                    *self.options,
                    f"ListenAddress 127.0.0.1:{self.port}",
                    f"HostKey {self._host_key_path}",
                    f"AuthorizedKeysFile {self._client_key.private_key_path}.pub",
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PermitRootLogin prohibit-password",
                    # Making a key of sntrup761, which OpenSSH prefers, is half of what a login costs the processor.
                    "KexAlgorithms curve25519-sha256",
                    # What the user's own shell does as it starts, in .bashrc say, is slow on some machines.
                    f"SetEnv HOME={self.folder}",
                    "LogLevel VERBOSE",
                    "Subsystem sftp internal-sftp",
                    "",
                ]
            )
        )
        logged_before = len(self.log)
        self._process = subprocess.Popen(
            [_sshd_path(), "-D", "-f", str(config), "-E", str(self.log_path)],
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        deadline = time.monotonic() + _START_SECONDS
        # To try its port instead would be a connection, for which it starts a process.
        while f"listening on 127.0.0.1 port {self.port}" not in self.log[logged_before:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd did not start: {self.log}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop it with every session it has; nothing of it remains."""
        if self._process is not None:
            # Each login is a process of its own, which outlives the one that listens.
            for process_id in (*_descendants(self._process.pid), self._process.pid):
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGTERM)
            self._process.wait(_START_SECONDS)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Silence the machine, on any connection, as if it had lost power."""
        if self._process is None:
            raise RuntimeError("sshd does not run")
        processes = (self._process.pid, *_descendants(self._process.pid))
        for process_id in processes:
            os.kill(process_id, signal.SIGSTOP)
        try:
            yield
        finally:
            for process_id in processes:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGCONT)

    def change_host_key(self, *, is_pinned: bool) -> None:
        """Take another host key from the next start on, known to the client or not."""
        self._host_key_path = self.folder / f"host_key_{time.monotonic_ns()}"
        public_key = self.host_public_key
        if is_pinned:
            self._known_hosts.pin((_HOST_KEY_ALIAS,), public_key)

    @property
    def host_public_key(self) -> str:
        """The public half of its host key, which is made at the first use."""
        return load_or_create_key_pair(self._host_key_path).public_key

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def login_count(self) -> int:
        """The number of logins so far."""
        return self.log.count("Accepted publickey")


def _descendants(process_id: int) -> list[int]:
    """The processes that ``process_id`` started, those that they started, and so on."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = [process_id]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


def _sshd_path() -> str:
    # sshd insists on being started by its full path, and is rarely on a user's PATH.
    path = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
    if path is None:
        raise RuntimeError("There is no sshd on this machine: install the package openssh-server")
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
