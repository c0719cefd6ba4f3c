"""Stopping and starting a host. The VPS stays up: both act on its container.

Of the processes of a machine, one at a time does any of this: see HostCache.alone. What they saw of the host may be
old by then, so each finds out on the VPS itself whether it still is so.
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
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost, require_usable
from imbue.mngr_vps_docker.lifecycle.container import (
    enter_container,
    host_container,
    is_behind_vps,
    locked,
    setup_command,
)
from imbue.mngr_vps_docker.lifecycle.metadata import PlannedChange, update_record
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, VpsHostConfig
from imbue.mngr_vps_docker.text import logger

SNAPSHOT_REPOSITORY: Final = "mngr-snapshot"


def stop_host(context: ProviderContext, observed: ObservedHost, *, timeout_seconds: float) -> None:
    """Stop the host's container, by one remote command; one that is stopped already is left as it is.

    ``timeout_seconds`` is how long its processes get before they are killed.
    """
    address, config = require_usable(observed)
    context.container(address, observed.host_id).close()
    container = config.container_name

    def with_stop_reason(data: CertifiedHostData) -> CertifiedHostData:
        return replace(data, stop_reason=HostState.STOPPED.value)

    change = PlannedChange(context, observed, with_stop_reason, is_in_data_json=False)
    pipeline = Pipeline(context.vps(address, observed.host_id), f"stop container {container}")
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
    context.local_store.update(observed.host_id, lambda known: replace(known, state=HostState.STOPPED))


def start_host(
    context: ProviderContext, observed: ObservedHost, snapshot_id: SnapshotId | None = None
) -> ObservedHost:
    """Bring the host up, from a snapshot of it if given, and wait until mngr can log in; a running one stays as it is.

    One that is paused is resumed. A container that is gone is replaced by one of its image; its volume, and with it
    mngr's folder, is kept.
    """
    address, config = require_usable(observed)
    # A machine without the container's key could start it, but not prove that it can be used.
    if observed.problem is not None:
        raise observed.problem
    docker = context.docker(address, observed.host_id)
    if snapshot_id is not None:
        observed = _replace_container(context, docker, observed, image=_snapshot_image(docker, observed, snapshot_id))
    for is_last in (False, False, True):
        try:
            return _bring_up(context, observed, address, config)
        except NoSuchContainerError:
            logger.warning("The container of {} is gone; making it anew ...", observed.name)
            observed = _replace_container(context, docker, observed)
        except (RemoteCommandError, SshdDownError):
            container = None if is_last else docker.inspect_container(config.container_name)
            if container is None or container.is_running:
                raise
            # It stopped meanwhile: for being idle, or because another machine has stopped it.
    return _bring_up(context, observed, address, config)


def _bring_up(context: ProviderContext, observed: ObservedHost, address: str, config: VpsHostConfig) -> ObservedHost:
    """Start the container if it does not run and set it up, by one remote command, and log in to it."""
    container, host_id = config.container_name, observed.host_id

    def without_stop_reason(data: CertifiedHostData) -> CertifiedHostData:
        return replace(data, stop_reason=None)

    change = PlannedChange(context, observed, without_stop_reason, is_in_data_json=False)
    pipeline = Pipeline(context.vps(address, host_id), f"start container {container}")
    started = pipeline.add(locked(host_id, commands.start_container(container)))
    set_up = pipeline.add(setup_command(context, host_id=host_id, container=container))
    inspected = pipeline.add(commands.inspect_container(container))
    change.add_to(pipeline)
    pipeline.run()
    _ = started.value, set_up.value
    found = inspected.value
    record = change.finish()
    record = _with_container(context, observed.with_record(record), found)
    enter_container(context, address=address, host_id=host_id, container=container)
    context.local_store.update(host_id, lambda known: replace(known, state=HostState.RUNNING))
    return observed.started(record, found)


def _with_container(context: ProviderContext, observed: ObservedHost, found: ContainerInfo) -> VpsDockerHostRecord:
    """Have the record name the container that runs, and return it.

    It names another one after a container was made anew, or was not because that failed or was cut short.
    """

    def naming_it(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        behind_vps = is_behind_vps(found)
        config = record.config and replace(record.config, image=found.image, is_container_behind_vps=behind_vps)
        return replace(record, container_id=found.id, config=config)

    record = observed.record
    if record is not None and naming_it(record) == record:
        return record
    return update_record(context, observed, naming_it)


def repair_host(context: ProviderContext, observed: ObservedHost) -> None:
    """Bring back the sshd and the activity watcher of a running container, if they do not run.

    Raises VpsConnectionError if it is the container that does not run.
    """
    address, config = require_usable(observed)
    if not observed.is_running:
        raise VpsConnectionError(f"Host {observed.name} is not running; start it first")
    context.vps(address, observed.host_id).call(
        setup_command(context, host_id=observed.host_id, container=config.container_name)
    )
    enter_container(context, address=address, host_id=observed.host_id, container=config.container_name)


def _replace_container(
    context: ProviderContext, docker: DockerOverSsh, observed: ObservedHost, *, image: str | None = None
) -> ObservedHost:
    """Make the container anew, from ``image`` or what its record says, and return the host as it is then.

    The record is to say it first, and the old container is kept until the new one runs. So the start that follows one
    that was cut short, wherever that was, has the old container, or makes the new one. Its start arguments are looked
    at once more: they come from the record, which is on the VPS. Raises BuildArgumentError for one that is not
    allowed, or not any more.
    """
    address, config = require_usable(observed)
    start_args = allowed_start_args(context.config, config.start_args, state_volume=context.state_volume_name)
    context.container(address, observed.host_id).close()

    def made_from(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        now = record.config or config
        chosen = image or now.image or context.config.default_image
        return replace(record, config=replace(now, image=chosen))

    record = update_record(context, observed, made_from)
    wanted = (record.config or config).image or context.config.default_image
    spec = host_container(
        context,
        host_id=observed.host_id,
        host_name=observed.name,
        container_name=config.container_name,
        image=wanted,
        start_args=start_args,
        tags=observed.certified_data.user_tags,
    )
    docker.connection.call(
        replace_container(
            spec, aside=f"{config.container_name}.replaced", timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS
        )
    )
    if config.image is not None and config.image != wanted and _is_deleted_snapshot(observed, config.image):
        remove_snapshot_image(docker, config.image)
    return observed.with_record(record)


def remove_snapshot_image(docker: DockerOverSsh, snapshot_id: str) -> None:
    """Remove the image of a snapshot; one that is gone is no error.

    By its tags, because Docker refuses to remove an image by id while later snapshots are built on it; its content
    then goes with the last of them. (Snapshots that version 0.1.0 took are known by the image's id.)
    """
    image = docker.inspect_image(snapshot_id)
    for tag in () if image is None else image.tags:
        docker.remove_image(tag, is_missing_ok=True)


def _is_deleted_snapshot(observed: ObservedHost, image: str) -> bool:
    is_listed = any(snapshot.id == image for snapshot in observed.certified_data.snapshots)
    return image.startswith(("sha256:", f"{SNAPSHOT_REPOSITORY}:")) and not is_listed


def _snapshot_image(docker: DockerOverSsh, observed: ObservedHost, snapshot_id: SnapshotId) -> str:
    if all(snapshot.id != snapshot_id for snapshot in observed.certified_data.snapshots):
        raise SnapshotNotFoundError(snapshot_id)
    if docker.inspect_image(snapshot_id) is None:
        raise VpsDockerError(f"The image of snapshot {snapshot_id} of {observed.name} is not on its VPS any more")
    return snapshot_id
