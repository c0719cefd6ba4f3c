"""Builders of what is stored and said of a host: its record, this machine's local record, Docker's JSON."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from imbue.mngr.interfaces.data_types import ActivityConfig, CertifiedHostData
from imbue.mngr.primitives import AgentId, HostId, HostName
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.lifecycle.creation import CreateRequest
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, VpsHostConfig

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NASTY = "' \" \n\0 $(touch /tmp/x) `x` EOF\nEOF \U0001f600 \\ mngr-batch-end\n"
PIECES = (
    *NASTY.split(" "),
    *" \t'\"\u2028\U0010ffffé",
    *("\r\n", "\x1b[2J", "{}", "\n}\n", "'\\''", "\\u0000", "mngr-batch-1"),
)

type RecordsAndAgents = tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]


def record_of(
    host_id: HostId | None = None,
    *,
    vps_ip: str | None = None,
    config: Mapping[str, object] | None = None,
    **certified: object,
) -> VpsDockerHostRecord:
    """The record of a host that was made years ago and not changed since; ``certified`` is mngr's part of it."""
    host_id = host_id or HostId()
    data = {"host_id": host_id, "host_name": "h1", "created_at": LONG_AGO, "updated_at": LONG_AGO, **certified}
    defaults = {
        "vps_instance_id": VpsInstanceId("i"),
        "region": "r",
        "plan": "p",
        "os_id": 1,
        "container_name": "c",
        "volume_name": f"mngr-host-vol-{host_id.get_uuid().hex}",
    }
    return VpsDockerHostRecord(
        certified_host_data=CertifiedHostData.model_validate(data),
        vps_ip=vps_ip,
        config=VpsHostConfig.model_validate(defaults | dict(config or {})),
        container_id="c1",
        schema_version=1,
    )


def local_record_of(host_id: HostId, phase: HostPhase = HostPhase.READY, **changes: object) -> LocalHostRecord:
    """What this machine remembers of a host that was made years ago."""
    record = record_of(host_id) if phase is HostPhase.READY else None
    values = {"host_id": host_id, "host_name": "h1", "phase": phase, "created_at": LONG_AGO, "record": record}
    return LocalHostRecord.model_validate(values | changes)


def create_request(**changes: Any) -> CreateRequest:
    """A request for a host from a plain image."""
    values: dict[str, Any] = {
        "host_id": HostId.generate(),
        "name": HostName("new"),
        "build": ParsedBuildArgs(region="r", plan="p", os_id=1),
        "image": "debian",
        "snapshot": None,
        "start_args": (),
        "tags": {},
        "activity": ActivityConfig(idle_timeout_seconds=1),
        "others": (),
    }
    return CreateRequest(**values | changes)


def container_of(host_id: str, status: str = "running", container_id: str = "c1") -> dict[str, Any]:
    """What `docker inspect` prints of the container of a host, which was made and last changed years ago."""
    return {
        "Id": container_id,
        "Name": f"/name-of-{container_id}",
        "Created": "2020-01-01T00:00:00.123456789Z",
        "Image": "sha256:1",
        "State": {
            "Status": status,
            "ExitCode": 0,
            "StartedAt": "2020-01-01T00:00:00.1Z",
            "FinishedAt": "0001-01-01T00:00:00Z" if status == "running" else "2020-01-02T00:00:00Z",
        },
        "Config": {"Image": "debian", "Labels": {"com.imbue.mngr.host-id": host_id}},
        "HostConfig": {"PortBindings": {"22/tcp": [{"HostIp": "", "HostPort": "2222"}]}, "Memory": 64 << 20},
        "Mounts": [{"Type": "volume", "Name": "v"}],
    }


def any_records(count: int) -> RecordsAndAgents:
    """So many records, with four agents each, of any content."""
    fuzz = random.Random(1)

    def text() -> str:
        return "".join(fuzz.choices(PIECES, k=fuzz.randrange(12)))

    records = [record_of(host_name=text() or "x", user_tags={text(): text()}) for _ in range(count)]
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
