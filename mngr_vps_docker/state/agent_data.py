"""The data of an agent as it was found on a VPS: written by mngr, or by whatever runs in the agent's container.

All that is known of an agent goes through here before anything is concluded from it. So a field is of the type that
mngr takes it for, or the agent is not believed at all.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from imbue.mngr.primitives import AgentName, AgentTypeName, CommandString, Permission
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, describe_invalid, json_object, parse_utc, sanitize_json

# mngr's ids accept all that Python's int() does, blanks and underscores included; a path shall not.
AGENT_ID: Final = r"agent-[0-9a-fA-F]{32}"

# Of what was read longer ago, somebody else may have changed something.
_FRESH_SECONDS: Final = 5.0

# What mngr decides as it makes, renames or updates an agent, and acts upon on this machine.
_DECIDED_BY_MNGR: Final = ("name", "type", "command", "work_dir", "created_branch_name", "create_time")
_BRANCH: Final = "created_branch_name"
# As git-check-ref-format(1) has it, and not an option of git's.
_BRANCH_NAME: Final = re.compile(
    r"(?!.*(?:\.\.|//|@\{|/\.|\.lock/))[^-./\x00-\x20\x7f~^:?*\[\\][^\x00-\x20\x7f~^:?*\[\\]*(?<![./])(?<!\.lock)"
)

_LONGEST_NAME: Final = 255
_LONGEST_PATH: Final = 4096
# What one argument of a program can hold.
_LONGEST_COMMAND: Final = 128 << 10


def _with_zone(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise UnusableDataError("a time without a zone")
    return parse_utc(text).isoformat()


class _AgentData(BaseModel):
    """The fields that mngr reads by name; a field that is there is of its type, and one that is not may be missing."""

    model_config = ConfigDict(strict=True, defer_build=True)

    id: str = Field(pattern=f"^{AGENT_ID}$")
    name: Annotated[AgentName, Field(max_length=_LONGEST_NAME)] | None = None
    type: Annotated[AgentTypeName, Field(max_length=_LONGEST_NAME)] | None = None
    command: Annotated[CommandString, Field(max_length=_LONGEST_COMMAND)] | None = None
    work_dir: Annotated[str, Field(max_length=_LONGEST_PATH)] | None = None
    created_branch_name: Annotated[str, Field(max_length=_LONGEST_PATH)] | None = None
    create_time: Annotated[str, AfterValidator(_with_zone)] | None = None
    start_on_boot: bool = False
    permissions: list[Permission] = []
    labels: dict[str, str] = {}


def checked_agent_data(data: object, *, expected_id: str | None = None) -> dict[str, Any]:
    """``data`` if it is that of an agent (of the one with that id), in plain JSON.

    Raises UnusableDataError, saying why in one line, if it is not.
    """
    plain = sanitize_json(data)
    try:
        agent = _AgentData.model_validate(plain)
    except ValidationError as error:
        raise UnusableDataError(describe_invalid(error)) from error
    if expected_id is not None and agent.id != expected_id:
        raise UnusableDataError(f"it is that of {agent.id}")
    data_of_agent = dict(plain)
    branch = data_of_agent.get(_BRANCH)
    if branch is not None and not _BRANCH_NAME.fullmatch(branch):
        logger.warning("Ignored the branch of agent {}, which cannot be called {!r}", agent.id, branch[:_LONGEST_NAME])
        del data_of_agent[_BRANCH]
    return data_of_agent


def believed(live: Mapping[str, Any], kept: Mapping[str, Any] | None) -> dict[str, Any]:
    """An agent's data as its container has it now, except for what mngr decided: that is as mngr ``kept`` it.

    ``kept`` is the copy on the state volume, which no container can write; every change that mngr makes, from any
    machine, is there. An agent without one was not made by mngr from outside: no branch was made for it. Nor is a
    branch believed without the work directory it belongs to: the container could give it any.
    """
    kept = kept or {}
    decided = {name: kept[name] for name in _DECIDED_BY_MNGR if kept.get(name) is not None}
    if "work_dir" not in decided:
        decided.pop(_BRANCH, None)
    undecided = {name: value for name, value in live.items() if name != _BRANCH or value is None}
    return undecided | decided


def decode_agent_data(content: bytes, *, expected_id: str) -> dict[str, Any]:
    """Read the data of the agent with that id. Raises UnusableDataError, saying why in one line."""
    return checked_agent_data(json_object(content), expected_id=expected_id)


def valid_agents(agents: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Those of ``agents`` that are agents; the others are left out, with a warning."""
    usable = []
    for agent in agents:
        try:
            usable.append(checked_agent_data(dict(agent)))
        except UnusableDataError as error:
            logger.warning("Left out an agent, whose data cannot be read: {}", error)
    return tuple(usable)


@dataclass(frozen=True, slots=True)
class SeenAgents:
    """Data of a host's agents as it was ``read_at`` (on this machine's monotonic clock, in seconds)."""

    data: Sequence[Mapping[str, Any]]
    read_at: float

    @property
    def are_fresh(self) -> bool:
        """Whether they may be taken for what the host has now."""
        return time.monotonic() - self.read_at < _FRESH_SECONDS
