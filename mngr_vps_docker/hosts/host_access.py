"""What every operation needs: the provider's names, settings and cloud, and the ways to the machines of one host."""

import hashlib
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Self

from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import HostId, ProviderInstanceName
from imbue.mngr_vps_docker.config import LOOPBACK_ADDRESS, VpsDockerProviderConfig
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.primitives import HOST_VOLUME_PREFIX
from imbue.mngr_vps_docker.ssh.command_log import CommandLog
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.gateway import by_way_of, forward
from imbue.mngr_vps_docker.ssh.known_hosts import KnownHostsFile, address_name
from imbue.mngr_vps_docker.ssh.process import ProcessRunner, run_process
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.state.host_volume import HostVolumeOverSsh
from imbue.mngr_vps_docker.state.keys import ProviderKeys
from imbue.mngr_vps_docker.state.local_store import LocalHostStore
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, VpsHostConfig
from imbue.mngr_vps_docker.vps_client import VpsClientInterface

HOST_ID_TAG = "mngr-host-id"
HOST_NAME_TAG = "mngr-host-name"
PROVIDER_TAG = "mngr-provider"

HOST_NAME_LABEL = "com.imbue.mngr.host-name"
PROVIDER_LABEL = "com.imbue.mngr.provider"
TAGS_LABEL = "com.imbue.mngr.tags"


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """One provider instance as the lifecycle operations see it. Safe to use from many threads."""

    provider_name: ProviderInstanceName
    prefix: str
    user_id: str
    host_dir: PurePosixPath
    config: VpsDockerProviderConfig
    client: VpsClientInterface
    keys: ProviderKeys
    local_store: LocalHostStore
    command_log: CommandLog | None
    runner: ProcessRunner = run_process
    timings: Timings = field(default_factory=Timings)
    waited_seconds: dict[HostId, float] = field(default_factory=dict, init=False, repr=False)
    """How long this process has waited in vain for the VPS of each host that has not answered since."""
    _connections: dict[SshTarget, SshConnection] = field(default_factory=dict, init=False, repr=False)
    _connections_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def kept_in(
        cls,
        root: Path,
        *,
        provider_name: ProviderInstanceName,
        prefix: str,
        user_id: str,
        host_dir: PurePosixPath,
        config: VpsDockerProviderConfig,
        client: VpsClientInterface,
        timings: Timings,
    ) -> Self:
        """The context of a provider whose keys, entries of hosts and logs are in the folder ``root``."""
        keys = ProviderKeys(root)
        return cls(
            provider_name=provider_name,
            prefix=prefix,
            user_id=user_id,
            host_dir=host_dir,
            config=config,
            client=client,
            keys=keys,
            local_store=LocalHostStore(keys.hosts_folder),
            command_log=CommandLog(root / "logs" / "ssh.jsonl"),
            timings=timings,
        )

    @property
    def state_volume_name(self) -> str:
        """The Docker volume on each VPS that holds its host's record; its keeper container has the same name."""
        return f"{self.prefix}docker-state-{self.user_id}"

    def container_name(self, host_name: str) -> str:
        """The name of a new host's container; a rename of the host does not change it."""
        return f"{self.prefix}{host_name}"

    @staticmethod
    def host_volume_name(host_id: HostId) -> str:
        """The Docker volume that holds a host's mngr folder."""
        return f"{HOST_VOLUME_PREFIX}{host_id.get_uuid().hex}"

    @property
    def vps_known_hosts(self) -> KnownHostsFile:
        """The pinned host keys of this provider's VPSes, by host id and by address."""
        return KnownHostsFile(self.keys.vps_known_hosts_path)

    @property
    def container_known_hosts(self) -> KnownHostsFile:
        """The pinned host keys of this provider's containers, by host id and by address and port."""
        return KnownHostsFile(self.keys.container_known_hosts_path)

    def pin_vps(self, host_id: HostId, address: str, *public_keys: str) -> None:
        """Trust ``public_keys`` and no other from the VPS of a host."""
        self.vps_known_hosts.pin((host_id, address), *public_keys)

    def pin_container(self, host_id: HostId, address: str, public_key: str) -> None:
        """Trust ``public_key`` and no other from the container of a host."""
        port = self.config.container_ssh_port
        self.container_known_hosts.pin((host_id, address_name(address, port)), public_key)

    def recognize(self, host_id: HostId, address: str) -> None:
        """Pin by its id a host that version 0.1.0 made, which pinned machines by their addresses alone."""
        self.vps_known_hosts.adopt(host_id, address)
        self.container_known_hosts.adopt(host_id, address_name(address, self.config.container_ssh_port))

    def unpin(self, host_id: HostId, address: str | None, record: VpsDockerHostRecord | None) -> None:
        """Forget the host keys of a host that is gone."""
        known = (None, None) if record is None else (record.ssh_host_public_key, record.container_ssh_host_public_key)
        self.vps_known_hosts.unpin(host_id, () if address is None else (address,), known[0])
        container_names = [address_name(LOOPBACK_ADDRESS, port) for port in _local_ports(host_id)]
        if address is not None:
            container_names.append(address_name(address, self.config.container_ssh_port))
        self.container_known_hosts.unpin(host_id, container_names, known[1])

    def vps(
        self, address: str, host_id: HostId | None = None, connect_timeout_seconds: float | None = None
    ) -> SshConnection:
        """Root on a VPS, whose host key is pinned by host id (or by address, if unknown); see ``HostAccess``."""
        target = self._limited(self._vps_target(address, host_id), connect_timeout_seconds)
        return self._connection(target, host_id)

    def container(self, address: str, host_id: HostId, connect_timeout_seconds: float | None = None) -> SshConnection:
        """Root in a host's container; see ``HostAccess``."""
        target = self._limited(self._container_target(address, host_id), connect_timeout_seconds)
        return self._connection(target, host_id)

    def container_for_others(self, address: str, host_id: HostId) -> SshTarget:
        """The container for programs that take an address and a port and nothing else: the ssh that mngr runs.

        A container behind its VPS gets a port of this machine, which the VPS's shared login forwards and which ends
        with that login: ask again whenever such a program is about to run.
        """
        target = self.container(address, host_id).target
        if not self._is_behind_vps(host_id):
            return target
        remote = (LOOPBACK_ADDRESS, target.port)
        gateway = self.vps(address, host_id).target
        port = forward(gateway, LOOPBACK_ADDRESS, _local_ports(host_id), remote, self.runner)
        known_hosts = self.container_known_hosts
        known_hosts.pin((address_name(LOOPBACK_ADDRESS, port),), *known_hosts.keys_of(host_id))
        return replace(target, host=LOOPBACK_ADDRESS, port=port)

    def store(self, connection: SshConnection) -> VpsDockerHostStore:
        """The records on the VPS that ``connection`` leads to."""
        return VpsDockerHostStore(connection, self.state_volume_name)

    def close_connections(self, host_id: HostId, address: str | None) -> None:
        """End the shared connections to both machines of a host, whichever process opened them."""
        if address is None:
            return
        ways = [self._vps_target(address, host_id)]
        with suppress(VpsAuthenticationError):
            # A machine that has no key to the container has no connection to it either.
            ways.append(self._container_target(address, host_id))
        for target in ways:
            self._connection(target, host_id).close()
        with self._connections_lock:
            for target in ways:
                self._connections.pop(target, None)

    def abandon_vps(self, address: str, host_id: HostId) -> None:
        """End what other threads are running on a VPS."""
        target = self._vps_target(address, host_id)
        with self._connections_lock:
            connection = self._connections.pop(target, None)
        if connection is not None:
            connection.abandon()

    def close(self) -> None:
        """End every shared connection that is not to outlive this process."""
        if self.config.ssh_control_persist_seconds > 0:
            return
        with self._connections_lock:
            connections = list(self._connections.values())
            self._connections.clear()
        for connection in connections:
            connection.close()

    @staticmethod
    def _limited(target: SshTarget, connect_timeout_seconds: float | None) -> SshTarget:
        if connect_timeout_seconds is None or connect_timeout_seconds >= target.connect_timeout_seconds:
            return target
        return replace(target, connect_timeout_seconds=connect_timeout_seconds)

    def _vps_target(self, address: str, host_id: HostId | None) -> SshTarget:
        return SshTarget(
            host=address,
            identity_file=self.keys.vps_client_key().private_key_path,
            known_hosts_file=self.keys.vps_known_hosts_path,
            host_key_alias=host_id or address,
            label=f"VPS {address}",
            connect_timeout_seconds=self.config.ssh_connect_timeout,
            persist_seconds=self.config.ssh_control_persist_seconds,
            options=self.config.ssh_options,
        )

    def _container_target(self, address: str, host_id: HostId) -> SshTarget:
        port = self.config.container_ssh_port
        target = SshTarget(
            host=address,
            port=port,
            identity_file=self.keys.container_client_key(host_id).private_key_path,
            known_hosts_file=self.keys.container_known_hosts_path,
            host_key_alias=host_id,
            label=f"container {address}:{port}",
            connect_timeout_seconds=self.config.ssh_connect_timeout,
            persist_seconds=self.config.ssh_control_persist_seconds,
            options=self.config.ssh_options,
        )
        if not self._is_behind_vps(host_id):
            return target
        return by_way_of(self._vps_target(address, host_id), target, LOOPBACK_ADDRESS, self.runner)

    def _is_behind_vps(self, host_id: HostId) -> bool:
        """Whether a host's container is reached through its VPS: by the settings, or because it was made so."""
        entry = None if self.config.container_ssh_via_vps else self.local_store.read(host_id)
        made = None if entry is None or entry.record is None else entry.record.config
        return self.config.container_ssh_via_vps or (made is not None and made.is_container_behind_vps)

    def _connection(self, target: SshTarget, host_id: HostId | None) -> SshConnection:
        with self._connections_lock:
            if target not in self._connections:
                self._connections[target] = SshConnection(
                    target,
                    log=self.command_log,
                    runner=self.runner,
                    is_gone=lambda: host_id is not None and self.local_store.is_going(host_id),
                )
            return self._connections[target]


