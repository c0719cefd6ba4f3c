"""What `mngr list` shows of one host and its agents, gathered by one remote command."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from imbue.mngr.config.data_types import MngrConfig
from imbue.mngr.errors import AgentNotFoundOnHostError, BaseMngrError, HostConnectionError
from imbue.mngr.hosts.common import (
    check_agent_type_known,
    compute_idle_seconds,
    determine_lifecycle_state,
    resolve_expected_process_name,
)
from imbue.mngr.interfaces.agent import AgentInterface
from imbue.mngr.interfaces.data_types import AgentDetails, HostDetails
from imbue.mngr.interfaces.host import OnlineHostInterface
from imbue.mngr.primitives import AgentId, AgentLifecycleState, CommandString, DiscoveredAgent, DiscoveredHost, SSHInfo
from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError, RemoteOutputError
from imbue.mngr_vps_docker.hosts.host_access import HostAccess
from imbue.mngr_vps_docker.hosts.listing import Listing, moment, read_listing
from imbue.mngr_vps_docker.hosts.observed_host import NO_COMMAND, list_snapshots
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.agent_data import SeenAgents, believed
from imbue.mngr_vps_docker.text import printable_data

_UNKNOWN: Final = "unknown"

type FieldGenerators = Mapping[str, Mapping[str, Callable[[AgentInterface[Any], OnlineHostInterface], Any]]]
type OnError = Callable[[DiscoveredAgent | DiscoveredHost, BaseException], None]


def describe(
    access: HostAccess,
    config: MngrConfig,
    host: VpsDockerHost | None,
    agent_refs: Sequence[DiscoveredAgent],
    field_generators: FieldGenerators | None,
    on_error: OnError | None,
) -> tuple[HostDetails, list[AgentDetails]]:
    """The rows of a host and of ``agent_refs``, its agents; ``host`` is None for one that does not run.

    A host that turns out not to answer is shown as last seen. What goes wrong with one agent is handed to
    ``on_error``, if given, which may raise, and the agent is left out; else the agent is shown as last seen.
    """
    context, observed = access.context, access.observed
    if host is not None:
        try:
            # The same machine as ``host.ssh``, waited for as briefly as in any listing.
            patience = context.timings.listing
            listing = read_listing(
                replace(access, connect_timeout_seconds=patience.connect_seconds).container_ssh,
                host_dir=str(context.host_dir),
                prefix=context.prefix,
                container=observed.container,
                timeout_seconds=patience.answer_seconds,
            )
            row = host_details(access, listing)
            agents = _RunningAgents(host, row, listing, config, field_generators or {})
            return row, [shown for agent in agent_refs if (shown := agents.row(agent, on_error)) is not None]
        except (HostConnectionError, RemoteCommandTimeoutError) as error:
            observed = observed.with_problem(error)
        except RemoteOutputError as error:
            observed = replace(observed, problem=error)
    row = host_details(replace(access, observed=observed), None)
    return row, [_offline_agent(agent, row) for agent in agent_refs]


def host_details(access: HostAccess, listing: Listing | None) -> HostDetails:
    """One host's row; ``listing`` is None for a host that does not run or cannot be asked."""
    observed = access.observed
    data = observed.certified_data
    common = HostDetails(
        id=observed.host_id,
        name=observed.name,
        provider_name=access.context.provider_name,
        state=observed.state,
        image=printable_data(data.image),
        tags=printable_data(data.user_tags),
        snapshots=list_snapshots(observed),
        plugin=printable_data(data.plugin),
        failure_reason=data.failure_reason or observed.problem_text or observed.advice,
    )
    if listing is None:
        return common
    live = listing.certified_data or data
    return replace(
        common,
        boot_time=listing.boot_time,
        uptime_seconds=listing.uptime_seconds,
        resource=listing.resources,
        ssh=_ssh_info(access),
        is_locked=listing.locked_time is not None,
        locked_time=listing.locked_time,
        plugin=printable_data(live.plugin),
        ssh_activity_time=listing.ssh_activity_time,
    )


