"""A cloud, VPSes and one machine that uses them, as a test arranges them."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from imbue.mngr.interfaces.data_types import AgentDetails, HostDetails
from imbue.mngr.primitives import AgentId, DiscoveredAgent, DiscoveredHost, HostId, HostState
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostStore
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, encode_agent_data, encode_record
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from support.builders import LONG_AGO, container_of, local_record_of, record_of
from support.local_machine import LocalMachine
from support.local_provider import local_provider
from support.memory_provider import REFUSING, SILENT, MemoryCloud, MemoryProvider, Network

ADDRESS = "192.0.2.1"

type Rows = dict[HostId, tuple[HostDetails, list[AgentDetails]]]


class ScriptedMachine(SshConnection):
    """A machine that answers every command at once, with what a test has set."""

    stdout = b""
    stderr = b""
    exit_code = 0
    limits: tuple[int, ...] = ()

    def run(self, command: str, *, purpose: str, limit_bytes: int = 0, **_options: Any) -> CommandOutcome:
        self.limits += (limit_bytes,)
        return CommandOutcome(
            OutcomeStatus.COMPLETED,
            argv=("sh", "-c", command),
            host=self.target.name,
            purpose=purpose,
            elapsed_seconds=0.0,
            exit_code=self.exit_code,
            stdout=self.stdout,
            stderr=self.stderr,
        )


class World:
    """A cloud, a network of VPSes that are folders here, and one machine that uses them.

    ``process`` is the provider of that machine in a new process, which remembers nothing.
    """

    def __init__(self, folder: Path, groups: ExitStack) -> None:
        self.folder = folder
        self.groups = groups
        self.cloud = MemoryCloud()
        self.network = Network()
        self.state_volume = self.context.state_volume_name
        self._vpses: dict[HostId, LocalMachine] = {}

    def process(
        self,
        client: VpsClientInterface | None = None,
        provider_class: type[MemoryProvider] = MemoryProvider,
        **settings: Any,
    ) -> MemoryProvider:
        process = local_provider(
            self.folder / "here", "test", client or self.cloud, provider_class=provider_class, **settings
        )
        self.groups.enter_context(process.mngr_ctx.concurrency_group)
        return process.connect(self.network)

    @property
    def context(self) -> ProviderContext:
        """What the operations of a new process are given."""
        return self.process().context

    @property
    def local_store(self) -> LocalHostStore:
        """What the machine remembers of each host."""
        return self.context.local_store

    def access(self, host_id: HostId) -> HostAccess:
        """The ways to a host's machines, by what this machine keeps of it."""
        entry = self.local_store.read(host_id)
        assert entry is not None
        return HostAccess(self.context, ObservedHost(entry))

    def discovered(self) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
        """What a new process discovers."""
        return discovered(self.process())

    def listed(self) -> dict[HostId, list[str]]:
        """The names of the agents of each host, as a new process lists them."""
        return agent_names(self.discovered())

    def rows(self, **options: Any) -> Rows:
        """The rows of each host and its agents, as a new process shows them."""
        process = self.process()
        return rows(process, discovered(process), **options)

    def remember(
        self, host_id: HostId, phase: HostPhase = HostPhase.READY, address: str = ADDRESS, **changes: object
    ) -> None:
        """Let the machine remember a host and have its keys."""
        context = self.context
        context.keys.create_vps_host_key(host_id)
        values = {"vps_instance_id": VpsInstanceId(address), "vps_ip": address, **changes}
        context.local_store.write(local_record_of(host_id, phase, **values))

    def boot(self, host_id: HostId, address: str = ADDRESS) -> LocalMachine:
        """A VPS that answers, with the record and the stopped container of a host."""
        (self.folder / address).mkdir()
        vps = self._vpses[host_id] = self.network.machines[address] = LocalMachine(self.folder / address)
        self.volume(host_id).mkdir()
        vps.volume(self.state_volume)
        self.write_record(record_of(host_id, stop_reason="STOPPED"))
        (vps.volumes / ".container-ids").write_text("c1\n")
        self.set_container(host_id, "exited")
        return vps

    def add_silent_host(self, name: str = "h1", address: str = ADDRESS) -> HostId:
        """A host that the cloud and the machine know, on a VPS that does not answer."""
        host_id = HostId.generate()
        self.cloud.add_vps(host_id, address, LONG_AGO)
        self.remember(host_id, address=address, host_name=name, record=record_of(host_id, host_name=name))
        return host_id

    def add_host(self, name: str = "h1", address: str = ADDRESS) -> HostId:
        """A stopped host that the cloud, the VPS and the machine know, with one agent, ``kept``."""
        host_id = self.add_silent_host(name, address)
        self.boot(host_id, address)
        self.write_record(record_of(host_id, stop_reason="STOPPED", host_name=name))
        self.add_agent(host_id, "kept")
        return host_id

    def vps(self, host_id: HostId) -> LocalMachine:
        """The VPS of a host that was booted."""
        return self._vpses[host_id]

    def address(self, host_id: HostId) -> str:
        """The address of a VPS that was booted."""
        return self.vps(host_id).volumes.parent.name

    def set_container(self, host_id: HostId, status: str) -> None:
        """Let Docker on the VPS report a status of the container."""
        (self.vps(host_id).volumes / ".containers").write_text(json.dumps([container_of(host_id, status)]))

    def start(self, host_id: HostId) -> ScriptedMachine:
        """Let the container of a host run, and return it."""
        self.set_container(host_id, "running")
        container = ScriptedMachine(self.vps(host_id).target)
        self.network.containers[self.address(host_id)] = container
        return container

    def volume(self, host_id: HostId) -> Path:
        """The files of a host's volume."""
        return self.vps(host_id).volumes / f"mngr-host-vol-{host_id.get_uuid().hex}"

    def record_path(self, host_id: HostId) -> Path:
        """The file of a host's record on its VPS."""
        return self.vps(host_id).volumes / self.state_volume / f"host_state/{host_id}.json"

    def write_record(self, record: VpsDockerHostRecord) -> None:
        """Write a record as the host store leaves it, whose scripts would take most of the time of most tests."""
        path = self.record_path(record.host_id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_record(record))

    def add_agent(self, host_id: HostId, name: str = "a1") -> AgentId:
        """An agent that mngr keeps a copy of on the VPS, as the host store leaves it."""
        agent_id = AgentId.generate()
        path = self.record_path(host_id).with_suffix("") / f"{agent_id}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_agent_data({"id": agent_id, "name": name}))
        return agent_id

    def write_agent(self, host_id: HostId, agent_id: AgentId, content: bytes) -> None:
        """Write the data of an agent on the volume of a host."""
        folder = self.volume(host_id) / "agents" / agent_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.json").write_bytes(content)

    def local_record_path(self, host_id: HostId) -> Path:
        """The file in which the machine remembers a host."""
        return self.context.keys.hosts_folder / host_id / "host.json"

    def arrange(self, case: "Case", host_id: HostId | None = None) -> HostId:
        """Bring about what a case says of a host, and return its id."""
        host_id = host_id or HostId.generate()
        begun = datetime.now(UTC) - timedelta(seconds=1 if case.age_seconds is None else case.age_seconds)
        if case.age_seconds is not None:
            self.cloud.add_vps(host_id, ADDRESS, begun)
        if case.has_key:
            self.cloud.add_key(host_id, begun)
        if case.is_going:
            self.cloud.change(ADDRESS, status=VpsInstanceStatus.DESTROYING)
        self.cloud.is_listing = case.is_listing
        self.cloud.unlisted = set() if case.is_listed else {ADDRESS}
        if isinstance(case.local, HostPhase):
            self.remember(host_id, case.local, awaits_agent=case.awaits_agent)
        elif case.local is not None or case.vps is Vps.STOPPED:
            self.context.keys.create_vps_host_key(host_id)
            if case.local is not None:
                self.local_record_path(host_id).write_text(case.local)
        if case.vps in (Vps.SILENT, Vps.REFUSING):
            self.network.refusals[ADDRESS] = case.vps.value
            return host_id
        self.boot(host_id)
        if case.has_agent:
            self.add_agent(host_id)
        if case.vps is Vps.CRASHED:
            self.write_record(record_of(host_id))
        elif case.vps is Vps.RUNNING:
            self.set_container(host_id, "running")
        elif case.vps is Vps.UNREADABLE:
            self.record_path(host_id).write_text("torn")
        elif case.vps is Vps.RECORDLESS:
            self.record_path(host_id).unlink()
        return host_id


