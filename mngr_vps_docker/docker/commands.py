"""Docker's verbs, each a value: its command line, its effect and time-out, and how its answer is read.

``DockerOverSsh`` runs them one by one; create, start, stop and snapshot put the same values into a ``Pipeline``. Names
of things come after ``--``, so that no name is taken for an option. Unless a verb says otherwise, reading its outcome
raises what ``docker_error`` makes of it.
"""

from collections.abc import Callable, Mapping
from typing import Final

from imbue.mngr_vps_docker.docker.errors import (
    DockerError,
    NoSuchContainerError,
    NoSuchImageError,
    NoSuchVolumeError,
    checked_docker,
    docker_error,
)
from imbue.mngr_vps_docker.docker.models import (
    ContainerInfo,
    DockerInfo,
    ImageInfo,
    parse_container,
    parse_containers,
    parse_image,
    parse_images,
    parse_info,
    server_errors,
)
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import ShellText, join, quote

# For what Docker does at once, on a machine that may be busy; a daemon that hangs is then noticed.
QUICK_SECONDS: Final = 60.0
# For what copies images or files.
SLOW_SECONDS: Final = 1800.0

# Exit code of a script of ours that found a container stopped.
_NOT_RUNNING: Final = 87

# Containers


def start_container(container: str) -> RemoteCommand[None]:
    """Start a stopped container, or resume a paused one; a running one is left as it is."""
    start, resume = (join(("docker", verb, "--", container)) for verb in ("start", "unpause"))
    # Docker refuses to start one that is paused.
    script = f"said=$({start} 2>&1) || {resume} >/dev/null 2>&1 || {{ printf '%s\\n' \"$said\" >&2; exit 1; }}"
    return RemoteCommand(ShellText(script), f"start container {container}", _done, QUICK_SECONDS, Effect.IDEMPOTENT)


def stop_container(container: str, timeout_seconds: int) -> RemoteCommand[None]:
    """Stop a container, killing it after ``timeout_seconds``; a stopped one is left as it is."""
    return RemoteCommand(
        stop_script(container, timeout_seconds),
        f"stop container {container}",
        _done,
        timeout_seconds + QUICK_SECONDS,
        Effect.IDEMPOTENT,
    )


def stop_if_running(container: str, timeout_seconds: int) -> RemoteCommand[bool]:
    """``stop_container``; True: it was running, and is stopped now. False: it was not, which ends a pipeline."""

    def read(outcome: CommandOutcome) -> bool:
        return outcome.exit_code != _NOT_RUNNING and checked_docker(outcome).is_success

    script = (
        f"is_running=$({is_running_script(container)}) || exit\n"
        f'[ "$is_running" = true ] || exit {_NOT_RUNNING}\n'
        f"{stop_script(container, timeout_seconds)}"
    )
    return RemoteCommand(ShellText(script), f"stop container {container}", read, timeout_seconds + QUICK_SECONDS)


def remove_container(container: str, *, is_missing_ok: bool = False) -> RemoteCommand[None]:
    """Remove a container, running or not, and its anonymous volumes."""

    def read(outcome: CommandOutcome) -> None:
        # From Docker 20.10 to 23, `rm --force` says so on stderr and succeeds.
        if not outcome.is_success or "no such container" in outcome.error_text.lower():
            raise docker_error(outcome)

    command = RemoteCommand(
        remove_script(container), f"remove container {container}", read, QUICK_SECONDS, Effect.IDEMPOTENT
    )
    return none_if(NoSuchContainerError, command) if is_missing_ok else command


def commit(
    container: str, image: str, labels: Mapping[str, str] | None = None, *, timeout_seconds: float = SLOW_SECONDS
) -> RemoteCommand[str]:
    """Save a container's files (not its volumes') as the image ``image``; its value is the image's id.

    A running container is paused for that time, so that no file is half-written.
    """
    changes = [
        word
        for key, value in (labels or {}).items()
        for word in ("--change", f"LABEL {_dockerfile_word(key)}={_dockerfile_word(value)}")
    ]
    argv = ("docker", "commit", *changes, "--pause=true", "--", container, image)
    return RemoteCommand(join(argv), f"commit container {container}", printed_id, timeout_seconds)


def inspect_container(container: str) -> RemoteCommand[ContainerInfo]:
    """Describe one container."""
    return _question(inspect_containers_script(container), f"inspect container {container}", parse_container)


