"""One command over the shared connection: framed, bounded, and with proof of whether it was asked for."""

import hashlib
import math
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.ssh.command_log import CommandLog, LoggedCommand, current_operation, trace
from imbue.mngr_vps_docker.ssh.framing import Framing, OutputLimitError, OutputReader, is_time_out
from imbue.mngr_vps_docker.ssh.master import LoginFailure, SshMaster, client_log_prefix, login_failure
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, NotStartedReason, OutcomeStatus, last_lines
from imbue.mngr_vps_docker.ssh.process import (
    Liveness,
    ProcessResult,
    ProcessRunner,
    StandardInput,
    StdinGate,
    StopReason,
    Stream,
    chunks_of,
    is_repeatable,
)
from imbue.mngr_vps_docker.ssh.shell import RUN_STDIN, join, redacted, secret_names, shell_argv
from imbue.mngr_vps_docker.ssh.target import SshTarget, shared_argv, standalone_argv

# Some platforms cannot wait for longer: this stands for an infinite time-out (threading.TIMEOUT_MAX).
_LONGEST_SECONDS: Final = 30 * 24 * 3600.0
# A longer command cannot be pasted as an argument: Linux allows 128 KiB (execve(2), MAX_ARG_STRLEN).
_LONGEST_ARGUMENT_BYTES: Final = 120_000
# What the end of a command may take to arrive after its deadline on the machine.
_GRACE_SECONDS: Final = 1.5
# A command says at its start that it has begun. While it does not, the master may be wedged, or the machine gone.
_STALL_SECONDS: Final = 3.0
# A busy machine's master may be slow to answer once; that does not end a running command.
_MAX_MISSED_HEALTH_CHECKS: Final = 3
# What ending a command takes, on a connection that just worked, while the user waits for Ctrl-C.
_END_TIMEOUT_SECONDS: Final = 3.0
# ssh's exit code where it was not the session that ended.
_SSH_FAILED: Final = 255
_MESSAGES_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Call:
    """One command to run, see SshConnection.run, and its current attempt.

    ``argv`` is the command line that errors and the log show, with a login of its own; a command that is too long for
    an argument is the ``script`` that it reads.
    """

    target: SshTarget
    command: str
    purpose: str
    effect: Effect
    stdin: StandardInput
    timeout_seconds: InitVar[float]
    idle_timeout_seconds: float | None
    reader: OutputReader
    deadline: float = 0.0
    """When it must have ended, on the monotonic clock."""
    argv: tuple[str, ...] = ()
    script: str | None = None
    _log: CommandLog | None = None
    _id: str = ""
    _began_at: float = 0.0
    _time: str = ""
    _stdin_bytes: int = 0
    _stdin_sha256: str | None = None

    def __post_init__(self, timeout_seconds: float) -> None:
        self.deadline = time.monotonic() + min(timeout_seconds, _LONGEST_SECONDS)
        line = redacted(self.command)
        words = join(shell_argv(line))
        if len(words.encode("utf-8", "surrogateescape")) > _LONGEST_ARGUMENT_BYTES:
            self.script, words = line, join(shell_argv(RUN_STDIN))
        self.argv = standalone_argv(self.target, words)

    @property
    def seconds_left(self) -> float:
        """The time to its deadline; at 0 or below, none is left."""
        return self.deadline - time.monotonic()

    def begin(self, log: CommandLog | None) -> None:
        """Begin an attempt, which has an id and a line in ``log`` of its own."""
        self._log, self._id = log, secrets.token_hex(4)
        self._began_at, self._time = time.monotonic(), datetime.now(UTC).isoformat()
        self._stdin_bytes, self._stdin_sha256 = 0, None
        trace(lambda: f"+ {join(self.argv)}")

    def input_chunks(self) -> Iterator[bytes]:
        """Its stdin from the beginning, counted and digested for the log."""
        digest = hashlib.sha256()
        self._stdin_bytes = 0
        for chunk in chunks_of(self.stdin):
            digest.update(chunk)
            self._stdin_bytes, self._stdin_sha256 = self._stdin_bytes + len(chunk), digest.hexdigest()
            yield chunk

    def outcome(
        self, status: OutcomeStatus, detail: str = "", reason: NotStartedReason | None = None
    ) -> CommandOutcome:
        """The outcome of the current attempt, with what was read of it."""
        is_completed = status is OutcomeStatus.COMPLETED
        return CommandOutcome(
            status=status,
            argv=self.argv,
            host=self.target.name,
            purpose=self.purpose,
            elapsed_seconds=time.monotonic() - self._began_at,
            ran_seconds=self.reader.ran_seconds,
            exit_code=self.reader.exit_code if is_completed else None,
            stdout=self.reader.stdout,
            stderr=self.reader.stderr,
            greeting=self.reader.greeting,
            reason=reason,
            detail=detail,
            log_id=None if self._log is None else self._id,
        )

    def not_started(self, failure: LoginFailure) -> CommandOutcome:
        """The outcome of an attempt that the machine was not asked for, or refused."""
        return self.outcome(OutcomeStatus.NEVER_STARTED, failure.detail, failure.reason)

    def end(self, outcome: CommandOutcome | None) -> None:
        """End the attempt, and log it; ``outcome`` is None if it was interrupted."""
        operation = current_operation()
        stdout_bytes, stderr_bytes = self.reader.byte_counts
        logged = LoggedCommand(
            id=self._id,
            parent=operation.id,
            operation=operation.title,
            time=self._time,
            machine=self.target.name,
            host_id=self.target.host_key_alias or self.target.host,
            purpose=self.purpose,
            is_read_only=self.effect is Effect.READ_ONLY,
            argv=self.argv,
            script=self.script,
            secrets=secret_names(self.command),
            outcome="INTERRUPTED" if outcome is None else outcome.status.logged,
            milliseconds=round((time.monotonic() - self._began_at) * 1000),
            stdout_bytes=stdout_bytes,
            stderr_bytes=stderr_bytes,
            exit_code=None if outcome is None else outcome.exit_code,
            reason=None if outcome is None or outcome.reason is None else outcome.reason.value,
            detail="" if outcome is None else outcome.detail,
            stdin_bytes=None if self.stdin is None else self._stdin_bytes,
            stdin_sha256=self._stdin_sha256,
        )
        trace(lambda: f"= {logged.result} in {logged.milliseconds} ms: {self.purpose} on {self.target.name}")
        if self._log is not None:
            self._log.write(logged)


