"""Stopping and starting a host. The VPS stays up: both act on its container.

Of the processes of a machine, one at a time does any of this: see HostCache.exclusive. What was seen of the
host may be stale by then, so each finds out on the VPS whether it is still so.
"""

import math
from typing import Final

from imbue.mngr.errors import SnapshotNotFoundError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostState, SnapshotId
from imbue.mngr_vps_docker.config import CONTAINER_SETUP_TIMEOUT_SECONDS
from imbue.mngr_vps_docker.docker import commands
from imbue.mngr_vps_docker.docker.containers import replace_container
from imbue.mngr_vps_docker.docker.errors import NoSuchContainerError
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.docker.run_options import allowed_start_args
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.errors import RemoteCommandError, SshdDownError, VpsConnectionError, VpsDockerError
from imbue.mngr_vps_docker.hosts.host_access import HostAccess
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.container import (
    enter_container,
    host_container,
    is_behind_vps,
    setup_command,
    under_vps_lock,
)
from imbue.mngr_vps_docker.lifecycle.metadata import PlannedChange, update_record
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.text import logger

SNAPSHOT_REPOSITORY: Final = "mngr-snapshot"


def stop_host(host: HostAccess, *, timeout_seconds: float) -> None:
    """Stop the host's container, by one remote command; one that is stopped already is left as it is.

    ``timeout_seconds`` is how long its processes get before they are killed.
    """
    container = host.config.container_name
    host.container_ssh.close()

    def with_stop_reason(data: CertifiedHostData) -> CertifiedHostData:
        return replace(data, stop_reason=HostState.STOPPED.value)

    change = PlannedChange(host, with_stop_reason, is_in_data_json=False)
    pipeline = Pipeline(host.vps, f"stop container {container}")
    stopped = pipeline.add(commands.stop_if_running(container, math.ceil(timeout_seconds)))
    change.add_to(pipeline)
    pipeline.run()
    try:
        if not stopped.value:
            # If it stopped by itself, it has said why.
            return
    except NoSuchContainerError:
        return
    change.finish()
    host.context.local_store.update(host.host_id, lambda known: replace(known, state=HostState.STOPPED))


def start_host(host: HostAccess, snapshot_id: SnapshotId | None = None) -> ObservedHost:
    """Bring the host up, from a snapshot of it if given, and wait until mngr can log in; a running one stays as it is.

    One that is paused is resumed. A container that is gone is replaced by one of its image; its volume, and with it
    mngr's folder, is kept.
    """
    container = host.config.container_name
    # A machine without the container's key could start it, but not prove that it can be used.
    if host.observed.problem is not None:
        raise host.observed.problem
    if snapshot_id is not None:
        host = _replace_container(host, image=_snapshot_image(host, snapshot_id))
    for is_last in (False, False, True):
        try:
            return _bring_up(host)
        except NoSuchContainerError:
            logger.warning("The container of {} is gone; making a new one ...", host.observed.name)
            host = _replace_container(host)
        except (RemoteCommandError, SshdDownError):
            found = None if is_last else host.docker.inspect_container(container)
            if found is None or found.is_running:
                raise
            # It stopped again: for being idle, or because another machine has stopped it.
    return _bring_up(host)


def _bring_up(host: HostAccess) -> ObservedHost:
    """Start the container if it does not run and set it up, by one remote command, and log in to it."""
    container = host.config.container_name

    def without_stop_reason(data: CertifiedHostData) -> CertifiedHostData:
        return replace(data, stop_reason=None)

    change = PlannedChange(host, without_stop_reason, is_in_data_json=False)
    pipeline = Pipeline(host.vps, f"start container {container}")
    started = pipeline.add(under_vps_lock(host.host_id, commands.start_container(container)))
    set_up = pipeline.add(setup_command(host))
    inspected = pipeline.add(commands.inspect_container(container))
    change.add_to(pipeline)
    pipeline.run()
    _ = started.value, set_up.value
    found = inspected.value
    record = _with_container(host.with_record(change.finish()), found)
    enter_container(host)
    host.context.local_store.update(host.host_id, lambda known: replace(known, state=HostState.RUNNING))
    return host.observed.started(record, found)


def _with_container(host: HostAccess, found: ContainerInfo) -> VpsDockerHostRecord:
    """Let the record name the container that runs, and return it.

    It names another one where a container was made since, or where naming it failed or was interrupted.
    """

    def naming_it(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        config = record.config and replace(
            record.config, image=found.image, is_container_behind_vps=is_behind_vps(found)
        )
        return replace(record, container_id=found.id, config=config)

    record = host.observed.record
    if record is not None and naming_it(record) == record:
        return record
    return update_record(host, naming_it)


def repair_host(host: HostAccess) -> None:
    """Bring back the sshd and the activity watcher of a running container, if they do not run.

    Raises VpsConnectionError if the container does not run.
    """
    if not host.observed.is_running:
        raise VpsConnectionError(f"Host {host.observed.name} is not running; start it first")
    host.vps.call(setup_command(host))
    enter_container(host)


def _replace_container(host: HostAccess, *, image: str | None = None) -> HostAccess:
    """Make a new container from ``image``, or from what the record says, and return the host as it is then.

    The record says it first, and the old container is kept until the new one runs. So a start that follows one that
    was interrupted at any point finds the old container, or makes the new one. The start arguments are checked again:
    they come from the record, which is on the VPS. Raises BuildArgumentError for one that is not allowed (any more).
    """
    config, settings = host.config, host.context.config
    start_args = allowed_start_args(settings, config.start_args, state_volume=host.context.state_volume_name)
    host.container_ssh.close()

    def made_from(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        now = record.config or config
        return replace(record, config=replace(now, image=image or now.image or settings.default_image))

    record = update_record(host, made_from)
    wanted = (record.config or config).image or settings.default_image
    spec = host_container(
        host.context,
        host_id=host.host_id,
        host_name=host.observed.name,
        container_name=config.container_name,
        image=wanted,
        start_args=start_args,
        tags=host.observed.certified_data.user_tags,
    )
    host.vps.call(
        replace_container(
            spec, aside=f"{config.container_name}.replaced", timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS
        )
    )
    if config.image is not None and config.image != wanted and _is_deleted_snapshot(host, config.image):
        remove_snapshot_image(host.docker, config.image)
    return host.with_record(record)


def remove_snapshot_image(docker: DockerOverSsh, snapshot_id: str) -> None:
    """Remove the image of a snapshot; one that is gone is no error.

    By its tags, because Docker refuses to remove an image by id while later snapshots are built on it; its content
    then goes with the last of them. (Snapshots that version 0.1.0 took are known by the image's id.)
    """
    image = docker.inspect_image(snapshot_id)
    for tag in () if image is None else image.tags:
        docker.remove_image(tag, is_missing_ok=True)


def _is_deleted_snapshot(host: HostAccess, image: str) -> bool:
    is_listed = any(snapshot.id == image for snapshot in host.observed.certified_data.snapshots)
    return image.startswith(("sha256:", f"{SNAPSHOT_REPOSITORY}:")) and not is_listed


def _snapshot_image(host: HostAccess, snapshot_id: SnapshotId) -> str:
    if all(snapshot.id != snapshot_id for snapshot in host.observed.certified_data.snapshots):
        raise SnapshotNotFoundError(snapshot_id)
    if host.docker.inspect_image(snapshot_id) is None:
        raise VpsDockerError(f"The image of snapshot {snapshot_id} of {host.observed.name} is not on its VPS any more")
    return snapshot_id
