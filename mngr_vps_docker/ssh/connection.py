"""Running commands on one machine over the system's ssh."""

import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from imbue.mngr_vps_docker.ssh.command_log import CommandLog, LoggedCommand, trace
from imbue.mngr_vps_docker.ssh.file_scripts import NO_SUCH_FILE, read_script, replace_script, write_script
from imbue.mngr_vps_docker.ssh.framing import LineSplitter, OutputReader
from imbue.mngr_vps_docker.ssh.master import LoginFailure, SshMaster, login_failure
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.probe import PROBE_COMMAND, PROBE_PURPOSE, PROBE_TIMEOUT_SECONDS, probe_failure
from imbue.mngr_vps_docker.ssh.process import OnChunk, ProcessRunner, StopReason, run_process
from imbue.mngr_vps_docker.ssh.readiness import wait_until_ready
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.session import run_in_session
from imbue.mngr_vps_docker.ssh.shell import RUN_STDIN, join, redacted, secret_names, shell_argv
from imbue.mngr_vps_docker.ssh.span import current_span
from imbue.mngr_vps_docker.ssh.standard_input import MeteredInput, StandardInput, is_repeatable
from imbue.mngr_vps_docker.ssh.target import SshTarget, standalone_argv

__all__ = ["LARGE_OUTPUT_BYTES", "OnLine", "SshConnection", "StandardInput"]

type OnLine = Callable[[str, bool], None]

# Below sshd's MaxSessions (10 by default): past it the server refuses sessions.
_MAX_SESSIONS: Final = 8
# A command that is longer than this cannot be pasted as an argument, which holds 128 KiB with a byte for its end.
_LONGEST_ARGUMENT_BYTES: Final = 120_000
# What an infinite deadline means: some threads cannot wait for longer.
_LONGEST_SECONDS: Final = 30 * 24 * 3600.0
_MAX_REPEATS: Final = 3
_FIRST_DELAY_SECONDS: Final = 0.2
_LONGEST_DELAY_SECONDS: Final = 2.0
_TAIL_BYTES: Final = 64 << 10
# What is taken of the answer to a question of our own, and of a command or file that the user asked for.
_OUTPUT_BYTES: Final = 8 << 20
LARGE_OUTPUT_BYTES: Final = 1 << 30
# A file of unknown size may take this long, as long as it comes.
_LONGEST_READ_SECONDS: Final = 6 * 3600.0
_IDLE_TRANSFER_SECONDS: Final = 60.0
_SLOWEST_BYTES_PER_SECOND: Final = 100_000

INTERRUPTED: Final = "INTERRUPTED"


