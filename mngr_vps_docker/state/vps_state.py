"""Everything that one VPS knows of its hosts, read in one round trip: what discovery and listing ask for."""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.docker.commands import list_containers, volume_mountpoints_script
from imbue.mngr_vps_docker.docker.errors import checked_docker
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.primitives import HOST_ID_LABEL, HOST_VOLUME_PREFIX
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline, UnreadableAnswerError
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import quote
from imbue.mngr_vps_docker.state.agent_data import AGENT_ID, decode_agent_data
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.state.stored_state import (
    EVERY_STATE_FILE,
    NOTHING_STORED,
    STATE_OUTPUT_BYTES,
    StoredState,
    parse_state,
    state_files_script,
)
from imbue.mngr_vps_docker.state.volume_scripts import SmallFiles, archive_small_files, parse_files
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, json_object

_TIMEOUT_SECONDS: Final = 120.0
# Below Docker's data-root, as it is by default.
_USUAL_VOLUMES: Final = "/var/lib/docker/volumes"
# What is read of a host's own volume, which untrusted code writes.
_HOST_FILES: Final = ("data.json", "stop_reason", "agents/*/data.json")
_FILE_LIMIT_BYTES: Final = 8 << 20
_TOTAL_LIMIT_BYTES: Final = 16 << 20
_COUNT_LIMIT: Final = 2_000
# Not every distribution notes that a kernel was installed. One of another flavour (Debian's cloud and generic kernels,
# that of a host of containers) does not take the place of the running one.
NEEDS_REBOOT_SCRIPT: Final = """\
running=$(uname -r)
newest=$({ echo "$running"; ls /boot | sed -n 's/^vmlinuz-//p'; } 2>/dev/null |
  awk '{ flavour = $0; sub(/^[^-]*(-[0-9]+)?/, "", flavour); if (NR == 1) own = flavour; if (flavour == own) print }' |
  sort -V | tail -n 1)
if [ -e /run/reboot-required ] || [ "${newest:-$running}" != "$running" ]; then echo reboot; fi
"""
_STOP_REASON: Final = re.compile(r"[A-Z_]{1,40}")
_AGENT_FILE: Final = re.compile(rf"agents/({AGENT_ID})/data\.json")


@dataclass(frozen=True, slots=True)
class HostReading:
    """What one VPS says of one host.

    ``record`` is None if there is none or if it ``is_record_unreadable``. ``data_json`` is the host's certified data
    as its container wrote it (``data_json_sha256``: the digest of that file), ``live_agents`` its agents' data from
    there, ``stop_reason`` the word that an orderly stop left; all of it is written by untrusted code. They are None or
    empty as well where ``is_volume_read`` is false: there is no volume, or it holds more than can be read.
    ``container`` is None if there is no container. ``needs_reboot`` is whether an upgrade of the VPS waits for one.
    ``read_at`` is when all that was said, on this machine's monotonic clock, in seconds; None if something of it has
    changed since.
    """

    host_id: HostId
    record: VpsDockerHostRecord | None = None
    is_record_unreadable: bool = False
    persisted_agents: tuple[dict[str, Any], ...] = ()
    data_json: dict[str, Any] | None = None
    data_json_sha256: str | None = None
    live_agents: tuple[dict[str, Any], ...] = ()
    stop_reason: str | None = None
    is_volume_read: bool = False
    container: ContainerInfo | None = None
    needs_reboot: bool = False
    read_at: float | None = None


@dataclass(frozen=True, slots=True)
class VpsState:
    """What one VPS says of its hosts; a host is in ``hosts`` if it has a record, readable or not, or a container."""

    hosts: Mapping[HostId, HostReading]
    has_state_volume: bool

    @property
    def unreadable_host_ids(self) -> tuple[HostId, ...]:
        """Hosts whose record is there and cannot be read."""
        return tuple(host_id for host_id, reading in self.hosts.items() if reading.is_record_unreadable)


