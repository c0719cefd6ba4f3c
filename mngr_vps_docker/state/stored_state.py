"""Where things are on a state volume, and reading all of it at once."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.primitives import HOST_ID_PATTERN
from imbue.mngr_vps_docker.state.agent_data import AGENT_ID, decode_agent_data
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, decode_record
from imbue.mngr_vps_docker.state.volume_scripts import archive_small_files, parse_files
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError

_SAFE_ID: Final = re.compile(f"{HOST_ID_PATTERN}|{AGENT_ID}")
_STATE_FILE: Final = re.compile(rf"host_state/({HOST_ID_PATTERN})(?:/({AGENT_ID}))?\.json")
# A VPS holds the record of one host.
_FILE_LIMIT_BYTES: Final = 16 << 20
_TOTAL_LIMIT_BYTES: Final = 64 << 20
_COUNT_LIMIT: Final = 20_000
# What all of that may be when it arrives, as base64 and with what else is read of a VPS.
STATE_OUTPUT_BYTES: Final = 128 << 20
# Patterns of every record and every agent's data.
EVERY_STATE_FILE: Final = ("host_state/*.json", "host_state/*/*.json")


@dataclass(frozen=True, slots=True)
class StoredState:
    """All that a state volume holds.

    ``unreadable_host_ids`` are hosts that have a record which cannot be read: they exist, and nothing may be concluded
    from their absence in ``records``.
    """

    records: Mapping[HostId, VpsDockerHostRecord]
    agents: Mapping[HostId, list[dict[str, Any]]]
    unreadable_host_ids: tuple[HostId, ...] = ()


NOTHING_STORED: Final = StoredState({}, {})


def record_path(host_id: HostId) -> str:
    """Path of a host's record below the volume's root; safe in shell text. Raises HostRecordError for a strange id."""
    return f"{agents_path(host_id)}.json"


def agents_path(host_id: HostId) -> str:
    """Path of the directory of a host's agents."""
    return f"host_state/{_safe(host_id)}"


def agent_path(host_id: HostId, agent_id: AgentId) -> str:
    """Path of the data of one agent."""
    return f"{agents_path(host_id)}/{_safe(agent_id)}.json"


def state_files_of_agents(host_id: HostId) -> tuple[str, ...]:
    """The pattern of the data of one host's agents."""
    return (f"{agents_path(host_id)}/*.json",)


def state_files_script(patterns: Iterable[str]) -> str:
    """Shell text that prints files of the volume in whose root it runs, for ``parse_state``."""
    return archive_small_files(
        patterns,
        file_limit_bytes=_FILE_LIMIT_BYTES,
        total_limit_bytes=_TOTAL_LIMIT_BYTES,
        count_limit=_COUNT_LIMIT,
    )


def parse_state(line: bytes, *, where: str) -> StoredState:
    """Read what ``state_files_script`` printed on the volume ``where``.

    A file that cannot be read costs that one record, is logged by name, and its host is named as unreadable. Raises
    HostRecordError if the whole cannot be read.
    """
    try:
        files = parse_files(line)
    except ValueError as error:
        raise HostRecordError(f"The records on {where} cannot be read: {error}") from error
    records: dict[HostId, VpsDockerHostRecord] = {}
    agents: dict[HostId, list[dict[str, Any]]] = {}
    unreadable: list[HostId] = []
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
                unreadable.append(host_id)
    return StoredState(records, agents, tuple(unreadable))


def _safe(identifier: HostId | AgentId) -> str:
    if not _SAFE_ID.fullmatch(identifier):
        raise HostRecordError(f"{identifier!r} is no id that a record can have")
    return str(identifier)
