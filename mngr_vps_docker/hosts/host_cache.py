"""The hosts that one process has seen, so that each is asked once per command and not once per question."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imbue.mngr.errors import HostConnectionError, HostNotFoundError, MngrError, ProviderUnavailableError
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.errors import VpsApiError, VpsDockerError
from imbue.mngr_vps_docker.hosts.discovery import asking_the_cloud, discover, discover_one, finished
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.timings import Patience
from imbue.mngr_vps_docker.hosts.vps_reader import VpsReader, is_unreachable
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.text import logger


class HostCache:
    """The hosts of one provider as this process saw them, kept until forgotten.

    A provider package may find hosts by its own means, which ``find_all`` and ``find_one`` ask for, and has its own
    cache of records: ``package_cache`` gives the dict of now, since a package empties it by a new one.
    """

    def __init__(
        self,
        context: ProviderContext,
        *,
        find_all: Callable[[], Mapping[HostId, LocalHostRecord]],
        find_one: Callable[[HostId | HostName], LocalHostRecord | None],
        package_cache: Callable[[], dict[HostId, VpsDockerHostRecord]],
    ) -> None:
        self._context = context
        self._reader = VpsReader(context)
        self._find_all = find_all
        self._find_one = find_one
        self._package_cache = package_cache
        self._cache = package_cache()
        self._seen: dict[HostId, ObservedHost] = {}
        self._found_by_package: Mapping[HostId, LocalHostRecord] = {}
        self._seen_for_package: dict[HostId, ObservedHost] | None = None
        self._asked_of_package: set[str] = set()
        self._unreachable: set[HostId] = set()
        self._destroyed: set[HostId] = set()
        self._changes = threading.RLock()

    def discover(self, *, is_silent_awaited: bool = True) -> list[ObservedHost]:
        """Ask the cloud and every VPS now; raises ProviderUnavailableError if the cloud cannot be asked.

        See ``discovery.discover`` for ``is_silent_awaited``.
        """
        self._found_by_package, just_seen = self._ask_package()
        found = discover(self._reader, self._found_by_package, just_seen, is_silent_awaited=is_silent_awaited)
        return self._take(found)

    def seen(self) -> list[ObservedHost]:
        """What was seen last, by asking now if nothing was seen yet; a package that is asked itself may ask this."""
        if self._seen_for_package is not None:
            self._seen_for_package = discover(self._reader, {}, self._seen_for_package)
            return list(self._seen_for_package.values())
        return list(self._known().values()) or self.discover()

    def get(self, host: HostId | HostName) -> ObservedHost:
        """One host as this process saw it before, or else asked for now; raises HostNotFoundError."""
        found = self._match(host)
        if found is not None:
            return self._reader.unless_destroyed(self._with_late_answer(found))
        if isinstance(host, HostId):
            if host in self._destroyed:
                raise HostNotFoundError(host)
            if self._context.local_store.read(host) is not None and (looked := self._discover_one(host)) is not None:
                return looked
        self.discover()
        found = self._match(host) or self._ask_package_for(host)
        if found is None:
            raise HostNotFoundError(host)
        return found

    def awaited(self, host_id: HostId) -> ObservedHost:
        """One host as ``get`` has it, after a brief wait for its VPS if that is still being asked."""
        return self._with_late_answer(self.get(host_id), self._context.timings.listing_of_silent.answer_seconds)

    def reached(self, host_id: HostId) -> ObservedHost:
        """One host as ``get`` has it, its VPS waited for as long as the settings say, if it does not answer.

        For a command on this host. What a listing has waited for it counts, and is not waited again.
        """
        is_new = self._match(host_id) is None and host_id not in self._destroyed
        if not (is_new and self._context.local_store.read(host_id) is not None):
            observed = self.get(host_id)
            if observed.is_read or not is_unreachable(observed.problem):
                return observed
        seconds_left = self.connect_seconds_left(host_id)
        looked = (
            None
            if seconds_left < 1
            else self._discover_one(host_id, Patience(seconds_left, self._context.timings.command_answer_seconds))
        )
        if looked is None:
            return self.get(host_id)
        if not looked.is_read:
            self._context.waited_seconds[host_id] = self._context.config.ssh_connect_timeout
        return looked

    def connect_seconds_left(self, host_id: HostId) -> float:
        """How long a command may still wait for the VPS of a host, which this process may have waited for before.

        In whole seconds, as ssh counts them: connections are kept by their time-out, too.
        """
        waited_seconds = self._context.waited_seconds.get(host_id)
        timeout_seconds = self._context.config.ssh_connect_timeout
        return timeout_seconds if waited_seconds is None else float(round(timeout_seconds - waited_seconds))

    def fresh(self, host_id: HostId) -> ObservedHost:
        """One host, asked for now; raises HostNotFoundError."""
        self.forget(host_id)
        return self._discover_one(host_id) or self.get(host_id)

    @contextmanager
    def exclusive(self, host_id: HostId, *, refresh: bool = False) -> Iterator[ObservedHost]:
        """One host, while no other process or thread of this machine starts, stops or snapshots it.

        It is as last seen, or with ``refresh`` as it is now; a VPS that did not answer this process is waited for as
        ``reached`` does, and no longer. Raises HostNotFoundError.
        """
        # Seeing a host is what makes this machine know it.
        self.reached(host_id)
        with self._context.local_store.exclusive(host_id, "power") as is_known:
            observed = self.get(host_id)
            is_silent = not observed.is_read and observed.problem is not None
            is_forgotten = observed.is_saved and not is_known
            if is_forgotten or (not is_silent and (refresh or not observed.is_read)):
                observed = self.fresh(host_id)
            yield observed

    def offline(self, host_id: HostId) -> ObservedHost:
        """One host as last seen by this process or this machine, without any connection; raises HostNotFoundError."""
        found = self._match(host_id)
        if found is not None:
            return found
        entry = self._context.local_store.read(host_id)
        if entry is None:
            raise HostNotFoundError(host_id)
        return self._reader.unless_abandoned(ObservedHost(entry=entry))

    def agents(self, host_id: HostId) -> list[dict[str, Any]]:
        """Data of a host's agents; of one that just could not be reached, without trying again.

        Raises HostNotFoundError.
        """
        return (self.offline(host_id) if host_id in self._unreachable else self.get(host_id)).agents

    def kept_agent(self, host_id: HostId, agent_id: str) -> dict[str, Any] | None:
        """The copy of an agent's data that mngr kept, as last seen, without a remote command; or None."""
        try:
            return self.offline(host_id).kept_agent(agent_id)
        except HostNotFoundError:
            return None

    def entry(self, host_id: HostId) -> LocalHostRecord:
        """What this machine remembers of a host, else what can be found of it now; raises HostNotFoundError."""
        return self._context.local_store.read(host_id) or self.get(host_id).entry

    def is_known(self, host_id: HostId) -> bool:
        """Whether this process or this machine has heard of the host; no machine is asked."""
        return self._match(host_id) is not None or self._context.local_store.read(host_id) is not None

    def remember_unreachable(self, host_id: HostId) -> None:
        """Ask again when the host is needed next, but not for what is also known without."""
        self.forget(host_id)
        self._unreachable.add(host_id)

    def remember_destroyed(self, host_id: HostId) -> None:
        """Do not ask again for a host that this process has destroyed."""
        self.forget(host_id)
        self._destroyed.add(host_id)

    def forget(self, host_id: HostId) -> None:
        """Ask again when the host is needed next."""
        with self._changes:
            self._known().pop(host_id, None)
            self._cache.pop(host_id, None)

    def remember(self, observed: ObservedHost) -> ObservedHost:
        """Remember how a host is now."""
        with self._changes:
            self._known()[observed.host_id] = observed
            self._remember(observed)
        return observed

    def remember_record(self, record: VpsDockerHostRecord) -> None:
        """Remember a record that was just written."""
        with self._changes:
            observed = self._known().pop(record.host_id, None)
            if observed is not None and observed.is_read:
                self._seen[record.host_id] = observed.with_record(record)
                self._cache[record.host_id] = record

    def remember_agent(self, host_id: HostId, agent_id: str, data: dict[str, Any] | None) -> None:
        """Remember that an agent's data was kept, or with None forgotten."""
        with self._changes:
            observed = self._known().get(host_id)
            if observed is not None:
                self._seen[host_id] = observed = observed.with_agent(agent_id, data)
                agents = tuple(observed.known_agents)
                self._context.local_store.update(host_id, lambda known: replace(known, agents=agents))

    def clear(self) -> None:
        """Ask again for every host."""
        with self._changes:
            self._known().clear()
            self._cache.clear()
            self._context.waited_seconds.clear()

    def _discover_one(self, host_id: HostId, patience: Patience | None = None) -> ObservedHost | None:
        looked = discover_one(self._reader, host_id, patience)
        return None if looked is None else self.remember(looked)

    def _with_late_answer(self, observed: ObservedHost, wait_seconds: float = 0.0) -> ObservedHost:
        """The host as its VPS says by now, if that was still being asked; raises what kept it from being looked at."""
        if observed.late_answer is None:
            return observed
        try:
            late = observed.late_answer.result(wait_seconds)
        except TimeoutError:
            return observed
        return self.remember(finished(self._reader, late))

    def _ask_package(self) -> tuple[Mapping[HostId, LocalHostRecord], Mapping[HostId, ObservedHost]]:
        """What the provider package finds, and what was seen of hosts because it asked for that itself."""
        self._seen_for_package = {}
        try:
            with asking_the_cloud(self._context):
                return self._find_all(), self._seen_for_package
        except ProviderUnavailableError as error:
            cause = error.__cause__
            if not isinstance(cause, HostConnectionError | VpsDockerError) or isinstance(cause, VpsApiError):
                raise
            # One VPS is in the way of the package's code; here each is asked anyway.
            logger.warning("{}", cause)
            return {}, {}
        finally:
            self._seen_for_package = None

    def _ask_package_for(self, host: HostId | HostName) -> ObservedHost | None:
        """A host that a provider package knows by other ways than its listing; it may ask here for the same host."""
        if host in self._asked_of_package:
            return None
        self._asked_of_package.add(host)
        try:
            with asking_the_cloud(self._context):
                found = self._find_one(host)
        finally:
            self._asked_of_package.discard(host)
        if found is None:
            return None
        self._found_by_package = {**self._found_by_package, found.host_id: found}
        self._take(discover(self._reader, self._found_by_package, self._known()))
        return self._match(found.host_id)

    def _match(self, host: HostId | HostName) -> ObservedHost | None:
        with self._changes:
            known = self._known()
            if isinstance(host, HostId):
                return known.get(host)
            called = [observed for observed in known.values() if observed.name == host and not observed.is_gone]
        if len(called) > 1:
            raise MngrError(
                f"Several hosts are called {host}; say which by its id: {', '.join(found.host_id for found in called)}"
            )
        return called[0] if called else None

    def _known(self) -> dict[HostId, ObservedHost]:
        """The hosts that were seen; none any more, if the provider package has begun a new cache."""
        with self._changes:
            if self._package_cache() is not self._cache:
                self._cache = self._package_cache()
                self._seen = {}
            return self._seen

    def _take(self, observed_hosts: dict[HostId, ObservedHost]) -> list[ObservedHost]:
        with self._changes:
            self._cache = self._package_cache()
            for host_id in self._seen.keys() - observed_hosts.keys():
                self._cache.pop(host_id, None)
            self._seen = observed_hosts
            for observed in observed_hosts.values():
                self._remember(observed)
            return list(observed_hosts.values())

    def _remember(self, observed: ObservedHost) -> None:
        if observed.is_read:
            self._unreachable.discard(observed.host_id)
        if observed.record is not None:
            self._cache[observed.host_id] = observed.record
