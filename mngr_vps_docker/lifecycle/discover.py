"""Finding hosts: what the cloud lists, what each VPS says, and what this machine remembers, joined into one picture.

Nothing is concluded from silence. A VPS that cannot be read keeps its host in the picture, as last seen and with the
reason; only the cloud's own word that an instance does not exist makes a host count as gone.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from datetime import timedelta

from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import HOST_NAME_TAG
from imbue.mngr_vps_docker.lifecycle.context import PROVIDER_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.lifecycle.steps import describe_error
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import UploadedKey
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import take_left_keys_back
from imbue.mngr_vps_docker.lifecycle.uploaded_keys import uploaded_keys
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus
from imbue.mngr_vps_docker.terminal import logger
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from imbue.mngr_vps_docker.vps_state import read_vps_state

# One ssh per VPS at a time; mngr itself asks at most this many hosts at once.
MAX_PARALLEL_READINGS = 32


def discover(
    context: ProviderContext,
    known_records: Iterable[VpsDockerHostRecord] | None = None,
    just_observed: HostSighting | None = None,
) -> dict[HostId, HostSighting]:
    """Find every host of the provider, by id.

    ``known_records`` are those that a provider package found by its own means. The VPS of ``just_observed`` is asked
    again only if the cloud says that it is at another address. Raises ProviderUnavailableError if the cloud cannot be
    asked.
    """

    def observed(sighting: HostSighting) -> HostSighting:
        known = just_observed
        if known is None or known.host_id != sighting.host_id or known.entry.vps_ip != sighting.entry.vps_ip:
            return observe(context, sighting)
        return replace(sighting, reading=known.reading, problem=known.problem)

    entries = {entry.host_id: entry for entry in context.journal.read_all()}
    with ThreadPoolExecutor(MAX_PARALLEL_READINGS) as pool:
        asked_for_keys = pool.submit(uploaded_keys, context)
        with _asking_the_cloud(context):
            instances = context.client.find_instances({PROVIDER_TAG: context.provider_name})
        keys = asked_for_keys.result()
        take_left_keys_back(context, entries.values())
        sightings = [
            *_sightings_of_instances(context, entries, instances or (), keys),
            *_sightings_of_records(entries, known_records or ()),
        ]
        seen = {sighting.host_id for sighting in sightings}
        unseen = [entry for entry in (*entries.values(), *context.journal.stand_ins()) if entry.host_id not in seen]
        sightings += pool.map(lambda entry: _sighting_of_unlisted(context, entry), unseen)
        if instances is not None:
            sightings += _sightings_of_lone_keys(context, keys, {sighting.host_id for sighting in sightings})
        return {sighting.host_id: sighting for sighting in pool.map(observed, sightings)}


@contextmanager
def _asking_the_cloud(context: ProviderContext) -> Iterator[None]:
    try:
        yield
    # A provider package's client may raise anything where the cloud does not answer: that is no empty listing.
    except Exception as error:
        raise ProviderUnavailableError(context.provider_name, describe_error(error)) from error


def observe(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    """Ask the host's VPS, and remember what it says."""
    entry = sighting.entry
    if sighting.is_gone or sighting.is_being_made or sighting.is_unfinished or entry.vps_ip is None:
        return sighting
    try:
        state = read_vps_state(
            context.vps(entry.vps_ip, entry.host_id),
            state_volume=context.state_volume_name,
            container=_container_name(context, sighting),
        )
    except VpsDockerError as error:
        if entry.phase is HostPhase.READY:
            logger.warning("Host {} as last seen: {}", sighting.name, error)
        return replace(sighting, problem=error)
    reading = state.hosts.get(entry.host_id)
    if reading is None:
        return sighting
    found = replace(sighting, reading=reading)
    if reading.record is None or entry.phase is not HostPhase.READY:
        return found
    found = replace(found, entry=_remember(context, found))
    try:
        context.keys.container_client_key(entry.host_id)
    except VpsAuthenticationError as error:
        return replace(found, problem=error)
    return found


def _container_name(context: ProviderContext, sighting: HostSighting) -> str:
    """What the host's container is probably called."""
    record = sighting.record
    if record is not None and record.config is not None:
        return record.config.container_name
    return context.container_name(sighting.name)


def _remember(context: ProviderContext, found: HostSighting) -> JournalEntry:
    """Note what was seen of a host, and nothing else: another process may be destroying it."""
    entry = found.entry
    seen = {"record": found.record, "agents": tuple(found.agents)}
    fresh = entry.model_copy(update=seen)
    where = {"vps_ip": entry.vps_ip, "vps_instance_id": entry.vps_instance_id}
    if fresh != entry and context.journal.update(entry.host_id, **seen, **where) is None:
        context.journal.write(fresh)
    return fresh