def run_in_session(call: Call, master: SshMaster, runner: ProcessRunner) -> CommandOutcome:
    """Run the command over the shared connection, if that is open; NEVER_STARTED if the machine was not asked.

    Ending our ssh does not end the command on the machine. At the deadline the machine does that by itself, if it has
    ``timeout``. Before our ssh is ended, for whatever reason, the machine is told to end the command: to the command,
    the end of our ssh would look like the end of its input. Nothing is taken of a stdin that can be taken only once
    before the command was seen to start.
    """
    began_at = time.monotonic()
    framing, reader = Framing(secrets.token_hex(8)), call.reader
    reader.begin(framing)
    control_path, target = master.control_path, master.target
    if not control_path.exists():
        return call.not_started(login_failure(""))
    # The remote timeout(1) may know no finer fractions.
    seconds = math.ceil(call.seconds_left * 10) / 10
    missed_checks = 0

    def is_worth_waiting() -> bool:
        nonlocal missed_checks
        missed_checks = 0 if master.is_alive() else missed_checks + 1
        if reader.has_started:
            return missed_checks < _MAX_MISSED_HEALTH_CHECKS
        return missed_checks == 0 and time.monotonic() - began_at < target.connect_timeout_seconds

    script = framing.script(call.command, is_watched=call.stdin is None)
    gate = StdinGate()

    def stdin() -> Iterator[bytes]:
        yield script
        # Of a command without stdin, the script takes the end of ours for that of the connection.
        is_held = call.stdin is None or not is_repeatable(call.stdin)
        yield from gate.behind(call.input_chunks()) if is_held else call.input_chunks()

    def on_chunk(chunk: bytes, stream: Stream) -> None:
        reader(chunk, stream)
        if reader.exit_code is not None or (reader.has_started and call.stdin is not None):
            gate.open()

    with tempfile.NamedTemporaryFile(dir=control_path.parent, prefix=client_log_prefix()) as log_file:
        log_path = Path(log_file.name)

        def end_command(stop: StopReason | None) -> None:
            # The end of our stdin ends a command that has none, but not what it runs, where there is no ``timeout``.
            if call.stdin is not None:
                gate.close()
            # A machine that has gone silent is asked nothing more.
            if reader.process_id is not None and reader.exit_code is None and stop is not StopReason.STALLED:
                runner(
                    shared_argv(target, control_path, framing.end_command(reader.process_id), log_path),
                    timeout_seconds=_END_TIMEOUT_SECONDS,
                )

        result = ProcessResult(None, b"", b"")
        try:
            result = runner(
                shared_argv(target, control_path, framing.wrap(len(script), seconds), log_path),
                timeout_seconds=seconds + _GRACE_SECONDS,
                stdin=stdin(),
                on_chunk=on_chunk,
                watch=Liveness(
                    every_seconds=min(_STALL_SECONDS, target.connect_timeout_seconds),
                    is_alive=is_worth_waiting,
                    is_complete=lambda: reader.exit_code is not None,
                    give_up=end_command,
                ),
                idle_timeout_seconds=call.idle_timeout_seconds,
            )
            reader.finish()
        except OutputLimitError:
            # See reader.excess.
            pass
        finally:
            gate.close()
        messages = log_file.read(_MESSAGES_BYTES).decode("utf-8", "replace")
    return _outcome_of(
        call, result, messages, seconds, time.monotonic() - began_at, is_master_alive=missed_checks == 0
    )


