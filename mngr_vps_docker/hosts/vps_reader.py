"""Asking one VPS what it knows of its host, and what this machine notes of the answer.

What a VPS says is believed of its own host only: whoever controls it can write anything into the record, and no word
of that decides which VPS is destroyed or what another host is called.
"""

import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
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


def can_be_asked(observed: ObservedHost) -> bool:
    """Whether there may be a VPS of the host that answers."""
    is_made = not (observed.is_gone or observed.is_being_made or observed.is_unfinished)
    return is_made and observed.entry.vps_ip is not None


def listing_patience(context: ProviderContext, entry: LocalHostRecord) -> Patience:
    """How long a listing waits for the VPS of a host."""
    return context.timings.listing_of_silent if entry.is_silent else context.timings.listing


def ask(context: ProviderContext, observed: ObservedHost, patience: Patience | None = None) -> ObservedHost:
    """The host as its VPS says; raises VpsDockerError. Nothing of it is saved yet.

    It is waited for with ``patience``, or as long as a listing waits.
    """
    patience = patience or listing_patience(context, observed.entry)
    with _as_host_error():
        host = _recognized(context, observed, patience.connect_seconds)
        return read_vps(
            observed,
            host.vps,
            state_volume=context.state_volume_name,
            container=host.container_name,
            timeout_seconds=patience.answer_seconds,
        )


def is_logged_in(context: ProviderContext, observed: ObservedHost) -> bool:
    """Whether to ask the host's VPS costs no login; raises VpsDockerError."""
    with _as_host_error():
        return _recognized(context, observed).vps.is_open


def observe(
    context: ProviderContext,
    observed: ObservedHost,
    ask: Callable[[ProviderContext, ObservedHost], ObservedHost] = ask,
) -> ObservedHost:
    """Ask the host's VPS, and remember what it says."""
    if not can_be_asked(observed):
        return observed
    began = time.monotonic()
    try:
        found = _answered(context, ask(context, observed))
    except VpsDockerError as error:
        return with_no_answer(context, observed, error, time.monotonic() - began)
    if not found.is_read:
        return found
    found = replace(found, problem=None)
    if found.vps_record is None or found.entry.phase is not HostPhase.READY:
        return found
    found = replace(found, entry=_remember(context, found), is_noted=True)
    try:
        with _as_host_error():
            context.keys.container_client_key(found.host_id)
    # One that is missing or damaged is this host's trouble alone.
    except VpsDockerError as error:
        return replace(found, problem=error)
    return found


def with_no_answer(
    context: ProviderContext, observed: ObservedHost, problem: VpsDockerError, waited_seconds: float
) -> ObservedHost:
    """The same host, now that its VPS has not answered within ``waited_seconds``; since when is noted, on disk too."""
    found = replace(observed, problem=problem)
    if not is_unreachable(problem):
        return found
    context.waited_seconds[observed.host_id] = context.waited_seconds.get(observed.host_id, 0.0) + waited_seconds
    before = observed.entry.unreachable
    unreachable = Unreachable(
        since=datetime.now(UTC) if before is None else before.since,
        is_silent=not isinstance(problem, SshdDownError),
    )
    return replace(found, entry=save(context, observed.entry, lambda entry: replace(entry, unreachable=unreachable)))


def is_unreachable(problem: Exception | None) -> bool:
    """Whether the problem with a VPS is that it does not answer, or not in time, or never stops to."""
    if isinstance(problem, VpsAuthenticationError):
        return False
    return isinstance(problem, VpsConnectionError | RemoteCommandTimeoutError | RemoteOutputError)


def _answered(context: ProviderContext, observed: ObservedHost) -> ObservedHost:
    context.waited_seconds.pop(observed.host_id, None)
    if observed.entry.unreachable is None:
        return observed
    return replace(observed, entry=save(context, observed.entry, lambda entry: replace(entry, unreachable=None)))


@contextmanager
def _as_host_error() -> Iterator[None]:
    """Have a file here that cannot be written, or read, be an error of the host that it is for."""
    try:
        yield
    except OSError as error:
        raise VpsDockerError(f"a file of this machine is in the way: {error}") from error


def save(
    context: ProviderContext,
    entry: LocalHostRecord,
    change: Callable[[LocalHostRecord], LocalHostRecord],
    *,
    is_new: bool = False,
) -> LocalHostRecord:
    """Apply ``change``, which sets what was found of a host, to ``entry``, and to what is on disk if that differs.

    If nothing is on disk, another process has destroyed the host, and it stays so unless the host ``is_new`` here.
    Write errors (disk full) are logged; listing still works.
    """
    changed = change(entry)
    try:
        before = context.local_store.read(entry.host_id)
        if before is None and is_new:
            context.local_store.write(changed)
        elif before is not None and change(before).on_disk != before:
            context.local_store.update(entry.host_id, change)
    except OSError as error:
        logger.warning("What was seen of host {} is not saved on this machine: {}", entry.host_name, error)
    return changed


def accept_reported_name(context: ProviderContext, observed: ObservedHost, taken: Collection[str]) -> ObservedHost:
    """The same host under the name that its record gives it, if that can be believed.

    Users destroy hosts by name. So a record may change the name that this machine or the cloud knows, but not to what
    no host can be called, nor to one that is ``taken``.
    """
    known = observed.entry.host_name
    name = known if observed.record is None else observed.record.certified_host_data.host_name
    if name == known:
        return observed
    if not _HOST_NAME.fullmatch(name) or name in taken:
        logger.warning("Host {} says that it is called {!r}, which it cannot be", known, name)
        return observed
    return replace(observed, entry=save(context, observed.entry, lambda entry: replace(entry, host_name=name)))


def unless_destroyed(context: ProviderContext, observed: ObservedHost) -> ObservedHost:
    """The same host; as being destroyed, or gone, if another process of this machine destroys it or has done so."""
    # What the cloud alone tells of needs no note.
    is_noted = observed.is_noted and not (observed.is_gone or observed.is_being_made)
    if not is_noted or not context.local_store.is_going(observed.host_id):
        return observed
    current = context.local_store.read(observed.host_id)
    if current is None:
        return ObservedHost(observed.entry, is_gone=True)
    return ObservedHost(current, is_being_made=True)


def with_attendance(context: ProviderContext, observed: ObservedHost) -> ObservedHost:
    """The same host, as abandoned if no live process is to make its first agent, and none is there."""
    entry = observed.entry
    if not entry.awaits_agent or entry.phase is not HostPhase.READY or observed.is_gone:
        return observed
    if observed.known_agents:
        entry = save(context, entry, lambda entry: replace(entry, awaits_agent=False, failure_reason=None))
        return replace(observed, entry=entry)
    if context.local_store.is_attended(entry.host_id):
        return observed
    # That process may have ended after the note was read, and have made an agent before.
    current = context.local_store.read(entry.host_id)
    if current is None or not current.awaits_agent:
        return replace(observed, entry=replace(entry, awaits_agent=False))
    return replace(observed, entry=replace(entry, failure_reason=current.failure_reason), is_abandoned=True)


def _recognized(
    context: ProviderContext, observed: ObservedHost, connect_timeout_seconds: float | None = None
) -> HostAccess:
    host = HostAccess(context, observed, connect_timeout_seconds)
    context.recognize(host.host_id, host.address)
    return host


def _remember(context: ProviderContext, found: ObservedHost) -> LocalHostRecord:
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

    return save(context, found.entry, seen, is_new=not found.is_noted)
