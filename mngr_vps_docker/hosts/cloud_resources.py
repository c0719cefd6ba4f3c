"""What the cloud has of a host: its VPS, and our public key from the beginning of its create to just before its end.

A key that is there tells any machine that has only the cloud's credentials that its host was never finished. Its name
says whose it is, since when, and how long the create may take at most, which a cloud need not tell.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsApiError, VpsDockerError, describe_error
from imbue.mngr_vps_docker.hosts.host_access import HOST_ID_TAG, ProviderContext
from imbue.mngr_vps_docker.primitives import HOST_ID_PATTERN, VpsInstanceId, VpsInstanceStatus, replace
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.text import logger

# Earlier keys do not say how long; then as long as this machine's own would take.
_NAME: Final = re.compile(rf"mngr-({HOST_ID_PATTERN})-(\d{{10,11}})(?:-(\d{{1,9}}))?")


@dataclass(frozen=True, slots=True)
class UploadedKey:
    """One of our public keys at the cloud."""

    id: str
    name: str
    created_at: datetime
    longest_create_seconds: float

    @property
    def may_be_in_use(self) -> bool:
        """Whether the create that it is for can still be running, on another machine."""
        return datetime.now(UTC) - self.created_at < timedelta(seconds=self.longest_create_seconds)


def key_name(host_id: HostId, created_at: datetime, longest_create_seconds: float) -> str:
    """The name of the public key for a host whose create began at ``created_at``, by a machine with such time-outs."""
    return f"mngr-{host_id}-{int(created_at.timestamp())}-{math.ceil(longest_create_seconds)}"


def uploaded_keys(context: ProviderContext) -> Mapping[HostId, UploadedKey]:
    """The keys of hosts that are being made, or were never finished, by host.

    If keys cannot be listed, every host counts as finished.
    """
    try:
        listed = context.client.list_ssh_keys()
    # A provider package's client may raise anything, and what exists can be shown all the same.
    except Exception as error:  # noqa: BLE001
        logger.warning("Whether hosts were left unfinished by other machines is unknown: {}", describe_error(error))
        return {}
    named = ((key, _NAME.fullmatch(key.name)) for key in listed)
    return {
        HostId(name.group(1)): UploadedKey(
            id=key.id,
            name=key.name,
            created_at=datetime.fromtimestamp(int(name.group(2)), UTC),
            longest_create_seconds=float(name.group(3) or context.config.longest_create_seconds),
        )
        for key, name in named
        if name is not None
    }


def delete_uploaded_key(context: ProviderContext, entry: LocalHostRecord) -> None:
    """Delete the uploaded key of a finished host, and save that; raises VpsDockerError if it may still be there.

    As long as it is there, other machines take the host for one that was never finished.
    """
    delete_key_of(context, entry)
    context.local_store.update(entry.host_id, lambda known: replace(known, ssh_key_id=None, ssh_key_name=None))


def delete_leftover_keys(context: ProviderContext, entries: Iterable[LocalHostRecord]) -> None:
    """Delete the keys that the creates of finished hosts could not delete."""
    for entry in entries:
        if entry.phase is HostPhase.READY and entry.ssh_key_name is not None:
            try:
                delete_uploaded_key(context, entry)
            except (VpsDockerError, OSError) as error:
                logger.warning("The public key of {} is not deleted yet: {}", entry.host_name, error)


def delete_instance_of(context: ProviderContext, entry: LocalHostRecord) -> None:
    """Destroy every VPS of a host, and wait until the cloud says so; one that it no longer knows counts as destroyed.

    A VPS whose order was answered too late, wrongly or never, or taken twice, is found by its tag. Raises
    VpsDockerError naming the VPS that remains, or that may.
    """
    timings = context.timings
    deadline = time.monotonic() + timings.listing_lag_seconds
    while not _delete_instances_that_there_are(context, entry):
        if not entry.may_still_appear(timings.appearing_seconds):
            return
        if time.monotonic() >= deadline:
            raise VpsDockerError(
                f"A VPS of {entry.host_name} may still appear: one was ordered just now, and the cloud shows none"
            )
        time.sleep(timings.cloud_poll_seconds)


def delete_key_of(context: ProviderContext, entry: LocalHostRecord) -> None:
    """Delete every public key that was uploaded for a host. Idempotent: a key that the cloud does not know is gone."""
    # Version 0.1.0 kept it for the host's whole life, by this name, with its id in the record. The VPS can write that
    # record, and could name any key of the account.
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


def _delete_instances_that_there_are(context: ProviderContext, entry: LocalHostRecord) -> bool:
    """Destroy the VPS that is known and those with the host's tag; whether the cloud had any of them."""
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
    """Remove what is found in one place and then in the next, each thing whatever becomes of the others.

    Returns whether ``remove`` did so for any. Raises VpsDockerError naming all that may be ``left``.
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
    """Do something with a thing of the cloud's; whether it was there."""
    try:
        act()
    except VpsApiError as error:
        if not error.is_gone:
            raise
        return False
    return True


def _wait_until_gone(context: ProviderContext, instance_id: VpsInstanceId) -> None:
    """Return when the cloud says that the VPS is being destroyed; raises VpsApiError 404 or 410 if it already is."""
    timings = context.timings
    deadline = time.monotonic() + timings.gone_seconds
    while (status := context.client.get_instance_status(instance_id)) is not VpsInstanceStatus.DESTROYING:
        if time.monotonic() >= deadline:
            raise VpsDockerError(
                f"the cloud took the order to destroy it and still reports it as {status} after"
                f" {timings.gone_seconds:.0f} s"
            )
        time.sleep(timings.cloud_poll_seconds)
