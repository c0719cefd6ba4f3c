"""Asking one VPS what it knows of its host, and what this machine notes of the answer.

What a VPS says is believed of its own host only: whoever controls it can write anything into the record, and no word
of that decides which VPS is destroyed or what another host is called.
"""

import re
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from datetime import datetime
from typing import Final

from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError
from imbue.mngr_vps_docker.errors import RemoteOutputError
from imbue.mngr_vps_docker.errors import SshdDownError
from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.journal import Unreachable
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.patience import Patience
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.terminal import logger
from imbue.mngr_vps_docker.vps_state import VpsState
from imbue.mngr_vps_docker.vps_state import read_vps_state

# One ssh per VPS at a time; mngr itself asks at most this many hosts at once.
MAX_PARALLEL_READINGS: Final = 32

# What any version of this package has let a host be called.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


def can_be_asked(sighting: HostSighting) -> bool:
    """Whether there may be a VPS of the host that answers."""
    is_made = not (sighting.is_gone or sighting.is_being_made or sighting.is_unfinished)
    return is_made and sighting.entry.vps_ip is not None


def listing_patience(context: ProviderContext, entry: JournalEntry) -> Patience:
    """How long a listing waits for the VPS of a host."""
    return context.timings.listing_of_silent if entry.is_silent else context.timings.listing


def ask(context: ProviderContext, sighting: HostSighting, patience: Patience | None = None) -> VpsState:
    """Ask the host's VPS what it knows; raises VpsDockerError. Nothing of it is remembered yet.

    It is waited for with ``patience``, or as long as a listing waits.
    """
    patience = patience or listing_patience(context, sighting.entry)
    with _files_of_this_machine():
        return read_vps_state(
            _connection(context, sighting, patience.connect_seconds),
            state_volume=context.state_volume_name,
            container=_container_name(context, sighting),
            timeout_seconds=patience.answer_seconds,
        )


def is_logged_in(context: ProviderContext, sighting: HostSighting) -> bool:
    """Whether to ask the host's VPS costs no login; raises VpsDockerError."""
    with _files_of_this_machine():
        return _connection(context, sighting).is_open


def observe(
    context: ProviderContext,
    sighting: HostSighting,
    ask: Callable[[ProviderContext, HostSighting], VpsState] = ask,
) -> HostSighting:
    """Ask the host's VPS, and remember what it says."""
    if not can_be_asked(sighting):
        return sighting
    began = time.monotonic()
    try:
        state = ask(context, sighting)
    except VpsDockerError as error:
        return unanswered(context, sighting, error, time.monotonic() - began)
    sighting = _answered(context, sighting)
    entry = sighting.entry
    reading = state.hosts.get(entry.host_id)
    if reading is None:
        return sighting
    found = replace(sighting, reading=reading, problem=None)
    if reading.record is None or entry.phase is not HostPhase.READY:
        return found
    found = replace(found, entry=_remember(context, found), is_noted=True)
    try:
        with _files_of_this_machine():
            context.keys.container_client_key(entry.host_id)
    # One that is missing or damaged is this host's trouble alone.
    except VpsDockerError as error:
        return replace(found, problem=error)
    return found


def unanswered(
    context: ProviderContext, sighting: HostSighting, problem: VpsDockerError, waited_seconds: float
) -> HostSighting:
    """The same host, now that its VPS has not answered within ``waited_seconds``; since when is noted, on disk too."""
    found = replace(sighting, problem=problem)
    if not is_unreachable(problem):
        return found
    context.waited_seconds[sighting.host_id] = context.waited_seconds.get(sighting.host_id, 0.0) + waited_seconds
    before = sighting.entry.unreachable
    unreachable = Unreachable(
        since=datetime.now(UTC) if before is None else before.since,
        is_silent=not isinstance(problem, SshdDownError),
    )
    return replace(found, entry=noted(context, sighting.entry, unreachable=unreachable))


def is_unreachable(problem: Exception | None) -> bool:
    """Whether the problem with a VPS is that it does not answer, or not in time, or never stops to."""
    if isinstance(problem, VpsAuthenticationError):
        return False
    return isinstance(problem, VpsConnectionError | RemoteCommandTimeoutError | RemoteOutputError)


