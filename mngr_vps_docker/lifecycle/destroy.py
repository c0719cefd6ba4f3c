"""Destroying a host: everything that was made for it, in an order that keeps it findable until nothing is billed."""

from loguru import logger

from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.primitives import VpsInstanceId


def destroy_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove the VPS of a host and everything else that was made for it. Works without ssh; twice is harmless.

    Raises VpsDockerError, naming what remains, when something that costs money remains; the host then stays known.
    """
    with context.journal.owned(entry.host_id):
        entry = context.journal.write(entry.model_copy(update={"phase": HostPhase.DESTROYING}))
        context.close_connections(entry.host_id)
        problems = []
        for remove in (delete_instance_of, delete_key_of):
            try:
                remove(context, entry)
            except VpsDockerError as error:
                problems.append(str(error))
        if problems:
            raise VpsDockerError(f"Host {entry.host_name} is not fully destroyed, try again: {'; '.join(problems)}")
        forget_host(context, entry)


def delete_instance_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Destroy every VPS of a host; one that the cloud no longer knows counts as destroyed.

    A VPS whose order was answered too late, or never, is found by its tag.
    """
    for instance_id in _instance_ids(context, entry):
        try:
            context.client.destroy_instance(instance_id)
        except VpsApiError as error:
            if not error.is_gone:
                raise VpsDockerError(f"VPS {instance_id} of host {entry.host_name} still exists: {error}") from error


def delete_key_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove the public key that was uploaded for a host; one that the cloud no longer knows counts as removed."""
    key_ids = {entry.ssh_key_id} if entry.ssh_key_id else set()
    if not key_ids and entry.ssh_key_name:
        key_ids = {key.id for key in context.client.list_ssh_keys() if key.name == entry.ssh_key_name}
    for key_id in key_ids:
        try:
            context.client.delete_ssh_key(key_id)
        except VpsApiError as error:
            if not error.is_gone:
                raise VpsDockerError(
                    f"Public key {key_id} of host {entry.host_name} is still there: {error}"
                ) from error


def forget_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove what this machine keeps of a host: its keys, its pinned host keys, its shared connections, its notes."""
    if entry.vps_instance_id is not None and _still_exists(context, entry.vps_instance_id):
        raise VpsDockerError(f"VPS {entry.vps_instance_id} of host {entry.host_name} still exists; it stays known")
    context.close_connections(entry.host_id)
    context.unpin(entry.host_id, entry.vps_ip)
    context.keys.forget_host(entry.host_id)


def remove_containers(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove a host's container and volume from its VPS, as far as it can be reached."""
    if entry.vps_ip is None or entry.record is None or entry.record.config is None:
        return
    docker = context.docker(entry.vps_ip, entry.host_id)
    try:
        docker.remove_container(entry.record.config.container_name, is_missing_ok=True)
        docker.remove_volume(entry.record.config.volume_name, is_missing_ok=True)
    except (VpsConnectionError, RemoteCommandError, RemoteCommandTimeoutError) as error:
        logger.debug("The container of {} goes with its VPS: {}", entry.host_name, error)


def _instance_ids(context: ProviderContext, entry: JournalEntry) -> tuple[VpsInstanceId, ...]:
    if entry.vps_instance_id is not None:
        return (entry.vps_instance_id,)
    found = context.client.find_instances({HOST_ID_TAG: entry.host_id})
    return tuple(instance.id for instance in found or ())


def _still_exists(context: ProviderContext, instance_id: VpsInstanceId) -> bool:
    try:
        status = context.client.get_instance_status(instance_id)
    except VpsApiError as error:
        if error.is_gone:
            return False
        raise
    return status not in (status.DESTROYING,)
