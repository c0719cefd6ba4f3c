"""What `mngr list` shows of one host and its agents, gathered by one remote command."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Any

from imbue.mngr.config.data_types import MngrConfig
from imbue.mngr.errors import AgentNotFoundOnHostError
from imbue.mngr.errors import HostConnectionError
from imbue.mngr.hosts.common import check_agent_type_known
from imbue.mngr.hosts.common import compute_idle_seconds
from imbue.mngr.hosts.common import determine_lifecycle_state
from imbue.mngr.hosts.common import resolve_expected_process_name
from imbue.mngr.hosts.common import timestamp_to_datetime
from imbue.mngr.hosts.offline_host import validate_and_create_discovered_agent
from imbue.mngr.interfaces.agent import AgentInterface
from imbue.mngr.interfaces.data_types import AgentDetails
from imbue.mngr.interfaces.data_types import CpuResources
from imbue.mngr.interfaces.data_types import HostDetails
from imbue.mngr.interfaces.data_types import HostResources
from imbue.mngr.interfaces.host import OnlineHostInterface
from imbue.mngr.primitives import AgentId
from imbue.mngr.primitives import AgentLifecycleState
from imbue.mngr.primitives import CommandString
from imbue.mngr.primitives import DiscoveredAgent
from imbue.mngr.primitives import DiscoveredHost
from imbue.mngr.primitives import SSHInfo
from imbue.mngr.providers.listing_utils import build_listing_collection_script
from imbue.mngr.providers.listing_utils import parse_listing_collection_output
from imbue.mngr_vps_docker.docker_objects import ContainerInfo
from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.lifecycle.snapshot import list_snapshots
from imbue.mngr_vps_docker.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import Effect

LISTING_TIMEOUT_SECONDS = 60.0

# Printed by the same remote command as the rest, before it: nobody else's output can come first.
_RESOURCES_SCRIPT = """\
nproc
awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo
df -Pk / | awk 'NR == 2 { print $2 }'
"""
_RESOURCES_LINES = 3
_KIB_PER_GIB = 1024.0**2
_BYTES_PER_GIB = 1024.0**3

type FieldGenerators = Mapping[str, Mapping[str, Callable[[AgentInterface[Any], OnlineHostInterface], Any]]]
type OnError = Callable[[DiscoveredAgent | DiscoveredHost, BaseException], None]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a running container said of itself: its resources, and mngr's own listing data."""

    resources: HostResources
    data: Mapping[str, Any]


def read_listing(connection: SshConnection, *, host_dir: str, prefix: str, container: ContainerInfo | None) -> Listing:
    """Ask a running container, once; raises VpsConnectionError if it cannot be reached."""
    outcome = connection.run(
        _RESOURCES_SCRIPT + build_listing_collection_script(host_dir, prefix),
        purpose="list agents",
        timeout_seconds=LISTING_TIMEOUT_SECONDS,
        effect=Effect.READS,
    ).checked()
    lines = outcome.text.split("\n", _RESOURCES_LINES)
    return Listing(
        resources=_resources(lines[:_RESOURCES_LINES], container),
        data=parse_listing_collection_output(lines[-1]),
    )


def read_resources(connection: SshConnection, container: ContainerInfo | None) -> HostResources:
    """What a running container has: its VPS's processors, memory and disk, within its own limits."""
    outcome = connection.run(
        _RESOURCES_SCRIPT, purpose="read resources", timeout_seconds=LISTING_TIMEOUT_SECONDS, effect=Effect.READS
    ).checked()
    return _resources(outcome.text.splitlines(), container)


def describe(
    context: ProviderContext,
    config: MngrConfig,
    sighting: HostSighting,
    host: VpsDockerHost | None,
    agent_refs: Sequence[DiscoveredAgent],
    field_generators: FieldGenerators | None,
    on_error: OnError | None,
) -> tuple[HostDetails, list[AgentDetails]]:
    """The rows of a host and of ``agent_refs``, its agents; ``host`` is None for one that does not run.

    A host that turns out not to answer is shown as last seen.
    """
    listing = None
    if host is not None:
        try:
            listing = read_listing(
                host.ssh, host_dir=str(context.host_dir), prefix=context.prefix, container=sighting.container
            )
        except (HostConnectionError, RemoteCommandTimeoutError) as error:
            sighting = sighting.unread(error)
    row = host_details(context, sighting, listing)
    generators = field_generators or {}
    return row, agent_details(
        host, row, agent_refs, listing, config=config, field_generators=generators, on_error=on_error
    )


def host_details(context: ProviderContext, sighting: HostSighting, listing: Listing | None) -> HostDetails:
    """One host's row; ``listing`` is None for a host that does not run or cannot be asked."""
    data = sighting.certified_data
    common = HostDetails(
        id=sighting.host_id,
        name=sighting.name,
        provider_name=context.provider_name,
        state=sighting.state,
        image=data.image,
        tags=dict(data.user_tags),
        snapshots=list_snapshots(sighting),
        plugin=data.plugin,
        failure_reason=data.failure_reason or (str(sighting.problem) if sighting.problem is not None else None),
    )
    if listing is None:
        return common
    live = listing.data
    locked_time = timestamp_to_datetime(live.get("lock_mtime"))
    return common.model_copy(
        update={
            "boot_time": timestamp_to_datetime(live.get("btime")),
            "uptime_seconds": live.get("uptime_seconds"),
            "resource": listing.resources,
            "ssh": _ssh_info(context, sighting),
            "is_locked": locked_time is not None,
            "locked_time": locked_time,
            "plugin": live.get("certified_data", {}).get("plugin", data.plugin),
            "ssh_activity_time": timestamp_to_datetime(live.get("ssh_activity_mtime")),
        }
    )


