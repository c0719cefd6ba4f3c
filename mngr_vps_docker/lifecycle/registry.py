"""The hosts that one process has seen, so that each is asked once per command and not once per question."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostName
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.discover import HostSighting
from imbue.mngr_vps_docker.lifecycle.discover import discover
from imbue.mngr_vps_docker.lifecycle.discover import observe


class HostRegistry:
    """Sightings of one provider's hosts, kept until forgotten.

    ``find_records`` returns what a provider package discovers by its own means (nothing, for most). ``records`` is
    the packages' own view of the sightings, kept in step with them.
    """

    def __init__(
        self,
        context: ProviderContext,
        find_records: Callable[[], Sequence[VpsDockerHostRecord]],
        records: dict[HostId, VpsDockerHostRecord],
    ) -> None:
        self._context = context
        self._find_records = find_records
        self._records = records
        self._sightings: dict[HostId, HostSighting] = {}

    def discover(self) -> list[HostSighting]:
        """Ask the cloud and every VPS now; raises ProviderUnavailableError if the cloud cannot be asked."""
        self._sightings = discover(self._context, self._find_records())
        self._records.clear()
        for sighting in self._sightings.values():
            self._note_record(sighting)
        return list(self._sightings.values())

    def seen(self) -> list[HostSighting]:
        """What was seen last, by asking now if nothing was seen yet."""
        return list(self._sightings.values()) or self.discover()

    def get(self, host: HostId | HostName) -> HostSighting:
        """One host as this process saw it before, or else asked for now; raises HostNotFoundError."""
        found = _match(self._sightings.values(), host)
        if found is None and isinstance(host, HostId):
            found = self._observe_remembered(host)
        found = found or _match(self.discover(), host)
        if found is None:
            raise HostNotFoundError(host)
        return found

    def fresh(self, host_id: HostId) -> HostSighting:
        """One host, asked for now; raises HostNotFoundError."""
        self.forget(host_id)
        return self.get(host_id)

    def offline(self, host_id: HostId) -> HostSighting:
        """One host as last seen by this process or this machine, without any connection; raises HostNotFoundError."""
        if host_id in self._sightings:
            return self._sightings[host_id]
        entry = self._context.journal.read(host_id)
        if entry is None:
            raise HostNotFoundError(host_id)
        return HostSighting(entry=entry)

    def entry(self, host_id: HostId) -> JournalEntry:
        """What this machine remembers of a host, else what can be found of it now; raises HostNotFoundError."""
        return self._context.journal.read(host_id) or self.get(host_id).entry

    def is_known(self, host_id: HostId) -> bool:
        """Whether this process or this machine has heard of the host; asks nobody."""
        return host_id in self._sightings or self._context.journal.read(host_id) is not None

    def forget(self, host_id: HostId) -> None:
        """Ask again when the host is needed next."""
        self._sightings.pop(host_id, None)
        self._records.pop(host_id, None)

    def clear(self) -> None:
        """Ask again for every host."""
        self._sightings = {}
        self._records.clear()

    def _observe_remembered(self, host_id: HostId) -> HostSighting | None:
        """Ask one VPS directly, without the cloud; None where that does not tell all."""
        entry = self._context.journal.read(host_id)
        if entry is None or entry.phase is not HostPhase.READY:
            return None
        sighting = observe(self._context, HostSighting(entry=entry))
        if sighting.reading is None:
            return None
        self._sightings[host_id] = sighting
        self._note_record(sighting)
        return sighting

    def _note_record(self, sighting: HostSighting) -> None:
        if sighting.record is not None:
            self._records[sighting.host_id] = sighting.record


def _match(sightings: Iterable[HostSighting], host: HostId | HostName) -> HostSighting | None:
    if isinstance(host, HostId):
        return next((sighting for sighting in sightings if sighting.host_id == host), None)
    return next((sighting for sighting in sightings if sighting.name == host and not sighting.is_gone), None)