class SshConnection:
    """Commands on one ``SshTarget``, all over one shared login that outlives this process for a while.

    Thread-safe: any number of threads may run commands at once. Nothing is connected until the first command, and no
    command logs in to a machine that ``is_gone``: it might wait for long.
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
        limit_bytes: int = _OUTPUT_BYTES,
    ) -> CommandOutcome:
        """Run shell text ``command`` on the machine and return its outcome; never raises for what happens remotely.

        ``purpose`` reads after "Could not" ("read host records"), for errors and the command log. The deadline is one
        for all: for waiting for a session, and for what is tried again; logging in comes on top, and has the target's
        connect timeout. At the deadline, after ``idle_timeout_seconds`` without a byte in either direction, and when
        both streams together have more than ``limit_bytes``, the command is ended on the machine too; likewise if this
        is interrupted. A command that never started is tried again, a few times, where waiting may help; one that was
        lost half-way only if its ``effect`` allows it.
        """
        call = _Call(command, purpose, timeout_seconds, idle_timeout_seconds, stdin, effect)
        return self._run(call, OutputReader(limit_bytes=limit_bytes))

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
        """Like ``run``, and hand each line to ``on_line(line, is_stdout)`` as it comes.

        The outcome holds only the end of both streams. Lines of an attempt that was lost are not taken back.
        """
        lines = None if on_line is None else LineSplitter(on_line)
        reader = OutputReader(on_chunk=lines, on_begin=None if lines is None else lines.flush, tail_bytes=_TAIL_BYTES)
        outcome = self._run(_Call(command, purpose, timeout_seconds, idle_timeout_seconds, stdin, effect), reader)
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
        idle_timeout_seconds: float | None = None,
        stdin: StandardInput = None,
    ) -> CommandOutcome:
        """Like ``stream``, for output that is not text; what ``on_chunk(chunk, is_stdout)`` raises ends it."""
        reader = OutputReader(on_chunk=on_chunk, tail_bytes=_TAIL_BYTES)
        return self._run(
            _Call(command, purpose, timeout_seconds, idle_timeout_seconds, stdin, Effect.NON_IDEMPOTENT), reader
        )

    def wait_until_ready(self, timeout_seconds: float, *, account_grace_seconds: float = 0.0) -> str:
        """Wait until the machine lets us in, under the pinned host key, and a command gives its exact output.

        Returns what the start-up files of its login shell print before every command: nothing, where all is well. Our
        own commands do not mind it, but rsync and git do.

        A refused or silent port is waited for. A host key other than the pinned one, and a key of ours that is
        refused, raise VpsAuthenticationError when they last; so does an account that runs no commands, or not as they
        are, after ``account_grace_seconds``. The time-out raises VpsConnectionError with ssh's last words.
        """
        greeting = ""

        def try_login() -> LoginFailure | None:
            nonlocal greeting
            failure = self._master.open()
            if failure is not None:
                return failure
            outcome = self.run(
                PROBE_COMMAND, purpose=PROBE_PURPOSE, timeout_seconds=PROBE_TIMEOUT_SECONDS, effect=Effect.READ_ONLY
            )
            greeting = outcome.greeting.strip()
            failure = probe_failure(outcome)
            if failure is not None and failure.reason is NotStartedReason.ACCOUNT_REFUSED:
                # sshd has looked at the account as we logged in, and does not look again.
                self._master.close()
            return failure

        wait_until_ready(self.target, try_login, timeout_seconds, account_grace_seconds)
        return greeting

    def read_file(self, path: str, *, limit_bytes: int = LARGE_OUTPUT_BYTES) -> bytes:
        """Return the content of a file on the machine; raise FileNotFoundError where there is none.

        Raises RemoteOutputError for one of more than ``limit_bytes``.
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
        """Write a file on the machine, and its parent folders where they are missing; in one step if ``is_atomic``.

        Whether all of it arrived is seen. A file that exists keeps its mode, unless one is given.
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
        """Whether this machine is logged in, so that a command costs no login; asks nobody elsewhere."""
        return self._master.is_alive()

    def ssh_command(self, command: str | None = None) -> str:
        """A command line to paste into a terminal: ``command`` (or a shell) on the machine, by a login of its own."""
        return join(standalone_argv(self.target, command))

    def close(self) -> None:
        """End the shared connection to the machine, if one is open."""
        self._master.close()

    def abandon(self) -> None:
        """End the shared connection for good: what other threads are running over it is lost, and not tried again."""
        self._is_abandoned = True
        self._master.close()

    def _run(self, call: "_Call", reader: OutputReader) -> CommandOutcome:
        give_up_at = time.monotonic() + self.target.connect_timeout_seconds
        attempt = 0
        while True:
            outcome = self._attempt(call, reader)
            if not self._may_help_to_repeat(call, outcome, attempt, give_up_at):
                return outcome
            delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2**attempt) * random.uniform(0.5, 1.5)
            time.sleep(min(delay, max(0.0, call.seconds_left)))
            attempt += 1

    def _may_help_to_repeat(self, call: "_Call", outcome: CommandOutcome, attempt: int, give_up_at: float) -> bool:
        if self._is_abandoned or call.seconds_left <= 0:
            return False
        if outcome.status is OutcomeStatus.LOST:
            may_run_again = call.effect is not Effect.NON_IDEMPOTENT and is_repeatable(call.stdin)
            return may_run_again and attempt < _MAX_REPEATS and not outcome.detail
        # Other processes use the machine's sessions too; one that is refused has done nothing.
        return outcome.reason is NotStartedReason.SESSION_REFUSED and time.monotonic() < give_up_at

    def _attempt(self, call: "_Call", reader: OutputReader) -> CommandOutcome:
        """Run the command once and log it, however it ends."""
        line = redacted(call.command)
        is_long = _is_too_long(join(shell_argv(line)))
        argv = standalone_argv(self.target, join(shell_argv(RUN_STDIN if is_long else line)))
        trace(f"+ {join(argv)}")
        metered = None if call.stdin is None else MeteredInput(call.stdin)
        log_id = secrets.token_hex(4)
        began, started = datetime.now(UTC), time.monotonic()
        outcome: CommandOutcome | None = None
        try:
            failure, stop = self._when_there_is_a_session(call, reader, metered)
            outcome = self._outcome(call, reader, argv, time.monotonic() - started, failure, stop, log_id)
            return outcome
        finally:
            logged = LoggedCommand(
                id=log_id,
                parent=current_span().id,
                operation=current_span().title,
                time=began.isoformat(),
                machine=self.target.name,
                host_id=self.target.host_key_alias or self.target.host,
                purpose=call.purpose,
                is_read_only=call.effect is Effect.READ_ONLY,
                argv=argv,
                script=line if is_long else None,
                secrets=secret_names(call.command),
                outcome=INTERRUPTED if outcome is None else outcome.status.value,
                milliseconds=round((time.monotonic() - started) * 1000),
                stdout_bytes=reader.byte_counts[True],
                stderr_bytes=reader.byte_counts[False],
                exit_code=None if outcome is None else outcome.exit_code,
                reason=None if outcome is None or outcome.reason is None else outcome.reason.value,
                detail="" if outcome is None else outcome.detail,
                stdin_bytes=None if metered is None else metered.byte_count,
                stdin_sha256=None if metered is None else metered.sha256,
            )
            trace(f"= {logged.result} in {logged.milliseconds} ms: {call.purpose} on {self.target.name}")
            if self._log is not None:
                self._log.write(logged)

    def _outcome(
        self,
        call: "_Call",
        reader: OutputReader,
        argv: tuple[str, ...],
        elapsed_seconds: float,
        failure: LoginFailure | None,
        stop: StopReason | None,
        log_id: str,
    ) -> CommandOutcome:
        exit_code = reader.exit_code
        if failure is not None:
            status = OutcomeStatus.NEVER_STARTED
        elif reader.excess is not None:
            status = OutcomeStatus.TOO_MUCH_OUTPUT
        elif stop in (StopReason.DEADLINE, StopReason.IDLE):
            status = OutcomeStatus.TIMED_OUT
        elif exit_code is None:
            status = OutcomeStatus.LOST
        else:
            status = OutcomeStatus.COMPLETED
        detail = reader.excess or "" if failure is None else failure.detail
        if stop in (StopReason.IDLE, StopReason.UNANSWERED):
            silent_seconds = call.idle_timeout_seconds if stop is StopReason.IDLE else elapsed_seconds
            detail = f"nothing was heard for {silent_seconds:.0f} s"
        return CommandOutcome(
            status=status,
            argv=argv,
            host=self.target.name,
            purpose=call.purpose,
            elapsed_seconds=elapsed_seconds,
            ran_seconds=reader.ran_seconds,
            exit_code=exit_code if status is OutcomeStatus.COMPLETED else None,
            stdout=reader.stdout,
            stderr=reader.stderr,
            greeting=reader.greeting,
            reason=None if failure is None else failure.reason,
            detail=detail,
            log_id=None if self._log is None else log_id,
        )

    def _when_there_is_a_session(
        self, call: "_Call", reader: OutputReader, metered: MeteredInput | None
    ) -> tuple[LoginFailure | None, StopReason | None]:
        """Run one attempt; return why it never started, if it did not, and why we ended it, if we did."""
        if self._is_abandoned:
            return LoginFailure(NotStartedReason.OTHER, "it is not wanted any more"), None
        if call.seconds_left <= 0:
            return None, StopReason.DEADLINE
        if not self._sessions.acquire(timeout=call.seconds_left):
            return LoginFailure(NotStartedReason.BUSY, f"{_MAX_SESSIONS} other commands are running there"), None
        try:
            return self._over_shared_connection(call, reader, metered)
        finally:
            self._sessions.release()

    def _over_shared_connection(
        self, call: "_Call", reader: OutputReader, metered: MeteredInput | None
    ) -> tuple[LoginFailure | None, StopReason | None]:
        # The shared connection is nearly always there, and asking first would cost time.
        failure: LoginFailure | None = None
        for is_last in (False, True):
            if failure is not None:
                return failure, None
            session = run_in_session(
                self._master,
                self._runner,
                call.command,
                metered,
                reader,
                timeout_seconds=call.seconds_left,
                idle_timeout_seconds=call.idle_timeout_seconds,
            )
            if session.refusal is not None:
                return LoginFailure(NotStartedReason.ACCOUNT_REFUSED, session.refusal), None
            # That it had not begun in time is no proof of anything: the shared connection is left to the others.
            if session.may_have_begun or session.stop in (StopReason.DEADLINE, StopReason.IDLE):
                return None, session.stop
            silence = LoginFailure(
                NotStartedReason.CONNECT_TIMEOUT, f"it has not answered for {session.elapsed_seconds:.0f} s"
            )
            if session.stop is StopReason.UNANSWERED:
                # If the machine is gone, the keepalives of the master end it, and the next command logs in.
                return silence, None
            failure = login_failure(session.messages)
            if is_last or failure.reason is NotStartedReason.SESSION_REFUSED:
                return failure, None
            # A machine that was waited for over the shared connection has used that much of its time.
            connect_seconds = self.target.connect_timeout_seconds - session.elapsed_seconds
            failure = self._log_in(call, connect_seconds) if connect_seconds > 0 else silence
        return failure, None

    def _log_in(self, call: "_Call", connect_timeout_seconds: float) -> LoginFailure | None:
        if self._is_gone():
            return LoginFailure(NotStartedReason.OTHER, "its host is being destroyed")
        began = time.monotonic()
        failure = self._master.open(call.seconds_left, connect_timeout_seconds)
        # A login has a limit of its own, which is not the command's.
        call.deadline += time.monotonic() - began
        return failure


@dataclass(slots=True)
class _Call:
    """What was asked for, see SshConnection.run, and when it must have ended."""

    command: str
    purpose: str
    timeout_seconds: float
    idle_timeout_seconds: float | None
    stdin: StandardInput
    effect: Effect
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.timeout_seconds = min(self.timeout_seconds, _LONGEST_SECONDS)
        self.deadline = time.monotonic() + self.timeout_seconds

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def _is_too_long(text: str) -> bool:
    return len(text.encode("utf-8", "surrogateescape")) > _LONGEST_ARGUMENT_BYTES
