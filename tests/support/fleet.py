"""Hosts as a test writes them down: what the cloud lists, what a VPS answers, what one machine remembers of each."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

from imbue.mngr.primitives import AgentId, DiscoveredAgent, DiscoveredHost, HostId, HostState
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from support.local_machine import LocalMachine
from support.local_provider import local_provider
from support.memory_provider import (
    REFUSING,
    SILENT,
    MemoryCloud,
    MemoryProvider,
    Network,
    record_of,
    running_container,
    stopped_container,
)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ADDRESS = "192.0.2.1"


class Fleet:
    """A cloud, a network, and one machine that knows them; ``process`` is the provider with nothing in memory."""

    def __init__(self, folder: Path, groups: ExitStack) -> None:
        self.folder = folder
        self.groups = groups
        self.cloud = MemoryCloud(account="test")
        self.network = Network()

    def process(
        self,
        client: VpsClientInterface | None = None,
        provider_class: type[MemoryProvider] = MemoryProvider,
        **settings: object,
    ) -> MemoryProvider:
        process = local_provider(
            self.folder / "here", "test", client or self.cloud, provider_class=provider_class, **settings
        )
        self.groups.enter_context(process.mngr_ctx.concurrency_group)
        assert isinstance(process, MemoryProvider)
        return process.connect(self.network)

    def note(
        self, host_id: HostId, phase: HostPhase = HostPhase.READY, address: str = ADDRESS, **changes: object
    ) -> None:
        """What this machine remembers of a host, and its keys."""
        context = self.process()._context
        context.keys.create_vps_host_key(host_id)
        record = record_of(host_id) if phase is HostPhase.READY else None
        entry = LocalHostRecord(
            host_id=host_id,
            host_name="h1",
            phase=phase,
            created_at=LONG_AGO,
            vps_instance_id=VpsInstanceId(address),
            vps_ip=address,
            record=record,
        )
        context.local_store.write(entry.model_copy(update=changes))

    def machine(self, host_id: HostId, address: str = ADDRESS) -> VpsDockerHostStore:
        """A VPS that answers, with the record and the stopped container of a host."""
        (self.folder / address).mkdir()
        machine = LocalMachine(self.folder / address)
        self.network.machines[address] = machine
        machine.volume(f"mngr-host-vol-{host_id.get_uuid().hex}")
        store = VpsDockerHostStore(machine, machine.volume(self.process()._context.state_volume_name).name)
        store.write_host_record(record_of(host_id, stop_reason="STOPPED"))
        (machine.volumes / ".container-ids").write_text("c1\n")
        (machine.volumes / ".containers").write_text(stopped_container(host_id))
        return store

    def set_up(self, host_id: HostId, case: "Case") -> None:
        """Have what there is of a host."""
        begun = datetime.now(UTC) - timedelta(seconds=1 if case.age_seconds is None else case.age_seconds)
        if case.age_seconds is not None:
            self.cloud.order(host_id, ADDRESS, begun)
        if case.has_key:
            self.cloud.take_key(host_id, begun)
        if case.is_going:
            self.cloud.change(ADDRESS, status=VpsInstanceStatus.DESTROYING)
        self.cloud.is_listing = case.is_listing
        self.cloud.unlisted = set() if case.is_listed else {ADDRESS}
        if isinstance(case.note, HostPhase):
            self.note(host_id, case.note, awaits_agent=case.awaits_agent)
        elif case.note is not None or case.vps is Vps.STOPPED:
            self.process()._context.keys.create_vps_host_key(host_id)
            if case.note is not None:
                self.note_path(host_id).write_text(case.note)
        if case.vps in (Vps.SILENT, Vps.REFUSING):
            self.network.refusals[ADDRESS] = case.vps.value
            return
        store = self.machine(host_id)
        if case.has_agent:
            store.persist_agent_data(host_id, {"id": AgentId.generate(), "name": "a1"})
        if case.vps is Vps.CRASHED:
            store.write_host_record(record_of(host_id))
        elif case.vps is Vps.RUNNING:
            machine = self.network.machines[ADDRESS]
            assert isinstance(machine, LocalMachine)
            (machine.volumes / ".containers").write_text(running_container(host_id))
        elif case.vps is Vps.UNREADABLE:
            self.record_path(host_id).write_text("torn")
        elif case.vps is Vps.RECORDLESS:
            self.record_path(host_id).unlink()

    def listed(self) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
        """What a new process lists."""
        process = self.process()
        return process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)

    def note_path(self, host_id: HostId) -> Path:
        """Where this machine's note of a host is."""
        return self.process()._context.keys.hosts_folder / host_id / "host.json"

    def record_path(self, host_id: HostId) -> Path:
        """Where the record of a host is."""
        (path,) = (self.folder / ADDRESS).glob(f"volumes/*/host_state/{host_id}.json")
        return path


class Vps(Enum):
    """What a VPS answers."""

    SILENT = SILENT
    REFUSING = REFUSING
    RUNNING = "its container runs, and its port does not answer"
    STOPPED = "its container was stopped"
    CRASHED = "its container stopped, nobody knows why"
    UNREADABLE = "its record is torn"
    RECORDLESS = "it has no record"


