"""Building an image on a machine, by BuildKit wherever its Docker has it, and saying which step failed.

BuildKit writes values of build arguments into the names of steps, and all that it says to stderr.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.docker.commands import SLOW_SECONDS
from imbue.mngr_vps_docker.docker.errors import (
    NOISE,
    ContainerNotRunningError,
    DiskFullError,
    DockerError,
    InvalidDockerArgumentError,
    NameInUseError,
    NoSuchContainerError,
    NoSuchVolumeError,
    PortInUseError,
    UnknownRuntimeError,
    docker_error,
)
from imbue.mngr_vps_docker.docker.secret_options import as_script
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.connection import OnLine, SshConnection, Stream
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, quote
from imbue.mngr_vps_docker.text import MASK

_LAST_LINES: Final = 15
_USAGE_CODE: Final = 125
_SHORTEST_MASKED: Final = 4
# Errors of containers: in a build, only its steps print such words.
_OF_CONTAINERS: Final = (
    ContainerNotRunningError,
    NameInUseError,
    NoSuchContainerError,
    NoSuchVolumeError,
    PortInUseError,
    UnknownRuntimeError,
)
# BuildKit's plain progress: "#5 [2/3] RUN make", "#5 0.437 what the step prints", " > [2/3] RUN make:" once it failed.
_STEP_NAME: Final = re.compile(r"(?:#\d+| >) \[[^\]]*\] ")
# Docker 20.10 writes one under each name.
_DIGEST: Final = re.compile(r"#\d+ sha256:[0-9a-f]{64}\s*$")
_PROGRESS: Final = re.compile(r"#\d+ |-{6}")
_STEP_OUTPUT: Final = re.compile(r"#\d+ \d+\.\d+ ")
_FAILED_STEP: Final = re.compile(r"^ > (.*):$", re.MULTILINE)
_SYNTAX_NOT_FETCHED: Final = re.compile(r"^ > resolve image config for \S*docker\.io/(docker/dockerfile\S*):$", re.M)

# BuildKit, if Docker has it: up to Docker 22 it must be asked for, and from 23 on it needs the plugin buildx, without
# which asking for it is an error. Of several builders, the one that belongs to Docker leaves the image there.
_CHOOSE_BUILDER: Final = """\
export BUILDX_BUILDER=default DOCKER_BUILDKIT=1
docker build --help >/dev/null 2>&1 || unset DOCKER_BUILDKIT
"""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build: ``build_args`` are raw options in order, ``context_dir`` and ``dockerfile`` paths on the machine.

    With DEPOT, the machine's ``depot`` builds at depot.dev and loads the result into the machine's Docker. With
    ``is_own_syntax``, a line ``# syntax=`` of the Dockerfile is left out: it names an image that reads the rest.
    """

    tag: str
    context_dir: str
    dockerfile: str | None = None
    build_args: Sequence[str] = ()
    builder: DockerBuilder = DockerBuilder.DOCKER
    is_own_syntax: bool = False


def build_image(
    connection: SshConnection,
    spec: BuildSpec,
    *,
    depot_token: Secret | None = None,
    on_line: OnLine | None = None,
    timeout_seconds: float = SLOW_SECONDS,
) -> None:
    """See DockerOverSsh.build."""
    values = build_script(spec).secrets.values()

    def attempt(spec: BuildSpec) -> CommandOutcome:
        line = build_script(spec)
        if depot_token is not None:
            line = ShellScript(f"export DEPOT_TOKEN\n{line}", {**line.secrets, "DEPOT_TOKEN": depot_token})
        purpose = f"build image {spec.tag}"
        mask = _Mask(values)

        def show(text: str, stream: Stream) -> None:
            if on_line is not None and not _DIGEST.match(text):
                on_line(text if stream is Stream.STDOUT else mask(text), stream)

        # After a lost connection, a second run finds in Docker's cache what the first one has built.
        outcome = connection.stream(
            line,
            on_line=None if on_line is None else show,
            purpose=purpose,
            timeout_seconds=timeout_seconds,
            effect=Effect.IDEMPOTENT,
        )
        mask = _Mask(values)
        text = "".join(mask(line) for line in outcome.error_text.splitlines(keepends=True) if not _DIGEST.match(line))
        return replace(outcome, stderr=text.encode())

    outcome, problem = attempt(spec), ""
    syntax = _SYNTAX_NOT_FETCHED.search(outcome.error_text)
    if syntax is not None and not outcome.is_success:
        # Most Dockerfiles that begin with such a line do not need it.
        problem = f"{syntax[1]} cannot be fetched, and without it: "
        if on_line is not None:
            on_line(f"{syntax[1]} cannot be fetched: building without it\n", Stream.STDERR)
        outcome = attempt(replace(spec, is_own_syntax=True))
    if not outcome.is_success:
        raise _build_error(outcome, problem)