def agent_details(
    host: OnlineHostInterface | None,
    details: HostDetails,
    agent_refs: Sequence[DiscoveredAgent],
    listing: Listing | None,
    *,
    config: MngrConfig,
    field_generators: FieldGenerators,
    on_error: OnError | None,
) -> list[AgentDetails]:
    """A row for each of ``agent_refs``: as it runs now, or as last known where the host said nothing of it.

    An agent that a running host does not have is handed to ``on_error``, if given, which may raise, and left out.
    """
    if listing is None:
        return [_offline_agent(agent_ref, details) for agent_ref in agent_refs]
    live = {str(agent["data"].get("id")): agent for agent in listing.data["agents"]}
    objects = {agent.id: agent for agent in host.get_agents()} if host is not None and field_generators else {}
    rows = []
    for agent_ref in agent_refs:
        raw = live.get(agent_ref.agent_id)
        current = raw and validate_and_create_discovered_agent(raw["data"], details.id, details.provider_name)
        if raw and current:
            plugin = _plugin_fields(objects.get(current.agent_id), host, field_generators)
            rows.append(_online_agent(current, raw, details, listing, config, plugin))
        elif on_error is None:
            rows.append(_offline_agent(agent_ref, details))
        else:
            on_error(agent_ref, AgentNotFoundOnHostError(AgentId(agent_ref.agent_id), details.id))
    return rows


def _online_agent(
    agent: DiscoveredAgent,
    raw: Mapping[str, Any],
    details: HostDetails,
    listing: Listing,
    config: MngrConfig,
    plugin: dict[str, Any],
) -> AgentDetails:
    host_data = listing.data.get("certified_data", {})
    user_activity = timestamp_to_datetime(raw.get("user_activity_mtime"))
    agent_activity = timestamp_to_datetime(raw.get("agent_activity_mtime"))
    start_time = timestamp_to_datetime(raw.get("start_activity_mtime"))
    agent_type = str(agent.agent_type or "unknown")
    command = agent.command or CommandString("")
    return _offline_agent(agent, details).model_copy(
        update={
            "state": determine_lifecycle_state(
                tmux_info=raw.get("tmux_info"),
                is_active=bool(raw.get("is_active")),
                expected_process_name=resolve_expected_process_name(agent_type, command, config),
                ps_output=listing.data.get("ps_output", ""),
                is_agent_type_known=check_agent_type_known(agent_type, config),
            ),
            "url": raw.get("url"),
            "start_time": start_time,
            "runtime_seconds": (datetime.now(UTC) - start_time).total_seconds() if start_time is not None else None,
            "user_activity_time": user_activity,
            "agent_activity_time": agent_activity,
            "idle_seconds": compute_idle_seconds(user_activity, agent_activity, details.ssh_activity_time),
            "idle_mode": host_data.get("idle_mode"),
            "idle_timeout_seconds": host_data.get("idle_timeout_seconds"),
            "activity_sources": tuple(host_data.get("activity_sources", ())),
            "plugin": plugin,
        }
    )


def _offline_agent(agent: DiscoveredAgent, details: HostDetails) -> AgentDetails:
    return AgentDetails(
        id=agent.agent_id,
        name=agent.agent_name,
        type=str(agent.agent_type or "unknown"),
        command=agent.command or CommandString(""),
        work_dir=agent.work_dir or Path("/"),
        initial_branch=agent.created_branch_name,
        create_time=agent.create_time or datetime.fromtimestamp(0, UTC),
        start_on_boot=agent.start_on_boot,
        state=AgentLifecycleState.STOPPED,
        labels=agent.labels,
        host=details,
    )


def _plugin_fields(
    agent: AgentInterface[Any] | None, host: OnlineHostInterface | None, field_generators: FieldGenerators
) -> dict[str, Any]:
    if agent is None or host is None:
        return {}
    by_plugin = {
        plugin: {name: value for name, make in generators.items() if (value := make(agent, host)) is not None}
        for plugin, generators in field_generators.items()
    }
    return {plugin: fields for plugin, fields in by_plugin.items() if fields}


def _ssh_info(context: ProviderContext, sighting: HostSighting) -> SSHInfo | None:
    if sighting.entry.vps_ip is None:
        return None
    connection = context.container(sighting.entry.vps_ip, sighting.host_id)
    target = connection.target
    return SSHInfo(
        user=target.user,
        host=target.host,
        port=target.port,
        key_path=target.identity_file,
        command=connection.ssh_command(None),
    )


def _resources(lines: Sequence[str], container: ContainerInfo | None) -> HostResources:
    cpu_count, memory_kib, disk_kib = (int(line) for line in lines)
    memory_gb = memory_kib / _KIB_PER_GIB
    if container is not None and container.nano_cpus:
        cpu_count = max(1, min(cpu_count, round(container.nano_cpus / 1e9)))
    if container is not None and container.memory_bytes:
        memory_gb = min(memory_gb, container.memory_bytes / _BYTES_PER_GIB)
    return HostResources(cpu=CpuResources(count=cpu_count), memory_gb=memory_gb, disk_gb=disk_kib / _KIB_PER_GIB)
