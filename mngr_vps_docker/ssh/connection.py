"""Running commands on one machine over the system's ssh."""

import math
import random
import secrets
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.ssh.command_log import CommandLog
from imbue.mngr_vps_docker.ssh.framing import Framing
from imbue.mngr_vps_docker.ssh.framing import LineSplitter
from imbue.mngr_vps_docker.ssh.framing import OutputReader
from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.master import SshMaster
from imbue.mngr_vps_docker.ssh.master import login_failure
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import OnChunk
from imbue.mngr_vps_docker.ssh.process import ProcessResult
from imbue.mngr_vps_docker.ssh.process import ProcessRunner
from imbue.mngr_vps_docker.ssh.process import StallCheck
from imbue.mngr_vps_docker.ssh.process import StandardInput
from imbue.mngr_vps_docker.ssh.process import run_process
from imbue.mngr_vps_docker.ssh.readiness import wait_until_ready
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.ssh.target import shared_argv
from imbue.mngr_vps_docker.ssh.target import standalone_argv

__all__ = ["OnLine", "SshConnection", "StandardInput"]

type OnLine = Callable[[str, bool], None]

# Below sshd's MaxSessions (10 by default): past it the server refuses sessions.
_MAX_SESSIONS: Final = 8
# What the end of a command may take to arrive after its deadline on the machine.
_GRACE_SECONDS: Final = 1.5
# A command says at its start that it has begun. If it does not for so long, the master may be wedged.
_STALL_SECONDS: Final = 3.0
# A command line longer than this travels on stdin: one argument holds 128 KiB, and quoting makes it longer.
_LONGEST_COMMAND_BYTES: Final = 32_000
_MAX_ATTEMPTS: Final = 4
_FIRST_DELAY_SECONDS: Final = 0.2
_TAIL_BYTES: Final = 64 << 10
_NO_SUCH_FILE: Final = 44