def build_script(spec: BuildSpec) -> ShellScript:
    """``build_words`` by the best builder that the machine's Docker has; values of build arguments are secrets."""
    build = as_script(build_words(spec))
    text = str(build)
    if spec.is_own_syntax:
        dockerfile = spec.dockerfile or f"{spec.context_dir}/Dockerfile"
        text = f"sed '0,/^#[[:space:]]*syntax[[:space:]]*=/I{{//d}}' {quote(dockerfile)} | {text}"
    if spec.builder is DockerBuilder.DOCKER:
        text = _CHOOSE_BUILDER + text
    return ShellScript(text, build.secrets)


def build_words(spec: BuildSpec) -> tuple[str, ...]:
    """``docker build`` or ``depot build``.

    ``--force-rm`` is for the older builder, which leaves the container of a failed step behind.
    """
    is_depot = spec.builder is DockerBuilder.DEPOT
    program = ("depot", "build", "--load") if is_depot else ("docker", "build", "--force-rm")
    dockerfile = "-" if spec.is_own_syntax else spec.dockerfile
    file = () if dockerfile is None else ("--file", dockerfile)
    return (*program, "--tag", spec.tag, *file, *spec.build_args, "--", spec.context_dir)


class _Mask:
    """Masks the values of build arguments in Docker's own lines; the output of steps is left as it is.

    In lines that are not names of steps, short values are left: every number holds some.
    """

    def __init__(self, values: Iterable[Secret]) -> None:
        texts = {value.revealed for value in values}
        lines = {line for text in texts for line in text.splitlines() if line.strip()}
        # As Go quotes them, in errors.
        lines |= {json.dumps(text, ensure_ascii=False)[1:-1] for text in texts if text.strip()}
        self._in_names = _any_of(lines)
        self._elsewhere = _any_of(line for line in lines if len(line) >= _SHORTEST_MASKED)
        self._is_name = False

    def __call__(self, line: str) -> str:
        """The next line of stderr, without values."""
        if _STEP_OUTPUT.match(line):
            return line
        name = _STEP_NAME.match(line)
        # A value of several lines makes a name of several lines.
        self._is_name = name is not None or (self._is_name and not _PROGRESS.match(line))
        start = 0 if name is None else name.end()
        return line[:start] + (self._in_names if self._is_name else self._elsewhere).sub(MASK, line[start:])


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _build_error(outcome: CommandOutcome, problem: str) -> VpsDockerError:
    error = docker_error(outcome)
    # A step that prints that the disk is full is believed. Other output of steps is not classified.
    if isinstance(error, DockerError) and not isinstance(error, DiskFullError):
        is_usage = outcome.exit_code == _USAGE_CODE
        ignored = _OF_CONTAINERS if is_usage else (*_OF_CONTAINERS, InvalidDockerArgumentError)
        error = docker_error(outcome, f"{problem}{_refusal(outcome)}", ignored=ignored)
    if not isinstance(error, DockerError):
        return error
    streams = [
        f"The end of {name}:\n{tail}"
        for name, text in (("stdout", outcome.text), ("stderr", outcome.error_text))
        if (tail := _last_lines(text))
    ]
    return type(error)("\n".join([f"{error} [exit code {outcome.exit_code}]", *streams]), outcome)


def _refusal(outcome: CommandOutcome) -> str:
    """One line: the step that failed (of BuildKit), and the last line of stderr."""
    lines = [line for line in outcome.error_text.splitlines() if line.strip() and not NOISE.match(line)]
    if not lines:
        return outcome.text
    last = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1])
    steps = _FAILED_STEP.findall(outcome.error_text)
    return f"{steps[-1]}: {last.removeprefix('ERROR: ')}" if steps else last


def _last_lines(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_LAST_LINES:])