def find_container(container: str) -> RemoteCommand[ContainerInfo | None]:
    """Describe one container; None only if Docker says that there is no such container."""
    return none_if(NoSuchContainerError, inspect_container(container))


def list_containers(
    labels: Mapping[str, str | None], *, known: str | None = None
) -> RemoteCommand[tuple[ContainerInfo, ...]]:
    """Describe every container, running or not, that carries all ``labels`` (a None value: any value).

    If there is a container of the name ``known``, it is described alone, whatever its labels.
    """

    def read(outcome: CommandOutcome) -> tuple[ContainerInfo, ...]:
        # All that Docker may complain of is containers that were removed between listing and describing them.
        complaints = [line for line in outcome.error_text.lower().splitlines() if line.strip()]
        is_only_vanished = bool(complaints) and all("no such container" in line for line in complaints)
        if not outcome.is_success and not (outcome.exit_code is not None and is_only_vanished):
            raise docker_error(outcome, outcome.error_text)
        return parse_containers(outcome.text or "[]")

    filters = [
        word
        for key, value in labels.items()
        for word in ("--filter", f"label={key}" if value is None else f"label={key}={value}")
    ]
    inspect = inspect_containers_script()
    ids = join(("docker", "ps", "--all", "--quiet", "--no-trunc", *filters))
    script = f'ids=$({ids}) || exit\n[ -z "$ids" ] || {inspect} $ids'
    if known is not None:
        script = f"found=$({inspect} {quote(known)} 2>/dev/null) && printf '%s\\n' \"$found\" && exit\n{script}"
    return RemoteCommand(ShellText(script), "list containers", read, QUICK_SECONDS, Effect.READ_ONLY)


def logs(container: str, tail_lines: int) -> RemoteCommand[str]:
    """What a container printed last, both streams in the order in which they were written."""
    return _question(f"{logs_script(container, tail_lines)} 2>&1", f"read the log of {container}", str)


# Images


def pull(image: str, *, timeout_seconds: float = SLOW_SECONDS) -> RemoteCommand[None]:
    """Fetch an image from its registry."""
    return RemoteCommand(pull_script(image), f"pull image {image}", _done, timeout_seconds, Effect.IDEMPOTENT)


def find_image(image: str) -> RemoteCommand[ImageInfo | None]:
    """Describe one image of the machine; None only if Docker says that there is no such image."""
    argv = ("docker", "image", "inspect", "--", image)
    return none_if(NoSuchImageError, _question(join(argv), f"inspect image {image}", parse_image))


def list_images(repository: str) -> RemoteCommand[tuple[ImageInfo, ...]]:
    """Describe every image of the machine that has a tag in ``repository``."""
    ids = join(("docker", "image", "ls", "--quiet", "--no-trunc", "--", repository))
    script = f'ids=$({ids}) || exit\n[ -z "$ids" ] || docker image inspect -- $ids'
    return _question(script, f"list images {repository}", lambda text: parse_images(text or "[]"))


def remove_image(image: str, *, is_missing_ok: bool = False) -> RemoteCommand[None]:
    """Remove an image's tag, and the image itself with its last tag."""
    command = RemoteCommand(
        join(("docker", "image", "rm", "--", image)), f"remove image {image}", _done, QUICK_SECONDS, Effect.IDEMPOTENT
    )
    return none_if(NoSuchImageError, command) if is_missing_ok else command


# Volumes


def create_volume(volume: str, labels: Mapping[str, str] | None = None) -> RemoteCommand[None]:
    """Create a named volume; an existing one is left as it is."""
    argv = ("docker", "volume", "create", *label_words(labels or {}), "--", volume)
    return RemoteCommand(join(argv), f"create volume {volume}", _done, QUICK_SECONDS, Effect.IDEMPOTENT)


def remove_volume(volume: str, *, is_missing_ok: bool = False) -> RemoteCommand[None]:
    """Remove a volume and all that is on it; Docker refuses one that a container uses, running or not."""
    argv = ("docker", "volume", "rm", "--", volume)
    command = RemoteCommand(join(argv), f"remove volume {volume}", _done, QUICK_SECONDS, Effect.IDEMPOTENT)
    return none_if(NoSuchVolumeError, command) if is_missing_ok else command


def volume_mountpoint(volume: str) -> RemoteCommand[str]:
    """The directory of the machine that holds a volume's files; raises NoSuchVolumeError."""
    script = volume_mountpoint_script(volume)
    return _question(script, f"find volume {volume}", lambda text: text.removesuffix("\n"))


# The daemon


