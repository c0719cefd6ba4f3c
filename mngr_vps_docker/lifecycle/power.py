"""Stopping and starting a host. The VPS stays up: both act on its container.

Of the processes of a machine, one at a time does any of this, on a sighting that is not older: see HostRegistry.alone.
"""

from loguru import logger

from imbue.mngr.errors import MngrError
from imbue.mngr.errors import SnapshotNotFoundError
from imbue.mngr.primitives import HostName
from imbue.mngr.primitives import HostState
from imbue.mngr.primitives import SnapshotId
from imbue.mngr_vps_docker.docker_errors import NoSuchContainerError
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.errors import SshdDownError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.host_store import VpsHostConfig
from imbue.mngr_vps_docker.lifecycle.container import ContainerRequest
from imbue.mngr_vps_docker.lifecycle.container import prepare_container
from imbue.mngr_vps_docker.lifecycle.container import run_host_container
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.metadata import update_certified_data
from imbue.mngr_vps_docker.lifecycle.metadata import update_record
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting


def stop_host(context: ProviderContext, sighting: HostSighting, *, timeout_seconds: float) -> None:
    """Stop the host's container; one that is stopped already is left as it is.

    ``timeout_seconds`` is how long its processes get before they are killed.
    """
    address, config = usable(sighting)
    if sighting.is_running:
        context.container(address, sighting.host_id).close()
        context.docker(address, sighting.host_id).stop_container(
            config.container_name, timeout_seconds=round(timeout_seconds)
        )
        update_certified_data(context, sighting, stop_reason=HostState.STOPPED.value)


def start_host(context: ProviderContext, sighting: HostSighting, snapshot_id: SnapshotId | None = None) -> None:
    """Bring the host up, from a snapshot of it if given, and wait until mngr can log in; a running one stays as it is.

    A container that is gone is made anew from its image; its volume, and with it mngr's folder, is kept.
    """
    address, config = usable(sighting)
    # A machine without the container's key could start it, but not prove that it can be used.
    if sighting.problem is not None:
        raise sighting.problem
    docker = context.docker(address, sighting.host_id)
    if snapshot_id is not None:
        _recreate_container(context, docker, sighting, config, image=_snapshot_image(sighting, snapshot_id))
    elif not sighting.is_running:
        try:
            docker.start_container(config.container_name)
        except NoSuchContainerError:
            logger.warning("The container of {} is gone; making it anew from {}", sighting.name, config.image)
            image = config.image or context.config.default_image
            _recreate_container(context, docker, sighting, config, image=image)
    try:
        _prepare(context, sighting, address, config)
    except (RemoteCommandError, SshdDownError):
        container = docker.inspect_container(config.container_name)
        if container is None or container.is_running:
            raise
        # It stopped itself meanwhile, for being idle.
        docker.start_container(config.container_name)
        _prepare(context, sighting, address, config)
    if sighting.record is not None and sighting.record.certified_host_data.stop_reason is not None:
        update_certified_data(context, sighting, stop_reason=None)


def repair_host(context: ProviderContext, sighting: HostSighting) -> None:
    """Bring back the sshd and the activity watcher of a running container, if they do not run.

    Raises VpsConnectionError if it is the container that does not run.
    """
    address, config = usable(sighting)
    if not sighting.is_running:
        raise VpsConnectionError(f"Host {sighting.name} is not running; start it first")
    _prepare(context, sighting, address, config)


def usable(sighting: HostSighting) -> tuple[str, VpsHostConfig]:
    """The address and configuration of a host that can be worked on; raises one clear error for any other."""
    if sighting.problem is not None and sighting.reading is None:
        raise sighting.problem
    if sighting.failure_reason is not None:
        raise MngrError(f"Host {sighting.name} cannot be used: {sighting.failure_reason}")
    if sighting.is_gone or sighting.is_being_made:
        raise MngrError(f"Host {sighting.name} cannot be used: it is {sighting.state.value.lower()}")
    if sighting.record is None or sighting.record.config is None or sighting.entry.vps_ip is None:
        raise VpsDockerError(f"Host {sighting.name} cannot be used: its record does not say where and what it is")
    return sighting.entry.vps_ip, sighting.record.config


def _prepare(context: ProviderContext, sighting: HostSighting, address: str, config: VpsHostConfig) -> None:
    prepare_container(context, address=address, host_id=sighting.host_id, container=config.container_name)


def _recreate_container(
    context: ProviderContext, docker: DockerOverSsh, sighting: HostSighting, config: VpsHostConfig, *, image: str
) -> None:
    context.container(usable(sighting)[0], sighting.host_id).close()
    docker.remove_container(config.container_name, is_missing_ok=True)
    container_id = run_host_container(
        context,
        docker,
        ContainerRequest(
            host_id=sighting.host_id,
            host_name=HostName(sighting.name),
            container_name=config.container_name,
            image=image,
            start_args=config.start_args,
            tags=sighting.certified_data.user_tags,
        ),
    )

    def with_container(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        return record.model_copy(
            update={"container_id": container_id, "config": config.model_copy(update={"image": image})}
        )

    update_record(context, sighting, with_container)
    if config.image is not None and config.image != image and _is_deleted_snapshot(sighting, config.image):
        remove_snapshot_image(docker, config.image)


def remove_snapshot_image(docker: DockerOverSsh, snapshot_id: str) -> None:
    """Remove the image of a snapshot; one that is gone is no error.

    By its tags, because Docker refuses to remove an image by id while later snapshots are built on it; its content
    then goes with the last of them.
    """
    image = docker.inspect_image(snapshot_id)
    for tag in () if image is None else image.tags:
        docker.remove_image(tag, is_missing_ok=True)


def _is_deleted_snapshot(sighting: HostSighting, image: str) -> bool:
    is_listed = any(snapshot.id == image for snapshot in sighting.certified_data.snapshots)
    return image.startswith("sha256:") and not is_listed


def _snapshot_image(sighting: HostSighting, snapshot_id: SnapshotId) -> str:
    for snapshot in sighting.certified_data.snapshots:
        if snapshot.id == snapshot_id:
            return snapshot.id
    raise SnapshotNotFoundError(snapshot_id)
