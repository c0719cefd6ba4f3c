"""Destroying a host: everything that was made for it, in an order that keeps it findable until nothing is billed."""

import time
from collections.abc import Iterator

from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.steps import describe_error
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus

# Most clouds go on reporting a destroyed instance for some seconds; one that is still there after a minute is billed.
GONE_TIMEOUT_SECONDS = 60.0
# What a cloud's listing may lag behind its own answers.
LISTING_LAG_SECONDS = 10.0
_POLL_SECONDS = 0.5


def destroy_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove the VPS of a host and everything else that was made for it. Works without ssh; twice is harmless.

    Raises VpsDockerError, naming what remains, when something that costs money remains; the host then stays known.
    """
    with context.journal.owned(entry.host_id):
        entry = context.journal.write(entry.model_copy(update={"phase": HostPhase.DESTROYING}))
        context.close_connections(entry.host_id, entry.vps_ip)
        problems = []
        for remove in (delete_instance_of, delete_key_of):
            try:
                remove(context, entry)
            # A provider package's client may raise anything, and the next thing is to be removed all the same.
            except Exception as error:  # noqa: BLE001
                problems.append(describe_error(error))
        if problems:
            raise VpsDockerError(f"Host {entry.host_name} is not fully destroyed, try again: {'; '.join(problems)}")
        forget_host(context, entry)


def delete_instance_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Destroy every VPS of a host, and wait until the cloud says so; one that it no longer knows counts as destroyed.

    A VPS whose order was answered too late, wrongly or never, or taken twice, is found by its tag. Raises
    VpsDockerError naming the VPS that remains, or that may.
    """
    for instance_id in _instance_ids(context, entry):
        try:
            context.client.destroy_instance(instance_id)
            _wait_until_gone(context, instance_id)
        # A provider package's client may raise anything where the cloud did not answer at all.
        except Exception as error:
            if not _says_that_it_is_gone(error):
                raise VpsDockerError(
                    f"VPS {instance_id} of host {entry.host_name} may still exist and be billed:"
                    f" {describe_error(error)}"
                ) from error


def delete_unanswered_instance_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Destroy the VPS that the cloud may have made of an order whose answer was lost, found by its tag.

    Listings lag, so it is looked for a while. Raises VpsDockerError where the client cannot list.
    """
    deadline = time.monotonic() + LISTING_LAG_SECONDS
    while (found := context.client.find_instances({HOST_ID_TAG: entry.host_id})) is not None:
        if found:
            return delete_instance_of(context, entry)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)
    raise _may_have_vps(context, entry)


def delete_key_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove every public key that was uploaded for a host; one that the cloud no longer knows counts as removed.

    One that was left would say of a finished host that it was never finished, wherever only the cloud tells of it.
    """
    for key_id in _key_ids(context, entry):
        try:
            context.client.delete_ssh_key(key_id)
        except Exception as error:
            if not _says_that_it_is_gone(error):
                raise VpsDockerError(
                    f"Public key {key_id} of host {entry.host_name} may still be there: {describe_error(error)}"
                ) from error


def forget_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove what this machine keeps of a host: its keys, its pinned host keys, its shared connections, its notes."""
    context.close_connections(entry.host_id, entry.vps_ip)
    context.unpin(entry.host_id, entry.vps_ip, entry.record)
    context.journal.forget(entry.host_id)


def _key_ids(context: ProviderContext, entry: JournalEntry) -> Iterator[str]:
    """The key that is known, and only when that was dealt with, those of its name."""
    if entry.ssh_key_id:
        yield entry.ssh_key_id
    if entry.ssh_key_name:
        named = [key.id for key in context.client.list_ssh_keys() if key.name == entry.ssh_key_name]
        yield from (key_id for key_id in named if key_id != entry.ssh_key_id)


def _instance_ids(context: ProviderContext, entry: JournalEntry) -> Iterator[VpsInstanceId]:
    """The VPS that is known, and only when that was dealt with, those of its tag."""
    known = entry.vps_instance_id
    if known is not None:
        yield known
    found = context.client.find_instances({HOST_ID_TAG: entry.host_id})
    if found is None and known is None and entry.is_vps_ordered:
        raise _may_have_vps(context, entry)
    yield from (instance.id for instance in found or () if instance.id != known)


def _may_have_vps(context: ProviderContext, entry: JournalEntry) -> VpsDockerError:
    return VpsDockerError(
        f"The cloud may have a VPS of {entry.host_name}, of which nothing but its tag is known, and cannot list its"
        f" instances: look for the tag {HOST_ID_TAG}={entry.host_id} in its console, remove the VPS that has it, and"
        f" then the folder {context.keys.hosts_folder / entry.host_id}"
    )


def _wait_until_gone(context: ProviderContext, instance_id: VpsInstanceId) -> None:
    """Return when the cloud says that the VPS is being destroyed; raises VpsApiError 404 or 410 if it already is."""
    deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
    while (status := context.client.get_instance_status(instance_id)) is not VpsInstanceStatus.DESTROYING:
        if time.monotonic() >= deadline:
            raise VpsDockerError(
                f"the cloud took the order to destroy it and still reports it as {status} after"
                f" {GONE_TIMEOUT_SECONDS:.0f} s"
            )
        time.sleep(_POLL_SECONDS)


def _says_that_it_is_gone(error: Exception) -> bool:
    return isinstance(error, VpsApiError) and error.is_gone
