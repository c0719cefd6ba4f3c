"""Changing what is known of a host: record on the VPS, data.json on its volume, and this machine's own copy.

A fact has one owner. The record owns who the host is and what was made of it (name, tags, snapshots, failure);
data.json owns how it behaves (idle settings, plugin data, folders that mngr made). Each is changed field by field, so
that a copy of one never overwrites what only the other had.

data.json is replaced only if it is unchanged since it was read, and the record is read after it. So of two writers, on
any machines, the later one has seen what the earlier one wrote.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from pydantic import ValidationError

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import AgentId, HostName
from imbue.mngr_vps_docker.docker.errors import NoSuchVolumeError
from imbue.mngr_vps_docker.errors import RemoteOutputError, VpsDockerError
from imbue.mngr_vps_docker.hosts.host_access import HostAccess
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.checks import check_tags
from imbue.mngr_vps_docker.lifecycle.names import claiming_name
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.ssh.pipeline import Pending, Pipeline
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.state.certified_changes import CertifiedDataChange, certified_data_json
from imbue.mngr_vps_docker.state.host_volume import (
    COMPARED_BYTES,
    UnsafeVolumePathError,
    WrongFileTypeError,
)
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, json_object

_MOST_ATTEMPTS: Final = 20


def update_record(
    host: HostAccess, change: Callable[[VpsDockerHostRecord], VpsDockerHostRecord]
) -> VpsDockerHostRecord:
    """Change the record of a host in one atomic read-modify-write, and this machine's copy of it.

    This machine's copy replaces one that cannot be read.
    """
    last_seen = (host.context.local_store.read(host.host_id) or host.observed.entry).record
    record = host.store.update_host_record(host.host_id, change, last_seen=last_seen)
    host.context.local_store.update(host.host_id, lambda known: replace(known, record=record))
    return record


def change_certified_data(host: HostAccess, change: CertifiedDataChange) -> VpsDockerHostRecord:
    """Let ``change`` compute new record-owned fields from the current ones, in the record and in data.json."""

    def with_change(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        data = replace(change(record.certified_host_data), updated_at=datetime.now(UTC))
        return replace(record, certified_host_data=data)

    with _changing_data_json(host):
        for attempt in range(_MOST_ATTEMPTS):
            found = _read_data_json(host)
            record = update_record(host, _as_it_is if attempt else with_change)
            if found.data is None:
                return record
            data = _with_owned_fields(found.data, record.certified_host_data)
            if _replace_data_json(host, found, data):
                return record
    raise _changed_by_others(host)


class PlannedChange:
    """A change to what is known of a host, worked out before anything is asked, for a pipeline to make.

    It is what ``change_certified_data`` makes, but for data.json where it does not concern the host itself
    (``is_in_data_json=False``). The pipeline's commands find out whether anything is other than it was last seen.
    """

    def __init__(
        self,
        host: HostAccess,
        change: CertifiedDataChange,
        *,
        is_in_data_json: bool = True,
    ) -> None:
        self._host = host
        self._change = change
        self._record: VpsDockerHostRecord | None = None
        self._commands: list[RemoteCommand[bool]] = []
        self._results: list[Pending[bool]] = []
        observed = host.observed
        if observed.vps_record is None or (is_in_data_json and not observed.is_volume_read):
            return
        record = _changed_record(observed.vps_record, change)
        commands = [host.store.replace_record_command(observed.vps_record, record)]
        if is_in_data_json and observed.data_json_sha256 is not None:
            try:
                old = CertifiedHostData.model_validate(observed.data_json)
            except ValidationError:
                return
            data = _with_owned_fields(old, record.certified_host_data)
            volume = host.volume
            commands.append(
                volume.replace_file_command("data.json", _content(data), expected_sha256=observed.data_json_sha256)
            )
        self._record, self._commands = record, commands

    def add_to(self, pipeline: Pipeline) -> None:
        """Let the pipeline make the change; nothing, where too little was seen of the host."""
        self._results = [pipeline.add(command) for command in self._commands]

    def finish(self) -> VpsDockerHostRecord:
        """Return the record with the change; where the pipeline found other content, make the change by asking."""
        if self._record is None or not all(result.value for result in self._results):
            return change_certified_data(self._host, self._change)
        record = self._record
        self._host.context.local_store.update(self._host.host_id, lambda known: replace(known, record=record))
        return record


def _changed_record(record: VpsDockerHostRecord, change: CertifiedDataChange) -> VpsDockerHostRecord:
    changed = change(record.certified_host_data)
    if changed == record.certified_host_data:
        return record
    return replace(record, certified_host_data=replace(changed, updated_at=datetime.now(UTC)))


def rename_host(host: HostAccess, name: HostName, others: Sequence[ObservedHost]) -> VpsDockerHostRecord:
    """Give a host another name, unless one of ``others`` has it or is being given it: HostNameConflictError."""
    with claiming_name(host.context, name, host.host_id, others):
        record = change_certified_data(host, lambda data: replace(data, host_name=str(name)))
        host.context.local_store.update(host.host_id, lambda known: replace(known, host_name=str(name)))
        return record


def change_tags(host: HostAccess, change: Callable[[dict[str, str]], dict[str, str]]) -> VpsDockerHostRecord:
    """Let ``change`` compute a host's new tags from its current ones; see ``check_tags``."""

    def with_tags(data: CertifiedHostData) -> CertifiedHostData:
        tags = change(dict(data.user_tags))
        check_tags(tags)
        return replace(data, user_tags=tags)

    return change_certified_data(host, with_tags)


