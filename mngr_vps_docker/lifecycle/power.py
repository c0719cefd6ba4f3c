"""Stopping and starting a host. The VPS stays up: both act on its container.

Of the processes of a machine, one at a time does any of this: see HostCache.alone. What they saw of the host may be
old by then, so each finds out on the VPS itself whether it still is so.
"""

import math
from typing import Final

from imbue.mngr.errors import SnapshotNotFoundError
from imbue.mngr.primitives import HostName, HostState, SnapshotId
from imbue.mngr_vps_docker.config import CONTAINER_SETUP_TIMEOUT_SECONDS
from imbue.mngr_vps_docker.docker.commands import inspect_container_argv, start_script
from imbue.mngr_vps_docker.docker.errors import NoSuchContainerError, checked_docker
from imbue.mngr_vps_docker.docker.models import ContainerInfo, parse_container
from imbue.mngr_vps_docker.docker.run_options import allowed_start_args
from imbue.mngr_vps_docker.docker_over_ssh import (
    NOT_RUNNING,
    DockerOverSsh,
    docker_step,
    new_container_id,
    replace_step,
    stop_if_running,
)
from imbue.mngr_vps_docker.errors import RemoteCommandError, SshdDownError, VpsConnectionError, VpsDockerError
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost, require_usable
from imbue.mngr_vps_docker.lifecycle.container import (
    ContainerRequest,
    check_setup,
    enter_container,
    host_container,
    is_behind_vps,
    locked_step,
    setup_step,
)
from imbue.mngr_vps_docker.lifecycle.metadata import apply_change, plan_change, update_certified_data, update_record
from imbue.mngr_vps_docker.ssh.outcome import Effect
from imbue.mngr_vps_docker.ssh.remote_command import ChainStep, run_chain
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, VpsHostConfig
from imbue.mngr_vps_docker.text import logger

SNAPSHOT_REPOSITORY: Final = "mngr-snapshot"
# For what Docker and the disk do at once.
_STEPS_TIMEOUT_SECONDS: Final = 120.0


def stop_host(context: ProviderContext, observed: ObservedHost, *, timeout_seconds: float) -> None:
    """Stop the host's container, by one remote command; one that is stopped already is left as it is.

    ``timeout_seconds`` is how long its processes get before they are killed.
    """
    address, config = require_usable(observed)
    context.container(address, observed.host_id).close()
    stopped = {"stop_reason": HostState.STOPPED.value}
    change = plan_change(context, observed, lambda data: data.model_copy(update=stopped), is_in_data_json=False)
    purpose = f"stop container {config.container_name}"
    ended, *outcomes = run_chain(
        context.vps(address, observed.host_id),
        [
            ChainStep(stop_if_running(config.container_name, math.ceil(timeout_seconds)), purpose),
            *(() if change is None else change.steps),
        ],
        purpose=purpose,
        timeout_seconds=timeout_seconds + _STEPS_TIMEOUT_SECONDS,
    )
    if ended.exit_code == NOT_RUNNING:
        # If it stopped by itself, it has said why.
        return
    try:
        checked_docker(ended)
    except NoSuchContainerError:
        return
    if change is None:
        update_certified_data(context, observed, **stopped)
    else:
        apply_change(context, observed, change, outcomes)
    context.local_store.update(observed.host_id, state=HostState.STOPPED)


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
    change = plan_change(
        context, observed, lambda data: data.model_copy(update={"stop_reason": None}), is_in_data_json=False
    )
    started, *outcomes = run_chain(
        context.vps(address, host_id),
        [
            locked_step(host_id, ChainStep(start_script(container), f"start container {container}")),
            setup_step(context, host_id=host_id, container=container),
            docker_step(inspect_container_argv(container), f"inspect container {container}"),
            *(() if change is None else change.steps),
        ],
        purpose=f"start container {container}",
        timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS + _STEPS_TIMEOUT_SECONDS,
        effect=Effect.IDEMPOTENT,
    )
    checked_docker(started)
    set_up, *outcomes = outcomes
    check_setup(set_up)
    inspected, *outcomes = outcomes
    found = parse_container(checked_docker(inspected).text)
    if change is None:
        record = update_certified_data(context, observed, stop_reason=None)
    else:
        record = apply_change(context, observed, change, outcomes)
    record = _with_container(context, observed.with_record(record), found)
    enter_container(context, address=address, host_id=host_id, container=container)
    context.local_store.update(host_id, state=HostState.RUNNING)
    return observed.started(record, found)


def _with_container(context: ProviderContext, observed: ObservedHost, found: ContainerInfo) -> VpsDockerHostRecord:
    """Have the record name the container that runs, and return it.

    It names another one after a container was made anew, or was not because that failed or was cut short.
    """

    def naming_it(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        running = {"image": found.image, "is_container_behind_vps": is_behind_vps(found)}
        config = record.config and record.config.model_copy(update=running)
        return record.model_copy(update={"container_id": found.id, "config": config})

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
    step = setup_step(context, host_id=observed.host_id, container=config.container_name)
    (outcome,) = run_chain(
        context.vps(address, observed.host_id),
        [step],
        purpose=step.purpose,
        timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS + _STEPS_TIMEOUT_SECONDS,
        effect=Effect.IDEMPOTENT,
    )
    check_setup(outcome)
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
        return record.model_copy(update={"config": now.model_copy(update={"image": chosen})})

    record = update_record(context, observed, made_from)
    wanted = (record.config or config).image or context.config.default_image
    request = ContainerRequest(
        host_id=observed.host_id,
        host_name=HostName(observed.name),
        container_name=config.container_name,
        image=wanted,
        start_args=start_args,
        tags=observed.certified_data.user_tags,
    )
    step = replace_step(host_container(context, request), aside=f"{config.container_name}.replaced")
    (outcome,) = run_chain(
        docker.connection,
        [step],
        purpose=step.purpose,
        timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS + _STEPS_TIMEOUT_SECONDS,
    )
    new_container_id(outcome)
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
