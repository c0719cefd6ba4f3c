"""The provider that mngr sees: one short method per operation, each composed of the modules below it.

mngr imports this module whatever it is told to do. So what only some operations need is imported by their methods:
``hosts`` takes 50 ms, and ``lifecycle``, which changes hosts, 30 ms more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from imbue.concurrency_group.concurrency_group import ConcurrencyGroup
from imbue.mngr.errors import HostNotFoundError, MngrError
from imbue.mngr.hosts.host import Host
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.interfaces.data_types import (
    AgentDetails,
    HostDetails,
    HostLifecycleOptions,
    HostResources,
    SnapshotInfo,
    VolumeInfo,
)
from imbue.mngr.interfaces.host import HostInterface, OuterHostInterface
from imbue.mngr.interfaces.volume import HostVolume
from imbue.mngr.primitives import (
    AgentId,
    DiscoveredAgent,
    DiscoveredHost,
    HostId,
    HostName,
    ImageReference,
    SnapshotId,
    SnapshotName,
    VolumeId,
)
from imbue.mngr_vps_docker.package_hooks import PackageHooks
from imbue.mngr_vps_docker.text import logger

if TYPE_CHECKING:
    from pyinfra.api.host import Host as PyinfraHost

    from imbue.mngr_vps_docker.hosts.details import FieldGenerators, OnError
    from imbue.mngr_vps_docker.hosts.host_access import HostAccess
    from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
    from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
    from imbue.mngr_vps_docker.state.certified_changes import CertifiedDataChange


class VpsDockerProvider(PackageHooks):
    """Hosts of mngr as Docker containers on VPSes, one host to a VPS."""

    @property
    def supports_snapshots(self) -> bool:
        """Yes: images of the container, on the VPS."""
        return True

    @property
    def supports_shutdown_hosts(self) -> bool:
        """Yes: the container stops and starts, the VPS stays up."""
        return True

    @property
    def supports_volumes(self) -> bool:
        """Yes: each host has one Docker volume on its VPS."""
        return True

    @property
    def supports_mutable_tags(self) -> bool:
        """Yes: tags live in the host's record."""
        return True

    def reset_caches(self) -> None:
        """Ask the cloud and the VPSes again at the next operation."""
        super().reset_caches()
        self._hosts.clear()

    def close(self) -> None:
        """End the shared ssh connections, unless they are to outlive this process."""
        self._context.close()

    def on_connection_error(self, host_id: HostId) -> None:
        """Forget what was seen of a host that could not be reached; if another process destroys it, that is why."""
        if not self._context.local_store.is_going(host_id):
            self._hosts.remember_unreachable(host_id)

    # --- create and destroy ---------------------------------------------------------------------------------------

    def create_host(
        self,
        name: HostName,
        image: ImageReference | None = None,
        tags: Mapping[str, str] | None = None,
        build_args: Sequence[str] | None = None,
        start_args: Sequence[str] | None = None,
        lifecycle: HostLifecycleOptions | None = None,
        known_hosts: Sequence[str] | None = None,
        authorized_keys: Sequence[str] | None = None,
        snapshot: SnapshotName | None = None,
    ) -> Host:
        """Create a host on a new VPS. Bad input is refused before anything is paid for."""
        from imbue.mngr_vps_docker.lifecycle import checks, create, creation, snapshots

        wanted_image = str(image or self.config.default_image)
        key_lines = (*(authorized_keys or ()), *(known_hosts or ()))
        checks.check_request(self._context, name=name, image=wanted_image, tags=tags or {}, key_lines=key_lines)
        build = self._parsed_build_args(build_args)
        run_args = checks.checked_run_args(self._context, start_args or ())
        build = checks.check_build(self._context, build)
        existing = self._hosts.discover()
        source = None if snapshot is None else snapshots.find_snapshot(self._context, existing, snapshot)
        request = creation.CreateRequest(
            host_id=HostId.generate(),
            name=name,
            build=build,
            image=wanted_image,
            snapshot=source,
            start_args=run_args,
            tags=dict(tags or {}),
            activity=(lifecycle or HostLifecycleOptions()).to_activity_config(
                default_idle_timeout_seconds=self.config.default_idle_timeout,
                default_idle_mode=self.config.default_idle_mode,
                default_activity_sources=self.config.default_activity_sources,
            ),
            others=existing,
            authorized_keys=tuple(authorized_keys or ()),
            known_hosts=tuple(known_hosts or ()),
        )
        return self._online_host(self._hosts.remember(create.create_host(self._context, request)))

    def destroy_host(self, host: HostInterface | HostId) -> None:
        """Destroy the VPS and all that was made for the host; a host that is gone is not an error."""
        from imbue.mngr_vps_docker.lifecycle import destroy

        host_id = _host_id(host)
        try:
            entry = self._hosts.entry(host_id)
        except HostNotFoundError:
            logger.info("Host {} is already gone", host_id)
            return
        destroy.destroy_host(self._context, entry)
        self._hosts.remember_destroyed(host_id)

    def delete_host(self, host: HostInterface) -> None:
        """Delete a host with which nothing is lost: it is gone, was never finished, or is stopped and has no agents.

        mngr's gc decides by what it saw some time ago. So it is looked at again, and MngrError raised if it is not so.
        """
        from imbue.mngr_vps_docker.lifecycle import destroy

        with suppress(HostNotFoundError), self._hosts.exclusive(host.id, refresh=True) as observed:
            destroy.delete_host(self._context, observed)
        self._hosts.remember_destroyed(host.id)

    # --- stop and start -------------------------------------------------------------------------------------------

    def stop_host(
        self, host: HostInterface | HostId, create_snapshot: bool = True, timeout_seconds: float = 60.0
    ) -> None:
        """Stop the host's container, after a snapshot if wanted. A stopped host is left as it is."""
        from imbue.mngr_vps_docker.lifecycle import power

        host_id = _host_id(host)
        if create_snapshot and self._hosts.reached(host_id).is_running:
            self.create_snapshot(host_id)
        with self._hosts.exclusive(host_id) as observed:
            power.stop_host(self._access(observed), timeout_seconds=timeout_seconds)
        self._hosts.forget(host_id)

    def start_host(self, host: HostInterface | HostId, snapshot_id: SnapshotId | None = None) -> Host:
        """Start the host's container, from a snapshot of it if given. A running host is returned as it is."""
        from imbue.mngr_vps_docker.lifecycle import power

        with self._hosts.exclusive(_host_id(host)) as observed:
            started = power.start_host(self._access(observed), snapshot_id)
        return self._online_host(self._hosts.remember(started))

    # --- discovery ------------------------------------------------------------------------------------------------

    def discover_hosts(self, cg: ConcurrencyGroup, include_destroyed: bool = False) -> list[DiscoveredHost]:
        """Every host, stopped, half-made and unreachable ones too."""
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        return [mngr_hosts.discovered_host(self, observed) for observed in self._listed(include_destroyed)]

    def discover_hosts_and_agents(
        self, cg: ConcurrencyGroup, include_destroyed: bool = False
    ) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
        """Every host with its agents, one remote command per VPS."""
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        return {
            mngr_hosts.discovered_host(self, observed): mngr_hosts.discovered_agents(self, observed)
            for observed in self._listed(include_destroyed, is_silent_awaited=False)
        }

    def get_host(self, host: HostId | HostName) -> HostInterface:
        """The host if it runs, else its offline view; never an error for one that cannot be reached."""
        observed = self._hosts.get(host)
        return self._online_host(observed) if observed.is_online else self._offline_host(observed)

    def to_offline_host(self, host_id: HostId) -> OfflineHost:
        """The offline view of a host, without any connection."""
        return self._offline_host(self._hosts.offline(host_id))

    def get_host_resources(self, host: HostInterface) -> HostResources:
        """What the container really has: the VPS's processors, memory and disk, within the container's own limits."""
        from imbue.mngr_vps_docker.hosts import listing

        observed = self._hosts.get(host.id)
        return listing.read_resources(self._online_host(observed).ssh, observed.container)

    def get_host_and_agent_details(
        self,
        host_ref: DiscoveredHost,
        agent_refs: Sequence[DiscoveredAgent],
        field_generators: "FieldGenerators | None" = None,
        on_error: "OnError | None" = None,
    ) -> tuple[HostDetails, list[AgentDetails]]:
        """The rows of a host and its agents, by one remote command; a host that cannot be asked shows as last seen."""
        from imbue.mngr_vps_docker.hosts import details

        observed = self._hosts.awaited(host_ref.host_id)
        host = self._online_host(observed) if observed.is_online else None
        return details.describe(
            self._access(observed), self.mngr_ctx.config, host, agent_refs, field_generators, on_error
        )

    # --- snapshots ------------------------------------------------------------------------------------------------

    def create_snapshot(self, host: HostInterface | HostId, name: SnapshotName | None = None) -> SnapshotId:
        """Keep the container's present content as an image on the VPS. The host's volume is not part of it."""
        from imbue.mngr_vps_docker.lifecycle import snapshots

        with self._hosts.exclusive(_host_id(host)) as observed:
            snapshot_id = snapshots.create_snapshot(self._access(observed), name)
        self._hosts.forget(observed.host_id)
        return snapshot_id

    def list_snapshots(self, host: HostInterface | HostId) -> list[SnapshotInfo]:
        """The host's snapshots, newest first; none of a host that is gone, with which they went."""
        from imbue.mngr_vps_docker.hosts import observed_host

        host_id = _host_id(host)
        return [] if self._is_gone(host_id) else observed_host.list_snapshots(self._hosts.get(host_id))

    def delete_snapshot(self, host: HostInterface | HostId, snapshot_id: SnapshotId) -> None:
        """Remove a snapshot's image and its place in the record; those of a host that is gone went with it."""
        from imbue.mngr_vps_docker.lifecycle import snapshots

        if self._is_gone(_host_id(host)):
            return
        with self._hosts.exclusive(_host_id(host), refresh=True) as observed:
            snapshots.delete_snapshot(self._access(observed), snapshot_id)
        self._hosts.forget(observed.host_id)

    # --- volumes --------------------------------------------------------------------------------------------------

    def list_volumes(self) -> list[VolumeInfo]:
        """The hosts' volumes; raises if any host could not be read."""
        from imbue.mngr_vps_docker.lifecycle import volumes

        return volumes.list_volumes(self._context, self._hosts.discover())

    def delete_volume(self, volume_id: VolumeId) -> None:
        """No error for a volume that is gone with its VPS; any other is refused: it goes with its host."""
        from imbue.mngr_vps_docker.lifecycle import volumes

        host_id = volumes.host_id_of(volume_id)
        if not self._is_gone(host_id):
            raise MngrError(f"The volume of host {host_id} goes with it: destroy the host")

    def get_volume_for_host(self, host: HostInterface | HostId) -> HostVolume | None:
        """The host's folder of mngr, readable while the host is stopped; None while its VPS cannot be reached."""
        from imbue.mngr_vps_docker.lifecycle import volumes

        return volumes.volume_for_host(self._access(self._hosts.get(_host_id(host))))

    # --- tags and name --------------------------------------------------------------------------------------------

    def get_host_tags(self, host: HostInterface | HostId) -> dict[str, str]:
        """The host's tags."""
        return dict(self._hosts.get(_host_id(host)).certified_data.user_tags)

    def set_host_tags(self, host: HostInterface | HostId, tags: Mapping[str, str]) -> None:
        """Replace all of the host's tags."""
        self._change_tags(host, lambda _old: dict(tags))

    def add_tags_to_host(self, host: HostInterface | HostId, tags: Mapping[str, str]) -> None:
        """Add tags to the host, or change their values."""
        self._change_tags(host, lambda old: {**old, **tags})

    def remove_tags_from_host(self, host: HostInterface | HostId, keys: Sequence[str]) -> None:
        """Remove tags from the host; a missing one is not an error."""
        self._change_tags(host, lambda old: {key: value for key, value in old.items() if key not in keys})

    def rename_host(self, host: HostInterface | HostId, name: HostName) -> HostInterface:
        """Give the host another name. Its container and its VPS keep theirs."""
        from imbue.mngr_vps_docker.lifecycle import metadata, names

        names.check_host_name(name)
        host_id = _host_id(host)
        others = self._hosts.discover()
        metadata.rename_host(self._access(self._hosts.reached(host_id)), name, others)
        self._hosts.forget(host_id)
        return self.get_host(host_id)

    # --- connections ----------------------------------------------------------------------------------------------

    def get_connector(self, host: HostInterface | HostId) -> "PyinfraHost":
        """pyinfra's view of the running host."""
        return self._online_host(self._hosts.get(_host_id(host))).connector.host

    def outer_host_id_for(self, host_id: HostId) -> str | None:
        """Names the VPS of a host, without a connection; no two hosts share a VPS."""
        entry = self._hosts.entry(host_id)
        return f"outer:{self.name}:{entry.vps_ip}" if entry.vps_ip is not None else None

    @contextmanager
    def outer_host_for(self, host_id: HostId) -> Iterator[OuterHostInterface | None]:
        """The VPS of a host, as root; works while the container is down."""
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        entry = self._hosts.entry(host_id)
        if entry.vps_ip is None:
            yield None
        else:
            connect_seconds = max(1.0, self._hosts.connect_seconds_left(host_id))
            yield mngr_hosts.outer_host(self._context, entry.vps_ip, host_id, connect_seconds)

    # --- data of agents -------------------------------------------------------------------------------------------

    def list_persisted_agent_data_for_host(self, host_id: HostId) -> list[dict[str, Any]]:
        """Data of the host's agents, from its VPS or, if that cannot be reached, as last seen."""
        try:
            return self._hosts.agents(host_id)
        except HostNotFoundError:
            return []

    def persist_agent_data(self, host_id: HostId, agent_data: Mapping[str, object]) -> None:
        """Keep a copy of an agent's data for when the host is offline."""
        from imbue.mngr_vps_docker.lifecycle import metadata

        if self._hosts.is_known(host_id):
            metadata.persist_agent_data(self._access(self._hosts.reached(host_id)), agent_data)
            self._hosts.remember_agent(host_id, str(agent_data.get("id")), dict(agent_data))

    def remove_persisted_agent_data(self, host_id: HostId, agent_id: AgentId) -> None:
        """Forget the copy of an agent's data."""
        from imbue.mngr_vps_docker.lifecycle import metadata

        if self._hosts.is_known(host_id):
            metadata.remove_persisted_agent_data(self._access(self._hosts.reached(host_id)), agent_id)
            self._hosts.remember_agent(host_id, agent_id, None)

    # --- what the parts call back ---------------------------------------------------------------------------------

    def _is_gone(self, host_id: HostId) -> bool:
        try:
            return self._hosts.get(host_id).is_gone
        except HostNotFoundError:
            return True

    def _listed(self, include_destroyed: bool, *, is_silent_awaited: bool = True) -> "list[ObservedHost]":
        found = self._hosts.discover(is_silent_awaited=is_silent_awaited)
        return [observed for observed in found if include_destroyed or not observed.is_gone]

    def _access(self, observed: "ObservedHost") -> "HostAccess":
        from imbue.mngr_vps_docker.hosts import host_access

        return host_access.HostAccess(self._context, observed)

    def _online_host(self, observed: "ObservedHost") -> "VpsDockerHost":
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        return mngr_hosts.online_host(
            self,
            self._access(observed),
            on_host_data=self._on_host_data,
            on_sshd_down=self._on_sshd_down,
            kept_agent=self._hosts.kept_agent,
        )

    def _offline_host(self, observed: "ObservedHost") -> OfflineHost:
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        return mngr_hosts.offline_host(self, observed, on_host_data=self._on_host_data)

    def _on_host_data(self, host_id: HostId, change: "CertifiedDataChange") -> None:
        from imbue.mngr_vps_docker.lifecycle import metadata

        self._hosts.remember_record(metadata.accept_certified_data(self._access(self._hosts.get(host_id)), change))

    def _on_sshd_down(self, host_id: HostId) -> None:
        from imbue.mngr_vps_docker.lifecycle import power

        logger.info("The sshd of host {} does not answer; bringing it back ...", host_id)
        with self._hosts.exclusive(host_id, refresh=True) as observed:
            power.repair_host(self._access(observed))

    def _change_tags(self, host: HostInterface | HostId, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
        from imbue.mngr_vps_docker.lifecycle import metadata

        observed = self._hosts.reached(_host_id(host))
        self._hosts.remember_record(metadata.change_tags(self._access(observed), change))


def _host_id(host: HostInterface | HostId) -> HostId:
    return host.id if isinstance(host, HostInterface) else host
