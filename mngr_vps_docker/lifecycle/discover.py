"""Finding hosts: what the cloud lists, what each VPS says, and what this machine remembers, joined into one picture.

Nothing is concluded from silence. A VPS that cannot be read keeps its host in the picture, as last seen and with the
reason; only the cloud's own word that an instance does not exist makes a host count as gone.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from typing import Any

from loguru import logger

from imbue.mngr.errors import HostAuthenticationError
from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostState
from imbue.mngr_vps_docker.docker_objects import ContainerInfo
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import HOST_ID_TAG
from imbue.mngr_vps_docker.lifecycle.context import HOST_NAME_TAG
from imbue.mngr_vps_docker.lifecycle.context import PROVIDER_TAG
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.primitives import VpsInstanceStatus
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from imbue.mngr_vps_docker.vps_state import HostReading
from imbue.mngr_vps_docker.vps_state import read_vps_state

# One ssh per VPS at a time; mngr itself asks at most this many hosts at once.
MAX_PARALLEL_READINGS = 32

_STOP_REASONS = {state.value: state for state in (HostState.STOPPED, HostState.PAUSED)}


@dataclass(frozen=True, slots=True)
class HostSighting:
    """One host as it was just found.

    ``entry`` is always there: made up from the instance's tags where this machine knew nothing of the host.
    ``reading`` is what its VPS said, ``problem`` why it said nothing; ``is_gone`` is the cloud's word.
    """

    entry: JournalEntry
    reading: HostReading | None = None
    problem: Exception | None = None
    is_gone: bool = False
    is_being_made: bool = False

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.entry.host_id

    @property
    def record(self) -> VpsDockerHostRecord | None:
        """The record as read now, else as last seen by this machine."""
        return (
            self.reading.record if self.reading is not None and self.reading.record is not None else self.entry.record
        )

    @property
    def name(self) -> str:
        """The user's name for the host."""
        return self.record.certified_host_data.host_name if self.record is not None else self.entry.host_name

    @property
    def container(self) -> ContainerInfo | None:
        """The host's container as Docker described it; None if it has none or its VPS could not be read."""
        return None if self.reading is None else self.reading.container

    @property
    def is_running(self) -> bool:
        """Whether the host's container was seen running."""
        return self.container is not None and self.container.is_running

    def unread(self, problem: Exception) -> "HostSighting":
        """The same host, now that its container turned out not to answer."""
        return replace(self, reading=None, problem=problem)

    @property
    def agents(self) -> list[dict[str, Any]]:
        """Data of the host's agents: the copies kept for offline use, overlaid by what its volume says now."""
        if self.reading is None:
            return list(self.entry.agents)
        found = [*self.reading.persisted_agents, *self.reading.live_agents]
        return list({str(agent.get("id")): agent for agent in found}.values())

    @property
    def state(self) -> HostState:
        """The host's state in mngr's terms."""
        if self.is_gone:
            return HostState.DESTROYED
        if self.is_being_made:
            return HostState.BUILDING
        if isinstance(self.problem, HostAuthenticationError):
            return HostState.UNAUTHENTICATED
        if self.failure_reason is not None:
            return HostState.FAILED
        if self.is_running:
            return HostState.RUNNING
        return _STOP_REASONS.get(self.stop_reason or "", HostState.CRASHED)

    @property
    def stop_reason(self) -> str | None:
        """Why the host stopped, if it stopped in an orderly way."""
        if self.is_running:
            return None
        if self.reading is not None and self.reading.stop_reason in _STOP_REASONS:
            return self.reading.stop_reason
        return None if self.record is None else self.record.certified_host_data.stop_reason

    @property
    def failure_reason(self) -> str | None:
        """Why the host cannot be used at all, if it was never finished."""
        if self.record is not None and self.entry.phase is not HostPhase.FAILED:
            return self.record.certified_host_data.failure_reason
        if self.entry.failure_reason is not None:
            return self.entry.failure_reason
        if self.reading is not None and self.reading.is_record_unreadable:
            return "its record on the VPS cannot be read"
        if self.problem is not None:
            return f"it has no record on this machine, and {self.problem}"
        return "it was never finished: remove it by `mngr gc` or `mngr destroy`"

    @property
    def certified_data(self) -> CertifiedHostData:
        """mngr's data of the host, with the state that was found.

        For a host that could not be read, ``updated_at`` is now: mngr's gc deletes hosts that have been offline for
        long, and how long an unread host has been offline is not known.
        """
        changes: dict[str, object] = {"stop_reason": self.stop_reason, "failure_reason": self.failure_reason}
        if self.reading is None and not self.is_gone:
            changes["updated_at"] = datetime.now(UTC)
        if self.record is not None:
            return self.record.certified_host_data.model_copy(update=changes)
        return CertifiedHostData(
            host_id=self.host_id,
            host_name=self.name,
            created_at=self.entry.created_at,
            updated_at=self.entry.created_at,
        ).model_copy(update=changes)