class SshConnection:
    """Commands on one ``SshTarget``, all over one shared login that outlives this process for a while.

    Thread-safe: any number of threads may run commands at once. Nothing is connected until the first command.
    """

    def __init__(
        self, target: SshTarget, *, log: CommandLog | None = None, runner: ProcessRunner = run_process
    ) -> None:
        self.target = target
        self._log = log
        self._runner = runner
        self._master = SshMaster(target, runner)
        self._sessions = threading.BoundedSemaphore(_MAX_SESSIONS)

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

        ``purpose`` reads after "Could not" ("read host records"), for errors and the command log. At the deadline the
        command is ended on the machine too. A command that never started is tried again, a few times, where waiting
        may help; one that was lost half-way only if it ``is_idempotent``.
        """
        return self._run(command, OutputReader(), purpose, timeout_seconds, stdin, is_idempotent=is_idempotent)

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
        """Like ``run``, and hand each line to ``on_line(line, is_stdout)`` as it comes.

        The outcome holds only the end of both streams. Lines of an attempt that was lost are not taken back.
        """
        lines = None if on_line is None else LineSplitter(on_line)
        reader = OutputReader(on_chunk=lines, tail_bytes=_TAIL_BYTES)
        outcome = self._run(command, reader, purpose, timeout_seconds, stdin, is_idempotent=is_idempotent)
        if lines is not None:
            lines.flush()
        return outcome

    def stream_bytes(self, command: str, on_chunk: OnChunk, *, purpose: str, timeout_seconds: float) -> CommandOutcome:
        """Like ``stream``, for output that is not text; what ``on_chunk(chunk, is_stdout)`` raises ends it."""
        reader = OutputReader(on_chunk=on_chunk, tail_bytes=_TAIL_BYTES)
        return self._run(command, reader, purpose, timeout_seconds, None, is_idempotent=False)

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait until an authenticated command succeeds under the pinned host key.

        A refused or silent port is waited for. A host key other than the pinned one, and a key of ours that is
        refused, raise VpsAuthenticationError when they last; the time-out raises VpsConnectionError with ssh's last
        words.
        """
        wait_until_ready(self.target, self._try_login, timeout_seconds)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file on the machine; raise FileNotFoundError where there is none."""
        quoted = shlex.quote(path)
        outcome = self.run(
            f"[ -e {quoted} ] || exit {_NO_SUCH_FILE}; exec cat <{quoted}",
            purpose=f"read {path}",
            timeout_seconds=_transfer_seconds(0),
            is_idempotent=True,
        )
        if outcome.exit_code == _NO_SUCH_FILE:
            raise FileNotFoundError(f"There is no {path} on {self.target.label}")
        return outcome.checked().stdout

    def write_file(self, path: str, content: bytes, *, mode: int | None = None, is_atomic: bool = False) -> None:
        """Write a file on the machine, and its parent folders where they are missing; in one step if ``is_atomic``."""
        target = f"{path}.{secrets.token_hex(6)}.tmp" if is_atomic else path
        steps = [f"mkdir -p {shlex.quote(str(Path(path).parent))}", f"cat >{shlex.quote(target)}"]
        if mode is not None:
            steps.append(f"chmod {mode:o} {shlex.quote(target)}")
        if is_atomic:
            steps.append(f"sync {shlex.quote(target)} && mv -f {shlex.quote(target)} {shlex.quote(path)}")
        self.run(
            " && ".join(steps),
            purpose=f"write {path}",
            timeout_seconds=_transfer_seconds(len(content)),
            stdin=content,
            is_idempotent=True,
        ).checked()

    def ssh_command(self, command: str | None = None) -> str:
        """A command line to paste into a terminal: ``command`` (or a shell) on the machine, by a login of its own."""
        return shlex.join(standalone_argv(self.target, command))

    def close(self) -> None:
        """End the shared connection to the machine, if one is open."""
        self._master.close()

    def _try_login(self) -> LoginFailure | None:
        failure = self._master.open()
        if failure is not None:
            return failure
        outcome = self._attempt("true", OutputReader(), "log in", 30.0, None)
        return None if outcome.is_success else LoginFailure(outcome.reason or NotStartedReason.OTHER, outcome.detail)

    def _run(
        self,
        command: str,
        reader: OutputReader,
        purpose: str,
        timeout_seconds: float,
        stdin: StandardInput,
        *,
        is_idempotent: bool,
    ) -> CommandOutcome:
        if stdin is None and len(command.encode("utf-8", "surrogateescape")) > _LONGEST_COMMAND_BYTES:
            command, stdin = 'eval "$(cat)"', command.encode("utf-8", "surrogateescape")
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            with self._sessions:
                outcome = self._attempt(command, reader, purpose, timeout_seconds, stdin)
            if self._log is not None:
                self._log.write(outcome, stdin=stdin)
            may_help = outcome.reason is NotStartedReason.SESSION_REFUSED or (
                outcome.status is OutcomeStatus.LOST and is_idempotent
            )
            if attempt == _MAX_ATTEMPTS or not may_help or not _is_repeatable(stdin):
                break
            time.sleep(_FIRST_DELAY_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return outcome

    def _attempt(
        self, command: str, reader: OutputReader, purpose: str, timeout_seconds: float, stdin: StandardInput
    ) -> CommandOutcome:
        started = time.monotonic()
        failure, is_timed_out = self._over_shared_connection(command, reader, timeout_seconds, stdin)
        elapsed = time.monotonic() - started
        exit_code = reader.exit_code
        if failure is not None:
            status = OutcomeStatus.NEVER_STARTED
        elif exit_code is None:
            status = OutcomeStatus.TIMED_OUT if is_timed_out else OutcomeStatus.LOST
        elif Framing.is_time_out(exit_code, elapsed, timeout_seconds):
            status = OutcomeStatus.TIMED_OUT
        else:
            status = OutcomeStatus.COMPLETED
        return CommandOutcome(
            status=status,
            argv=standalone_argv(self.target, command),
            host=self.target.label,
            purpose=purpose,
            elapsed_seconds=elapsed,
            exit_code=exit_code if status is OutcomeStatus.COMPLETED else None,
            stdout=reader.stdout,
            stderr=reader.stderr,
            reason=None if failure is None else failure.reason,
            detail="" if failure is None else failure.detail,
        )

    def _over_shared_connection(
        self, command: str, reader: OutputReader, timeout_seconds: float, stdin: StandardInput
    ) -> tuple[LoginFailure | None, bool]:
        """Run one attempt; return why it never started, if it did not, and whether it was ended at its deadline."""
        # The shared connection is nearly always there, and asking first would cost a process and a round trip. Only
        # what cannot be sent twice must not be lost to one that is gone.
        failure = None if _is_repeatable(stdin) else self._master.open()
        for _ in range(2):
            if failure is not None:
                return failure, False
            result = self._send(command, reader, timeout_seconds, stdin)
            if result.is_timed_out or reader.has_started:
                return None, result.is_timed_out
            failure = self._master.open()
        return failure or login_failure(reader.messages), False

    def _send(self, command: str, reader: OutputReader, timeout_seconds: float, stdin: StandardInput) -> ProcessResult:
        framing = Framing(secrets.token_hex(8))
        reader.begin(framing)
        control_path = self._master.control_path
        if not control_path.exists():
            return ProcessResult(exit_code=None, stdout=b"", stderr=b"")
        whole_seconds = math.ceil(timeout_seconds)
        result = self._runner(
            shared_argv(self.target, control_path, framing.wrap(command, whole_seconds)),
            timeout_seconds=whole_seconds + _GRACE_SECONDS,
            stdin=stdin,
            on_chunk=reader,
            stall_check=StallCheck(_STALL_SECONDS, self._master.is_alive),
        )
        reader.finish()
        return result


def _is_repeatable(stdin: StandardInput) -> bool:
    return stdin is None or isinstance(stdin, bytes | Path)


def _transfer_seconds(size_bytes: int) -> float:
    """A limit for moving a file: a minute, and what a slow line of 100 kB/s takes."""
    return 60 + size_bytes / 100_000