class _RunningAgents:
    """The rows of the agents of a running host."""

    def __init__(
        self,
        host: VpsDockerHost,
        details: HostDetails,
        listing: Listing,
        config: MngrConfig,
        field_generators: FieldGenerators,
    ) -> None:
        self._host = host
        self._details = details
        self._listing = listing
        self._config = config
        self._field_generators = field_generators
        self._objects: dict[AgentId, AgentInterface[Any]] = {}
        if field_generators:
            # Made of what was just read and looked at, not read once more.
            host.seen_agents = SeenAgents([agent["data"] for agent in listing.agents.values()], time.monotonic())
            self._objects = {agent.id: agent for agent in host.get_agents()}

    def row(self, agent: DiscoveredAgent, on_error: OnError | None) -> AgentDetails | None:
        """An agent's row; None if something is wrong with the agent and ``on_error`` was told.

        Raises HostConnectionError if the host does not answer any more.
        """
        try:
            live = self._listing.agents.get(agent.agent_id)
            if live is None:
                raise AgentNotFoundOnHostError(AgentId(agent.agent_id), self._details.id)
            data = believed(live["data"], agent.certified_data)
            return self._row(replace(agent, certified_data=data), live)
        except HostConnectionError:
            raise
        except BaseMngrError as error:
            if on_error is None:
                return _offline_agent(agent, self._details)
            on_error(agent, error)
            return None

    def _row(self, agent: DiscoveredAgent, live: Mapping[str, Any]) -> AgentDetails:
        host_data = self._listing.certified_data
        start_time = moment(live.get("start_activity_mtime"))
        user_activity, agent_activity = (moment(live.get(f"{who}_activity_mtime")) for who in ("user", "agent"))
        agent_type = str(agent.agent_type or _UNKNOWN)
        command = agent.command or CommandString(NO_COMMAND)
        return replace(
            _offline_agent(agent, self._details),
            state=determine_lifecycle_state(
                tmux_info=live.get("tmux_info"),
                is_active=bool(live.get("is_active")),
                expected_process_name=resolve_expected_process_name(agent_type, command, self._config),
                ps_output=self._listing.processes,
                is_agent_type_known=check_agent_type_known(agent_type, self._config),
            ),
            url=printable_data(live.get("url")),
            start_time=start_time,
            runtime_seconds=(datetime.now(UTC) - start_time).total_seconds() if start_time else None,
            user_activity_time=user_activity,
            agent_activity_time=agent_activity,
            idle_seconds=compute_idle_seconds(user_activity, agent_activity, self._details.ssh_activity_time),
            idle_mode=None if host_data is None else host_data.idle_mode.value,
            idle_timeout_seconds=None if host_data is None else host_data.idle_timeout_seconds,
            activity_sources=() if host_data is None else tuple(s.value for s in host_data.activity_sources),
            plugin=self._plugin_fields(agent.agent_id),
        )

    def _plugin_fields(self, agent_id: AgentId) -> dict[str, Any]:
        agent = self._objects.get(agent_id)
        if agent is None:
            return {}
        by_plugin = {
            plugin: {
                name: value for name, make in generators.items() if (value := make(agent, self._host)) is not None
            }
            for plugin, generators in self._field_generators.items()
        }
        return {plugin: fields for plugin, fields in by_plugin.items() if fields}


def _offline_agent(agent: DiscoveredAgent, details: HostDetails) -> AgentDetails:
    shown = replace(agent, certified_data=printable_data(dict(agent.certified_data)))
    return AgentDetails(
        id=shown.agent_id,
        name=shown.agent_name,
        type=str(shown.agent_type or _UNKNOWN),
        command=shown.command or CommandString(NO_COMMAND),
        work_dir=shown.work_dir or Path("/"),
        initial_branch=shown.created_branch_name,
        create_time=shown.create_time or datetime.fromtimestamp(0, UTC),
        start_on_boot=shown.start_on_boot,
        state=AgentLifecycleState.STOPPED,
        labels=shown.labels,
        host=details,
    )


def _ssh_info(access: HostAccess) -> SSHInfo:
    target = access.container_ssh.target
    return SSHInfo(
        user=target.user,
        host=target.host,
        port=target.port,
        key_path=target.identity_file,
        command=access.container_ssh.ssh_command(None),
    )
