"""Destroying a host: everything that was made for it, in an order that keeps it findable until nothing is billed."""

import time
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass

from imbue.mngr.errors import MngrError
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.lifecycle.steps import Step
from imbue.mngr_vps_docker.lifecycle.steps import describe_error
from imbue.mngr_vps_docker.lifecycle.steps import run_steps
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus
from imbue.mngr_vps_docker.terminal import logger

# Most clouds go on reporting a destroyed instance for some seconds; one that is still there after a minute is billed.
GONE_TIMEOUT_SECONDS = 60.0
# What a cloud's listing may lag behind its own answers, as long as it is worth waiting for.
LISTING_LAG_SECONDS = 10.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Destruction:
    """A host that is being destroyed."""

    context: ProviderContext
    entry: JournalEntry


def destroy_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove the VPS of a host and everything else that was made for it. Works without ssh; twice is harmless.

    ``entry`` is what was known of the host. Raises VpsDockerError, naming what remains, when something that costs
    money remains; the host then stays known.
    """
    was_known = context.journal.read(entry.host_id) is not None
    context.journal.wait_until_unused(entry.host_id)
    with context.journal.owned(entry.host_id):
        # Who owned the host until now has learned more of it, or has removed it.
        newer = context.journal.read(entry.host_id)
        if newer is None and was_known:
            context.journal.forget(entry.host_id)
            return
        try:
            run_steps(DESTROY_STEPS, Destruction(context, newer or entry), on_failure=lambda *_: False)
        # A provider package's client may raise anything, and the user gets one clear line of it.
        except Exception as error:
            raise VpsDockerError(
                f"Host {entry.host_name} is not fully destroyed, try again: {describe_error(error)}"
            ) from error


def delete_host(context: ProviderContext, sighting: HostSighting) -> None:
    """Destroy a host with which nothing is lost; raises MngrError if it is not so. See ``destroy_host``."""
    if not sighting.may_be_deleted:
        found = f"it is {sighting.state.value.lower()} and has {len(sighting.known_agents)} agents"
        raise MngrError(f"Host {sighting.name} is not deleted: {sighting.problem or found}")
    destroy_host(context, sighting.entry)


def delete_instance_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Destroy every VPS of a host, and wait until the cloud says so; one that it no longer knows counts as destroyed.

    A VPS whose order was answered too late, wrongly or never, or taken twice, is found by its tag. Raises
    VpsDockerError naming the VPS that remains, or that may.
    """
    deadline = time.monotonic() + LISTING_LAG_SECONDS
    while not _delete_instances_that_there_are(context, entry):
        if not entry.may_still_appear:
            return
        if time.monotonic() >= deadline:
            raise VpsDockerError(
                f"A VPS of {entry.host_name} may still appear: one was ordered just now, and the cloud shows none"
            )
        time.sleep(_POLL_SECONDS)


def delete_key_of(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove every public key that was uploaded for a host; one that the cloud no longer knows counts as removed.

    One that was left would say of a finished host that it was never finished, wherever only the cloud tells of it.
    """
    # Version 0.1.0 noted it in the record, and left it there for the host's whole life, by this name. The VPS writes
    # that record, and could name any key of the account.
    in_record = None if entry.record is None or entry.record.config is None else entry.record.config.vps_ssh_key_id
    name_of_0_1_0 = f"mngr-{entry.host_name}"

    def find() -> list[str]:
        if not entry.ssh_key_name and not in_record:
            return []
        return [
            key.id
            for key in context.client.list_ssh_keys()
            if key.name == entry.ssh_key_name or (key.id, key.name) == (in_record, name_of_0_1_0)
        ]

    def delete(key_id: str) -> bool:
        return _unless_gone(lambda: context.client.delete_ssh_key(key_id))

    known = [entry.ssh_key_id] if entry.ssh_key_id else []
    left = f"Public key {{}} of host {entry.host_name} may still be there"
    _remove_each(lambda: known, find, remove=delete, left=left)


def forget_host(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove what this machine keeps of a host: its keys, its pinned host keys, its shared connections, its notes."""
    try:
        context.close_connections(entry.host_id, entry.vps_ip)
    except (VpsDockerError, OSError) as error:
        # They end by themselves, some time after the machine that they lead to.
        logger.debug("Connections to {} stay open: {}", entry.host_name, error)
    context.unpin(entry.host_id, entry.vps_ip, entry.record)
    context.journal.forget(entry.host_id)


def _note(destruction: Destruction) -> None:
    context, entry = destruction.context, destruction.entry
    try:
        context.journal.write(entry.model_copy(update={"phase": HostPhase.DESTROYING}))
    except OSError as error:
        # Such as a full disk. What is billed goes all the same, and the note as it was still tells of it.
        logger.warning("It cannot be noted that {} is being destroyed: {}", entry.host_name, error)


# The key goes after the VPS: as long as there is one, it says to other machines that the host was never finished.
DESTROY_STEPS: tuple[Step[Destruction], ...] = (
    Step("Noting that the host is to go", _note),
    Step("Destroying the VPS", lambda host: delete_instance_of(host.context, host.entry)),
    Step("Taking its public key from the cloud", lambda host: delete_key_of(host.context, host.entry)),
    Step("Forgetting its keys and notes", lambda host: forget_host(host.context, host.entry)),
)


def _delete_instances_that_there_are(context: ProviderContext, entry: JournalEntry) -> bool:
    """Destroy the VPS that is known and those of the host's tag, and say whether the cloud had any of them."""
    known = entry.vps_instance_id

    def find() -> Iterable[VpsInstanceId]:
        found = context.client.find_instances({HOST_ID_TAG: entry.host_id})
        if found is None and known is None and entry.is_vps_ordered:
            raise VpsDockerError(
                f"The cloud may have a VPS of {entry.host_name}, of which nothing but its tag is known, and cannot"
                f" list its instances: look for the tag {HOST_ID_TAG}={entry.host_id} in its console, remove the VPS"
                f" that has it, and then the folder {context.keys.hosts_folder / entry.host_id}"
            )
        return [instance.id for instance in found or ()]

    def destroy(instance_id: VpsInstanceId) -> bool:
        is_there = _unless_gone(lambda: context.client.destroy_instance(instance_id))
        if is_there:
            _unless_gone(lambda: _wait_until_gone(context, instance_id))
        return is_there

    left = f"VPS {{}} of host {entry.host_name} may still exist and be billed"
    return _remove_each(lambda: () if known is None else (known,), find, remove=destroy, left=left)


def _remove_each[Id: str](*looks: Callable[[], Iterable[Id]], remove: Callable[[Id], bool], left: str) -> bool:
    """Remove what there is to find in one place and then in the next, each thing whatever comes of the others.

    Says whether ``remove`` did so of any. Raises VpsDockerError naming all that may be ``left``.
    """
    removed: dict[Id, bool] = {}
    problems: list[str] = []
    for look in looks:
        try:
            ids = [each for each in look() if each not in removed]
        # A provider package's client may raise anything, and what else is known of is to be removed all the same.
        except Exception as error:  # noqa: BLE001
            problems.append(describe_error(error))
            continue
        for each in ids:
            removed[each] = False
            try:
                removed[each] = remove(each)
            except Exception as error:  # noqa: BLE001
                problems.append(f"{left.format(each)}: {describe_error(error)}")
    if problems:
        raise VpsDockerError("; ".join(problems))
    return any(removed.values())


def _unless_gone(act: Callable[[], object]) -> bool:
    """Do something with a thing of the cloud's, and say whether it was there."""
    try:
        act()
    except VpsApiError as error:
        if not error.is_gone:
            raise
        return False
    return True


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