def discover(
    context: ProviderContext, known_records: Iterable[VpsDockerHostRecord] | None = None
) -> dict[HostId, HostSighting]:
    """Find every host of the provider, by id.

    ``known_records`` are those that a provider package found by its own means. Raises ProviderUnavailableError if the
    cloud cannot be asked.
    """
    entries = {entry.host_id: entry for entry in context.journal.read_all()}
    try:
        instances = context.client.find_instances({PROVIDER_TAG: context.provider_name})
        sightings = [
            *_sightings_of_instances(context, entries, instances or ()),
            *_sightings_of_records(entries, known_records or ()),
        ]
        seen = {sighting.host_id for sighting in sightings}
        unseen = [entry for host_id, entry in entries.items() if host_id not in seen]
        with ThreadPoolExecutor(MAX_PARALLEL_READINGS) as pool:
            sightings += pool.map(lambda entry: _sighting_of_unlisted(context, entry), unseen)
            return {
                sighting.host_id: sighting for sighting in pool.map(lambda seen: observe(context, seen), sightings)
            }
    except VpsApiError as error:
        raise ProviderUnavailableError(context.provider_name, str(error)) from error


def observe(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    """Ask the host's VPS, and remember what it says."""
    entry = sighting.entry
    if sighting.is_gone or sighting.is_being_made or entry.vps_ip is None:
        return sighting
    try:
        state = read_vps_state(context.vps(entry.vps_ip, entry.host_id), state_volume=context.state_volume_name)
    except VpsDockerError as error:
        if entry.phase is HostPhase.READY:
            logger.warning("Host {} as last seen: {}", sighting.name, error)
        return replace(sighting, problem=error)
    reading = state.hosts.get(entry.host_id)
    if reading is None:
        return sighting
    if reading.record is not None and entry.phase is HostPhase.READY:
        entry = _remember(context, entry, reading)
    return replace(sighting, entry=entry, reading=reading)


def _remember(context: ProviderContext, entry: JournalEntry, reading: HostReading) -> JournalEntry:
    fresh = entry.model_copy(update={"record": reading.record, "agents": tuple(reading.persisted_agents)})
    return entry if fresh == entry else context.journal.write(fresh)


def _sightings_of_instances(
    context: ProviderContext, entries: Mapping[HostId, JournalEntry], instances: Iterable[VpsInstanceInfo]
) -> list[HostSighting]:
    sightings = []
    for instance in instances:
        try:
            host_id = HostId(instance.tags.get(HOST_ID_TAG, ""))
        except ValueError as error:
            logger.warning("Ignored VPS {}, whose {} tag is not a host id: {}", instance.id, HOST_ID_TAG, error)
            continue
        entry = entries.get(host_id) or _entry_from_tags(host_id, instance)
        # The cloud knows the address best: some give a machine a new one.
        current = entry.model_copy(update={"vps_instance_id": instance.id, "vps_ip": instance.address or entry.vps_ip})
        sightings.append(
            HostSighting(
                entry=current,
                is_being_made=entry.phase is HostPhase.CREATING and context.journal.has_live_owner(host_id),
            )
        )
    return sightings


def _entry_from_tags(host_id: HostId, instance: VpsInstanceInfo) -> JournalEntry:
    return JournalEntry(
        host_id=host_id,
        host_name=instance.tags.get(HOST_NAME_TAG) or host_id,
        phase=HostPhase.READY,
        created_at=instance.created_at,
        ssh_key_name=f"mngr-{host_id}",
    )


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
    try:
        status = context.client.get_instance_status(entry.vps_instance_id)
    except VpsApiError as error:
        if error.is_gone:
            return HostSighting(entry=entry, is_gone=True)
        raise
    return HostSighting(entry=entry, is_gone=status is VpsInstanceStatus.DESTROYING)
