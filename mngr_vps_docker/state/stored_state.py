"""Where things are on a state volume, and reading all of it at once."""

import re
from typing import Any, Final

from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.primitives import HOST_ID_PATTERN
from imbue.mngr_vps_docker.state.agent_data import AGENT_ID, decode_agent_data
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, decode_record
from imbue.mngr_vps_docker.state.volume_scripts import parse_files
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError

_SAFE_ID: Final = re.compile(f"{HOST_ID_PATTERN}|{AGENT_ID}")
_STATE_FILE: Final = re.compile(rf"host_state/({HOST_ID_PATTERN})(?:/({AGENT_ID}))?\.json")
# What the files of two volumes may be when they arrive, as base64 and with what else is read of a VPS.
STATE_OUTPUT_BYTES: Final = 64 << 20


type Records = dict[HostId, VpsDockerHostRecord | HostRecordError]
"""What is kept of hosts: for a record that cannot be read, why. Such a host exists all the same."""

type KeptAgents = dict[HostId, list[dict[str, Any]]]


def record_path(host_id: HostId) -> str:
    """Path of a host's record below the volume's root; safe in shell text. Raises HostRecordError for a strange id."""
    return f"{agents_path(host_id)}.json"


def agents_path(host_id: HostId) -> str:
    """Path of the directory of a host's agents."""
    return f"host_state/{_safe(host_id)}"


def agent_path(host_id: HostId, agent_id: AgentId) -> str:
    """Path of the data of one agent."""
    return f"{agents_path(host_id)}/{_safe(agent_id)}.json"


def parse_state(line: bytes, *, where: str) -> tuple[Records, KeptAgents]:
    """Read what ``archive_small_files`` printed in the root of the volume ``where``.

    A file that cannot be read costs no other, and is logged by name. Raises HostRecordError if the whole cannot be
    read.
    """
    try:
        files = parse_files(line)
    except ValueError as error:
        raise HostRecordError(f"The records on {where} cannot be read: {error}") from error
    records: Records = {}
    agents: KeptAgents = {}
    for path in sorted(files.contents.keys() | files.unread):
        name = _STATE_FILE.fullmatch(path)
        if name is None:
            logger.warning("Ignored {} on {}: its name is not that of a record", path, where)
            continue
        host_id, agent_id = HostId(name[1]), name[2]
        try:
            if path in files.unread:
                raise HostRecordError("it is no regular file, or too large")
            if agent_id is None:
                records[host_id] = decode_record(files.contents[path], host_id)
            else:
                agent = decode_agent_data(files.contents[path], expected_id=agent_id)
                agents.setdefault(host_id, []).append(agent)
        except (HostRecordError, UnusableDataError) as error:
            logger.warning("Left out {} on {}: {}", path, where, error)
            if agent_id is None:
                records[host_id] = HostRecordError(str(error))
    return records, agents


def _safe(identifier: HostId | AgentId) -> str:
    if not _SAFE_ID.fullmatch(identifier):
        raise HostRecordError(f"{identifier!r} is no id that a record can have")
    return str(identifier)
