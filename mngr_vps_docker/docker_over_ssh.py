"""Docker on one machine, over ssh: the verbs that a provider needs, typed, and with errors that have names.

Usable alone, on any machine that can be logged in to; it knows no provider. Each verb is defined in
``docker.commands`` or ``docker.containers``: its command line, and how its answer is read. Unless a method says
otherwise it raises VpsConnectionError if the machine could not be asked, RemoteCommandTimeoutError at its deadline,
DaemonNotRunningError without Docker, and DockerError (or one of its kinds) if Docker refuses.
"""

import math
from collections.abc import Mapping

from imbue.mngr_vps_docker.docker import commands, containers
from imbue.mngr_vps_docker.docker.commands import SLOW_SECONDS
from imbue.mngr_vps_docker.docker.containers import ContainerSpec
from imbue.mngr_vps_docker.docker.exec import exec_in_container
from imbue.mngr_vps_docker.docker.image_build import BuildSpec, build_image
from imbue.mngr_vps_docker.docker.models import ContainerInfo, DockerInfo, ImageInfo
from imbue.mngr_vps_docker.ssh.connection import OnLine, SshConnection, StandardInput
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.shell import Secret

__all__ = ["BuildSpec", "ContainerInfo", "ContainerSpec", "DockerInfo", "DockerOverSsh", "ImageInfo"]


class DockerOverSsh:
    """Docker on the machine that ``connection`` leads to. Thread-safe; holds no state."""

    def __init__(self, connection: SshConnection) -> None:
        self.connection = connection

    # Containers

    def run_container(self, spec: ContainerSpec, *, timeout_seconds: float = SLOW_SECONDS) -> str:
        """Create and start a container in the background, and return its id.

        An image that the machine lacks is pulled. A container that was made but could not be started (a port in use,
        a missing runtime) is removed again.
        """
        return self.connection.call(containers.run_container(spec, timeout_seconds=timeout_seconds))

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
        self.connection.call(commands.start_container(container))

    def stop_container(self, container: str, *, timeout_seconds: float = 10) -> None:
        """Stop a container, killing it after ``timeout_seconds``; a stopped one is left as it is."""
        self.connection.call(commands.stop_container(container, math.ceil(timeout_seconds)))

    def remove_container(self, container: str, *, is_missing_ok: bool = False) -> None:
        """Remove a container, running or not, and its anonymous volumes."""
        self.connection.call(commands.remove_container(container, is_missing_ok=is_missing_ok))

    def commit(
        self,
        container: str,
        *,
        image: str,
        labels: Mapping[str, str] | None = None,
        timeout_seconds: float = SLOW_SECONDS,
    ) -> str:
        """Save a container's files (not its volumes') as the image ``image`` and return the image's id.

        A running container is paused for that time, so that no file is half-written.
        """
        return self.connection.call(commands.commit(container, image, labels, timeout_seconds=timeout_seconds))

    def inspect_container(self, container: str) -> ContainerInfo | None:
        """Describe one container; None only if Docker says that there is no such container."""
        return self.connection.call(commands.find_container(container))

    def list_containers(self, labels: Mapping[str, str | None]) -> tuple[ContainerInfo, ...]:
        """Describe every container, running or not, that carries all ``labels`` (a None value: any value)."""
        return self.connection.call(commands.list_containers(labels))

    def logs(self, container: str, *, tail_lines: int = 100) -> str:
        """What a container printed last, both streams in the order in which they were written."""
        return self.connection.call(commands.logs(container, tail_lines))

    # Images

    def pull(self, image: str, *, on_line: OnLine | None = None, timeout_seconds: float = SLOW_SECONDS) -> None:
        """Fetch an image from its registry, handing Docker's progress lines to ``on_line``."""
        self.connection.call(commands.pull(image, timeout_seconds=timeout_seconds), on_line=on_line)

    def build(
        self,
        spec: BuildSpec,
        *,
        depot_token: Secret | None = None,
        on_line: OnLine | None = None,
        timeout_seconds: float = SLOW_SECONDS,
    ) -> None:
        """Build an image from a directory of the machine and tag it.

        BuildKit builds it wherever the machine's Docker has it. Output goes to ``on_line`` as it comes, without values
        of build arguments in the names of steps. A failed build raises DockerError (DiskFullError, NoSuchImageError…
        where the cause is one of those) with the step, the exit code and the end of both streams.
        """
        build_image(self.connection, spec, depot_token=depot_token, on_line=on_line, timeout_seconds=timeout_seconds)

    def inspect_image(self, image: str) -> ImageInfo | None:
        """Describe one image of the machine; None only if Docker says that there is no such image."""
        return self.connection.call(commands.find_image(image))

    def list_images(self, repository: str) -> tuple[ImageInfo, ...]:
        """Describe every image of the machine that has a tag in ``repository``."""
        return self.connection.call(commands.list_images(repository))

    def remove_image(self, image: str, *, is_missing_ok: bool = False) -> None:
        """Remove an image's tag, and the image itself with its last tag."""
        self.connection.call(commands.remove_image(image, is_missing_ok=is_missing_ok))

    # Volumes

    def create_volume(self, volume: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create a named volume; an existing one is left as it is."""
        self.connection.call(commands.create_volume(volume, labels))

    def remove_volume(self, volume: str, *, is_missing_ok: bool = False) -> None:
        """Remove a volume and all that is on it; one that a container uses (running or not) is refused by Docker."""
        self.connection.call(commands.remove_volume(volume, is_missing_ok=is_missing_ok))

    def volume_mountpoint(self, volume: str) -> str:
        """The directory of the machine that holds a volume's files. Raises NoSuchVolumeError."""
        return self.connection.call(commands.volume_mountpoint(volume))

    # The daemon

    def info(self) -> DockerInfo:
        """Describe the daemon. Raises DaemonNotRunningError if none answers."""
        return self.connection.call(commands.info())

    def wait_for_daemon(self, *, timeout_seconds: float) -> None:
        """Return as soon as a daemon answers; raises RemoteCommandTimeoutError if none has by then."""
        self.connection.call(commands.wait_for_daemon(timeout_seconds))
