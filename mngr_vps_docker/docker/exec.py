"""Running a command inside a container: bounded there too, and never mistaken for Docker's own failure.

Two things make ``docker exec`` treacherous. Killing it leaves the process in the container running, so the deadline is
kept inside, by ``timeout``. And its own refusals look like the command's (exit code 1 and a line on stderr), so the
command writes one line to stderr before it starts: without that line, Docker did not run it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from imbue.mngr_vps_docker.docker.errors import InvalidDockerArgumentError, docker_error
from imbue.mngr_vps_docker.primitives import VARIABLE_NAME
from imbue.mngr_vps_docker.ssh.connection import LARGE_OUTPUT_BYTES, OnLine, SshConnection, StandardInput, Stream
from imbue.mngr_vps_docker.ssh.framing import is_time_out
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import PrecededInput
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, ShellText, join, quote, take_from_stdin

STARTED: Final = "mngr-exec-started"
# How long `timeout` waits from TERM to KILL, and how much longer than the command we wait for its end to arrive.
_KILL_AFTER_SECONDS: Final = 5
_GRACE_SECONDS: Final = 1.5
# One argument holds 128 KiB; quoting twice can grow it several times.
_LONGEST_ARGUMENT_BYTES: Final = 12_000
# Variables of the machine's shell that hold what is not logged.
_EXPORTS: Final = "mngr_exports"
_STDIN: Final = "mngr_step_stdin"


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
        if not VARIABLE_NAME.fullmatch(name):
            raise InvalidDockerArgumentError(f"{name!r} is not a valid name for an environment variable")
    exports = "".join(f"export {name}={quote(value)}\n" for name, value in env.items())
    data = f"{exports}{command}".encode("utf-8", "surrogateescape")
    is_script = bool(env) or len(data) > _LONGEST_ARGUMENT_BYTES
    if is_script:
        # The first bytes of stdin are the command; the rest is its stdin.
        rest = " && exec </dev/null" if stdin is None else ""
        command_line = f'script=$({take_from_stdin(len(data))}){rest} && eval "$script"'
    else:
        command_line = command
    line = exec_script(
        container,
        bounded(command_line, timeout_seconds),
        has_stdin=is_script or stdin is not None,
        user=user,
        workdir=workdir,
    )
    if is_script and stdin is None:
        # The command is logged, and what it finds in its environment is not.
        line = ShellScript(f'printf %s "${_EXPORTS}" {quote(command)} | {line}', {_EXPORTS: Secret(exports)})
    elif is_script:
        stdin = PrecededInput(data, stdin)
    has_started = False

    def pass_on(text: str, stream: Stream) -> None:
        nonlocal has_started
        if not has_started and stream is Stream.STDERR and text.rstrip("\r\n") == STARTED:
            has_started = True
        elif on_line is not None:
            on_line(text, stream)

    remote = RemoteCommand(
        line,
        purpose,
        lambda outcome: own_outcome(outcome, timeout_seconds, has_started=has_started),
        timeout_seconds + _GRACE_SECONDS,
        effect,
        LARGE_OUTPUT_BYTES,
    )
    return connection.call(remote, stdin=stdin, on_line=None if on_line is None else pass_on)


def exec_with_secret_stdin(
    container: str, command: str, *, stdin: Secret, purpose: str, timeout_seconds: float
) -> RemoteCommand[CommandOutcome]:
    """Run ``command`` in a container and feed it ``stdin``, the same for all such commands of one pipeline.

    It may be repeated: ``command`` must be idempotent.
    """
    # The folder that the image's WORKDIR names may not exist.
    line = exec_script(container, bounded(command, timeout_seconds), has_stdin=True, workdir="/")
    # Without its input, `sh -s` would do nothing and say that all is well.
    script = f': "${{{_STDIN}?}}"; printf %s "${_STDIN}" | {line}'
    return RemoteCommand(
        ShellScript(script, {_STDIN: stdin}),
        purpose,
        lambda outcome: own_outcome(outcome, timeout_seconds),
        timeout_seconds + _GRACE_SECONDS,
        Effect.IDEMPOTENT,
    )


def exec_script(
    container: str, command: Sequence[str], *, has_stdin: bool, user: str | None = None, workdir: str | None = None
) -> ShellText:
    """``docker exec``; stdin is attached only where there is some, since it would otherwise be eaten."""
    argv = ["docker", "exec"]
    if has_stdin:
        argv.append("--interactive")
    if user is not None:
        argv += ["--user", user]
    if workdir is not None:
        argv += ["--workdir", workdir]
    return join((*argv, "--", container, *command))


def bounded(command: str, timeout_seconds: float) -> tuple[str, ...]:
    """What runs in the container: shell text ``command`` under a deadline, after the line that says that it starts."""
    seconds = f"{math.ceil(timeout_seconds * 10) / 10:g}"
    begin = f'echo {STARTED} >&2; exec timeout -k {_KILL_AFTER_SECONDS} "$@"'
    return ("sh", "-c", begin, "sh", seconds, "sh", "-c", command)


def own_outcome(outcome: CommandOutcome, timeout_seconds: float, *, has_started: bool = False) -> CommandOutcome:
    """The command's own outcome; raises DockerError if Docker did not run it.

    ``has_started`` says that the line which says so was already taken out.
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
