"""All that one VPS says of its host, read in one round trip: what discovery and listing ask for."""

import hashlib
import re
import time
from typing import Any, Final

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.docker.commands import list_containers, volume_mountpoints_script
from imbue.mngr_vps_docker.docker.errors import checked_docker
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.primitives import HOST_ID_LABEL, HOST_ID_PATTERN, HOST_VOLUME_PREFIX, replace
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline, UnreadableAnswerError
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import quote
from imbue.mngr_vps_docker.state.agent_data import AGENT_ID, decode_agent_data
from imbue.mngr_vps_docker.state.record import (
    STATE_OUTPUT_BYTES,
    VpsDockerHostRecord,
    agents_path,
    parse_state,
    record_path,
)
from imbue.mngr_vps_docker.state.volume_scripts import SmallFiles, archive_small_files, parse_files
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, json_object

_TIMEOUT_SECONDS: Final = 120.0
# Below Docker's data-root, as it is by default.
_USUAL_VOLUMES: Final = "/var/lib/docker/volumes"
# What is read of a host's own volume, which untrusted code writes.
_HOST_FILES: Final = ("data.json", "stop_reason", "agents/*/data.json")
# Not every distribution notes that a kernel was installed. One of another flavour (Debian's cloud and generic kernels,
# that of a host of containers) does not take the place of the running one.
NEEDS_REBOOT_SCRIPT: Final = """\
running=$(uname -r)
newest=$({ echo "$running"; ls /boot | sed -n 's/^vmlinuz-//p'; } 2>/dev/null |
  awk '{ flavour = $0; sub(/^[^-]*(-[0-9]+)?/, "", flavour); if (NR == 1) own = flavour; if (flavour == own) print }' |
  sort -V | tail -n 1)
if [ -e /run/reboot-required ] || [ "${newest:-$running}" != "$running" ]; then echo reboot; fi
"""
# Of what is ignored, so much is named.
_MOST_NAMED: Final = 5
_LONGEST_NAME: Final = 100
_STOP_WORD: Final = re.compile(r"[A-Z_]{1,40}")
_AGENT_FILE: Final = re.compile(rf"agents/({AGENT_ID})/data\.json")


def read_vps(
    observed: ObservedHost,
    connection: SshConnection,
    *,
    state_volume: str,
    container: str | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> ObservedHost:
    """The host with all that its VPS says of it now; as it is, if there is neither a record nor a container of it.

    ``container`` is the name of the host's container, if it is known: one that has that name is looked at alone, which
    saves a command of Docker's. Records and containers of other hosts are named in a warning. Raises
    VpsConnectionError or RemoteCommandTimeoutError if the VPS could not be asked, DaemonNotRunningError without
    Docker, and HostRecordError if the state volume holds more than can be read.
    """
    host_id, purpose = observed.host_id, "read the state of the VPS"
    read_at = time.monotonic()
    pipeline = Pipeline(connection, purpose, stops_at_failure=False)
    # In this order: what a container says of its stop is on its volume before it is seen stopped.
    containers = pipeline.add(list_containers({HOST_ID_LABEL: None}, known=container))
    script = _volumes_script(host_id, state_volume)
    volumes = pipeline.add(
        RemoteCommand(script, purpose, _lines, timeout_seconds, Effect.READ_ONLY, STATE_OUTPUT_BYTES)
    )
    pipeline.run(timeout_seconds=timeout_seconds)
    where = connection.target.name
    state_line, volume_lines, needs_reboot, others = volumes.value
    others += [f"container {other.name}" for other in containers.value if other.labels.get(HOST_ID_LABEL) != host_id]
    if others:
        logger.warning("Ignored on {}, which is the VPS of {}: {}", where, host_id, ", ".join(others[:_MOST_NAMED]))
    records, agents = parse_state(state_line, where=f"{where} (volume {state_volume})") if state_line else ({}, {})
    record = records.get(host_id)
    found = record if isinstance(record, VpsDockerHostRecord) else None
    own_container = _own_container(host_id, containers.value, found)
    if record is None and own_container is None:
        return observed
    volume = found.config.volume_name if found is not None and found.config is not None else _volume_of(host_id)
    files = _host_files(volume, volume_lines.get(volume), where)
    data_json = None if files is None else files.contents.get("data.json")
    return replace(
        observed,
        is_read=True,
        read_at=read_at,
        vps_record=found,
        is_record_unreadable=record is not None and found is None,
        kept_agents=tuple(agents.get(host_id, ())),
        container=own_container,
        needs_reboot=needs_reboot,
        is_volume_read=files is not None,
        data_json=_json_object(data_json),
        data_json_sha256=None if data_json is None else hashlib.sha256(data_json).hexdigest(),
        live_agents=() if files is None else tuple(_live_agents(files, volume, where)),
        stop_word=None if files is None else _stop_word(files.contents.get("stop_reason")),
    )


def _volume_of(host_id: HostId) -> str:
    return f"{HOST_VOLUME_PREFIX}{host_id.get_uuid().hex}"


def _volumes_script(host_id: HostId, state_volume: str) -> str:
    """Prints ``state <files>``, ``other <file>`` for each record of another host, ``volume <name> <files>`` for each
    volume that may be the host's, and ``reboot`` if the VPS needs one.
    """
    # A volume is the host's by its name, or because the record names it. Volume names have no blanks or quotes.
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
  {archive_small_files([record_path(host_id), f"{agents_path(host_id)}/*.json"])}
  ls host_state 2>/dev/null | grep -xE '{HOST_ID_PATTERN}\\.json' | grep -vxF {host_id}.json | sed 's/^/other /'
fi
while read -r name path; do
  case $name in
    {_volume_of(host_id)}) ;;
    *) [ -n "$state" ] && grep -qsF "\"$name\"" "$state"/{record_path(host_id)} || continue ;;
  esac
  cd "$path" 2>/dev/null || continue
  printf 'volume %s ' "$name"
  {archive_small_files(_HOST_FILES)}
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


def _lines(outcome: CommandOutcome) -> tuple[bytes | None, dict[str, bytes], bool, list[str]]:
    """What ``_volumes_script`` printed: of the state volume, of volumes by name, of a reboot, and of other hosts."""
    state_line: bytes | None = None
    needs_reboot = False
    others: list[str] = []
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
        elif kind == b"other":
            if len(others) < _MOST_NAMED:
                others.append(rest[:_LONGEST_NAME].decode("ascii", "replace"))
        else:
            raise UnreadableAnswerError("The VPS's description of its volumes cannot be read")
    return state_line, volume_lines, needs_reboot, others


def _own_container(
    host_id: HostId, containers: tuple[ContainerInfo, ...], record: VpsDockerHostRecord | None
) -> ContainerInfo | None:
    """The host's container. While one replaces another there are two: that of the record counts, or one that runs."""
    own = [container for container in containers if container.labels.get(HOST_ID_LABEL) == host_id]
    recorded = None if record is None else record.container_id
    return max(own, key=lambda one: (one.id == recorded, one.is_running, one.created_at), default=None)


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


def _stop_word(content: bytes | None) -> str | None:
    word = (content or b"")[:100].decode("ascii", "replace").strip()
    return word if _STOP_WORD.fullmatch(word) else None
