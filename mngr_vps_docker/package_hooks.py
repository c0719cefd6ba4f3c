"""What a provider package may override, call or fill, and where a provider looks for what it did."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, PrivateAttr

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.interfaces.host import OuterHostInterface
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr.providers.base_provider import BaseProviderInstance
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.vps_client import VpsClientInterface

if TYPE_CHECKING:
    # Whatever mngr is told to do, it imports this module; most of it has nothing to do with a VPS.
    from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
    from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
    from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
    from imbue.mngr_vps_docker.hosts.host_cache import HostCache
    from imbue.mngr_vps_docker.state.local_store import LocalHostRecord
    from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord


class PackageHooks(BaseProviderInstance):
    """The hooks of a provider, and the parts that both they and its operations are composed of."""

    # Only a provider package's class, which is made of this one, is ever built.
    model_config = ConfigDict(defer_build=True)

    config: VpsDockerProviderConfig = Field(frozen=True, description="The provider's settings")
    vps_client: VpsClientInterface = Field(frozen=True, description="The cloud's API")
    timings: Timings = Field(default=Timings(), frozen=True, exclude=True, repr=False, description="How long it waits")

    _host_record_cache: "dict[HostId, VpsDockerHostRecord]" = PrivateAttr(default_factory=dict)

    # --- the parts it is composed of ------------------------------------------------------------------------------

    @cached_property
    def _context(self) -> "ProviderContext":
        from imbue.mngr_vps_docker.hosts import host_access

        return host_access.ProviderContext.kept_in(
            self.mngr_ctx.profile_dir / "providers" / str(self.config.backend) / str(self.name),
            provider_name=self.name,
            prefix=self.mngr_ctx.config.prefix,
            user_id=str(self.mngr_ctx.get_profile_user_id()),
            host_dir=PurePosixPath(self.host_dir),
            config=self.config,
            client=self.vps_client,
            timings=self.timings,
        )

    @cached_property
    def _hosts(self) -> "HostCache":
        from imbue.mngr_vps_docker.hosts import host_cache

        return host_cache.HostCache(
            self._context,
            find_all=self._find_by_package,
            find_one=self._find_one_by_package,
            package_cache=lambda: self._host_record_cache,
        )

    def _find_by_package(self) -> "Mapping[HostId, LocalHostRecord]":
        """What a subclass finds by its own means, if it has its own."""
        own, base = type(self), PackageHooks
        records: Sequence[VpsDockerHostRecord] = ()
        agents: Mapping[HostId, list[dict[str, Any]]] = {}
        if own._discover_host_records_with_agents is not base._discover_host_records_with_agents:
            records, agents = self._discover_host_records_with_agents()
        elif own._discover_host_records is not base._discover_host_records:
            records = self._discover_host_records()
        return {record.host_id: _as_local(record, agents.get(record.host_id, ())) for record in records}

    def _find_one_by_package(self, host: HostId | HostName) -> "LocalHostRecord | None":
        """What a subclass knows of a host that no listing has, by its own way or by what it put into the cache."""
        if type(self)._find_host_record is not PackageHooks._find_host_record:
            record = self._find_host_record(host)
        else:
            kept = list(self._host_record_cache.values())
            record = next((kept for kept in kept if host in (kept.host_id, kept.certified_host_data.host_name)), None)
        return None if record is None else _as_local(record, ())

    def _parsed_build_args(self, build_args: Sequence[str] | None) -> "ParsedBuildArgs":
        """What ``-b`` arguments say to a subclass; raises VpsDockerError if it reads them in a form of its own."""
        from imbue.mngr_vps_docker.lifecycle import checks

        return checks.checked_build_args(self._parse_build_args(build_args), type(self).__name__)

    # --- hooks for provider packages ------------------------------------------------------------------------------

    def _parse_build_args(self, build_args: Sequence[str] | None) -> "ParsedBuildArgs":
        """Split ``-b`` arguments into the provider's own and those of ``docker build``."""
        from imbue.mngr_vps_docker.lifecycle import checks

        return checks.read_build_args(self.config, build_args or ())

    def _discover_host_records(self) -> "list[VpsDockerHostRecord]":
        """Every host record. A provider package may override this with its own way of finding its VPSes."""
        return PackageHooks._discover_host_records_with_agents(self)[0]

    def _discover_host_records_with_agents(
        self,
    ) -> "tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]":
        """Every host record, and the data of each host's agents. A provider package may override this likewise."""
        observed_hosts = self._hosts.seen()
        records = [observed.record for observed in observed_hosts if observed.record is not None]
        return records, {observed.host_id: observed.known_agents for observed in observed_hosts}

    def _find_host_record(self, host: HostId | HostName) -> "VpsDockerHostRecord | None":
        """The record of one host, or None for an unknown host."""
        try:
            return self._hosts.get(host).record
        except HostNotFoundError:
            return None

    @contextmanager
    def _make_outer_for_vps_ip(self, vps_ip: str) -> Iterator[OuterHostInterface]:
        """The VPS at an address, as root; from as many threads at once as you like.

        It is waited for as briefly as in a listing. Raises VpsConnectionError for one that was silent when it was last
        asked: it is asked again in the background of a listing, which does not wait for it.
        """
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        with mngr_hosts.listed_vps(self._context, vps_ip) as outer:
            yield outer

    def _get_existing_host_store(self, outer: OuterHostInterface) -> "VpsDockerHostStore | None":
        """The record store on a VPS, or None while it has no state container."""
        from imbue.mngr_vps_docker.hosts import mngr_hosts

        return mngr_hosts.existing_store(self._context, outer)

    def _get_vps_ssh_keypair(self) -> tuple[Path, str]:
        """The key pair with which this provider logs in to its VPSes: path of the private half, text of the public."""
        pair = self._context.keys.vps_client_key()
        return pair.private_key_path, pair.public_key

    def _vps_known_hosts_path(self) -> Path:
        """The file that pins the VPSes' host keys."""
        return self._context.keys.vps_known_hosts_path


def _as_local(record: "VpsDockerHostRecord", agents: Sequence[dict[str, Any]]) -> "LocalHostRecord":
    """What this machine would keep of a host that a provider package found; its name is believed with care."""
    from imbue.mngr_vps_docker.state import local_store

    return local_store.LocalHostRecord(
        host_id=record.host_id,
        host_name=record.host_id,
        phase=local_store.HostPhase.READY,
        created_at=record.certified_host_data.created_at,
        vps_instance_id=None if record.config is None else record.config.vps_instance_id,
        vps_ip=record.vps_ip,
        record=record,
        agents=tuple(agents),
    )
