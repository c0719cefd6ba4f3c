"""What this machine keeps of each host: written before the cloud is asked, kept until the cloud says it is gone.

Each host has a folder (shared with its keys, see ``keys``) with one JSON file in it. The file is a write-ahead log and
a cache. The truth of a finished host is the record on its VPS, and the truth of what is billed is the cloud's.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import auto
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, ValidationError

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.imbue_common.frozen_model import FrozenModel
from imbue.mngr.primitives import HostId, HostState
from imbue.mngr_vps_docker.docker.run_options import without_values
from imbue.mngr_vps_docker.files import is_locked, locked, remove_folder, write_atomically
from imbue.mngr_vps_docker.primitives import HOST_ID_PATTERN, UtcDatetime, VpsInstanceId, replace
from imbue.mngr_vps_docker.state.agent_data import valid_agents
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.text import data_without_passwords, logger
from imbue.mngr_vps_docker.untrusted import describe_invalid

# What the locks of a host are for; other modules have more.
_RECORD: Final = "host"
_OWNER: Final = "owner"
_FIRST_AGENT: Final = "agent"
_USE: Final = "use"
# Locks of the hosts that this process has made and that have no agent yet, by path: LocalHostStore.await_agent.
_AWAITING: Final[dict[Path, ExitStack]] = {}


class HostPhase(UpperCaseStrEnum):
    """How far this machine has brought a host."""

    CREATING = auto()
    READY = auto()
    FAILED = auto()
    DESTROYING = auto()


class Unreachable(FrozenModel):
    """That the VPS of a host did not answer when it was last asked."""

    since: UtcDatetime = Field(description="When it first did not answer, of all times that it was asked since")
    is_silent: bool = Field(description="Whether it was waited for in vain, and did not refuse at once")


class LocalHostRecord(FrozenModel):
    """What this machine knows of one host."""

    host_id: HostId
    host_name: str
    phase: HostPhase
    created_at: UtcDatetime
    region: str | None = None
    ssh_key_name: str | None = Field(default=None, description="Name under which the cloud holds our public key")
    ssh_key_id: str | None = Field(default=None, description="The cloud's id of that key, once known")
    is_vps_ordered: bool = Field(default=False, description="Whether the cloud may have a VPS of it, id known or not")
    vps_ordered_at: UtcDatetime | None = Field(default=None, description="When it was ordered, if this machine did")
    vps_instance_id: VpsInstanceId | None = Field(default=None, description="The cloud's id of the VPS, once known")
    vps_ip: str | None = Field(default=None, description="Address of the VPS, once known")
    gone_since: datetime | None = Field(default=None, description="When the cloud first said that it has no such VPS")
    failure_reason: str | None = Field(default=None, description="What failed while it was created, if anything")
    awaits_agent: bool = Field(default=False, description="Whether mngr was handed it and has made no agent on it yet")
    record: VpsDockerHostRecord | None = Field(default=None, description="Last seen record")
    state: HostState | None = Field(default=None, description="State in which the host was last seen, if it was")
    unreachable: Unreachable | None = Field(default=None, description="Set while its VPS does not answer")
    # Earlier versions saved whatever they saw.
    agents: Annotated[tuple[dict[str, Any], ...], AfterValidator(valid_agents)] = Field(
        default=(), description="Last seen data of its agents"
    )

    def may_still_appear(self, appearing_seconds: float) -> bool:
        """Whether a VPS that the cloud does not show may be one that was ordered just now, and never seen."""
        if not self.is_vps_ordered or self.vps_ordered_at is None or self.vps_ip is not None:
            return False
        return datetime.now(UTC) - self.vps_ordered_at < timedelta(seconds=appearing_seconds)

    @property
    def on_disk(self) -> Self:
        """The entry as it is written: without passwords in URLs and values of ``--env``, which only the VPS keeps."""
        record = self.record
        if record is not None and record.config is not None:
            config = replace(record.config, start_args=without_values(record.config.start_args))
            record = replace(record, config=config)
        return replace(self, agents=tuple(data_without_passwords(self.agents)), record=record)

    @property
    def is_silent(self) -> bool:
        """Whether its VPS was waited for in vain when it was last asked, so that a listing waits less next time."""
        return self.unreachable is not None and self.unreachable.is_silent


class LocalHostStore:
    """The entries in ``<provider folder>/hosts/<host id>/host.json``, and the locks of each host.

    A host's folder exists exactly as long as this machine knows the host: only what creates or destroys one makes it.
    """

    def __init__(self, hosts_folder: Path) -> None:
        self._hosts_folder = hosts_folder
        self._unreadable: set[HostId] = set()
        self._known: set[HostId] = set()

    def read(self, host_id: HostId) -> LocalHostRecord | None:
        """Return the entry of ``host_id``, or None if there is none.

        Of a host whose file cannot be read it is known that it exists; its ``failure_reason`` names the file.
        """
        path = self._path(host_id)
        created_at = datetime.now(UTC)
        try:
            created_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            entry = LocalHostRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            self._unreadable.discard(host_id)
            return None
        except (OSError, ValidationError) as error:
            problem = describe_invalid(error) if isinstance(error, ValidationError) else error.strerror
            reason = f"{path} cannot be read ({problem}): move it away, or update mngr if a newer version wrote it"
            if host_id not in self._unreadable:
                logger.warning("{}", reason)
            self._unreadable.add(host_id)
            return LocalHostRecord(
                host_id=host_id,
                host_name=host_id,
                phase=HostPhase.READY,
                created_at=created_at,
                is_vps_ordered=True,
                failure_reason=reason,
            )
        self._known.add(host_id)
        self._unreadable.discard(host_id)
        return entry

    def read_all(self) -> list[LocalHostRecord]:
        """Return every entry, oldest first."""
        names = (path.parent.name for path in self._hosts_folder.glob("host-*/host.json"))
        entries = (self.read(HostId(name)) for name in names if re.fullmatch(HOST_ID_PATTERN, name))
        return sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.created_at)

    def write(self, entry: LocalHostRecord) -> LocalHostRecord:
        """Put ``entry`` on disk (fsync) and return it; a file that cannot be read is left alone."""
        with locked(self._lock_path(entry.host_id, _RECORD)):
            return entry if entry.host_id in self._unreadable else self._put(entry)

    def update(self, host_id: HostId, change: Callable[[LocalHostRecord], LocalHostRecord]) -> LocalHostRecord | None:
        """Write what ``change`` makes of an entry; None if there is none, or one that cannot be read."""
        with self.exclusive(host_id, _RECORD) as is_known:
            entry = self.read(host_id) if is_known else None
            return None if entry is None or host_id in self._unreadable else self._put(change(entry))

    def forget(self, host_id: HostId) -> None:
        """Remove everything that this machine keeps of a host, its keys too. Idempotent."""
        with self.exclusive(host_id, _RECORD):
            remove_folder(self._hosts_folder / host_id)
        self._stop_awaiting(host_id)

    @contextmanager
    def ownership(self, host_id: HostId) -> Iterator[None]:
        """Mark this process as the one that creates or destroys the host; the kernel unmarks it when it ends."""
        with locked(self._lock_path(host_id, _OWNER)):
            yield

    def is_owned(self, host_id: HostId) -> bool:
        """Whether a live process of this machine creates or destroys the host right now."""
        return is_locked(self._lock_path(host_id, _OWNER))

    def is_going(self, host_id: HostId) -> bool:
        """Whether a process of this machine destroys the host, or has done so since its entry was read here."""
        entry = self.read(host_id)
        if entry is None:
            return host_id in self._known and not self._path(host_id).exists()
        return entry.phase is HostPhase.DESTROYING and self.is_owned(host_id)

    @contextmanager
    def in_use(self, host_id: HostId) -> Iterator[None]:
        """Let other processes of this machine wait for some seconds before they destroy the host."""
        with ExitStack() as stack:
            with suppress(FileNotFoundError):
                stack.enter_context(locked(self._lock_path(host_id, _USE), is_folder_made=False, is_shared=True))
            yield

    def wait_until_unused(self, host_id: HostId, timeout_seconds: float) -> None:
        """Wait until no process of this machine changes the host any more, or the time is over."""
        path = self._lock_path(host_id, _USE)
        with (
            suppress(FileNotFoundError, BlockingIOError),
            locked(path, timeout_seconds=timeout_seconds, is_folder_made=False),
        ):
            pass

    def await_agent(self, host_id: HostId) -> None:
        """Mark this process as the one that is to make the host's first agent, until ``remember_agent`` or its end.

        mngr creates a host and its first agent by separate calls, and undoes nothing if it ends in between.
        """
        path = self._lock_path(host_id, _FIRST_AGENT)
        _AWAITING[path] = ExitStack()
        _AWAITING[path].enter_context(locked(path))

    def remember_agent(self, host_id: HostId) -> None:
        """Save that the host has an agent, so that it is finished for good."""
        entry = self.read(host_id)
        if entry is not None and entry.awaits_agent:
            self.update(host_id, lambda known: replace(known, awaits_agent=False, failure_reason=None))
        self._stop_awaiting(host_id)

    def save_failure(self, host_id: HostId, reason: str) -> None:
        """Save what failed on a host whose first agent this process has yet to make; of any other host, nothing.

        The first failure counts: those that follow are of cleaning up after it.
        """
        if self._lock_path(host_id, _FIRST_AGENT) in _AWAITING:
            entry = self.read(host_id)
            if entry is not None and entry.failure_reason is None:
                self.update(host_id, lambda known: replace(known, failure_reason=reason))

    def is_in_progress(self, host_id: HostId) -> bool:
        """Whether a live process of this machine creates or destroys the host, or makes its first agent."""
        # In this order: a process that creates it does the one before the other.
        return self.is_owned(host_id) or is_locked(self._lock_path(host_id, _FIRST_AGENT))

    @contextmanager
    def exclusive(self, host_id: HostId, what: str) -> Iterator[bool]:
        """Let one process or thread of this machine at a time do ``what`` to a host (a word for a file's name).

        Yields whether this machine knows the host. For one that it does not know, or has forgotten by now, nothing is
        locked and nothing left behind.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._lock_path(host_id, what), is_folder_made=False))
                is_known = True
            except FileNotFoundError:
                is_known = False
            yield is_known

    def _stop_awaiting(self, host_id: HostId) -> None:
        awaiting = _AWAITING.pop(self._lock_path(host_id, _FIRST_AGENT), None)
        if awaiting is not None:
            awaiting.close()

    def _put(self, entry: LocalHostRecord) -> LocalHostRecord:
        write_atomically(self._path(entry.host_id), entry.on_disk.model_dump_json(indent=2).encode())
        return entry

    def _path(self, host_id: HostId) -> Path:
        return self._hosts_folder / host_id / "host.json"

    def _lock_path(self, host_id: HostId, what: str) -> Path:
        return self._hosts_folder / host_id / f"{what}.lock"