@dataclass(frozen=True)
class Case:
    """What there is of a host, and what is to follow.

    ``note`` is what this machine remembers, ``vps`` what its VPS says; the VPS is ``age_seconds`` old, or there is
    none (None), or, ``is_going``, the cloud is destroying it. ``state`` None means that no host is shown.
    """

    state: HostState | None
    is_garbage: bool = False
    note: HostPhase | str | None = None
    vps: Vps = Vps.SILENT
    age_seconds: float | None = 1e8
    has_key: bool = False
    is_owned: bool = False
    is_going: bool = False
    is_listed: bool = True
    is_listing: bool = True
    has_agent: bool = False
    awaits_agent: bool = False


CASES = {
    "running, without a way in": Case(HostState.RUNNING, note=HostPhase.READY, vps=Vps.RUNNING),
    "stopped": Case(HostState.STOPPED, is_garbage=True, note=HostPhase.READY, vps=Vps.STOPPED),
    "stopped with an agent": Case(HostState.STOPPED, note=HostPhase.READY, vps=Vps.STOPPED, has_agent=True),
    "crashed with an agent": Case(HostState.CRASHED, note=HostPhase.READY, vps=Vps.CRASHED, has_agent=True),
    "silent": Case(HostState.RUNNING, note=HostPhase.READY),
    "refusing": Case(HostState.UNAUTHENTICATED, note=HostPhase.READY, vps=Vps.REFUSING),
    "with an unreadable record": Case(HostState.CRASHED, note=HostPhase.READY, vps=Vps.UNREADABLE, has_agent=True),
    "left out of a listing": Case(HostState.RUNNING, note=HostPhase.READY, is_listed=False),
    "of a cloud that cannot list": Case(HostState.RUNNING, note=HostPhase.READY, is_listing=False),
    "that the cloud knows no more": Case(None, note=HostPhase.READY, age_seconds=None),
    "whose VPS is being destroyed by the cloud": Case(None, note=HostPhase.READY, is_going=True),
    "with a note that cannot be read": Case(HostState.STOPPED, note="torn", vps=Vps.STOPPED, has_agent=True),
    "with a note that cannot be read, silent": Case(HostState.FAILED, note="torn"),
    "with a note that cannot be read, refusing": Case(HostState.UNAUTHENTICATED, note="torn", vps=Vps.REFUSING),
    "with a note that cannot be read, unlisted": Case(HostState.FAILED, note="torn", is_listing=False),
    "being made": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True),
    "being made, not ordered yet": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True, age_seconds=None),
    "being made for ages": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True, has_key=True),
    "never finished": Case(HostState.FAILED, is_garbage=True, note=HostPhase.CREATING),
    "never finished just now": Case(HostState.FAILED, is_garbage=True, note=HostPhase.CREATING, age_seconds=1),
    "never finished, silent, unlisted": Case(
        HostState.FAILED, is_garbage=True, note=HostPhase.CREATING, is_listed=False
    ),
    "failed": Case(HostState.FAILED, is_garbage=True, note=HostPhase.FAILED, vps=Vps.REFUSING),
    "being destroyed": Case(HostState.BUILDING, note=HostPhase.DESTROYING, is_owned=True),
    "half destroyed, its VPS gone": Case(None, note=HostPhase.DESTROYING, age_seconds=None),
    "half destroyed": Case(HostState.FAILED, is_garbage=True, note=HostPhase.DESTROYING, vps=Vps.STOPPED),
    "abandoned, running": Case(
        HostState.FAILED, is_garbage=True, note=HostPhase.READY, vps=Vps.RUNNING, awaits_agent=True
    ),
    "abandoned, crashed": Case(
        HostState.FAILED, is_garbage=True, note=HostPhase.READY, vps=Vps.CRASHED, awaits_agent=True
    ),
    # Another machine that shares its keys may have made an agent on it.
    "abandoned, silent": Case(HostState.FAILED, note=HostPhase.READY, awaits_agent=True),
    "abandoned, with an unreadable record": Case(
        HostState.FAILED, is_garbage=True, note=HostPhase.READY, vps=Vps.UNREADABLE, awaits_agent=True
    ),
    "that the cloud knows no more, abandoned": Case(None, note=HostPhase.READY, age_seconds=None, awaits_agent=True),
    "getting its first agent": Case(
        HostState.RUNNING, note=HostPhase.READY, vps=Vps.RUNNING, awaits_agent=True, is_owned=True
    ),
    "that has got its first agent": Case(
        HostState.STOPPED, note=HostPhase.READY, vps=Vps.STOPPED, awaits_agent=True, has_agent=True
    ),
    # The rest is of another machine, which only the cloud tells of.
    "of another machine": Case(HostState.UNAUTHENTICATED, vps=Vps.REFUSING),
    "of another machine, silent": Case(HostState.FAILED),
    "of another machine, young and silent": Case(HostState.FAILED, age_seconds=1),
    "of another machine that shares its keys": Case(HostState.STOPPED, vps=Vps.STOPPED, has_agent=True),
    "of another machine, its record unreadable": Case(HostState.FAILED, vps=Vps.UNREADABLE),
    "of another machine, without a record": Case(HostState.FAILED, vps=Vps.RECORDLESS),
    "of another machine, being destroyed by the cloud": Case(None, is_going=True),
    "being made by another machine": Case(HostState.BUILDING, age_seconds=1, has_key=True, vps=Vps.REFUSING),
    "left unfinished by another machine": Case(HostState.FAILED, is_garbage=True, has_key=True, vps=Vps.REFUSING),
    "being ordered by another machine": Case(None, age_seconds=None, has_key=True),
}
