"""Running commands on one machine over the system's ssh."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from imbue.mngr_vps_docker.ssh.command_log import CommandLog
from imbue.mngr_vps_docker.ssh.file_scripts import NO_SUCH_FILE, read_script, replace_script, write_script
from imbue.mngr_vps_docker.ssh.framing import LineSplitter, OnLine, OutputReader
from imbue.mngr_vps_docker.ssh.master import LoginFailure, SshMaster
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import OnChunk, ProcessRunner, StandardInput, Stream, is_repeatable, run_process
from imbue.mngr_vps_docker.ssh.readiness import (
    PROBE_COMMAND,
    PROBE_PURPOSE,
    PROBE_TIMEOUT_SECONDS,
    probe_failure,
    wait_until_ready,
)
from imbue.mngr_vps_docker.ssh.remote_command import ANSWER_BYTES, RemoteCommand
from imbue.mngr_vps_docker.ssh.session import Call, run_in_session, silence
from imbue.mngr_vps_docker.ssh.shell import join
from imbue.mngr_vps_docker.ssh.target import SshTarget, standalone_argv

__all__ = ["LARGE_OUTPUT_BYTES", "OnLine", "SshConnection", "StandardInput", "Stream"]

# Below sshd's MaxSessions (10 by default): past it the server refuses sessions.
_MAX_SESSIONS: Final = 8
_MAX_REPEATS: Final = 3
_FIRST_DELAY_SECONDS: Final = 0.2
_LONGEST_DELAY_SECONDS: Final = 2.0
_TAIL_BYTES: Final = 64 << 10
# The limit of a command or file that the user asked for.
LARGE_OUTPUT_BYTES: Final = 1 << 30
# A file of unknown size may take this long, as long as bytes arrive.
_LONGEST_READ_SECONDS: Final = 6 * 3600.0
_IDLE_TRANSFER_SECONDS: Final = 60.0
_SLOWEST_BYTES_PER_SECOND: Final = 100_000
# Why a command may not start although the shared connection is open: another login would not help.
_LOGIN_CANNOT_HELP: Final = frozenset(
    {NotStartedReason.SESSION_REFUSED, NotStartedReason.ACCOUNT_REFUSED, NotStartedReason.CONNECT_TIMEOUT}
)


class SshConnection:
    """Commands on one ``SshTarget``, all over one shared login that outlives this process for a while.

    Thread-safe: any number of threads may run commands at once. Nothing is connected until the first command. No
    command logs in to a machine that ``is_gone``, since it might wait for long.
    """

    def __init__(
        self,
        target: SshTarget,
        *,
        log: CommandLog | None = None,
        runner: ProcessRunner = run_process,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.target = target
        self._is_gone = is_gone
        self._log = log
        self._runner = runner
        self._master = SshMaster(target, runner)
        self._sessions = threading.BoundedSemaphore(_MAX_SESSIONS)
        self._is_abandoned = False

    def run(
        self,
        command: str,
        *,
        purpose: str,
        timeout_seconds: float,
        idle_timeout_seconds: float | None = None,
        stdin: StandardInput = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
        limit_bytes: int = ANSWER_BYTES,
    ) -> CommandOutcome:
        """Run shell text ``command`` on the machine and return its outcome; raises nothing for what happens there.

        ``purpose`` reads after "Could not" ("read host records"), for errors and the command log. The time-out
        includes waiting for a session, and retries; a login comes on top, with the target's connect timeout. At the
        deadline, after ``idle_timeout_seconds`` without a byte in either direction, when both streams together exceed
        ``limit_bytes``, and on an exception here, the command is ended on the machine too. A command whose session is
        refused is retried for as long as the connect timeout; one that was lost, a few times, if its ``effect``
        allows.
        """
        reader = OutputReader(limit_bytes=limit_bytes)
        return self._run(
            Call(self.target, command, purpose, effect, stdin, timeout_seconds, idle_timeout_seconds, reader)
        )

    def call[T](self, command: RemoteCommand[T], *, stdin: StandardInput = None, on_line: OnLine | None = None) -> T:
        """Run a command and return what it reads of its outcome; see RemoteCommand.

        With ``on_line`` each line is passed on as it comes, and the outcome that is read holds the last of them.
        """
        if on_line is None:
            outcome = self.run(
                command.script,
                purpose=command.purpose,
                timeout_seconds=command.timeout_seconds,
                stdin=stdin,
                effect=command.effect,
                limit_bytes=command.limit_bytes,
            )
        else:
            outcome = self.stream(
                command.script,
                on_line=on_line,
                purpose=command.purpose,
                timeout_seconds=command.timeout_seconds,
                stdin=stdin,
                effect=command.effect,
            )
        return command.read(outcome)

    def stream(
        self,
        command: str,
        *,
        on_line: OnLine | None,
        purpose: str,
        timeout_seconds: float,
        idle_timeout_seconds: float | None = None,
        stdin: StandardInput = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
    ) -> CommandOutcome:
        """Like ``run``, and hand each line to ``on_line(line, stream)`` as it comes.

        The outcome holds only the end of both streams. Lines of an attempt that was lost come again with the next.
        """
        lines = None if on_line is None else LineSplitter(on_line)
        reader = OutputReader(on_chunk=lines, on_begin=None if lines is None else lines.flush, tail_bytes=_TAIL_BYTES)
        outcome = self._run(
            Call(self.target, command, purpose, effect, stdin, timeout_seconds, idle_timeout_seconds, reader)
        )
        if lines is not None:
            lines.flush()
        return outcome

    def stream_bytes(
        self,
        command: str,
        on_chunk: OnChunk,
        *,
        purpose: str,
        timeout_seconds: float,
        stdin: StandardInput = None,
    ) -> CommandOutcome:
        """Like ``stream``, for output that is not text; what ``on_chunk(chunk, stream)`` raises ends it."""
        reader = OutputReader(on_chunk=on_chunk, tail_bytes=_TAIL_BYTES)
        return self._run(
            Call(self.target, command, purpose, Effect.NON_IDEMPOTENT, stdin, timeout_seconds, None, reader)
        )

    def wait_until_ready(self, timeout_seconds: float, *, account_grace_seconds: float = 0.0) -> str:
        """Wait until the machine lets us in, under the pinned host key, and a command gives its exact output.

        Returns what the start-up files of its login shell print before every command, usually nothing. Our own
        commands ignore it, but rsync and git fail.

        A refused or silent port is waited for. A host key other than the pinned one, and a key of ours that is
        refused, raise VpsAuthenticationError after a grace period; so does an account that runs no commands, or
        changes them, after ``account_grace_seconds``. The time-out raises VpsConnectionError with ssh's last words.
        """

        def try_login() -> LoginFailure | str:
            failure = self._master.open()
            if failure is not None:
                return failure
            outcome = self.run(
                PROBE_COMMAND, purpose=PROBE_PURPOSE, timeout_seconds=PROBE_TIMEOUT_SECONDS, effect=Effect.READ_ONLY
            )
            failure = probe_failure(outcome)
            if failure is None:
                return outcome.greeting.strip()
            if failure.reason is NotStartedReason.ACCOUNT_REFUSED:
                # sshd checks the account only at the login.
                self._master.close()
            return failure

        return wait_until_ready(self.target, try_login, timeout_seconds, account_grace_seconds)

    def read_file(self, path: str, *, limit_bytes: int = LARGE_OUTPUT_BYTES) -> bytes:
        """The content of a file on the machine.

        Raises FileNotFoundError, RemoteOutputError for more than ``limit_bytes``, and the errors of a command.
        """
        outcome = self.run(
            read_script(path, limit_bytes + 1),
            purpose=f"read {path}",
            timeout_seconds=_LONGEST_READ_SECONDS,
            idle_timeout_seconds=_IDLE_TRANSFER_SECONDS,
            effect=Effect.READ_ONLY,
            limit_bytes=limit_bytes,
        )
        if outcome.exit_code == NO_SUCH_FILE:
            raise FileNotFoundError(f"There is no {path} on {self.target.name}")
        return outcome.checked().stdout

    def write_file(self, path: str, content: bytes, *, mode: int | None = None, is_atomic: bool = False) -> None:
        """Write a file on the machine, and its missing parent folders; in one step if ``is_atomic``.

        A file that exists keeps its mode, unless one is given. Raises the errors of a command, also if less than all
        of it arrived.
        """
        script = replace_script if is_atomic else write_script
        self.run(
            script(path, len(content), mode),
            purpose=f"write {path}",
            timeout_seconds=_IDLE_TRANSFER_SECONDS + len(content) / _SLOWEST_BYTES_PER_SECOND,
            stdin=content,
            effect=Effect.IDEMPOTENT,
        ).checked()

    @property
    def is_open(self) -> bool:
        """Whether the shared login is there, so that a command costs none; does not ask the machine."""
        return self._master.is_alive()

    def ssh_command(self, command: str | None = None) -> str:
        """A command line to paste into a terminal: ``command`` (or a shell) on the machine, by a login of its own."""
        return join(standalone_argv(self.target, command))

    def close(self) -> None:
        """End the shared connection; idempotent."""
        self._master.close()

    def abandon(self) -> None:
        """End the shared connection for good: the commands of other threads are lost, and not retried."""
        self._is_abandoned = True
        self._master.close()

    def _run(self, call: Call) -> CommandOutcome:
        """Run the command, retry it where that may help, and log each attempt however it ends."""
        may_run_again = call.effect is not Effect.NON_IDEMPOTENT and is_repeatable(call.stdin)
        refused_until = time.monotonic() + self.target.connect_timeout_seconds
        attempt = 0
        while True:
            outcome: CommandOutcome | None = None
            call.begin(self._log)
            try:
                outcome = self._attempt(call)
            finally:
                call.end(outcome)
            if outcome.status is OutcomeStatus.LOST:
                is_repeated = may_run_again and attempt < _MAX_REPEATS
            else:
                # Other processes use the machine's sessions too; a command whose session was refused has done nothing.
                is_refused = outcome.reason is NotStartedReason.SESSION_REFUSED
                is_repeated = is_refused and time.monotonic() < refused_until
            if self._is_abandoned or call.seconds_left <= 0 or not is_repeated:
                return outcome
            delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2**attempt) * random.uniform(0.5, 1.5)
            time.sleep(min(delay, max(0.0, call.seconds_left)))
            attempt += 1

    def _attempt(self, call: Call) -> CommandOutcome:
        """Run the command once, when a session is free, after a login if the shared connection is not open."""
        if self._is_abandoned:
            return call.not_started(LoginFailure(NotStartedReason.OTHER, "the operation was cancelled"))
        if call.seconds_left <= 0:
            return call.outcome(OutcomeStatus.TIMED_OUT)
        if not self._sessions.acquire(timeout=call.seconds_left):
            words = f"{_MAX_SESSIONS} other commands are running there"
            return call.not_started(LoginFailure(NotStartedReason.BUSY, words))
        try:
            # The shared connection is nearly always there, and asking first would cost time.
            asked_at = time.monotonic()
            outcome = run_in_session(call, self._master, self._runner)
            if outcome.status is not OutcomeStatus.NEVER_STARTED or outcome.reason in _LOGIN_CANNOT_HELP:
                return outcome
            failure = self._log_in(call, time.monotonic() - asked_at)
            return run_in_session(call, self._master, self._runner) if failure is None else call.not_started(failure)
        finally:
            self._sessions.release()

    def _log_in(self, call: Call, waited_seconds: float) -> LoginFailure | None:
        """Log in; a machine that was waited for over the shared connection has used that much of its time."""
        connect_seconds = self.target.connect_timeout_seconds - waited_seconds
        if connect_seconds <= 0:
            return silence(waited_seconds)
        if self._is_gone():
            return LoginFailure(NotStartedReason.OTHER, "it is being destroyed")
        began_at = time.monotonic()
        failure = self._master.open(call.seconds_left, connect_seconds)
        # A login has a limit of its own, which is not the command's.
        call.deadline += time.monotonic() - began_at
        return failure
