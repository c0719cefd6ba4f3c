"""Asking VPSes what they say of their hosts, and what this machine saves of the answers.

A VPS is believed about its own host only: its owner can write anything into the record, and no word of that
decides which VPS is destroyed or what another host is called.

Most hosts are where this machine saw them last. So a VPS whose shared login is open is asked while the cloud is asked;
one that may be silent is not waited for before the cloud has said that it is there. What asks in the background are
daemon threads: a process that needs no answer ends without them, and the remote commands end with it.
"""

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import BoundedSemaphore, Thread
from typing import Final

from imbue.mngr_vps_docker.errors import (
    RemoteCommandTimeoutError,
    RemoteOutputError,
    SshdDownError,
    VpsAuthenticationError,
    VpsConnectionError,
    VpsDockerError,
)
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.timings import Patience
from imbue.mngr_vps_docker.hosts.vps_state import read_vps
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord, Unreachable
from imbue.mngr_vps_docker.text import logger

# One ssh per VPS at a time; mngr itself asks at most this many hosts at once.
MAX_PARALLEL_READINGS: Final = 32

# What any version of this package has let a host be called.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
# How often it is looked whether work that waits for a free slot has begun.
_POLL_SECONDS = 0.2

type Read = Callable[[ObservedHost], ObservedHost]


def is_unreachable(problem: Exception | None) -> bool:
    """Whether the problem with a VPS is that it does not answer, or not in time, or without an end."""
    if isinstance(problem, VpsAuthenticationError):
        return False
    return isinstance(problem, VpsConnectionError | RemoteCommandTimeoutError | RemoteOutputError)


