"""Bringing a host's image to its VPS: pulled, built there, or streamed from the VPS of a snapshot."""

import os
from concurrent.futures import Future
from dataclasses import dataclass

from imbue.mngr.errors import ImageNotFoundError
from imbue.mngr.primitives import DockerBuilder, HostId, ImageReference, LogLevel
from imbue.mngr_vps_docker.builds.context import uploaded_build_context
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.docker.commands import load_script, save_script
from imbue.mngr_vps_docker.docker.errors import DockerError, NoSuchImageError
from imbue.mngr_vps_docker.docker_over_ssh import BuildSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import BuildArgumentError, RemoteCommandTimeoutError
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.master import installed_openssh
from imbue.mngr_vps_docker.ssh.shell import Secret
from imbue.mngr_vps_docker.ssh.transfer import pipe
from imbue.mngr_vps_docker.text import logger

DEPOT_TOKEN_VARIABLE = "DEPOT_TOKEN"


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """A snapshot of another host, and the VPS that holds its image."""

    image_id: str
    connection: SshConnection


def check_tools(context: ProviderContext, build: ParsedBuildArgs) -> None:
    """Raise an error without a usable ssh or builder, before anything is paid for."""
    installed_openssh()
    if build.is_build and context.config.builder is DockerBuilder.DEPOT and not os.environ.get(DEPOT_TOKEN_VARIABLE):
        raise BuildArgumentError(
            f"The provider's builder is DEPOT, which needs {DEPOT_TOKEN_VARIABLE} in the environment; set it, or set"
            f" providers.{context.provider_name}.builder to DOCKER"
        )


def prepare_image(
    context: ProviderContext,
    docker: DockerOverSsh,
    *,
    host_id: HostId,
    image: str,
    build: ParsedBuildArgs,
    snapshot: SnapshotSource | None,
    docker_ready: Future[None],
) -> str:
    """Make the host's image available on its VPS and return its name.

    Begins as soon as the VPS can be logged in to, and does what needs Docker once ``docker_ready`` is done.
    """
    if snapshot is not None:
        docker_ready.result()
        return _stream_snapshot(context, docker, snapshot)
    if build.is_build:
        return _build(context, docker, host_id=host_id, build=build, docker_ready=docker_ready)
    if not _is_pulled_early(context, docker, image):
        docker_ready.result()
        _pull(context, docker, image)
    return image


def _is_pulled_early(context: ProviderContext, docker: DockerOverSsh, image: str) -> bool:
    """Pull an image that the VPS lacks as soon as its Docker answers, which may be long before the VPS is set up.

    A failure may be temporary: Docker may still be being installed.
    """
    try:
        docker.wait_for_daemon(timeout_seconds=context.config.docker_install_timeout)
        _pull(context, docker, image)
    except (DockerError, RemoteCommandTimeoutError) as error:
        logger.debug("Not pulled yet: {}", error)
        return False
    except ImageNotFoundError:
        return False
    return True


def _pull(context: ProviderContext, docker: DockerOverSsh, image: str) -> None:
    if docker.inspect_image(image) is not None:
        return
    try:
        docker.pull(image, on_line=_log_build_line, timeout_seconds=context.config.build_timeout_seconds)
    except NoSuchImageError as error:
        raise ImageNotFoundError(ImageReference(image)) from error


def _build(
    context: ProviderContext,
    docker: DockerOverSsh,
    *,
    host_id: HostId,
    build: ParsedBuildArgs,
    docker_ready: Future[None],
) -> str:
    tag = f"mngr-build:{host_id.get_uuid().hex}"
    token = os.environ.get(DEPOT_TOKEN_VARIABLE) if context.config.builder is DockerBuilder.DEPOT else None
    timeout_seconds = context.config.build_timeout_seconds
    with uploaded_build_context(docker.connection, build, timeout_seconds=timeout_seconds) as remote:
        docker_ready.result()
        docker.build(
            BuildSpec(tag, remote.context_dir, remote.dockerfile, build.docker_build_args, context.config.builder),
            depot_token=None if token is None else Secret(token),
            on_line=_log_build_line,
            timeout_seconds=timeout_seconds,
        )
    return tag


def _stream_snapshot(context: ProviderContext, docker: DockerOverSsh, snapshot: SnapshotSource) -> str:
    """Stream the image from VPS to VPS through this machine, which stores none of it."""
    pipe(
        snapshot.connection,
        save_script(snapshot.image_id),
        docker.connection,
        load_script(),
        purpose="copy the snapshot from VPS to VPS",
        timeout_seconds=context.config.build_timeout_seconds,
    )
    return snapshot.image_id


def _log_build_line(line: str, _stream: Stream) -> None:
    if line.strip():
        logger.log(LogLevel.BUILD.value, "{}", line.rstrip(), source="docker")
