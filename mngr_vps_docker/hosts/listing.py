"""What a running container says of itself, asked for by one remote command.

The container is its agent's: each program that is asked in it may say anything, or nothing. What cannot be so counts
as not said, and nothing that one part of it says costs another.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError

from imbue.mngr.interfaces.data_types import CertifiedHostData, CpuResources, HostResources
from imbue.mngr.providers.listing_utils import (
    SEP_AGENT_START,
    build_listing_collection_script,
    parse_listing_collection_output,
)
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.state.agent_data import checked_agent_data
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, parse_utc, sanitize_json

LISTING_TIMEOUT_SECONDS: Final = 60.0

# Printed by the same remote command, before the rest: no other output can come first.
_RESOURCES_SCRIPT: Final = """\
echo "cpus=$(nproc)"
echo "memory=$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)"
echo "disk=$(df -Pk / | awk 'NR == 2 { print $2 }')"
"""
_RESOURCES: Final = re.compile(r"cpus=(\d{1,6})\nmemory=(\d{1,15})\ndisk=(\d{0,15})\n")
_KIB_PER_GIB: Final = 1024.0**2
_BYTES_PER_GIB: Final = 1024.0**3
_MOST_PROCESSES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Listing:
    """What a running container said; None for what it did not say. ``processes`` is what ``ps`` printed.

    ``agents`` is what mngr's own script found of each agent, by id; its ``data`` are checked.
    """

    resources: HostResources | None = None
    boot_time: datetime | None = None
    uptime_seconds: float | None = None
    locked_time: datetime | None = None
    ssh_activity_time: datetime | None = None
    certified_data: CertifiedHostData | None = None
    processes: str = ""
    agents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_listing(
    connection: SshConnection,
    *,
    host_dir: str,
    prefix: str,
    container: ContainerInfo | None,
    timeout_seconds: float = LISTING_TIMEOUT_SECONDS,
) -> Listing:
    """Ask a running container, once; raises VpsConnectionError if it cannot be reached.

    Raises RemoteCommandTimeoutError or RemoteOutputError if it does not come to an end.
    """
    outcome = connection.run(
        _RESOURCES_SCRIPT + build_listing_collection_script(host_dir, prefix),
        purpose="list agents",
        timeout_seconds=timeout_seconds,
        effect=Effect.READ_ONLY,
    )
    return parse_listing(_ended(outcome).text, container)


def read_resources(connection: SshConnection, container: ContainerInfo | None) -> HostResources:
    """What a running container has: its VPS's processors, memory and disk, within its own limits.

    Raises RemoteCommandError if it does not say.
    """
    outcome = connection.run(
        _RESOURCES_SCRIPT, purpose="read resources", timeout_seconds=LISTING_TIMEOUT_SECONDS, effect=Effect.READ_ONLY
    )
    resources = _resources(_ended(outcome).text, container)
    if resources is None:
        raise RemoteCommandError(f"{outcome.host} does not say what it has: {outcome.last_words()}")
    return resources


def parse_listing(text: str, container: ContainerInfo | None) -> Listing:
    """Read what the listing script printed, whatever that is."""
    host: dict[str, Any] = {}
    agents: dict[str, dict[str, Any]] = {}
    for part in _parts(text):
        for raw in part.pop("agents"):
            try:
                data = checked_agent_data(raw["data"])
            except UnusableDataError as error:
                logger.warning("Left out an agent, whose data cannot be read: {}", error)
                continue
            agents.setdefault(data["id"], raw | {"data": data})
        host = part | host
    return Listing(
        resources=_resources(text, container),
        boot_time=moment(host.get("btime")),
        uptime_seconds=_finite(host.get("uptime_seconds")),
        locked_time=moment(host.get("lock_mtime")),
        ssh_activity_time=moment(host.get("ssh_activity_mtime")),
        certified_data=_certified_data(host.get("certified_data")),
        processes=_forest(host.get("ps_output", "")),
        agents=agents,
    )


def _ended(outcome: CommandOutcome) -> CommandOutcome:
    """Raise what kept a command from its end; how it ended, its container decides and means nothing."""
    if outcome.status is not OutcomeStatus.COMPLETED:
        raise outcome.error()
    return outcome


def _parts(text: str) -> Iterator[dict[str, Any]]:
    """What mngr reads in the part on the host, and in that on each agent."""
    host, *agents = re.split(rf"^(?={re.escape(SEP_AGENT_START)})", text, flags=re.MULTILINE)
    for part in (host, *agents):
        try:
            yield parse_listing_collection_output(part)
        # Numbers of too many digits, and nesting that exhausts the parser's stack.
        except (ValueError, RecursionError) as error:
            logger.warning("Left out a part of a listing, which cannot be read: {}", error)


def _resources(text: str, container: ContainerInfo | None) -> HostResources | None:
    found = _RESOURCES.match(text)
    if found is None:
        return None
    cpu_count, memory_gb = int(found[1]), int(found[2]) / _KIB_PER_GIB
    if container is not None and container.nano_cpus:
        cpu_count = max(1, min(cpu_count, round(container.nano_cpus / 1e9)))
    if container is not None and container.memory_bytes:
        memory_gb = min(memory_gb, container.memory_bytes / _BYTES_PER_GIB)
    disk_gb = int(found[3]) / _KIB_PER_GIB if found[3] else None
    return HostResources(cpu=CpuResources(count=cpu_count), memory_gb=memory_gb, disk_gb=disk_gb)


def moment(seconds: object) -> datetime | None:
    """A time that was said in seconds since 1970, if it is one."""
    if not isinstance(seconds, int):
        return None
    try:
        return parse_utc(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return None


def _finite(number: object) -> float | None:
    return number if isinstance(number, float) and math.isfinite(number) else None


def _certified_data(raw: object) -> CertifiedHostData | None:
    try:
        return CertifiedHostData.model_validate(sanitize_json(raw))
    except (UnusableDataError, ValidationError):
        return None


def _forest(ps_output: str) -> str:
    """The lines of processes that descend from one whose parent is not listed, each of them once.

    mngr walks from a process to its children, to theirs, and so on: in a circle it would do so for ever.
    """
    lines: dict[str, str] = {}
    children: dict[str, list[str]] = {}
    for line in ps_output.splitlines()[:_MOST_PROCESSES]:
        match line.split(maxsplit=2):
            case [process_id, parent_id, _name] if process_id not in lines:
                lines[process_id] = line
                children.setdefault(parent_id, []).append(process_id)
    found = [child for parent_id, ids in children.items() if parent_id not in lines for child in ids]
    for process_id in found:
        found += children.get(process_id, ())
    return "\n".join(lines[process_id] for process_id in found)