@dataclass(frozen=True, slots=True)
class HostAccess:
    """The ways to the machines of one host; nothing is connected before a command is run.

    What takes an address raises VpsDockerError for a host that has none yet. ``connect_timeout_seconds`` counts where
    it is shorter than the ssh_connect_timeout of the settings. Tests give ``context`` a runner and timings of theirs.
    """

    context: ProviderContext
    observed: ObservedHost
    connect_timeout_seconds: float | None = None

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.observed.host_id

    @property
    def address(self) -> str:
        """The address of the VPS."""
        if self.observed.entry.vps_ip is None:
            raise VpsDockerError(f"Host {self.observed.name} has no VPS with an address yet")
        return self.observed.entry.vps_ip

    @property
    def config(self) -> VpsHostConfig:
        """How the host was made; raises one clear error for a host that cannot be worked on."""
        observed = self.observed
        if observed.problem is not None and not observed.is_read:
            raise observed.problem
        if observed.failure_reason is not None:
            raise MngrError(f"Host {observed.name} cannot be used: {observed.failure_reason}")
        if observed.is_gone or observed.is_being_made:
            raise MngrError(f"Host {observed.name} cannot be used: it is {observed.state.value.lower()}")
        if observed.record is None or observed.record.config is None or observed.entry.vps_ip is None:
            raise VpsDockerError(f"Host {observed.name} cannot be used: its record does not say where and what it is")
        return observed.record.config

    @property
    def container_name(self) -> str:
        """The name of the host's container: as its record says, else as a new host's would be."""
        made = self.observed.record and self.observed.record.config
        return made.container_name if made else self.context.container_name(self.observed.name)

    @property
    def volume_name(self) -> str:
        """The Docker volume of the host: as its record says, else as a new host's would be."""
        made = self.observed.record and self.observed.record.config
        return made.volume_name if made else self.context.host_volume_name(self.host_id)

    @property
    def vps(self) -> SshConnection:
        """Root on the VPS."""
        return self.context.vps(self.address, self.host_id, self.connect_timeout_seconds)

    @property
    def docker(self) -> DockerOverSsh:
        """Docker on the VPS."""
        return DockerOverSsh(self.vps)

    @property
    def store(self) -> VpsDockerHostStore:
        """The host's record on the VPS."""
        return self.context.store(self.vps)

    @property
    def volume(self) -> HostVolumeOverSsh:
        """The host's folder of mngr, as files on the VPS: also while the container is stopped."""
        return HostVolumeOverSsh(connection=self.vps, volume_name=self.volume_name)

    @property
    def container_ssh(self) -> SshConnection:
        """Root in the container."""
        return self.context.container(self.address, self.host_id, self.connect_timeout_seconds)

    def with_record(self, record: VpsDockerHostRecord) -> "HostAccess":
        """The same host, now that ``record`` was written."""
        return replace(self, observed=self.observed.with_record(record))

    def pin_vps(self, *public_keys: str) -> None:
        """Trust ``public_keys`` and no other from the VPS."""
        self.context.pin_vps(self.host_id, self.address, *public_keys)

    def pin_container(self, public_key: str) -> None:
        """Trust ``public_key`` and no other from the container."""
        self.context.pin_container(self.host_id, self.address, public_key)


def _local_ports(host_id: HostId) -> list[int]:
    """The ports of this machine that may lead to a host's container, in the order in which they are tried.

    Always the same ones, so that every process finds the port that another had forwarded, and below those that systems
    give to outgoing connections (from 32768).
    """
    first = int(hashlib.sha256(host_id.encode()).hexdigest()[:8], 16)
    return [20_000 + (first + 997 * attempt) % 12_000 for attempt in range(10)]