@dataclass(frozen=True, slots=True)
class VpsReader:
    """Asks the VPSes of one provider's hosts."""

    context: ProviderContext

    def read(self, observed: ObservedHost, patience: Patience | None = None) -> ObservedHost:
        """The host as its VPS says; raises VpsDockerError. Nothing of it is saved yet.

        The VPS is waited for with ``patience``, or as long as a listing waits.
        """
        patience = patience or self._listing_patience(observed)
        with _as_host_error():
            host = HostAccess(self.context, observed, patience.connect_seconds)
            self.context.recognize(host.host_id, host.address)
            return read_vps(
                observed,
                host.vps,
                state_volume=self.context.state_volume_name,
                container=host.container_name,
                timeout_seconds=patience.answer_seconds,
            )

    def observe(self, observed: ObservedHost, read: Read | None = None) -> ObservedHost:
        """Ask the host's VPS, by ``read`` if given, and save what it says."""
        if not _can_be_asked(observed):
            return observed
        began = time.monotonic()
        try:
            found = (read or self.read)(observed)
        except VpsDockerError as error:
            return self.with_no_answer(observed, error, time.monotonic() - began)
        self.context.waited_seconds.pop(found.host_id, None)
        if found.entry.unreachable is not None:
            found = replace(found, entry=self.save(found.entry, lambda entry: replace(entry, unreachable=None)))
        if not found.is_read:
            return found
        found = replace(found, problem=None)
        if found.vps_record is None or found.entry.phase is not HostPhase.READY:
            return found
        found = replace(found, entry=self._save_seen(found), is_saved=True)
        try:
            with _as_host_error():
                _ = self.context.keys.container_client_key(found.host_id).public_key
        # A missing or damaged key concerns this host alone.
        except VpsDockerError as error:
            return replace(found, problem=error)
        return found

    def read_each(
        self,
        read: Read,
        observed_hosts: Iterable[ObservedHost],
        *,
        begins_late: Callable[[ObservedHost], bool],
        is_silent_awaited: bool,
    ) -> list[ObservedHost]:
        """Each host as ``read`` finds it in the background, or as it was last seen if that takes too long.

        A VPS that was silent when it was last asked is waited for last, and not at all unless ``is_silent_awaited``.
        What is interrupted begins to read no further one.
        """
        slots = BoundedSemaphore(MAX_PARALLEL_READINGS)
        tasks = [(observed, BackgroundTask(partial(read, observed))) for observed in observed_hosts]
        found: dict[int, ObservedHost] = {}
        try:
            for _, task in sorted(tasks, key=lambda each: begins_late(each[0])):
                task.start(slots)
            for observed, task in sorted(tasks, key=lambda each: each[0].entry.is_silent):
                found[id(task)] = self._answer_in_time(observed, task, is_silent_awaited=is_silent_awaited)
        except BaseException:
            for _, task in tasks:
                task.future.cancel()
            raise
        return [found[id(task)] for _, task in tasks]

    def with_no_answer(self, observed: ObservedHost, problem: VpsDockerError, waited_seconds: float) -> ObservedHost:
        """The same host after its VPS has not answered within ``waited_seconds``; since when is saved."""
        found = replace(observed, problem=problem)
        if not is_unreachable(problem):
            return found
        waited = self.context.waited_seconds
        waited[observed.host_id] = waited.get(observed.host_id, 0.0) + waited_seconds
        before = observed.entry.unreachable
        unreachable = Unreachable(
            since=datetime.now(UTC) if before is None else before.since,
            is_silent=not isinstance(problem, SshdDownError),
        )
        return replace(found, entry=self.save(observed.entry, lambda entry: replace(entry, unreachable=unreachable)))

    def is_logged_in(self, observed: ObservedHost) -> bool:
        """Whether to ask the host's VPS costs no login; raises VpsDockerError."""
        with _as_host_error():
            host = HostAccess(self.context, observed)
            self.context.recognize(host.host_id, host.address)
            return host.vps.is_open

    def save(
        self,
        entry: LocalHostRecord,
        change: Callable[[LocalHostRecord], LocalHostRecord],
        *,
        is_new: bool = False,
    ) -> LocalHostRecord:
        """Apply ``change``, which sets what was found of a host, to ``entry``, and to what is on disk if that differs.

        If nothing is on disk, another process has destroyed the host, and it stays so unless the host ``is_new`` here.
        Write errors (disk full) are logged; listing still works.
        """
        changed, store = change(entry), self.context.local_store
        try:
            before = store.read(entry.host_id)
            if before is None and is_new:
                store.write(changed)
            elif before is not None and change(before).on_disk != before:
                store.update(entry.host_id, change)
        except OSError as error:
            logger.warning("What was seen of host {} is not saved on this machine: {}", entry.host_name, error)
        return changed

    def accept_reported_name(self, observed: ObservedHost, taken: Collection[str]) -> ObservedHost:
        """The same host under the name that its record gives it, if that can be believed.

        Users destroy hosts by name. So a record may change the name that this machine or the cloud knows, but not to
        what no host can be called, nor to one that is ``taken``.
        """
        known = observed.entry.host_name
        name = known if observed.record is None else observed.record.certified_host_data.host_name
        if name == known:
            return observed
        if not _HOST_NAME.fullmatch(name) or name in taken:
            logger.warning("Host {} says that it is called {!r}, which it cannot be", known, name)
            return observed
        return replace(observed, entry=self.save(observed.entry, lambda entry: replace(entry, host_name=name)))

    def unless_destroyed(self, observed: ObservedHost) -> ObservedHost:
        """The same host; being destroyed, or gone, if another process of this machine destroys it or has done so."""
        is_kept_here = observed.is_saved and not (observed.is_gone or observed.is_being_made)
        if not is_kept_here or not self.context.local_store.is_going(observed.host_id):
            return observed
        current = self.context.local_store.read(observed.host_id)
        if current is None:
            return ObservedHost(observed.entry, is_gone=True)
        return ObservedHost(current, is_being_made=True)

    def unless_abandoned(self, observed: ObservedHost) -> ObservedHost:
        """The same host; abandoned, if no live process is to make its first agent, and it has none."""
        entry, store = observed.entry, self.context.local_store
        if not entry.awaits_agent or entry.phase is not HostPhase.READY or observed.is_gone:
            return observed
        if observed.known_agents:
            entry = self.save(entry, lambda entry: replace(entry, awaits_agent=False, failure_reason=None))
            return replace(observed, entry=entry)
        if store.is_in_progress(entry.host_id):
            return observed
        # That process may have ended after the file was read, and have made an agent before.
        current = store.read(entry.host_id)
        if current is None or not current.awaits_agent:
            return replace(observed, entry=replace(entry, awaits_agent=False))
        return replace(observed, entry=replace(entry, failure_reason=current.failure_reason), is_abandoned=True)

    def _answer_in_time(
        self, observed: ObservedHost, task: "BackgroundTask[ObservedHost]", *, is_silent_awaited: bool
    ) -> ObservedHost:
        is_silent = observed.entry.is_silent
        seconds = 0.0 if is_silent and not is_silent_awaited else self._listing_patience(observed).answer_seconds
        if task.is_done_within(seconds):
            return task.future.result()
        problem = VpsConnectionError(f"VPS {observed.entry.vps_ip} has not answered yet")
        if not is_silent:
            observed = self.with_no_answer(observed, problem, task.ran_seconds)
        return replace(observed, problem=problem, late_answer=task.future)

    def _listing_patience(self, observed: ObservedHost) -> Patience:
        timings = self.context.timings
        return timings.listing_of_silent if observed.entry.is_silent else timings.listing

    def _save_seen(self, found: ObservedHost) -> LocalHostRecord:
        """Save what was seen of a host, and nothing else: another process may be destroying it."""

        def seen(entry: LocalHostRecord) -> LocalHostRecord:
            return replace(
                entry,
                record=found.record,
                agents=tuple(found.known_agents),
                state=found.state,
                vps_instance_id=found.entry.vps_instance_id,
                vps_ip=found.entry.vps_ip,
                gone_since=None,
            )

        return self.save(found.entry, seen, is_new=not found.is_saved)


