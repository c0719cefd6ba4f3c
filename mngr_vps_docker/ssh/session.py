"""One command over the shared connection: framed, bounded, and with proof of whether it was ever asked for."""

import math
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.ssh.framing import Framing, OutputLimitError, OutputReader, is_time_out
from imbue.mngr_vps_docker.ssh.master import SshMaster, client_log_prefix
from imbue.mngr_vps_docker.ssh.process import Liveness, ProcessResult, ProcessRunner, StopReason
from imbue.mngr_vps_docker.ssh.standard_input import PrecededInput, StandardInput, StdinGate, chunks_of, is_repeatable
from imbue.mngr_vps_docker.ssh.target import shared_argv

# What the end of a command may take to arrive after its deadline on the machine.
_GRACE_SECONDS: Final = 1.5
# A command says at its start that it has begun. While it does not, the master may be wedged, or the machine gone.
_STALL_SECONDS: Final = 3.0
# A command that runs is not given up because its master was once slow to answer, on a busy machine.
_MAX_MISSED_HEALTH_CHECKS: Final = 3
# What ending a command takes, on a connection that just worked, while somebody waits for Ctrl-C.
_END_TIMEOUT_SECONDS: Final = 3.0
# ssh's exit code where it was not the session that ended.
_SSH_FAILED: Final = 255
_MESSAGES_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What became of asking for one command; what it printed, and its end, are with the reader.

    ``stop`` is why we ended our ssh, if we did: UNANSWERED if nothing came for the connect timeout though the master
    lives, STALLED if the master does not, DEADLINE also if the machine has ended the command then. ``messages`` are
    ssh's own words. Unless it ``may_have_begun``, the command was never asked for, and may be asked for again.
    ``refusal`` is what the machine said instead of running the command ("Please login as the user ubuntu"), or that it
    said nothing, if it ended the session in order without having started anything.
    """

    stop: StopReason | None
    may_have_begun: bool
    messages: str
    elapsed_seconds: float
    refusal: str | None = None


def run_in_session(
    master: SshMaster,
    runner: ProcessRunner,
    command: str,
    stdin: StandardInput,
    reader: OutputReader,
    *,
    timeout_seconds: float,
    idle_timeout_seconds: float | None,
) -> SessionResult:
    """Run shell text over the shared connection, if that is open, and hand all that comes to ``reader``.

    Ending our ssh does not end the command on the machine. At the deadline the machine does that by itself, if it has
    ``timeout``. Before our ssh is ended, for whatever reason, the machine is told to: to the command, the end of our
    ssh would look like the end of its input. Nothing is taken of a ``stdin`` that can be taken only once before the
    command was seen to start.
    """
    began = time.monotonic()
    framing = Framing(secrets.token_hex(8))
    reader.begin(framing)
    control_path, target = master.control_path, master.target
    if not control_path.exists():
        return SessionResult(None, may_have_begun=False, messages="", elapsed_seconds=0.0)
    # The remote timeout(1) may know no finer fractions.
    seconds = math.ceil(timeout_seconds * 10) / 10

    silences = 0

    def is_worth_waiting() -> bool:
        nonlocal silences
        silences = 0 if master.is_alive() else silences + 1
        if reader.has_started:
            return silences < _MAX_MISSED_HEALTH_CHECKS
        return silences == 0 and time.monotonic() - began < target.connect_timeout_seconds

    gate, lifeline = StdinGate(), StdinGate()
    script = framing.script(command, is_watched=stdin is None)
    if stdin is None:
        rest: StandardInput = lifeline.behind(())
    else:
        rest = stdin if is_repeatable(stdin) else gate.behind(chunks_of(stdin))

    def on_chunk(chunk: bytes, is_stdout: bool) -> None:
        reader(chunk, is_stdout)
        if reader.has_started:
            gate.open()
        if reader.exit_code is not None:
            lifeline.close()

    with tempfile.NamedTemporaryFile(dir=control_path.parent, prefix=client_log_prefix()) as log_file:
        log_path = Path(log_file.name)

        def end_command(stop: StopReason | None) -> None:
            gate.close()
            # Of a machine that has gone silent nothing more is asked, and what has ended needs no end.
            if reader.process_id is not None and reader.exit_code is None and stop is not StopReason.STALLED:
                runner(
                    shared_argv(target, control_path, framing.end_command(reader.process_id), log_path),
                    timeout_seconds=_END_TIMEOUT_SECONDS,
                )

        result: ProcessResult | None = None
        try:
            result = runner(
                shared_argv(target, control_path, framing.wrap(len(script), seconds), log_path),
                timeout_seconds=seconds + _GRACE_SECONDS,
                stdin=PrecededInput(script, rest),
                on_chunk=on_chunk,
                watch=Liveness(
                    every_seconds=min(_STALL_SECONDS, target.connect_timeout_seconds),
                    is_alive=is_worth_waiting,
                    is_complete=lambda: reader.exit_code is not None,
                    give_up=end_command,
                ),
                idle_timeout_seconds=idle_timeout_seconds,
            )
            reader.finish()
        except OutputLimitError:
            # The reader knows of what there was too much.
            pass
        finally:
            gate.close()
            lifeline.close()
        messages = log_file.read(_MESSAGES_BYTES).decode("utf-8", "replace")
    elapsed_seconds = time.monotonic() - began
    stop = None if result is None else result.stop
    if reader.exit_code is not None:
        ran_seconds = elapsed_seconds if reader.ran_seconds is None else reader.ran_seconds
        stop = StopReason.DEADLINE if is_time_out(reader.exit_code, ran_seconds, seconds) else None
    elif stop is StopReason.STALLED and silences == 0:
        stop = StopReason.UNANSWERED
    has_begun = reader.has_started or reader.excess is not None
    may_have_begun = has_begun or _has_opened_session(messages)
    exit_code = None if result is None else result.exit_code
    refusal = None
    # A shell that is killed or a session that is lost gives ssh's own exit code, and a killed ssh a negative one.
    if may_have_begun and not has_begun and exit_code is not None and 0 <= exit_code < _SSH_FAILED:
        refusal = _said(reader.noise) or f"its login shell ended with exit code {exit_code} and ran nothing"
    return SessionResult(stop, may_have_begun, messages, elapsed_seconds, refusal)


def _said(noise: str, line_count: int = 5) -> str:
    return " / ".join(line.strip() for line in noise.splitlines()[-line_count:] if line.strip())


def _has_opened_session(messages: str) -> bool:
    """Whether ssh said (at ``-v``) that the master opened a session, which it does as it asks for the command."""
    return "master session id" in messages
