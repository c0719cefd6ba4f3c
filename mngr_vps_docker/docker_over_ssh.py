"""Docker on one machine, over ssh: the verbs that a provider needs, typed, and with errors that have names.

Usable alone, on any machine that can be logged in to; it knows no provider. Command lines are built in
``docker.commands``, answers read in ``docker.models``, refusals recognised in ``docker.errors``. Unless a method says
otherwise it raises VpsConnectionError if the machine could not be asked, RemoteCommandTimeoutError at its deadline,
DaemonNotRunningError without Docker, and DockerError (or one of its kinds) if Docker refuses.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.docker import commands as commands
from imbue.mngr_vps_docker.docker.commands import BuildSpec, ContainerSpec
from imbue.mngr_vps_docker.docker.errors import (
    DockerError,
    NoSuchContainerError,
    NoSuchImageError,
    NoSuchVolumeError,
    checked_docker,
    docker_error,
)
from imbue.mngr_vps_docker.docker.exec import exec_in_container
from imbue.mngr_vps_docker.docker.image_build import build_image
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
from imbue.mngr_vps_docker.ssh.connection import OnLine, SshConnection, StandardInput
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.remote_command import ChainStep
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, join, quote

__all__ = ["BuildSpec", "ContainerInfo", "ContainerSpec", "DockerInfo", "DockerOverSsh", "ImageInfo"]

# For what Docker does at once, on a machine that may be busy; a daemon that hangs is then noticed.
_QUICK_SECONDS: Final = 60.0
_SLOW_SECONDS: Final = 1800.0
_REPLACED_STOP_SECONDS: Final = 10
_LAST_LOG_LINES: Final = 3
# Exit code of a script of ours that found a container stopped.
NOT_RUNNING: Final = 87


class DockerOverSsh:
    """Docker on the machine that ``connection`` leads to. Thread-safe; holds no state."""

    def __init__(self, connection: SshConnection) -> None:
        self.connection = connection

    # Containers

    def run_container(self, spec: ContainerSpec, *, timeout_seconds: float = _SLOW_SECONDS) -> str:
        """Create and start a container in the background, and return its id.

        An image that the machine lacks is pulled. A container that was made but could not be started (a port in use,
        a missing runtime) is removed again.
        """
        step = run_step(spec)
        script = ShellScript(step.command, step.secrets)
        return new_container_id(self._run(script, purpose=step.purpose, timeout_seconds=timeout_seconds))

    def exec(
        self,
        container: str,
        command: str,
        *,
        purpose: str,
        timeout_seconds: float,
        stdin: StandardInput = None,
        user: str | None = None,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
    ) -> CommandOutcome:
        """Run shell text inside a running container and return its outcome, which may be a failure.

        At the deadline the process inside the container ends too (TERM, 5 s later KILL). ``env`` travels on stdin, not
        in argv. Each line goes to ``on_line`` as it comes, if given. Raises DockerError only where Docker did not run
        the command (NoSuchContainerError, ContainerNotRunningError…): the exit code of an outcome is the command's
        own.
        """
        return exec_in_container(
            self.connection,
            container,
            command,
            purpose=purpose,
            timeout_seconds=timeout_seconds,
            stdin=stdin,
            user=user,
            workdir=workdir,
            env=env or {},
            on_line=on_line,
            effect=effect,
        )

    def start_container(self, container: str) -> None:
        """Start a stopped container, or resume a paused one; a running one is left as it is."""
        start = commands.start_script(container)
        checked_docker(self._run(start, purpose=f"start container {container}", effect=Effect.IDEMPOTENT))

    def stop_container(self, container: str, *, timeout_seconds: float = 10) -> None:
        """Stop a container, killing it after ``timeout_seconds``; a stopped one is left as it is."""
        self._docker(
            commands.stop_argv(container, math.ceil(timeout_seconds)),
            purpose=f"stop container {container}",
            timeout_seconds=timeout_seconds + _QUICK_SECONDS,
            effect=Effect.IDEMPOTENT,
        )

    def remove_container(self, container: str, *, is_missing_ok: bool = False) -> None:
        """Remove a container, running or not, and its anonymous volumes."""
        try:
            outcome = self._docker(
                commands.remove_container_argv(container),
                purpose=f"remove container {container}",
                effect=Effect.IDEMPOTENT,
            )
            # From Docker 20.10 to 23, `rm --force` says so on stderr and succeeds.
            if "no such container" in outcome.error_text.lower():
                raise docker_error(outcome)
        except NoSuchContainerError:
            if not is_missing_ok:
                raise

    def commit(
        self,
        container: str,
        *,
        image: str,
        labels: Mapping[str, str] | None = None,
        timeout_seconds: float = _SLOW_SECONDS,
    ) -> str:
        """Save a container's files (not its volumes') as the image ``image`` and return the image's id.

        A running container is paused meanwhile, so that no file is half-written.
        """
        outcome = self._docker(
            commands.commit_argv(container, image, labels or {}),
            purpose=f"commit container {container}",
            timeout_seconds=timeout_seconds,
        )
        return _id_in(outcome)

    def inspect_container(self, container: str) -> ContainerInfo | None:
        """Describe one container; None only if Docker says that there is no such container."""
        argv = commands.inspect_container_argv(container)
        try:
            outcome = self._docker(argv, purpose=f"inspect container {container}", effect=Effect.READ_ONLY)
        except NoSuchContainerError:
            return None
        return parse_container(outcome.text)

    def list_containers(self, labels: Mapping[str, str | None]) -> tuple[ContainerInfo, ...]:
        """Describe every container, running or not, that carries all ``labels`` (a None value: any value)."""
        outcome = self._run(list_containers_script(labels), purpose="list containers", effect=Effect.READ_ONLY)
        if not outcome.is_success and not is_only_vanished(outcome.error_text):
            raise docker_error(outcome, outcome.error_text)
        return parse_containers(outcome.text or "[]")

    def logs(self, container: str, *, tail_lines: int = 100) -> str:
        """What a container printed last, both streams in the order in which they were written."""
        line = f"{join(commands.logs_argv(container, tail_lines))} 2>&1"
        return checked_docker(self._run(line, purpose=f"read the log of {container}", effect=Effect.READ_ONLY)).text

    # Images

    def pull(self, image: str, *, on_line: OnLine | None = None, timeout_seconds: float = _SLOW_SECONDS) -> None:
        """Fetch an image from its registry, handing Docker's progress lines to ``on_line``."""
        self._docker(
            commands.pull_argv(image),
            purpose=f"pull image {image}",
            timeout_seconds=timeout_seconds,
            on_line=on_line,
            effect=Effect.IDEMPOTENT,
        )

    def build(
        self,
        *,
        tag: str,
        context_dir: str,
        dockerfile: str | None = None,
        build_args: tuple[str, ...] = (),
        builder: DockerBuilder = DockerBuilder.DOCKER,
        depot_token: Secret | None = None,
        on_line: OnLine | None = None,
        timeout_seconds: float = _SLOW_SECONDS,
    ) -> None:
        """Build an image from a directory of the machine and tag it; see BuildSpec for the arguments.

        BuildKit builds it wherever the machine's Docker has it. Output goes to ``on_line`` as it comes, without values
        of build arguments in the names of steps. A failed build raises DockerError (DiskFullError, NoSuchImageError…
        where the cause is one of those) with the step, the exit code and the end of both streams.
        """
        build_image(
            self.connection,
            BuildSpec(tag, context_dir, dockerfile, build_args, builder),
            depot_token=depot_token,
            on_line=on_line,
            timeout_seconds=timeout_seconds,
        )

    def inspect_image(self, image: str) -> ImageInfo | None:
        """Describe one image of the machine; None only if Docker says that there is no such image."""
        try:
            outcome = self._docker(
                commands.inspect_image_argv(image), purpose=f"inspect image {image}", effect=Effect.READ_ONLY
            )
        except NoSuchImageError:
            return None
        return parse_image(outcome.text)

    def list_images(self, repository: str) -> tuple[ImageInfo, ...]:
        """Describe every image of the machine that has a tag in ``repository``."""
        outcome = self._run(
            list_images_script(repository), purpose=f"list images {repository}", effect=Effect.READ_ONLY
        )
        return parse_images(checked_docker(outcome).text or "[]")

    def remove_image(self, image: str, *, is_missing_ok: bool = False) -> None:
        """Remove an image's tag, and the image itself with its last tag."""
        try:
            self._docker(commands.remove_image_argv(image), purpose=f"remove image {image}", effect=Effect.IDEMPOTENT)
        except NoSuchImageError:
            if not is_missing_ok:
                raise

    @staticmethod
    def save_command(image: str) -> str:
        """Shell text that writes an image to stdout as a tar stream, for piping it to another machine."""
        return join(commands.save_argv(image))

    @staticmethod
    def load_command() -> str:
        """Shell text that reads images from a tar stream on stdin."""
        return join(commands.load_argv())

    # Volumes

    def create_volume(self, volume: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create a named volume; an existing one is left as it is."""
        argv = commands.create_volume_argv(volume, labels or {})
        self._docker(argv, purpose=f"create volume {volume}", effect=Effect.IDEMPOTENT)

    def remove_volume(self, volume: str, *, is_missing_ok: bool = False) -> None:
        """Remove a volume and all that is on it; one that a container uses (running or not) is refused by Docker."""
        try:
            self._docker(
                commands.remove_volume_argv(volume), purpose=f"remove volume {volume}", effect=Effect.IDEMPOTENT
            )
        except NoSuchVolumeError:
            if not is_missing_ok:
                raise

    def volume_mountpoint(self, volume: str) -> str:
        """The directory of the machine that holds a volume's files. Raises NoSuchVolumeError."""
        argv = commands.volume_mountpoint_argv(volume)
        outcome = self._docker(argv, purpose=f"find volume {volume}", effect=Effect.READ_ONLY)
        return outcome.text.removesuffix("\n")

    # The daemon

    def info(self) -> DockerInfo:
        """Describe the daemon. Raises DaemonNotRunningError if none answers."""
        outcome = self._run(join(commands.info_argv()), purpose="ask Docker", effect=Effect.READ_ONLY)
        # Some versions report a daemon that does not answer inside the JSON, with exit code 0.
        errors = server_errors(outcome.text) if outcome.exit_code is not None else ""
        if errors or not outcome.is_success:
            raise docker_error(outcome, errors or None)
        return parse_info(outcome.text)

    def wait_for_daemon(self, *, timeout_seconds: float) -> None:
        """Return as soon as a daemon answers; raises RemoteCommandTimeoutError if none has by then."""
        script = f"until {join(commands.info_argv())} >/dev/null 2>&1; do sleep 0.2; done"
        self._run(
            script, purpose="wait for Docker", timeout_seconds=timeout_seconds, effect=Effect.READ_ONLY
        ).checked()

    def _docker(
        self,
        argv: commands.Argv,
        *,
        purpose: str,
        timeout_seconds: float = _QUICK_SECONDS,
        on_line: OnLine | None = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
    ) -> CommandOutcome:
        return checked_docker(
            self._run(
                join(argv),
                purpose=purpose,
                timeout_seconds=timeout_seconds,
                on_line=on_line,
                effect=effect,
            )
        )

    def _run(
        self,
        script: str,
        *,
        purpose: str,
        timeout_seconds: float = _QUICK_SECONDS,
        on_line: OnLine | None = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
    ) -> CommandOutcome:
        if on_line is None:
            return self.connection.run(script, purpose=purpose, timeout_seconds=timeout_seconds, effect=effect)
        return self.connection.stream(
            script, on_line=on_line, purpose=purpose, timeout_seconds=timeout_seconds, effect=effect
        )


def run_step(spec: ContainerSpec) -> ChainStep:
    """What ``DockerOverSsh.run_container`` runs, as a step of a chain; see ``new_container_id``."""
    # Docker prints the new container's id even where starting it fails: by it, nobody else's is removed.
    remove = join(commands.remove_container_argv("$id")).replace("'$id'", '"$id"')
    run = commands.run_script(spec)
    script = (
        f"id=$({run}); rc=$?\n"
        f'if [ $rc -ne 0 ] && [ -n "$id" ]; then {remove} >/dev/null 2>&1; fi\n'
        "printf '%s\\n' \"$id\"; exit $rc"
    )
    return ChainStep(script, f"start container {spec.name}", run.secrets)


def new_container_id(outcome: CommandOutcome) -> str:
    """The id of the container that the step of ``run_step`` started; raises what kept it from that."""
    if not outcome.is_success:
        raise docker_error(outcome, outcome.error_text)
    return _id_in(outcome)


def _id_in(outcome: CommandOutcome) -> str:
    """The id that Docker printed last; raises DockerError if it printed none."""
    lines = outcome.text.strip().splitlines()
    if not lines:
        raise DockerError(f"Docker gave no id ({outcome.purpose} on {outcome.host}{outcome.reference})", outcome)
    return lines[-1]


def replace_step(spec: ContainerSpec, *, aside: str) -> ChainStep:
    """``run_step`` in the place of the container that has the name, if there is one; see ``new_container_id``.

    The old one is stopped and called ``aside`` until the new one runs, and has its name back if that does not start.
    Its volumes are the new one's too, those without a name as well: what is on them is in no image. Where this was
    cut short in between, a second run completes it.
    """
    run = run_step(spec)
    with_volumes = run_step(replace(spec, extra_args=(*spec.extra_args, "--volumes-from", aside)))
    is_there = join(commands.container_is_running_argv(spec.name))
    stop = join(commands.stop_argv(spec.name, _REPLACED_STOP_SECONDS))
    remove = join(commands.remove_container_argv(aside))
    script = (
        f"if {is_there} >/dev/null 2>&1; then\n"
        f"  {remove} >/dev/null 2>&1\n"
        f"  {stop} >/dev/null && {join(commands.rename_container_argv(spec.name, aside))} || exit\n"
        "fi\n"
        f"if {join(commands.container_is_running_argv(aside))} >/dev/null 2>&1; then\n"
        f"  ({with_volumes.command}); rc=$?\n"
        f"else ({run.command}); rc=$?; fi\n"
        f"if [ $rc -eq 0 ]; then {remove}; else {join(commands.rename_container_argv(aside, spec.name))}; fi"
        " >/dev/null 2>&1\n"
        "exit $rc"
    )
    return replace(run, command=script)


def unless_container(container: str, step: ChainStep) -> ChainStep:
    """``step``, but nothing if there is a container of that name."""
    there = join(commands.container_is_running_argv(container))
    return replace(step, command=f"{there} >/dev/null 2>&1 && exit 0\n{step.command}")


def explaining_end(container: str, step: ChainStep) -> ChainStep:
    """``step``; if it fails because the container has ended, its error says what the container printed last.

    It also says so if the image is for another processor than the machine's.
    """
    is_running = join(commands.container_is_running_argv(container))
    image = join(commands.image_of_container_argv(container))
    image_architecture = join(commands.architecture_of_image_argv("$image")).replace("'$image'", '"$image"')
    script = (
        f"({step.command}); rc=$?\n"
        f'if [ $rc -ne 0 ] && [ "$({is_running})" = false ]; then\n'
        f"  said=$({join(commands.logs_argv(container, _LAST_LOG_LINES))} 2>&1 | tr -s '\\n' ' ')\n"
        '  said="the container has ended: ${said% }"\n'
        f"  image=$({image}) && image=$({image_architecture}) && machine=$({join(commands.architecture_argv())})\n"
        '  [ "${image:-$machine}" = "$machine" ] ||\n'
        '    said="$said, and the image is for $image where the machine is $machine"\n'
        "  printf '%s\\n' \"$said\" >&2\n"
        "fi\n"
        "exit $rc"
    )
    return replace(step, command=script)


def stop_if_running(container: str, timeout_seconds: int) -> str:
    """Shell text that stops a container, and ends with NOT_RUNNING if there was nothing to stop."""
    is_running = join(commands.container_is_running_argv(container))
    return (
        f"is_running=$({is_running}) || exit\n"
        f'[ "$is_running" = true ] || exit {NOT_RUNNING}\n'
        f"{join(commands.stop_argv(container, timeout_seconds))}"
    )


def docker_step(argv: commands.Argv, purpose: str) -> ChainStep:
    """One docker command as a step of a chain; ``checked_docker`` raises what Docker said of it."""
    return ChainStep(join(argv), purpose)


def list_images_script(repository: str) -> str:
    """Shell text that prints the JSON of the images with a tag in ``repository``, or nothing if there are none."""
    inspect, ids = join(commands.inspect_image_argv()), join(commands.list_image_ids_argv(repository))
    return f'ids=$({ids}) || exit\n[ -z "$ids" ] || {inspect} $ids'


def list_containers_script(labels: Mapping[str, str | None], *, known: str | None = None) -> str:
    """Shell text that prints the JSON of the containers that carry ``labels``, or nothing if there are none.

    If there is a container of the name ``known``, it is described alone, whatever its labels.
    """
    inspect = join(commands.inspect_container_argv())
    listing = f'ids=$({join(commands.list_container_ids_argv(labels))}) || exit\n[ -z "$ids" ] || {inspect} $ids'
    if known is None:
        return listing
    return f"found=$({inspect} {quote(known)} 2>/dev/null) && printf '%s\\n' \"$found\" && exit\n{listing}"


def is_only_vanished(stderr: str) -> bool:
    """Whether all that Docker complained of is containers that were removed between listing and describing them."""
    lines = [line for line in stderr.lower().splitlines() if line.strip()]
    return bool(lines) and all("no such container" in line for line in lines)
