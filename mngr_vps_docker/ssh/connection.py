"""Running commands on one machine over the system's ssh."""

import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.ssh.target import ssh_options

type StandardInput = bytes | Path | Iterable[bytes] | None
type OnLine = Callable[[str, bool], None]


class SshConnection:
    """Commands on one ``SshTarget``.

    Thread-safe: any number of threads may run commands at once. Nothing is connected until the first command.
    """

    def __init__(self, target: SshTarget) -> None:
        self.target = target

    def run(
        self,
        command: str,
        *,
        purpose: str,
        timeout_seconds: float,
        stdin: StandardInput = None,
        is_idempotent: bool = False,
    ) -> CommandOutcome:
        """Run shell text ``command`` on the machine and return its outcome; never raises for what happens remotely.

        ``purpose`` reads after "Could not" ("read host records"), for errors and the command log.
        """
        return self.stream(
            command, on_line=None, purpose=purpose, timeout_seconds=timeout_seconds, stdin=stdin, is_idempotent=is_idempotent
        )

    def stream(
        self,
        command: str,
        *,
        on_line: OnLine | None,
        purpose: str,
        timeout_seconds: float,
        stdin: StandardInput = None,
        is_idempotent: bool = False,
    ) -> CommandOutcome:
        """Like ``run``, and hand each line to ``on_line(line, is_stdout)`` as it comes."""
        argv = ("ssh", *ssh_options(self.target), "-p", str(self.target.port), "-l", self.target.user, self.target.host, command)
        data = stdin.read_bytes() if isinstance(stdin, Path) else b"".join(stdin) if stdin is not None and not isinstance(stdin, bytes) else stdin
        started = time.monotonic()
        common = dict(argv=argv, host=self.target.label, purpose=purpose)
        try:
            done = subprocess.run(argv, input=data or b"", capture_output=True, timeout=timeout_seconds)
        except subprocess.TimeoutExpired as error:
            return CommandOutcome(status=OutcomeStatus.TIMED_OUT, elapsed_seconds=time.monotonic() - started, stdout=error.stdout or b"", stderr=error.stderr or b"", **common)
        elapsed = time.monotonic() - started
        if done.returncode == 255:
            return CommandOutcome(status=OutcomeStatus.NEVER_STARTED, reason=NotStartedReason.OTHER, detail=done.stderr.decode(errors="replace").strip(), elapsed_seconds=elapsed, **common)
        if on_line is not None:
            for line in done.stdout.decode(errors="replace").splitlines():
                on_line(line, True)
            for line in done.stderr.decode(errors="replace").splitlines():
                on_line(line, False)
        return CommandOutcome(status=OutcomeStatus.COMPLETED, exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr, elapsed_seconds=elapsed, **common)

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait until an authenticated command succeeds under the pinned host key.

        A refused or silent port is waited for. A changed host key, and an authentication failure that persists, raise
        VpsAuthenticationError; the time-out raises VpsConnectionError with ssh's last words.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            outcome = self.run("true", purpose="log in", timeout_seconds=30, is_idempotent=True)
            if outcome.is_success:
                return
            if time.monotonic() > deadline:
                raise outcome.error()
            time.sleep(0.3)

    def close(self) -> None:
        """End the shared connection to the machine, if one is open."""
