"""Running a command inside a container: bounded there too, and never mistaken for Docker's own failure.

Two things make ``docker exec`` treacherous. Killing it leaves the process in the container running, so the deadline is
kept inside, by ``timeout``. And its own refusals look like the command's (exit code 1 and a line on stderr), so the
command writes one line to stderr before it starts: without that line, Docker did not run it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from imbue.mngr_vps_docker.docker.commands import exec_argv
from imbue.mngr_vps_docker.docker.errors import InvalidDockerArgumentError, docker_error
from imbue.mngr_vps_docker.ssh.connection import LARGE_OUTPUT_BYTES, OnLine, SshConnection, StandardInput
from imbue.mngr_vps_docker.ssh.framing import is_time_out
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.remote_command import ChainStep
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, ShellText, join, quote, take_from_stdin
from imbue.mngr_vps_docker.ssh.standard_input import PrecededInput

STARTED: Final = "mngr-exec-started"
# How long `timeout` waits from TERM to KILL, and how much longer than the command we wait for its end to arrive.
_KILL_AFTER_SECONDS: Final = 5
_GRACE_SECONDS: Final = 1.5
# One argument holds 128 KiB; quoting twice can grow it several times.
_LONGEST_ARGUMENT_BYTES: Final = 12_000
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables of the machine's shell that hold what is not logged.
_EXPORTS: Final = "mngr_exports"
_STEP_STDIN: Final = "mngr_step_stdin"


def exec_script(command: str, timeout_seconds: float) -> tuple[str, ...]:
    """What runs in the container: ``command`` under a deadline."""
    return _bounded(timeout_seconds, command)


def exec_script_from_stdin(script_bytes: int, timeout_seconds: float, *, has_stdin: bool) -> tuple[str, ...]:
    """Like ``exec_script``, the command being the first ``script_bytes`` bytes of stdin; the rest is its stdin."""
    rest = "" if has_stdin else " && exec </dev/null"
    return _bounded(timeout_seconds, f'script=$({take_from_stdin(script_bytes)}){rest} && eval "$script"')


def exec_in_container(
    connection: SshConnection,
    container: str,
    command: str,
    *,
    purpose: str,
    timeout_seconds: float,
    stdin: StandardInput,
    user: str | None,
    workdir: str | None,
    env: Mapping[str, str],
    on_line: OnLine | None,
    effect: Effect,
) -> CommandOutcome:
    """See DockerOverSsh.exec."""
    for name in env:
        if not _VARIABLE_NAME.fullmatch(name):
            raise InvalidDockerArgumentError(f"{name!r} is no name for an environment variable")
    exports = "".join(f"export {name}={quote(value)}\n" for name, value in env.items())
    data = f"{exports}{command}".encode("utf-8", "surrogateescape")
    is_script = bool(env) or len(data) > _LONGEST_ARGUMENT_BYTES
    if is_script:
        inner = exec_script_from_stdin(len(data), timeout_seconds, has_stdin=stdin is not None)
    else:
        inner = exec_script(command, timeout_seconds)
    argv = exec_argv(container, inner, has_stdin=is_script or stdin is not None, user=user, workdir=workdir)
    line: ShellText = join(argv)
    if is_script and stdin is None:
        # The command is logged, and what it finds in its environment is not.
        line = ShellScript(f'printf %s "${_EXPORTS}" {quote(command)} | {line}', {_EXPORTS: Secret(exports)})
    elif is_script:
        stdin = PrecededInput(data, stdin)
    deadline = timeout_seconds + _GRACE_SECONDS
    watcher = _StartWatcher(on_line)
    if on_line is None:
        outcome = connection.run(
            line,
            purpose=purpose,
            timeout_seconds=deadline,
            stdin=stdin,
            effect=effect,
            limit_bytes=LARGE_OUTPUT_BYTES,
        )
    else:
        outcome = connection.stream(
            line, on_line=watcher, purpose=purpose, timeout_seconds=deadline, stdin=stdin, effect=effect
        )
    return judged(outcome, timeout_seconds, has_started=watcher.has_started)


def exec_step(container: str, command: str, *, stdin: Secret, purpose: str, timeout_seconds: float) -> ChainStep:
    """A step of a chain that runs ``command`` in a container, and feeds it ``stdin``; see ``judged``.

    All that are in one chain are fed the same.
    """
    # The folder that the image's WORKDIR names may be gone.
    argv = exec_argv(container, exec_script(command, timeout_seconds), has_stdin=True, workdir="/")
    # Without its input, `sh -s` would do nothing and say that all is well.
    has_stdin = f': "${{{_STEP_STDIN}?}}"'
    return ChainStep(f'{has_stdin}; printf %s "${_STEP_STDIN}" | {join(argv)}', purpose, {_STEP_STDIN: stdin})


class _StartWatcher:
    """Passes lines on, but for the one that says that the command started."""

    def __init__(self, on_line: OnLine | None) -> None:
        self._on_line = on_line
        self.has_started = False

    def __call__(self, line: str, is_stdout: bool) -> None:
        if not self.has_started and not is_stdout and line.rstrip("\r\n") == STARTED:
            self.has_started = True
        elif self._on_line is not None:
            self._on_line(line, is_stdout)


def _bounded(timeout_seconds: float, command: str) -> tuple[str, ...]:
    seconds = f"{math.ceil(timeout_seconds * 10) / 10:g}"
    begin = f'echo {STARTED} >&2; exec timeout -k {_KILL_AFTER_SECONDS} "$@"'
    return ("sh", "-c", begin, "sh", seconds, "sh", "-c", command)


def judged(outcome: CommandOutcome, timeout_seconds: float, *, has_started: bool = False) -> CommandOutcome:
    """The command's own outcome; raises DockerError if Docker did not run it.

    ``has_started`` says that the line which tells so was already taken out.
    """
    before, marker, after = outcome.stderr.partition(f"{STARTED}\n".encode())
    if marker:
        outcome = replace(outcome, stderr=before + after)
    if outcome.status is not OutcomeStatus.COMPLETED:
        return outcome
    if not marker and not has_started:
        raise docker_error(outcome)
    ran_seconds = outcome.elapsed_seconds if outcome.ran_seconds is None else outcome.ran_seconds
    if outcome.exit_code is not None and is_time_out(outcome.exit_code, ran_seconds, timeout_seconds):
        return replace(outcome, status=OutcomeStatus.TIMED_OUT, exit_code=None)
    return outcome
