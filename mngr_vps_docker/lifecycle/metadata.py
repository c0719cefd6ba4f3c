"""Changing what is known of a host: record on the VPS, data.json on its volume, and this machine's own copy.

A fact has one owner. The record owns who the host is and what was made of it (name, tags, snapshots, failure);
data.json owns how it behaves (idle settings, plugin data, folders that mngr made). Each is changed field by field, so
that a copy of one never overwrites what only the other had.
"""

import json
from collections.abc import Callable
from collections.abc import Mapping
from datetime import UTC
from datetime import datetime

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import AgentId
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.host_volume import HostVolumeOverSsh
from imbue.mngr_vps_docker.lifecycle.container import certified_data_json
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.discover import HostSighting
from imbue.mngr_vps_docker.ssh.connection import SshConnection

type CertifiedDataListener = Callable[[HostId, CertifiedHostData], None]

RECORD_OWNED_FIELDS = frozenset(
    {
        "host_id",
        "host_name",
        "user_tags",
        "snapshots",
        "image",
        "stop_reason",
        "failure_reason",
        "build_log",
        "created_at",
    }
)


def update_record(
    context: ProviderContext, sighting: HostSighting, change: Callable[[VpsDockerHostRecord], VpsDockerHostRecord]
) -> VpsDockerHostRecord:
    """Change the record of a host in one atomic read-modify-write, and this machine's copy of it."""
    record = _store(context, sighting).update_host_record(sighting.host_id, change)
    context.journal.update(sighting.host_id, record=record, host_name=record.certified_host_data.host_name)
    return record


def update_certified_data(context: ProviderContext, sighting: HostSighting, **changes: object) -> CertifiedHostData:
    """Set record-owned fields of a host's certified data, in the record and in data.json."""
    return change_certified_data(context, sighting, lambda data: data.model_copy(update=changes))


def change_certified_data(
    context: ProviderContext, sighting: HostSighting, change: Callable[[CertifiedHostData], CertifiedHostData]
) -> CertifiedHostData:
    """Let ``change`` compute new record-owned fields from the current ones, in the record and in data.json."""

    def with_change(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        data = change(record.certified_host_data).model_copy(update={"updated_at": datetime.now(UTC)})
        return record.model_copy(update={"certified_host_data": data})

    data = update_record(context, sighting, with_change).certified_host_data
    owned = {name: value for name, value in data.model_dump(mode="json").items() if name in RECORD_OWNED_FIELDS}
    current = sighting.reading.data_json if sighting.reading is not None else None
    if current is not None:
        _write_data_json(
            context, sighting, CertifiedHostData.model_validate({**current, **owned, "stop_reason": None})
        )
    return data


def change_tags(
    context: ProviderContext, sighting: HostSighting, change: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    """Let ``change`` compute a host's new tags from its current ones."""

    def with_tags(data: CertifiedHostData) -> CertifiedHostData:
        return data.model_copy(update={"user_tags": change(dict(data.user_tags))})

    change_certified_data(context, sighting, with_tags)


def accept_certified_data(
    context: ProviderContext, sighting: HostSighting, data: CertifiedHostData, *, is_online: bool
) -> None:
    """Take over certified data that mngr has set on a host, except for what the record owns.

    mngr has written data.json itself on a host that is online; for one that is offline it is written here.
    """

    def with_data(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        kept = {name: getattr(record.certified_host_data, name) for name in RECORD_OWNED_FIELDS}
        return record.model_copy(update={"certified_host_data": data.model_copy(update=kept)})

    record = update_record(context, sighting, with_data)
    if not is_online:
        _write_data_json(context, sighting, record.certified_host_data.model_copy(update={"stop_reason": None}))


def persist_agent_data(context: ProviderContext, sighting: HostSighting, agent_data: Mapping[str, object]) -> None:
    """Keep a copy of an agent's data for when the host is offline; of a stopped host, change the original too."""
    _store(context, sighting).persist_agent_data(sighting.host_id, agent_data)
    agent_id = AgentId(str(agent_data["id"]))
    if not sighting.is_running and _has_live_agent(sighting, agent_id):
        path = f"agents/{agent_id}/data.json"
        _write_on_volume(context, sighting, path, json.dumps(dict(agent_data), indent=2))


def remove_persisted_agent_data(context: ProviderContext, sighting: HostSighting, agent_id: AgentId) -> None:
    """Forget the copy of an agent's data."""
    _store(context, sighting).remove_persisted_agent_data(sighting.host_id, agent_id)


def _has_live_agent(sighting: HostSighting, agent_id: AgentId) -> bool:
    return sighting.reading is not None and any(agent.get("id") == agent_id for agent in sighting.reading.live_agents)


def _write_data_json(context: ProviderContext, sighting: HostSighting, data: CertifiedHostData) -> None:
    _write_on_volume(context, sighting, "data.json", certified_data_json(data))


def _write_on_volume(context: ProviderContext, sighting: HostSighting, path: str, content: str) -> None:
    host_volume(context, sighting).write_files({path: content.encode()})


def host_volume(context: ProviderContext, sighting: HostSighting) -> HostVolumeOverSsh:
    """The host's folder of mngr, as files on its VPS: to be read and written while the container is stopped, too."""
    return HostVolumeOverSsh(connection=_vps(context, sighting), volume_name=host_volume_name(context, sighting))


def host_volume_name(context: ProviderContext, sighting: HostSighting) -> str:
    """The Docker volume of a host: as its record says, else by convention."""
    record = sighting.record
    if record is not None and record.config is not None:
        return record.config.volume_name
    return context.host_volume_name(sighting.host_id)


def _store(context: ProviderContext, sighting: HostSighting) -> VpsDockerHostStore:
    return context.store(_vps(context, sighting))


def _vps(context: ProviderContext, sighting: HostSighting) -> SshConnection:
    if sighting.entry.vps_ip is None:
        raise VpsDockerError(f"Host {sighting.name} has no VPS yet")
    return context.vps(sighting.entry.vps_ip, sighting.host_id)
