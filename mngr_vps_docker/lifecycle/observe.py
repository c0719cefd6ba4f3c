"""Asking one VPS what it knows of its host, and what this machine notes of the answer.

What a VPS says is believed of its own host only: whoever controls it can write anything into the record, and no word
of that decides which VPS is destroyed or what another host is called.
"""

import re
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from typing import NamedTuple

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.terminal import logger
from imbue.mngr_vps_docker.vps_state import VpsState
from imbue.mngr_vps_docker.vps_state import read_vps_state

# What any version of this package has let a host be called.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")


class Question(NamedTuple):
    """What a VPS is asked: about which host, where, and what the host's container is probably called."""

    host_id: HostId
    address: str
    container: str


def question_about(context: ProviderContext, sighting: HostSighting) -> Question | None:
    """What to ask the VPS of a host; None where there is none that could answer."""
    entry = sighting.entry
    if sighting.is_gone or sighting.is_being_made or sighting.is_unfinished or entry.vps_ip is None:
        return None
    return Question(entry.host_id, entry.vps_ip, _container_name(context, sighting))


def ask(context: ProviderContext, question: Question) -> VpsState:
    """Have the VPS of a host say what it knows; raises VpsDockerError. Nothing of it is remembered yet."""
    host_id, address, container = question
    with _files_of_this_machine():
        context.recognize(host_id, address)
        return read_vps_state(
            context.vps(address, host_id), state_volume=context.state_volume_name, container=container
        )


def ask_over_open_login(context: ProviderContext, question: Question) -> VpsState | None:
    """The same where that costs no login; else None."""
    with _files_of_this_machine():
        is_open = context.vps(question.address, question.host_id).is_open
    return ask(context, question) if is_open else None


def observe(
    context: ProviderContext,
    sighting: HostSighting,
    ask: Callable[[ProviderContext, Question], VpsState] = ask,
) -> HostSighting:
    """Ask the host's VPS, and remember what it says."""
    question = question_about(context, sighting)
    if question is None:
        return sighting
    entry = sighting.entry
    try:
        state = ask(context, question)
    except VpsDockerError as error:
        return replace(sighting, problem=error)
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
        elif before is not None and before.model_copy(update=found) != before:
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
        vps_instance_id=found.entry.vps_instance_id,
        vps_ip=found.entry.vps_ip,
        gone_since=None,
    )