def _outcome_of(
    call: Call,
    result: ProcessResult,
    messages: str,
    timeout_seconds: float,
    elapsed_seconds: float,
    *,
    is_master_alive: bool,
) -> CommandOutcome:
    """The outcome, from the end of our ssh, its ``messages``, and what was read of the command."""
    reader = call.reader
    if reader.excess is not None:
        return call.outcome(OutcomeStatus.TOO_MUCH_OUTPUT, reader.excess)
    if reader.exit_code is not None:
        ran_seconds = elapsed_seconds if reader.ran_seconds is None else reader.ran_seconds
        is_late = is_time_out(reader.exit_code, ran_seconds, timeout_seconds)
        return call.outcome(OutcomeStatus.TIMED_OUT if is_late else OutcomeStatus.COMPLETED)
    # That it had not started in time proves nothing against the shared connection.
    if result.stop is StopReason.DEADLINE:
        return call.outcome(OutcomeStatus.TIMED_OUT)
    if result.stop is StopReason.IDLE:
        return call.outcome(OutcomeStatus.TIMED_OUT, f"nothing was heard for {call.idle_timeout_seconds:.0f} s")
    if reader.has_started:
        return call.outcome(OutcomeStatus.LOST)
    # ssh says (at -v) that the master opened a session, which it does as it asks for the command.
    is_sent = "master session id" in messages
    if result.stop is StopReason.STALLED and is_master_alive:
        # If the machine is gone, the keepalives of the master end it, and the next command logs in.
        if is_sent:
            return call.outcome(OutcomeStatus.UNANSWERED, f"nothing was heard for {elapsed_seconds:.0f} s")
        return call.not_started(silence(elapsed_seconds))
    if not is_sent:
        return call.not_started(login_failure(messages))
    # A shell that is killed or a session that is lost gives ssh's own exit code, and a killed ssh a negative one.
    if result.exit_code is not None and 0 <= result.exit_code < _SSH_FAILED:
        noise = last_lines(reader.messages) or last_lines(reader.greeting)
        words = noise or f"its login shell ended with exit code {result.exit_code} and ran nothing"
        return call.not_started(LoginFailure(NotStartedReason.ACCOUNT_REFUSED, words))
    return call.outcome(OutcomeStatus.LOST)


def silence(seconds: float) -> LoginFailure:
    """The failure of a machine that was waited for and said nothing."""
    return LoginFailure(NotStartedReason.CONNECT_TIMEOUT, f"it has not answered for {seconds:.0f} s")
