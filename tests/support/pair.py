"""Two hosts of one provider, one of which others may have spoiled; their VPSes are folders of this machine."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imbue.mngr.interfaces.data_types import AgentDetails, HostDetails
from imbue.mngr.primitives import AgentId, DiscoveredAgent, DiscoveredHost, HostId
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import encode_agent_data, encode_record
from support.local_machine import LocalMachine
from support.local_provider import local_provider
from support.memory_provider import (
    MemoryCloud,
    MemoryProvider,
    Network,
    record_of,
    running_container,
    stopped_container,
)

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class ScriptedMachine(SshConnection):
    """A machine that ends every command at once and says ``stdout``, whatever it is asked."""

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


@dataclass
class Pair:
    """One host that may be spoiled and a healthy one, each stopped and with one agent that mngr keeps a copy of."""

    folder: Path
    groups: ExitStack
    corrupted: HostId = field(default_factory=HostId.generate)
    healthy: HostId = field(default_factory=HostId.generate)
    cloud: MemoryCloud = field(default_factory=lambda: MemoryCloud(account="test"))
    network: Network = field(default_factory=Network)

    def __post_init__(self) -> None:
        self._provider = self.process()
        for host_id in (self.corrupted, self.healthy):
            self._set_up(host_id)

    def process(self, **settings: object) -> MemoryProvider:
        """The provider as a new process has it."""
        process = local_provider(self.folder / "here", "test", self.cloud, provider_class=MemoryProvider, **settings)
        self.groups.enter_context(process.mngr_ctx.concurrency_group)
        assert isinstance(process, MemoryProvider)
        return process.connect(self.network)

    def address(self, host_id: HostId) -> str:
        """The address of a host's VPS."""
        return "192.0.2.1" if host_id == self.corrupted else "192.0.2.2"

    def machine(self, host_id: HostId) -> LocalMachine:
        """The VPS of a host."""
        machine = self.network.machines[self.address(host_id)]
        assert isinstance(machine, LocalMachine)
        return machine

    def volume(self, host_id: HostId) -> Path:
        """The files of a host's volume."""
        return self.machine(host_id).volumes / f"mngr-host-vol-{host_id.get_uuid().hex}"

    def record_path(self, host_id: HostId) -> Path:
        """Where the record of a host is."""
        return self.machine(host_id).volumes / self._provider._context.state_volume_name / f"host_state/{host_id}.json"

    def write_agent(self, host_id: HostId, agent_id: AgentId, content: bytes) -> None:
        """Have the data of an agent on the volume of a host."""
        folder = self.volume(host_id) / "agents" / agent_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data.json").write_bytes(content)

    def start(self, host_id: HostId) -> ScriptedMachine:
        """Have a host run, and return its container, which says nothing yet."""
        (self.machine(host_id).volumes / ".containers").write_text(running_container(host_id))
        container = ScriptedMachine(self.machine(host_id).target)
        self.network.containers[self.address(host_id)] = container
        return container

    def listed(self) -> dict[HostId, list[str]]:
        """The names of the agents of each host, as a new process lists them."""
        return _names(self._found(self.process()))

    def rows(self, **options: Any) -> dict[HostId, tuple[HostDetails, list[AgentDetails]]]:
        """The rows of each host and its agents, as a new process shows them."""
        return self.listed_and_rows(**options)[1]

    def listed_and_rows(
        self, **options: Any
    ) -> tuple[dict[HostId, list[str]], dict[HostId, tuple[HostDetails, list[AgentDetails]]]]:
        """Both, of one look at the VPSes."""
        process = self.process()
        found = self._found(process)
        return _names(found), {
            host.host_id: process.get_host_and_agent_details(host, agents, **options) for host, agents in found.items()
        }

    def _found(self, process: MemoryProvider) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
        return process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)

    def _set_up(self, host_id: HostId) -> None:
        context, address = self._provider._context, self.address(host_id)
        (self.folder / address).mkdir()
        machine = self.network.machines[address] = LocalMachine(self.folder / address)
        machine.volume(f"mngr-host-vol-{host_id.get_uuid().hex}")
        machine.volume(context.state_volume_name)
        context.keys.create_vps_host_key(host_id)
        self.cloud.order(host_id, address, LONG_AGO)
        record = record_of(host_id, stop_reason="STOPPED", host_name="bad" if host_id == self.corrupted else "good")
        context.local_store.write(
            LocalHostRecord(
                host_id=host_id,
                host_name=record.certified_host_data.host_name,
                phase=HostPhase.READY,
                created_at=LONG_AGO,
                vps_instance_id=VpsInstanceId(address),
                vps_ip=address,
                record=record,
            )
        )
        # As the host store leaves them, whose scripts would take most of the time of most tests.
        agent_id, path = AgentId.generate(), self.record_path(host_id)
        path.with_suffix("").mkdir(parents=True)
        path.write_bytes(encode_record(record))
        (path.with_suffix("") / f"{agent_id}.json").write_bytes(encode_agent_data({"id": agent_id, "name": "kept"}))
        (machine.volumes / ".container-ids").write_text("c1\n")
        (machine.volumes / ".containers").write_text(stopped_container(host_id))


def _names(found: dict[DiscoveredHost, list[DiscoveredAgent]]) -> dict[HostId, list[str]]:
    return {host.host_id: [agent.agent_name for agent in agents] for host, agents in found.items()}
