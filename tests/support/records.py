"""Host records, and data of agents, with whatever a text can hold."""

import random
from datetime import UTC, datetime
from typing import Any

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord

NASTY = "' \" \n\0 $(touch /tmp/x) `x` EOF\nEOF \U0001f600 \\ mngr-batch-end\n"
PIECES = (
    *NASTY.split(" "),
    *" \t'\"\u2028\U0010ffffé",
    *("\r\n", "\x1b[2J", "{}", "\n}\n", "'\\''", "\\u0000", "mngr-batch-1"),
)

type RecordsAndAgents = tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]


def new_record(host_id: HostId | None = None, **certified: Any) -> VpsDockerHostRecord:
    """The record of a new host."""
    now = datetime.now(UTC)
    data = {"host_id": host_id or HostId(), "host_name": "h1", "created_at": now, "updated_at": now, **certified}
    return VpsDockerHostRecord(certified_host_data=CertifiedHostData(**data), schema_version=1)


def any_records(count: int) -> RecordsAndAgents:
    """So many records, with four agents each, of any content."""
    fuzz = random.Random(1)

    def text() -> str:
        return "".join(fuzz.choices(PIECES, k=fuzz.randrange(12)))

    records = [new_record(host_name=text() or "x", user_tags={text(): text()}) for _ in range(count)]
    agents = {
        record.host_id: [{"id": AgentId(), text(): [text(), {text(): fuzz.random()}]} for _ in range(4)]
        for record in records
    }
    return records, agents


def assert_same(found: RecordsAndAgents, made: RecordsAndAgents) -> None:
    """Nothing is missing, added or changed, in whatever order it comes."""
    for_comparing = [
        (
            {record.host_id: record for record in records},
            {host_id: {agent["id"]: agent for agent in of_host} for host_id, of_host in agents.items()},
        )
        for records, agents in (found, made)
    ]
    assert for_comparing[0] == for_comparing[1]