def _answered(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    context.waited_seconds.pop(sighting.host_id, None)
    if sighting.entry.unreachable is None:
        return sighting
    return replace(sighting, entry=noted(context, sighting.entry, unreachable=None))


@contextmanager
def _files_of_this_machine() -> Iterator[None]:
    """Have a file here that cannot be written, or read, be an error of the host that it is for."""
    try:
        yield
    except OSError as error:
        raise VpsDockerError(f"a file of this machine is in the way: {error}") from error


def noted(context: ProviderContext, entry: JournalEntry, *, is_new: bool = False, **found: object) -> JournalEntry:
    """The entry with what was ``found``, on disk too.

    Where it is there no more, another process has destroyed the host, and it stays away unless it ``is_new``: not
    there before either. A disk that takes nothing keeps nobody from seeing his hosts.
    """
    changed = entry.model_copy(update=found)
    try:
        before = context.journal.read(entry.host_id)
        if before is None and is_new:
            context.journal.write(changed)
        elif before is not None and before.model_copy(update=found).on_disk != before:
            context.journal.update(entry.host_id, **found)
    except OSError as error:
        logger.warning("What was seen of host {} is not noted on this machine: {}", entry.host_name, error)
    return changed


def named(context: ProviderContext, sighting: HostSighting, taken: Collection[str]) -> HostSighting:
    """The same host under the name that its record gives it, if that can be believed.

    Users destroy hosts by name. So a record may change the name that this machine or the cloud knows, but not to what
    no host can be called, nor to one that is ``taken``.
    """
    known = sighting.entry.host_name
    name = known if sighting.record is None else sighting.record.certified_host_data.host_name
    if name == known:
        return sighting
    if not _HOST_NAME.fullmatch(name) or name in taken:
        logger.warning("Host {} says that it is called {!r}, which it cannot be", known, name)
        return sighting
    return replace(sighting, entry=noted(context, sighting.entry, host_name=name))


def unless_destroyed(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    """The same host; as being destroyed, or gone, if another process of this machine destroys it or has done so."""
    # What the cloud alone tells of needs no note.
    is_noted = sighting.is_noted and not (sighting.is_gone or sighting.is_being_made)
    if not is_noted or not context.journal.is_going(sighting.host_id):
        return sighting
    current = context.journal.read(sighting.host_id)
    if current is None:
        return replace(sighting, reading=None, problem=None, is_gone=True)
    return replace(sighting, entry=current, reading=None, problem=None, is_being_made=True)


def attended(context: ProviderContext, sighting: HostSighting) -> HostSighting:
    """The same host, as abandoned if no live process is to make its first agent, and none is there."""
    entry = sighting.entry
    if not entry.awaits_agent or entry.phase is not HostPhase.READY or sighting.is_gone:
        return sighting
    if sighting.known_agents:
        return replace(sighting, entry=noted(context, entry, awaits_agent=False, failure_reason=None))
    if context.journal.is_attended(entry.host_id):
        return sighting
    # That process may have ended after the note was read, and have made an agent before.
    current = context.journal.read(entry.host_id)
    if current is None or not current.awaits_agent:
        return replace(sighting, entry=entry.model_copy(update={"awaits_agent": False}))
    failure = {"failure_reason": current.failure_reason}
    return replace(sighting, entry=entry.model_copy(update=failure), is_abandoned=True)


def _connection(
    context: ProviderContext, sighting: HostSighting, connect_timeout_seconds: float | None = None
) -> SshConnection:
    host_id, address = sighting.host_id, sighting.entry.vps_ip
    if address is None:
        raise VpsDockerError(f"The VPS of {sighting.name} has no address")
    context.recognize(host_id, address)
    return context.vps(address, host_id, connect_timeout_seconds)


def _container_name(context: ProviderContext, sighting: HostSighting) -> str:
    """What the host's container is probably called."""
    record = sighting.record
    if record is not None and record.config is not None:
        return record.config.container_name
    return context.container_name(sighting.name)


def _remember(context: ProviderContext, found: HostSighting) -> JournalEntry:
    """Note what was seen of a host, and nothing else: another process may be destroying it."""
    return noted(
        context,
        found.entry,
        is_new=not found.is_noted,
        record=found.record,
        agents=tuple(found.known_agents),
        state=found.state,
        vps_instance_id=found.entry.vps_instance_id,
        vps_ip=found.entry.vps_ip,
        gone_since=None,
    )
