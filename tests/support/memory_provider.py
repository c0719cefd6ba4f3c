"""The provider on a cloud that is a list in memory, and on VPSes that do not answer, refuse, or are this machine."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pydantic import Field, PrivateAttr

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.hosts.cloud_resources import key_name
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.timings import Patience, Timings
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.process import ProcessResult
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsInstanceInfo, VpsSnapshotInfo, VpsSshKeyInfo
from support.local_provider import LocalProvider

SILENT = "ssh: connect to host vps port 22: Connection timed out"
REFUSING = "root@vps: Permission denied (publickey)."


class MemoryCloud(VpsClientInterface):
    """A cloud that has what a test writes down; of ``unlisted`` VPSes it knows only when asked for them."""

    instances: dict[str, VpsInstanceInfo] = Field(default_factory=dict)
    unlisted: set[str] = Field(default_factory=set)
    keys: dict[str, str] = Field(default_factory=dict)
    is_listing: bool = True

    def add_vps(self, host_id: HostId, address: str, created_at: datetime, provider: str = "local-vps") -> None:
        """Let the cloud have a VPS of a host; its id is its address."""
        tags = {"mngr-host-id": host_id, "mngr-provider": provider, "mngr-host-name": "h1"}
        self.instances[address] = VpsInstanceInfo(
            id=VpsInstanceId(address),
            address=address,
            tags=tags,
            status=VpsInstanceStatus.ACTIVE,
            created_at=created_at,
        )

    def change(self, vps: str, **changes: object) -> None:
        """Let the cloud report something else of a VPS."""
        self.instances[vps] = self.instances[vps].model_copy(update=changes)

    def add_key(self, host_id: HostId, created_at: datetime, longest_create_seconds: float = 3600.0) -> None:
        """Let the cloud have the key of a host whose creation began then."""
        self.keys[f"key of {host_id}"] = key_name(host_id, created_at, longest_create_seconds)

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        found = [info for info in self.instances.values() if tags.items() <= info.tags.items()]
        return [info for info in found if info.id not in self.unlisted] if self.is_listing else None

    def create_instance(self, *_arguments: Any, **order: Any) -> VpsInstanceId:
        address = f"198.51.100.{len(self.instances)}"
        self.add_vps(HostId.generate(), address, datetime.now(UTC))
        self.change(address, tags=dict(tag.split("=", 1) for tag in order["tags"]))
        return VpsInstanceId(address)

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        if instance_id not in self.instances:
            raise VpsApiError(404, "no such instance")
        return self.instances[instance_id].status

    def get_instance_ip(self, instance_id: VpsInstanceId) -> str:
        self.get_instance_status(instance_id)
        return self.instances[instance_id].address or ""

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        return self.get_instance_ip(instance_id)

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        self.get_instance_status(instance_id)
        del self.instances[instance_id]

    def upload_ssh_key(self, name: str, public_key: str) -> str:
        self.keys[f"id of {name}"] = name
        return f"id of {name}"

    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        return [VpsSshKeyInfo(id=key_id, name=name) for key_id, name in self.keys.items()]

    def delete_ssh_key(self, key_id: str) -> None:
        if self.keys.pop(key_id, None) is None:
            raise VpsApiError(404, "no such key")

    def create_snapshot(self, instance_id: VpsInstanceId, description: str) -> VpsSnapshotId:
        raise VpsApiError(501, "no snapshots")

    def delete_snapshot(self, snapshot_id: VpsSnapshotId) -> None:
        raise VpsApiError(501, "no snapshots")

    def list_snapshots(self) -> list[VpsSnapshotInfo]:
        raise VpsApiError(501, "no snapshots")


# Machines that run here take their time on a busy machine. How long a login may take stays as it is.
PATIENT = Timings(listing=Patience(3.0, 60.0), listing_of_silent=Patience(2.0, 60.0))


@dataclasses.dataclass
class Network:
    """What is at each address: a machine that answers, or ssh's words about one that does not let us in.

    ``containers`` are the containers that answer, by the address of their VPS. ``logins`` are the addresses of those
    that were logged in to, ``connect_timeouts`` how long each was to be waited for, in seconds.
    """

    machines: dict[str, SshConnection] = dataclasses.field(default_factory=dict)
    containers: dict[str, SshConnection] = dataclasses.field(default_factory=dict)
    refusals: dict[str, str] = dataclasses.field(default_factory=dict)
    before_login: Callable[[], object] = lambda: None
    logins: list[str] = dataclasses.field(default_factory=list)
    connect_timeouts: list[int] = dataclasses.field(default_factory=list)
    timings: Timings = PATIENT

    def run_ssh(self, argv: Sequence[str], **_options: Any) -> ProcessResult:
        """In the place of ssh: nothing is ever connected, and the user has no configuration."""
        if "-G" in argv:
            return ProcessResult(0, b"", b"")
        address = argv[argv.index("--") + 1]
        if "-M" in argv:
            self.logins.append(address)
            (timeout,) = (word.partition("=")[2] for word in argv if word.startswith("ConnectTimeout="))
            self.connect_timeouts.append(int(timeout))
            self.before_login()
        return ProcessResult(255, b"", self.refusals.get(address, SILENT).encode())


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryContext(ProviderContext):
    """A ProviderContext whose VPSes are on ``network``."""

    network: Network = dataclasses.field(default_factory=Network)

    def vps(
        self, address: str, host_id: HostId | None = None, connect_timeout_seconds: float | None = None
    ) -> SshConnection:
        found = self.network.machines.get(address)
        return found or ProviderContext.vps(self, address, host_id, connect_timeout_seconds)

    def container(self, address: str, host_id: HostId, connect_timeout_seconds: float | None = None) -> SshConnection:
        found = self.network.containers.get(address)
        return found or ProviderContext.container(self, address, host_id, connect_timeout_seconds)


class MemoryProvider(LocalProvider):
    """The whole provider, except that its machines are on a ``Network``."""

    _network: Network = PrivateAttr(default_factory=Network)

    def connect(self, network: Network) -> "MemoryProvider":
        """The same on ``network``, which it must be put on before its first use."""
        self._network = network
        return self

    @cached_property
    def _context(self) -> ProviderContext:
        usual = super()._context
        values = {part.name: getattr(usual, part.name) for part in dataclasses.fields(usual) if part.init}
        network = self._network
        values |= {"runner": network.run_ssh, "timings": network.timings, "network": network}
        return MemoryContext(**values)