def accept_certified_data(host: HostAccess, change: CertifiedDataChange) -> VpsDockerHostRecord:
    """Make a change that mngr makes to a host, running or not, except to what the record owns."""
    with _changing_data_json(host):
        for _attempt in range(_MOST_ATTEMPTS):
            found = _read_data_json(host)
            record = update_record(host, partial(_with_change, change, found.data))
            if _replace_data_json(host, found, record.certified_host_data):
                return record
    raise _changed_by_others(host)


def _with_change(
    change: CertifiedDataChange, data_json: CertifiedHostData | None, record: VpsDockerHostRecord
) -> VpsDockerHostRecord:
    owner = record.certified_host_data
    changed = replace(change(data_json or owner), updated_at=datetime.now(UTC))
    return replace(record, certified_host_data=_with_owned_fields(changed, owner))


def _with_owned_fields(data: CertifiedHostData, owner: CertifiedHostData) -> CertifiedHostData:
    return replace(
        data,
        host_id=owner.host_id,
        host_name=owner.host_name,
        user_tags=owner.user_tags,
        snapshots=owner.snapshots,
        image=owner.image,
        stop_reason=owner.stop_reason,
        failure_reason=owner.failure_reason,
        build_log=owner.build_log,
        created_at=owner.created_at,
    )


def _changed_by_others(host: HostAccess) -> VpsDockerError:
    return VpsDockerError(f"data.json of {host.observed.name} was changed by others {_MOST_ATTEMPTS} times in a row")


def _as_it_is(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
    return record


def persist_agent_data(host: HostAccess, agent_data: Mapping[str, object]) -> None:
    """Keep a copy of an agent's data for when the host is offline; of a stopped host, change the original too."""
    host.store.persist_agent_data(host.host_id, agent_data)
    host.context.local_store.remember_agent(host.host_id)
    agent_id = str(agent_data.get("id"))
    if not host.observed.is_running and _has_live_agent(host, agent_id):
        path = f"agents/{agent_id}/data.json"
        _write_on_volume(host, path, json.dumps(dict(agent_data), indent=2))


def remove_persisted_agent_data(host: HostAccess, agent_id: AgentId) -> None:
    """Forget the copy of an agent's data."""
    host.store.remove_persisted_agent_data(host.host_id, agent_id)


def _has_live_agent(host: HostAccess, agent_id: str) -> bool:
    return any(agent.get("id") == agent_id for agent in host.observed.live_agents)


@contextmanager
def _changing_data_json(host: HostAccess) -> Iterator[None]:
    """Lock record and data.json together, among all processes of this machine."""
    with host.context.local_store.exclusive(host.host_id, "data") as is_known:
        if not is_known:
            raise host.observed.problem or HostNotFoundError(host.host_id)
        yield


@dataclass(frozen=True, slots=True)
class _DataJson:
    """A host's data.json; ``data`` is None if it does not exist, or the container has damaged it."""

    content: bytes
    data: CertifiedHostData | None


def _read_data_json(host: HostAccess) -> _DataJson:
    content = b""
    try:
        content = host.volume.read_file("data.json", limit_bytes=COMPARED_BYTES)
        return _DataJson(content, CertifiedHostData.model_validate(json_object(content)))
    except (FileNotFoundError, NoSuchVolumeError) as error:
        logger.debug("Host {} has no data.json: {}", host.observed.name, error)
    # The container wrote it: a link, a pipe, a folder, gigabytes, or any content.
    except (UnsafeVolumePathError, WrongFileTypeError, RemoteOutputError, UnusableDataError, ValidationError) as error:
        logger.warning("Host {} has a data.json that cannot be read: {}", host.observed.name, error)
    return _DataJson(content, None)


def _replace_data_json(host: HostAccess, found: _DataJson, data: CertifiedHostData) -> bool:
    """Write data.json unless it has changed since it was ``found``, and return whether it was written."""
    return host.volume.replace_file("data.json", _content(data), expected=found.content)


def _content(data: CertifiedHostData) -> bytes:
    """The content of data.json, without a reason for a stop: a host that reads it runs."""
    return certified_data_json(replace(data, stop_reason=None)).encode()


def _write_on_volume(host: HostAccess, path: str, content: str) -> None:
    host.volume.write_files({path: content.encode()})
