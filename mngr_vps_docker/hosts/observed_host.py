"""One host as it was found: what the cloud, its VPS and this machine say of it, and what follows for mngr."""

import re
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from imbue.mngr.errors import HostAuthenticationError
from imbue.mngr.interfaces.data_types import CertifiedHostData, SnapshotInfo
from imbue.mngr.primitives import HostId, HostState, SnapshotId, SnapshotName
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.agent_data import believed
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.text import printable
from imbue.mngr_vps_docker.untrusted import parse_utc

# What mngr shows for an agent of which no command is known.
NO_COMMAND: Final = "(unknown)"

_STOP_REASONS = {state.value: state for state in (HostState.STOPPED, HostState.PAUSED)}


@dataclass(frozen=True)
class ObservedHost:
    """One host as it was just found: what this machine, the cloud and its VPS say of it.

    ``entry`` is what this machine keeps of it: made up from the instance's tags where it keeps nothing, which
    ``is_saved`` tells. ``is_gone`` is the cloud's word. The host ``is_abandoned`` if the process that made it has
    ended without making an agent on it. ``problem`` is why the VPS said nothing, or else why this machine cannot log
    in to the container. ``late_answer`` is the host as it will be seen once its VPS, which is being asked, answers.

    The rest is what the VPS says, if it ``is_read``: at ``read_at`` on this machine's monotonic clock, in seconds
    (None if something has changed since). ``vps_record`` is None if there is none or it ``is_record_unreadable``,
    ``container`` if there is none. ``kept_agents`` is the data of agents that mngr keeps for offline use.
    ``needs_reboot`` is whether an upgrade of the VPS waits for one.

    What follows ``is_volume_read`` is written by untrusted code on the host's volume, and empty if there is no volume
    or it holds too much: the certified data as the container wrote it (and that file's digest), the data of agents,
    and the word that an orderly stop left.
    """

    entry: LocalHostRecord
    problem: Exception | None = None
    is_gone: bool = False
    is_being_made: bool = False
    is_saved: bool = True
    is_abandoned: bool = False
    late_answer: "Future[ObservedHost] | None" = None
    is_read: bool = False
    read_at: float | None = None
    vps_record: VpsDockerHostRecord | None = None
    is_record_unreadable: bool = False
    container: ContainerInfo | None = None
    kept_agents: tuple[dict[str, Any], ...] = ()
    needs_reboot: bool = False
    is_volume_read: bool = False
    data_json: dict[str, Any] | None = None
    data_json_sha256: str | None = None
    live_agents: tuple[dict[str, Any], ...] = ()
    stop_word: str | None = None

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.entry.host_id

    @property
    def record(self) -> VpsDockerHostRecord | None:
        """The record as read now, else as last seen by this machine."""
        return self.vps_record or self.entry.record

    @property
    def name(self) -> str:
        """The user's name for the host, or else its id.

        What its record calls it is believed with care: see ``vps_reader.accept_reported_name``.
        """
        return printable(self.entry.host_name).strip() or self.host_id

    @property
    def is_running(self) -> bool:
        """Whether the host's container was seen running."""
        return self.container is not None and self.container.is_running

    @property
    def is_online(self) -> bool:
        """Whether the host runs, and this machine knows all that it takes to work on it."""
        is_known = self.record is not None and self.record.config is not None and self.failure_reason is None
        return self.is_running and is_known and self.problem is None

    def with_agent(self, agent_id: str, data: dict[str, Any] | None) -> "ObservedHost":
        """The same host after an agent's data was kept, or with None forgotten."""
        if not self.is_read:
            return self
        kept = tuple(agent for agent in self.kept_agents if agent.get("id") != agent_id)
        live = tuple(agent for agent in self.live_agents if agent.get("id") != agent_id)
        if data is not None:
            live = live if len(live) == len(self.live_agents) else (*live, data)
            kept = (*kept, data)
        return replace(self, kept_agents=kept, live_agents=live, read_at=None)

    def with_record(self, record: VpsDockerHostRecord) -> "ObservedHost":
        """The same host after its record was written."""
        vps_record = record if self.is_read else None
        return replace(self, entry=replace(self.entry, record=record), vps_record=vps_record)

    def started(self, record: VpsDockerHostRecord, container: ContainerInfo) -> "ObservedHost":
        """The same host after its container was started and set up."""
        return replace(self.with_record(record), container=container, stop_word=None)

    def with_problem(self, problem: Exception) -> "ObservedHost":
        """The same host, now that its container turned out not to answer: as last seen."""
        return ObservedHost(self.entry, problem=problem, is_saved=self.is_saved, is_abandoned=self.is_abandoned)

    @property
    def is_unfinished(self) -> bool:
        """Whether it is what a create or a destroy that failed, or was killed, left behind."""
        is_finished = self.entry.phase is HostPhase.READY and not self.is_abandoned
        return not (is_finished or self.is_being_made or self.is_gone)

    @property
    def known_agents(self) -> list[dict[str, Any]]:
        """Data of the host's agents: the copies kept for offline use, overlaid by what its volume says now."""
        if not self.is_read:
            return list(self.entry.agents)
        known = {str(agent.get("id")): agent for agent in self.kept_agents}
        for agent in self.live_agents:
            agent_id = str(agent.get("id"))
            known[agent_id] = believed(agent, known.get(agent_id))
        return list(known.values())

    def kept_agent(self, agent_id: str) -> dict[str, Any] | None:
        """The copy of an agent's data that mngr kept on the VPS, or what this machine keeps if that was not read."""
        kept = self.kept_agents if self.is_read else self.entry.agents
        return next((agent for agent in kept if agent.get("id") == agent_id), None)

    @property
    def agents(self) -> list[dict[str, Any]]:
        """Data of the host's agents, and of one that stands for the host.

        mngr lists and destroys agents, not hosts. So a host that costs money and has no agent, because it was never
        finished or cannot be read, is represented by one that has the host's name.
        """
        found = self.known_agents
        if not found and self.failure_reason is not None and not self.is_gone and not self.is_being_made:
            return [self._stand_in]
        return found

    @property
    def _stand_in(self) -> dict[str, Any]:
        """An agent that stands for a host without any."""
        return {
            "id": f"agent-{self.host_id.get_uuid().hex}",
            # Names of agents allow less than names of hosts.
            "name": re.sub(r"[^A-Za-z0-9_-]+", "-", self.name).strip("-_") or self.host_id,
            "type": "unfinished-host",
            "command": NO_COMMAND,
        }

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
        if not self.is_read:
            return self._last_seen_state
        return _STOP_REASONS.get(self.stop_reason or "", HostState.CRASHED)

    @property
    def _is_frozen(self) -> bool:
        """Whether the container is paused: by somebody on the VPS, or for the time that a snapshot takes."""
        return self.container is not None and self.container.is_paused

    @property
    def _last_seen_state(self) -> HostState:
        """The state that this machine kept; a host that was not looked at since it was made or started runs."""
        recorded = None if self.record is None else self.record.certified_host_data.stop_reason
        return self.entry.state or _STOP_REASONS.get(recorded or "", HostState.RUNNING)

    @property
    def stop_reason(self) -> str | None:
        """Why the host stopped, if it stopped in an orderly way."""
        if self.is_running:
            return None
        if self._is_frozen:
            return HostState.PAUSED.value
        if self.stop_word in _STOP_REASONS:
            return self.stop_word
        return None if self.record is None else self.record.certified_host_data.stop_reason

    @property
    def problem_text(self) -> str | None:
        """Why the host is shown as last seen, and since when if its VPS does not answer; or why it is paused."""
        if self._is_frozen and self.problem is None:
            return "its container is paused, on the VPS or for a snapshot: `mngr start` resumes it"
        if self.problem is None or self.is_read or self.entry.unreachable is None:
            return None if self.problem is None else printable(str(self.problem))
        return printable(f"unreachable since {self.entry.unreachable.since:%Y-%m-%d %H:%M:%S} UTC: {self.problem}")

    @property
    def advice(self) -> str | None:
        """What the user should do about the host's VPS, which is as it should be otherwise."""
        if not self.needs_reboot:
            return None
        return "its VPS must reboot to run what it upgraded: `mngr exec <agent> --outer reboot`, then `mngr start`"

    @property
    def failure_reason(self) -> str | None:
        """Why the host cannot be used at all, if it was never finished."""
        if self.is_being_made:
            return None
        if self.is_abandoned and not self.is_gone:
            reason = "mngr ended before there was an agent on it: remove it by `mngr gc` or `mngr destroy`"
            failure = self.entry.failure_reason
            return reason if failure is None else f"{reason}. What failed on it: {printable(failure)}"
        if self.record is not None and not self.is_unfinished:
            recorded = self.record.certified_host_data.failure_reason
            return None if recorded is None else printable(recorded)
        if self.entry.failure_reason is not None:
            return printable(self.entry.failure_reason)
        if self.is_record_unreadable:
            return "its record on the VPS cannot be read"
        if self.problem is not None:
            return f"it has no record on this machine, and {self.problem}"
        if self._is_of_another_machine:
            return "its record is neither on this machine nor on its VPS where this profile of mngr looks for it"
        begun = "destroying" if self.entry.phase is HostPhase.DESTROYING else "creating"
        return f"{begun} it was never finished: remove it by `mngr gc` or `mngr destroy`"

    @property
    def in_this_state_since(self) -> datetime | None:
        """How long the host has been as it is, by which mngr's gc judges: it deletes what has been offline for long.

        None where that is not known, or where there is something to lose. It is the beginning of time for what a
        create or a destroy that was never finished left, which gc may delete at once.
        """
        if self.is_being_made:
            return None
        if self.entry.phase is not HostPhase.READY:
            return datetime.fromtimestamp(0, UTC)
        if self.is_gone:
            return self.entry.gone_since
        if self.is_abandoned and self.is_volume_read:
            return datetime.fromtimestamp(0, UTC)
        # Never report an age for a host with agents, or gc would delete it after a crash.
        # Since when a container is frozen, Docker does not say.
        if self.record is None or self.container is None or self._is_frozen or self.problem is not None or self.agents:
            return None
        moments = (self.record.certified_host_data.updated_at, self.container.started_at, self.container.finished_at)
        return max(moment for moment in moments if moment is not None)

    @property
    def may_be_deleted(self) -> bool:
        """Whether nothing is lost with the host: it is gone, was never finished, or is stopped and has no agents."""
        return self.in_this_state_since is not None and (self.is_unfinished or not self.is_running)

    @property
    def _is_of_another_machine(self) -> bool:
        """Whether only the cloud's tags tell of the host: this machine never made it, and cannot read its record."""
        return self.record is None and self.entry.phase is HostPhase.READY

    @cached_property
    def certified_data(self) -> CertifiedHostData:
        """mngr's data of the host, with the state that was found; ``updated_at`` is how long it has been so."""
        # mngr takes it for the state of a host that is offline.
        stop_reason = self.stop_reason if self.is_read else self._last_seen_state.value
        created_at = self.entry.created_at
        known = (
            CertifiedHostData(host_id=self.host_id, host_name=self.name, created_at=created_at, updated_at=created_at)
            if self.record is None
            else self.record.certified_host_data
        )
        return replace(
            known,
            stop_reason=HostState.DESTROYED.value if self.is_gone else stop_reason,
            failure_reason=None if self.is_gone else self.failure_reason,
            updated_at=self.in_this_state_since or datetime.now(UTC),
            host_name=self.name,
            # They were images on its VPS.
            snapshots=[] if self.is_gone else known.snapshots,
        )


def list_snapshots(observed: ObservedHost) -> list[SnapshotInfo]:
    """The host's snapshots, newest first; asks no machine."""
    newest_first = sorted(observed.certified_data.snapshots, key=lambda snapshot: snapshot.created_at, reverse=True)
    return [
        SnapshotInfo(
            id=SnapshotId(snapshot.id),
            name=SnapshotName(printable(snapshot.name)),
            created_at=parse_utc(snapshot.created_at),
            recency_idx=index,
        )
        for index, snapshot in enumerate(newest_first)
    ]