def read_vps_state(
    connection: SshConnection,
    *,
    state_volume: str,
    container: str | None = None,
    container_label: str = HOST_ID_LABEL,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> VpsState:
    """Read all records, agents, host volumes and containers of one VPS in one round trip.

    ``container`` is the name of a host's container, if it is known: one that has that name is looked at alone, which
    saves a command of Docker's. ``container_label`` is the label whose value is a container's host id. Raises
    VpsConnectionError or RemoteCommandTimeoutError if the VPS could not be asked, DaemonNotRunningError without
    Docker, and HostRecordError if the state volume holds more than can be read.
    """
    purpose = "read the state of the VPS"
    read_at = time.monotonic()
    pipeline = Pipeline(connection, purpose, stops_at_failure=False)
    # In this order: what a container says of its stop is on its volume before it is seen stopped.
    containers = pipeline.add(list_containers({container_label: None}, known=container))
    volumes = pipeline.add(
        RemoteCommand(
            _volumes_script(state_volume), purpose, _lines, timeout_seconds, Effect.READ_ONLY, STATE_OUTPUT_BYTES
        )
    )
    pipeline.run(timeout_seconds=timeout_seconds)
    where = connection.target.name
    state_line, volume_lines, needs_reboot = volumes.value
    stored = (
        NOTHING_STORED if state_line is None else parse_state(state_line, where=f"{where} (volume {state_volume})")
    )
    container_by_host = _container_by_host(containers.value, stored, container_label)
    host_ids = {**stored.records, **dict.fromkeys(stored.unreadable_host_ids), **container_by_host}
    readings = (_reading(host_id, stored, volume_lines, container_by_host.get(host_id), where) for host_id in host_ids)
    return VpsState(
        hosts={reading.host_id: replace(reading, needs_reboot=needs_reboot, read_at=read_at) for reading in readings},
        has_state_volume=state_line is not None,
    )


def _volumes_script(state_volume: str) -> str:
    """Prints ``state <files>`` and, for each volume that belongs to a host, ``volume <name> <files>``.

    And ``reboot``, if the VPS needs one.
    """
    host_files = archive_small_files(
        _HOST_FILES, file_limit_bytes=_FILE_LIMIT_BYTES, total_limit_bytes=_TOTAL_LIMIT_BYTES, count_limit=_COUNT_LIMIT
    )
    # A volume is a host's by its name, or because a record names it. Volume names have no blanks or quotes.
    return f"""\
{NEEDS_REBOOT_SCRIPT}\
volumes=$({_list_volumes(state_volume)}) || exit 1
state=
while read -r name path; do
  if [ "$name" = {quote(state_volume)} ]; then state=$path; fi
done <<END
$volumes
END
if [ -n "$state" ]; then
  cd "$state" || exit 1
  printf 'state '
  {state_files_script(EVERY_STATE_FILE)}
fi
while read -r name path; do
  case $name in
    {HOST_VOLUME_PREFIX}*) ;;
    *) [ -n "$state" ] && grep -qsF "\\"$name\\"" "$state"/host_state/*.json || continue ;;
  esac
  cd "$path" 2>/dev/null || continue
  printf 'volume %s ' "$name"
  {host_files}
done <<END
$volumes
END
exit 0
"""


def _list_volumes(state_volume: str) -> str:
    """Shell text that prints ``<name> <directory>`` of each volume: looked up where Docker keeps them unless it was
    told otherwise, which takes no command of Docker's, or else asked of Docker.
    """
    return f"""\
if [ -d {_USUAL_VOLUMES}/{quote(state_volume)}/_data ]; then
  for path in {_USUAL_VOLUMES}/*/_data; do name=${{path%/_data}}; echo "${{name##*/}} $path"; done
else {volume_mountpoints_script()}; fi"""


def _lines(outcome: CommandOutcome) -> tuple[bytes | None, dict[str, bytes], bool]:
    """The line of the state volume, those of volumes by name, and whether there is one that asks for a reboot."""
    state_line: bytes | None = None
    needs_reboot = False
    volume_lines: dict[str, bytes] = {}
    for line in checked_docker(outcome).stdout.splitlines():
        kind, _, rest = line.partition(b" ")
        if kind == b"state":
            state_line = rest
        elif kind == b"volume":
            name, _, files = rest.partition(b" ")
            volume_lines[name.decode("ascii", "replace")] = files
        elif line == b"reboot":
            needs_reboot = True
        else:
            raise UnreadableAnswerError("The VPS's description of its volumes cannot be read")
    return state_line, volume_lines, needs_reboot


def _container_by_host(
    containers: tuple[ContainerInfo, ...], stored: StoredState, label: str
) -> dict[HostId, ContainerInfo]:
    """The container of each host: the one that its record names, else a running one, else the newest."""
    chosen: dict[HostId, ContainerInfo] = {}

    def rank(host_id: HostId, container: ContainerInfo) -> tuple[bool, bool, datetime]:
        record = stored.records.get(host_id)
        is_named = record is not None and record.container_id == container.id
        return is_named, container.is_running, container.created_at

    for container in containers:
        try:
            host_id = HostId(container.labels.get(label, ""))
        except ValueError as error:
            logger.warning("Ignored container {}, whose label {} is no host id: {}", container.name, label, error)
            continue
        if host_id not in chosen or rank(host_id, container) > rank(host_id, chosen[host_id]):
            chosen[host_id] = container
    return chosen


def _reading(
    host_id: HostId,
    stored: StoredState,
    volume_lines: Mapping[str, bytes],
    container: ContainerInfo | None,
    where: str,
) -> HostReading:
    record = stored.records.get(host_id)
    volume = record.config.volume_name if record is not None and record.config is not None else None
    volume = volume or f"{HOST_VOLUME_PREFIX}{host_id.get_uuid().hex}"
    files = _host_files(volume, volume_lines.get(volume), where)
    data_json = None if files is None else files.contents.get("data.json")
    return HostReading(
        host_id=host_id,
        record=record,
        is_record_unreadable=host_id in stored.unreadable_host_ids,
        persisted_agents=tuple(stored.agents.get(host_id, ())),
        data_json=_json_object(data_json),
        data_json_sha256=None if data_json is None else hashlib.sha256(data_json).hexdigest(),
        live_agents=() if files is None else tuple(_live_agents(files, volume, where)),
        stop_reason=None if files is None else _stop_reason(files.contents.get("stop_reason")),
        is_volume_read=files is not None,
        container=container,
    )


def _host_files(volume: str, line: bytes | None, where: str) -> SmallFiles | None:
    if line is None:
        return None
    try:
        return parse_files(line)
    except ValueError as error:
        logger.warning("Volume {} on {} cannot be read: {}", volume, where, error)
        return None


def _live_agents(files: SmallFiles, volume: str, where: str) -> list[dict[str, Any]]:
    agents = []
    for path, content in sorted(files.contents.items()):
        name = _AGENT_FILE.fullmatch(path)
        if name is None:
            continue
        try:
            agents.append(decode_agent_data(content, expected_id=name[1]))
        except UnusableDataError as error:
            logger.warning("Left out {} on {} (volume {}): {}", path, where, volume, error)
    return agents


def _json_object(content: bytes | None) -> dict[str, Any] | None:
    if content is None:
        return None
    try:
        return json_object(content)
    except UnusableDataError:
        return None


def _stop_reason(content: bytes | None) -> str | None:
    word = (content or b"")[:100].decode("ascii", "replace").strip()
    return word if _STOP_REASON.fullmatch(word) else None
