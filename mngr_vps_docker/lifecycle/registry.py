"""The hosts that one process has seen, so that each is asked once per command and not once per question."""

import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostName
from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.discover import discover
from imbue.mngr_vps_docker.lifecycle.discover import observe
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.terminal import logger


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
        self._unreachable: set[HostId] = set()
        self._is_asking_package = False
        self._changes = threading.Lock()

    def discover(self, just_observed: HostSighting | None = None) -> list[HostSighting]:
        """Ask the cloud and every VPS now, but for one that was just asked.

        Raises ProviderUnavailableError if the cloud cannot be asked.
        """
        records = self._records_of_package()
        self._sightings = discover(self._context, records, just_observed)
        self._records.clear()
        for sighting in self._sightings.values():
            self._note(sighting)
        return list(self._sightings.values())

    def seen(self) -> list[HostSighting]:
        """What was seen last, by asking now if nothing was seen yet; a package that is asked itself may ask this."""
        if self._is_asking_package:
            return list(discover(self._context).values())
        return list(self._sightings.values()) or self.discover()

    def get(self, host: HostId | HostName) -> HostSighting:
        """One host as this process saw it before, or else asked for now; raises HostNotFoundError."""
        found = _match(self._sightings.values(), host)
        observed = self._observe_remembered(host) if found is None and isinstance(host, HostId) else None
        if found is None and observed is not None and observed.reading is not None:
            found = observed
        found = found or _match(self.discover(observed), host)
        if found is None:
            raise HostNotFoundError(host)
        return found

    def fresh(self, host_id: HostId) -> HostSighting:
        """One host, asked for now; raises HostNotFoundError."""
        self.forget(host_id)
        return self.get(host_id)

    @contextmanager
    def alone(self, host_id: HostId, *, is_asked: bool = False) -> Iterator[HostSighting]:
        """One host, while no other process or thread of this machine starts, stops or snapshots it.

        It is as last seen, if that was successful, or with ``is_asked`` as it is now. Raises HostNotFoundError.
        """
        # Seeing a host is what makes this machine know it.
        self.get(host_id)
        with self._context.journal.alone(host_id, "power") as is_known:
            sighting = self.get(host_id)
            if is_asked or not is_known or sighting.reading is None or sighting.problem is not None:
                sighting = self.fresh(host_id)
            yield sighting

    def offline(self, host_id: HostId) -> HostSighting:
        """One host as last seen by this process or this machine, without any connection; raises HostNotFoundError."""
        if host_id in self._sightings:
            return self._sightings[host_id]
        entry = self._context.journal.read(host_id)
        if entry is None:
            raise HostNotFoundError(host_id)
        return HostSighting(entry=entry)

    def agents(self, host_id: HostId) -> list[dict[str, Any]]:
        """Data of a host's agents; of one that just could not be reached, without trying again.

        Raises HostNotFoundError.
        """
        return (self.offline(host_id) if host_id in self._unreachable else self.get(host_id)).agents

    def entry(self, host_id: HostId) -> JournalEntry:
        """What this machine remembers of a host, else what can be found of it now; raises HostNotFoundError."""
        return self._context.journal.read(host_id) or self.get(host_id).entry

    def is_known(self, host_id: HostId) -> bool:
        """Whether this process or this machine has heard of the host; asks nobody."""
        return host_id in self._sightings or self._context.journal.read(host_id) is not None

    def note_unreachable(self, host_id: HostId) -> None:
        """Ask again when the host is needed next, but not for what is also known without."""
        self.forget(host_id)
        self._unreachable.add(host_id)

    def forget(self, host_id: HostId) -> None:
        """Ask again when the host is needed next."""
        self._sightings.pop(host_id, None)
        self._records.pop(host_id, None)

    def note(self, sighting: HostSighting) -> HostSighting:
        """Remember how a host is now."""
        with self._changes:
            self._sightings[sighting.host_id] = sighting
            self._note(sighting)
        return sighting

    def note_record(self, record: VpsDockerHostRecord) -> None:
        """Remember a record that was just written."""
        with self._changes:
            sighting = self._sightings.pop(record.host_id, None)
            if sighting is not None and sighting.reading is not None:
                self._sightings[record.host_id] = sighting.with_record(record)
                self._records[record.host_id] = record

    def note_agent(self, host_id: HostId, agent_id: str, data: dict[str, Any] | None) -> None:
        """Remember that an agent's data was kept, or with None forgotten."""
        with self._changes:
            sighting = self._sightings.get(host_id)
            if sighting is not None:
                self._sightings[host_id] = sighting = sighting.with_agent(agent_id, data)
                self._context.journal.update(host_id, agents=tuple(sighting.agents))

    def clear(self) -> None:
        """Ask again for every host."""
        self._sightings = {}
        self._records.clear()

    def _records_of_package(self) -> Sequence[VpsDockerHostRecord]:
        """What the provider package finds; nothing if a VPS keeps it from telling, for here each is asked anyway."""
        self._is_asking_package = True
        try:
            return self._find_records()
        except VpsApiError as error:
            raise ProviderUnavailableError(self._context.provider_name, str(error)) from error
        except (VpsConnectionError, RemoteCommandTimeoutError) as error:
            logger.warning("{}", error)
            return ()
        finally:
            self._is_asking_package = False

    def _observe_remembered(self, host_id: HostId) -> HostSighting | None:
        """Ask one VPS directly, without the cloud; None if this machine does not know where it is."""
        entry = self._context.journal.read(host_id)
        if entry is None or entry.phase is not HostPhase.READY or entry.vps_ip is None:
            return None
        sighting = observe(self._context, HostSighting(entry=entry))
        if sighting.reading is not None:
            self._sightings[host_id] = sighting
            self._note(sighting)
        return sighting

    def _note(self, sighting: HostSighting) -> None:
        if sighting.reading is not None:
            self._unreachable.discard(sighting.host_id)
        if sighting.record is not None:
            self._records[sighting.host_id] = sighting.record


def _match(sightings: Iterable[HostSighting], host: HostId | HostName) -> HostSighting | None:
    if isinstance(host, HostId):
        return next((sighting for sighting in sightings if sighting.host_id == host), None)
    return next((sighting for sighting in sightings if sighting.name == host and not sighting.is_gone), None)