def info() -> RemoteCommand[DockerInfo]:
    """Describe the daemon; raises DaemonNotRunningError if none answers."""

    def read(outcome: CommandOutcome) -> DockerInfo:
        # Some versions report a daemon that does not answer inside the JSON, with exit code 0.
        errors = server_errors(outcome.text) if outcome.exit_code is not None else ""
        if errors or not outcome.is_success:
            raise docker_error(outcome, errors or None)
        return parse_info(outcome.text)

    return RemoteCommand(_INFO, "ask Docker", read, QUICK_SECONDS, Effect.READ_ONLY)


def wait_for_daemon(timeout_seconds: float) -> RemoteCommand[None]:
    """Wait until a daemon answers; raises RemoteCommandTimeoutError if none has by then."""

    def read(outcome: CommandOutcome) -> None:
        outcome.checked()

    script = f"until {_INFO} >/dev/null 2>&1; do sleep 0.2; done"
    return RemoteCommand(ShellText(script), "wait for Docker", read, timeout_seconds, Effect.READ_ONLY)


# Shell text of which verbs are made


_INFO: Final = join(("docker", "info", "--format", "{{json .}}"))


def save_script(image: str) -> ShellText:
    """Writes an image to stdout as a tar stream, for piping it to another machine."""
    return join(("docker", "save", "--", image))


def load_script() -> ShellText:
    """Reads images from a tar stream on stdin."""
    return join(("docker", "load"))


def stop_script(container: str, timeout_seconds: int) -> ShellText:
    """Stops a container, killing it after ``timeout_seconds``."""
    return join(("docker", "stop", "-t", str(timeout_seconds), "--", container))


def remove_script(container: str) -> ShellText:
    """Removes a running or stopped container, with its anonymous volumes."""
    return join(("docker", "rm", "--force", "--volumes", "--", container))


def inspect_containers_script(*containers: str) -> ShellText:
    """Prints a JSON list."""
    return join(("docker", "container", "inspect", "--", *containers))


def is_running_script(container: str) -> ShellText:
    """Prints ``true`` or ``false``."""
    return join(("docker", "container", "inspect", "--format", "{{.State.Running}}", "--", container))


def logs_script(container: str, tail_lines: int) -> ShellText:
    """Prints the last ``tail_lines`` lines, on the stream that each was written to."""
    return join(("docker", "logs", "--tail", str(tail_lines), "--", container))


def pull_script(image: str) -> ShellText:
    """Fetches an image."""
    return join(("docker", "pull", "--", image))


def volume_mountpoint_script(volume: str) -> ShellText:
    """Prints the directory of the machine that holds a volume's files."""
    return join(("docker", "volume", "inspect", "--format", "{{.Mountpoint}}", "--", volume))


def volume_mountpoints_script() -> ShellText:
    """Prints one line ``<name> <directory>`` per volume."""
    return join(("docker", "volume", "ls", "--format", "{{.Name}} {{.Mountpoint}}"))


def label_words(labels: Mapping[str, str]) -> list[str]:
    """Options of `docker run` and `docker volume create` that set labels."""
    return [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]


def _dockerfile_word(word: str) -> str:
    """One word of a Dockerfile instruction."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


# How answers are read


def none_if[T](error: type[DockerError], command: RemoteCommand[T]) -> RemoteCommand[T | None]:
    """``command``, whose value is None where reading its outcome would raise ``error``."""

    def read(outcome: CommandOutcome) -> T | None:
        try:
            return command.read(outcome)
        except error:
            return None

    return RemoteCommand(
        command.script, command.purpose, read, command.timeout_seconds, command.effect, command.limit_bytes
    )


def printed_id(outcome: CommandOutcome) -> str:
    """The id that Docker printed last; raises DockerError if it printed none."""
    lines = checked_docker(outcome).text.split()
    if not lines:
        raise DockerError(f"Docker gave no id ({outcome.purpose} on {outcome.host}{outcome.reference})", outcome)
    return lines[-1]


def _done(outcome: CommandOutcome) -> None:
    checked_docker(outcome)


def _question[T](script: str, purpose: str, parse: Callable[[str], T]) -> RemoteCommand[T]:
    """A command that changes nothing, and whose value ``parse`` makes of what it printed."""

    def read(outcome: CommandOutcome) -> T:
        return parse(checked_docker(outcome).text)

    return RemoteCommand(ShellText(script), purpose, read, QUICK_SECONDS, Effect.READ_ONLY)
