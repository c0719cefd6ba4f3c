"""Asking VPSes while the cloud, which is slow, is still being asked where they are.

Most hosts are where this machine saw them last. Only a VPS whose shared login is open is asked ahead, so that one that
is silent is not waited for before the cloud has said that it is there.
"""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import BoundedSemaphore
from threading import Thread

from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.observe import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.lifecycle.observe import ask
from imbue.mngr_vps_docker.lifecycle.observe import can_be_asked
from imbue.mngr_vps_docker.lifecycle.observe import is_logged_in
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.vps_state import VpsState


class AskedAhead:
    """The VPSes of ``sightings`` that answer over an open login, asked from now on, in the background.

    The threads are nobody's concern: a process that needs no answer ends without them, and so does what they have
    running on a VPS, which ends with the process that asked.
    """

    def __init__(self, context: ProviderContext, sightings: Iterable[HostSighting]) -> None:
        self._slots = BoundedSemaphore(MAX_PARALLEL_READINGS)
        self._asked = {one.host_id: self._begin(context, one) for one in sightings if can_be_asked(one)}

    def has(self, sighting: HostSighting) -> bool:
        """Whether the answer is there or on its way, to what would be asked by what is known of the host now."""
        asked = self._asked.get(sighting.host_id)
        return asked is not None and asked.entry == sighting.entry and asked.is_logged_in.result()

    def answer(self, context: ProviderContext, sighting: HostSighting) -> VpsState:
        """What the host's VPS said, or says now if it was not asked ahead; raises VpsDockerError."""
        return self._asked[sighting.host_id].state.result() if self.has(sighting) else ask(context, sighting)

    def _begin(self, context: ProviderContext, sighting: HostSighting) -> "_Asked":
        asked = _Asked(sighting.entry, is_logged_in=Future(), state=Future())

        def run() -> None:
            try:
                asked.is_logged_in.set_result(is_logged_in(context, sighting))
                if asked.is_logged_in.result():
                    with self._slots:
                        asked.state.set_result(ask(context, sighting))
            # Whatever it is, it is raised where the answer is asked for.
            except Exception as error:  # noqa: BLE001
                if asked.is_logged_in.done():
                    asked.state.set_exception(error)
                else:
                    asked.is_logged_in.set_result(False)

        Thread(target=run, name="ask-ahead", daemon=True).start()
        return asked


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was known of a host when its VPS was asked, and what it says."""

    entry: JournalEntry
    is_logged_in: Future[bool]
    state: Future[VpsState]