def discovered(process: MemoryProvider) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
    """What `mngr exec` and `mngr list` begin with."""
    return process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)


def agent_names(found: Mapping[DiscoveredHost, list[DiscoveredAgent]]) -> dict[HostId, list[str]]:
    """The names of the agents of each host."""
    return {host.host_id: [agent.agent_name for agent in agents] for host, agents in found.items()}


def rows(process: MemoryProvider, found: Mapping[DiscoveredHost, list[DiscoveredAgent]], **options: Any) -> Rows:
    """What `mngr list` shows of what was discovered."""
    return {
        host.host_id: process.get_host_and_agent_details(host, agents, **options) for host, agents in found.items()
    }


class Vps(Enum):
    """What a VPS answers."""

    SILENT = SILENT
    REFUSING = REFUSING
    RUNNING = "its container runs, and its port does not answer"
    STOPPED = "its container was stopped"
    CRASHED = "its container stopped for an unknown reason"
    UNREADABLE = "its record is torn"
    RECORDLESS = "it has no record"


@dataclass(frozen=True)
class Case:
    """A host as the cloud, this machine and its VPS see it, and what mngr must show.

    ``local`` is how far this machine has brought it, or the text of an unreadable local record; ``vps`` is what its
    VPS says. The VPS is ``age_seconds`` old, does not exist (None), or ``is_going``: the cloud is destroying it.
    ``state`` None means that no host is shown, ``is_garbage`` that mngr's gc removes it.
    """

    state: HostState | None
    is_garbage: bool = False
    local: HostPhase | str | None = None
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
    "running, without a way in": Case(HostState.RUNNING, local=HostPhase.READY, vps=Vps.RUNNING),
    "stopped": Case(HostState.STOPPED, is_garbage=True, local=HostPhase.READY, vps=Vps.STOPPED),
    "stopped with an agent": Case(HostState.STOPPED, local=HostPhase.READY, vps=Vps.STOPPED, has_agent=True),
    "crashed with an agent": Case(HostState.CRASHED, local=HostPhase.READY, vps=Vps.CRASHED, has_agent=True),
    "silent": Case(HostState.RUNNING, local=HostPhase.READY),
    "refusing": Case(HostState.UNAUTHENTICATED, local=HostPhase.READY, vps=Vps.REFUSING),
    "with an unreadable record": Case(HostState.CRASHED, local=HostPhase.READY, vps=Vps.UNREADABLE, has_agent=True),
    "left out of a listing": Case(HostState.RUNNING, local=HostPhase.READY, is_listed=False),
    "of a cloud that cannot list": Case(HostState.RUNNING, local=HostPhase.READY, is_listing=False),
    "that the cloud no longer knows": Case(None, local=HostPhase.READY, age_seconds=None),
    "whose VPS is being destroyed by the cloud": Case(None, local=HostPhase.READY, is_going=True),
    "with an unreadable local record": Case(HostState.STOPPED, local="torn", vps=Vps.STOPPED, has_agent=True),
    "with an unreadable local record, silent": Case(HostState.FAILED, local="torn"),
    "with an unreadable local record, refusing": Case(HostState.UNAUTHENTICATED, local="torn", vps=Vps.REFUSING),
    "with an unreadable local record, unlisted": Case(HostState.FAILED, local="torn", is_listing=False),
    "being created": Case(HostState.BUILDING, local=HostPhase.CREATING, is_owned=True),
    "being created, no VPS yet": Case(HostState.BUILDING, local=HostPhase.CREATING, is_owned=True, age_seconds=None),
    "being created for years": Case(HostState.BUILDING, local=HostPhase.CREATING, is_owned=True, has_key=True),
    "never finished": Case(HostState.FAILED, is_garbage=True, local=HostPhase.CREATING),
    "never finished just now": Case(HostState.FAILED, is_garbage=True, local=HostPhase.CREATING, age_seconds=1),
    "never finished, silent, unlisted": Case(
        HostState.FAILED, is_garbage=True, local=HostPhase.CREATING, is_listed=False
    ),
    "failed": Case(HostState.FAILED, is_garbage=True, local=HostPhase.FAILED, vps=Vps.REFUSING),
    "being destroyed": Case(HostState.BUILDING, local=HostPhase.DESTROYING, is_owned=True),
    "half destroyed, its VPS gone": Case(None, local=HostPhase.DESTROYING, age_seconds=None),
    "half destroyed": Case(HostState.FAILED, is_garbage=True, local=HostPhase.DESTROYING, vps=Vps.STOPPED),
    "abandoned, running": Case(
        HostState.FAILED, is_garbage=True, local=HostPhase.READY, vps=Vps.RUNNING, awaits_agent=True
    ),
    "abandoned, crashed": Case(
        HostState.FAILED, is_garbage=True, local=HostPhase.READY, vps=Vps.CRASHED, awaits_agent=True
    ),
    # Another machine that shares its keys may have made an agent on it.
    "abandoned, silent": Case(HostState.FAILED, local=HostPhase.READY, awaits_agent=True),
    "abandoned, with an unreadable record": Case(
        HostState.FAILED, is_garbage=True, local=HostPhase.READY, vps=Vps.UNREADABLE, awaits_agent=True
    ),
    "that the cloud no longer knows, abandoned": Case(
        None, local=HostPhase.READY, age_seconds=None, awaits_agent=True
    ),
    "getting its first agent": Case(
        HostState.RUNNING, local=HostPhase.READY, vps=Vps.RUNNING, awaits_agent=True, is_owned=True
    ),
    "that has got its first agent": Case(
        HostState.STOPPED, local=HostPhase.READY, vps=Vps.STOPPED, awaits_agent=True, has_agent=True
    ),
    # The rest is of another machine, which only the cloud tells of.
    "of another machine": Case(HostState.UNAUTHENTICATED, vps=Vps.REFUSING),
    "of another machine, silent": Case(HostState.FAILED),
    "of another machine, young and silent": Case(HostState.FAILED, age_seconds=1),
    "of another machine that shares its keys": Case(HostState.STOPPED, vps=Vps.STOPPED, has_agent=True),
    "of another machine, its record unreadable": Case(HostState.FAILED, vps=Vps.UNREADABLE),
    "of another machine, without a record": Case(HostState.FAILED, vps=Vps.RECORDLESS),
    "of another machine, being destroyed by the cloud": Case(None, is_going=True),
    "being created by another machine": Case(HostState.BUILDING, age_seconds=1, has_key=True, vps=Vps.REFUSING),
    "left unfinished by another machine": Case(HostState.FAILED, is_garbage=True, has_key=True, vps=Vps.REFUSING),
    "being ordered by another machine": Case(None, age_seconds=None, has_key=True),
}