def _sightings_of_instances(
    context: ProviderContext,
    entries: Mapping[HostId, JournalEntry],
    instances: Iterable[VpsInstanceInfo],
    keys: Mapping[HostId, UploadedKey],
) -> list[HostSighting]:
    sightings = []
    for instance in instances:
        try:
            host_id = HostId(instance.tags.get(HOST_ID_TAG, ""))
        except ValueError as error:
            logger.warning("Ignored VPS {}, whose {} tag is not a host id: {}", instance.id, HOST_ID_TAG, error)
            continue
        entry = entries.get(host_id) or _entry_from_tags(host_id, instance, keys.get(host_id))
        # The cloud knows the address best: some give a machine a new one.
        current = entry.model_copy(update={"vps_instance_id": instance.id, "vps_ip": instance.address or entry.vps_ip})
        sightings.append(
            HostSighting(
                entry=current,
                is_being_made=entry.phase is HostPhase.CREATING
                and (
                    context.journal.has_live_owner(host_id)
                    if host_id in entries
                    else _may_be_under_way(context, entry.created_at)
                ),
            )
        )
    return sightings


def _entry_from_tags(host_id: HostId, instance: VpsInstanceInfo, key: UploadedKey | None) -> JournalEntry:
    """What the cloud alone tells of a host that another machine made, or is making as long as its key is there."""
    return JournalEntry(
        host_id=host_id,
        host_name=instance.tags.get(HOST_NAME_TAG) or host_id,
        phase=HostPhase.READY if key is None else HostPhase.CREATING,
        created_at=instance.created_at,
        ssh_key_name=None if key is None else key.name,
        ssh_key_id=None if key is None else key.id,
    )


def _sightings_of_lone_keys(
    context: ProviderContext, keys: Mapping[HostId, UploadedKey], known: Collection[HostId]
) -> list[HostSighting]:
    """What is left of a create that another machine ended before it ordered a VPS."""
    alone = [
        (host_id, key)
        for host_id, key in keys.items()
        if host_id not in known and not _may_be_under_way(context, key.created_at)
    ]
    with _asking_the_cloud(context):
        return [
            HostSighting(
                JournalEntry(
                    host_id=host_id,
                    host_name=host_id,
                    phase=HostPhase.CREATING,
                    created_at=key.created_at,
                    ssh_key_name=key.name,
                    ssh_key_id=key.id,
                )
            )
            for host_id, key in alone
            # Another provider of the same account may have a VPS that this key is for.
            if not context.client.find_instances({HOST_ID_TAG: host_id})
        ]


def _may_be_under_way(context: ProviderContext, begun_at: datetime) -> bool:
    """Whether a create that another machine began, of which only the cloud tells, can still be going on."""
    return datetime.now(UTC) - begun_at < timedelta(seconds=context.config.longest_create_seconds)


def _sightings_of_records(
    entries: Mapping[HostId, JournalEntry], records: Iterable[VpsDockerHostRecord]
) -> list[HostSighting]:
    return [
        HostSighting(entry=entries.get(HostId(record.certified_host_data.host_id)) or entry_from_record(record))
        for record in records
    ]


def entry_from_record(record: VpsDockerHostRecord) -> JournalEntry:
    """What this machine would remember of a host that it knows only by its record."""
    data = record.certified_host_data
    return JournalEntry(
        host_id=HostId(data.host_id),
        host_name=data.host_name,
        phase=HostPhase.READY,
        created_at=data.created_at,
        vps_instance_id=record.config.vps_instance_id if record.config is not None else None,
        ssh_key_id=record.config.vps_ssh_key_id if record.config is not None else None,
        vps_ip=record.vps_ip,
        record=record,
    )


def _sighting_of_unlisted(context: ProviderContext, entry: JournalEntry) -> HostSighting:
    """A host that this machine remembers and the cloud did not list; listings lag, so the cloud is asked by id."""
    if context.journal.has_live_owner(entry.host_id):
        return HostSighting(entry=entry, is_being_made=True)
    if entry.vps_instance_id is None:
        return HostSighting(entry=entry)
    with _asking_the_cloud(context):
        try:
            status = context.client.get_instance_status(entry.vps_instance_id)
        except VpsApiError as error:
            if error.is_gone:
                return HostSighting(entry=entry, is_gone=not entry.may_still_appear)
            raise
    return HostSighting(entry=entry, is_gone=status is VpsInstanceStatus.DESTROYING)
