"""mngr's objects for a host that was found: its place in a listing, its running and its offline form, its VPS."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from imbue.mngr.hosts.offline_host import OfflineHost, validate_and_create_discovered_agent
from imbue.mngr.interfaces.host import OuterHostInterface
from imbue.mngr.primitives import DiscoveredAgent, DiscoveredHost, HostId, HostName
from imbue.mngr.providers.base_provider import BaseProviderInstance
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.errors import VpsConnectionError, VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.outer_host import (
    HostDataListener,
    KeptAgentLookup,
    SshConnector,
    SshdRepair,
    VpsDockerHost,
    VpsOuterHost,
)
from imbue.mngr_vps_docker.hosts.vps_reader import VpsReader
from imbue.mngr_vps_docker.state.agent_data import SeenAgents
from imbue.mngr_vps_docker.state.certified_changes import change_between


class _KeptHost(OfflineHost):
    """OfflineHost that mngr's gc never deletes: it always reports zero seconds since stop."""

    def get_seconds_since_stopped(self) -> float:
        """Zero: it is unknown since when it is so, or there is something to lose."""
        return 0.0


def discovered_host(provider: BaseProviderInstance, observed: ObservedHost) -> DiscoveredHost:
    """The host as it stands in a listing."""
    return DiscoveredHost(
        host_id=observed.host_id,
        host_name=HostName(observed.name),
        provider_name=provider.name,
        host_state=observed.state,
    )


def discovered_agents(provider: BaseProviderInstance, observed: ObservedHost) -> list[DiscoveredAgent]:
    """The host's agents as they stand in a listing; malformed ones are left out, with a warning by mngr."""
    found = (validate_and_create_discovered_agent(data, observed.host_id, provider.name) for data in observed.agents)
    return [agent for agent in found if agent is not None]


def online_host(
    provider: BaseProviderInstance,
    access: HostAccess,
    *,
    on_host_data: HostDataListener,
    on_sshd_down: SshdRepair,
    kept_agent: KeptAgentLookup,
) -> VpsDockerHost:
    """The host as mngr works on it while its container runs; nothing is connected yet."""
    context, observed = access.context, access.observed
    _ = access.config
    if observed.record is not None and observed.record.container_ssh_host_public_key is not None:
        access.pin_container(observed.record.container_ssh_host_public_key)
    return VpsDockerHost(
        id=observed.host_id,
        connector=SshConnector(
            access.address, lambda: context.container_for_others(access.address, observed.host_id), context.runner
        ),
        ssh=access.container_ssh,
        provider_instance=provider,
        mngr_ctx=provider.mngr_ctx,
        on_host_data=on_host_data,
        on_sshd_down=on_sshd_down,
        kept_agent=kept_agent,
        local_store=context.local_store,
        seen_agents=_just_seen_agents(observed),
    )


def _just_seen_agents(observed: ObservedHost) -> SeenAgents | None:
    if observed.read_at is None or not observed.is_volume_read:
        return None
    return SeenAgents(observed.live_agents, observed.read_at)


def offline_host(
    provider: BaseProviderInstance, observed: ObservedHost, *, on_host_data: HostDataListener
) -> OfflineHost:
    """The host as mngr knows it while its container is stopped or out of reach."""
    seen = observed.certified_data
    form = _KeptHost if observed.in_this_state_since is None else OfflineHost
    return form(
        id=observed.host_id,
        certified_host_data=seen,
        provider_instance=provider,
        mngr_ctx=provider.mngr_ctx,
        on_updated_host_data=lambda host_id, data: on_host_data(host_id, change_between(seen, data)),
    )


def outer_host(
    context: ProviderContext, address: str, host_id: HostId | None, connect_timeout_seconds: float | None = None
) -> VpsOuterHost:
    """The VPS at ``address``; ``host_id`` is the host on it, if known. The time-out is that of ``context.vps``."""
    connection = context.vps(address, host_id, connect_timeout_seconds)
    connector = SshConnector(address, lambda: connection.target, context.runner)
    return VpsOuterHost(id=host_id or HostId.generate(), connector=connector, ssh=connection)


@contextmanager
def listed_vps(context: ProviderContext, address: str) -> Iterator[VpsOuterHost]:
    """The VPS at ``address`` for a listing, which waits for it briefly; that it is silent is saved.

    Raises VpsConnectionError for one that was silent when it was last asked.
    """
    # Clouds give the address of a VPS that is gone to another one.
    newest_first = reversed(context.local_store.read_all())
    entry = next((one for one in newest_first if one.vps_ip == address and one.gone_since is None), None)
    if entry is not None and entry.is_silent:
        raise VpsConnectionError(f"VPS {address} did not answer when it was last asked")
    began = time.monotonic()
    try:
        yield outer_host(
            context, address, None if entry is None else entry.host_id, context.timings.listing.connect_seconds
        )
    except VpsDockerError as error:
        if entry is not None:
            VpsReader(context).with_no_answer(ObservedHost(entry), error, time.monotonic() - began)
        raise


def existing_store(context: ProviderContext, outer: OuterHostInterface) -> VpsDockerHostStore | None:
    """The record store on a VPS, or None while it has no state container."""
    if not isinstance(outer, VpsOuterHost):
        raise VpsDockerError(f"Expected what _make_outer_for_vps_ip yields, not {type(outer).__name__}")
    if DockerOverSsh(outer.ssh).inspect_container(context.state_volume_name) is None:
        return None
    return context.store(outer.ssh)