@dataclass(slots=True)
class BackgroundTask[T]:
    """Work in a daemon thread, begun when there is a slot for it."""

    work: Callable[[], T]
    future: Future[T] = field(default_factory=Future)
    began_at: float | None = None
    """When it began, by the monotonic clock, in seconds."""

    def start(self, slots: BoundedSemaphore) -> None:
        """Start the thread."""
        Thread(target=self.run, args=(slots,), name="ask-vps", daemon=True).start()

    @property
    def ran_seconds(self) -> float:
        """How long it has run; 0 before it began."""
        return 0.0 if self.began_at is None else time.monotonic() - self.began_at

    def is_done_within(self, seconds: float) -> bool:
        """Wait until it is done, or has run for so long; whether it is done."""
        while not self.future.done() and self.ran_seconds < seconds:
            wait([self.future], seconds - self.ran_seconds if self.began_at is not None else _POLL_SECONDS)
        return self.future.done()

    def run(self, slots: BoundedSemaphore) -> None:
        """Do the work in this thread, unless the future was cancelled before there was a slot for it."""
        with slots:
            if not self.future.set_running_or_notify_cancel():
                return
            self.began_at = time.monotonic()
            try:
                result = self.work()
            # Whatever it is, it is raised where the answer is asked for.
            except Exception as error:  # noqa: BLE001
                self.future.set_exception(error)
            else:
                self.future.set_result(result)


class Prefetch:
    """The VPSes of ``observed_hosts`` that answer over an open login, asked from now on, in the background."""

    def __init__(self, reader: VpsReader, observed_hosts: Iterable[ObservedHost]) -> None:
        self._reader = reader
        self._slots = BoundedSemaphore(MAX_PARALLEL_READINGS)
        self._asked = {observed.host_id: self._ask(observed) for observed in observed_hosts if _can_be_asked(observed)}

    def has(self, observed: ObservedHost) -> bool:
        """Whether the answer is there or on its way, to what would be asked by what is known of the host now."""
        if observed.host_id not in self._asked:
            return False
        entry, is_logged_in, _ = self._asked[observed.host_id]
        return entry == observed.entry and is_logged_in.result()

    def read(self, observed: ObservedHost) -> ObservedHost:
        """The host as its VPS said, or says now if it was not asked ahead; raises VpsDockerError."""
        if self.has(observed):
            return self._asked[observed.host_id][2].future.result()
        return self._reader.read(observed)

    def _ask(self, observed: ObservedHost) -> tuple[LocalHostRecord, Future[bool], BackgroundTask[ObservedHost]]:
        """Ask the VPS of a host if that costs no login."""
        logged_in: Future[bool] = Future()
        task = BackgroundTask(partial(self._reader.read, observed))

        def ask() -> None:
            try:
                logged_in.set_result(self._reader.is_logged_in(observed))
            # It is asked later then, and the same is raised there.
            except Exception:  # noqa: BLE001
                logged_in.set_result(False)
            if logged_in.result():
                task.run(self._slots)

        Thread(target=ask, name="ask-ahead", daemon=True).start()
        return observed.entry, logged_in, task


def _can_be_asked(observed: ObservedHost) -> bool:
    """Whether there may be a VPS of the host that answers."""
    is_made = not (observed.is_gone or observed.is_being_made or observed.is_unfinished)
    return is_made and observed.entry.vps_ip is not None


@contextmanager
def _as_host_error() -> Iterator[None]:
    """Report local file errors as this host's error."""
    try:
        yield
    except OSError as error:
        raise VpsDockerError(f"a file of this machine is in the way: {error}") from error
