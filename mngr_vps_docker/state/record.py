"""The record of one host as its VPS keeps it: its JSON form, where it is on the state volume, and reading it there.

Records are written by every version of this package that has ever touched a host. So fields that this version does not
know are kept as they are, and written back.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ConfigDict, Field, ValidationError

from imbue.imbue_common.frozen_model import FrozenModel
from imbue.mngr.interfaces.data_types import CertifiedHostData, HostConfig
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.errors import HostRecordError
from imbue.mngr_vps_docker.primitives import HOST_ID_PATTERN, VpsInstanceId, is_image_reference, replace
from imbue.mngr_vps_docker.state.agent_data import AGENT_ID, decode_agent_data
from imbue.mngr_vps_docker.state.volume_scripts import parse_files
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, describe_invalid, json_object, parse_utc

SCHEMA_VERSION: Final = 1

# A name of 255 characters, a tag of 128, and a digest.
_LONGEST_IMAGE: Final = 512
_ADDRESS: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:%_-]{0,254}|::[0-9A-Fa-f:.]*")

_SAFE_ID: Final = re.compile(f"{HOST_ID_PATTERN}|{AGENT_ID}")
_STATE_FILE: Final = re.compile(rf"host_state/({HOST_ID_PATTERN})(?:/({AGENT_ID}))?\.json")
# What the files of two volumes may be when they arrive, as base64 and with what else is read of a VPS.
STATE_OUTPUT_BYTES: Final = 64 << 20

# Computed from other fields by mngr, which writes it and refuses to read it other than by dropping it.
_COMPUTED_BY_MNGR: Final = frozenset({"idle_mode"})
_CERTIFIED: Final = "certified_host_data"
_UNKNOWN_CERTIFIED: Final = "unknown_certified_fields"


class NewerRecordError(HostRecordError):
    """A newer version of this package wrote a record in a form that this one cannot read; nothing is wrong with it."""


class VpsHostConfig(HostConfig):
    """How a host was made: enough to make its container again, and to give back what was rented for it."""

    model_config = ConfigDict(extra="allow")

    vps_instance_id: VpsInstanceId = Field(description="The cloud's id of the VPS")
    region: str = Field(description="Where the VPS is, in the cloud's words")
    plan: str = Field(description="The VPS's size, in the cloud's words")
    os_id: int | str = Field(description="The VPS's operating system image, in the cloud's words")
    start_args: tuple[str, ...] = Field(default=(), description="Raw `docker run` options, in order")
    image: str | None = Field(default=None, description="The image that the container was first made from")
    container_name: str = Field(description="Name of the host's container")
    volume_name: str = Field(description="Name of the volume that holds the host's mngr folder")
    vps_ssh_key_id: str | None = Field(default=None, description="The cloud's id of the uploaded public key")
    is_container_behind_vps: bool = Field(
        default=False, description="Whether the container's port is open on the VPS's loopback address only"
    )


class VpsDockerHostRecord(FrozenModel):
    """What the VPS keeps of its host. One of a host whose creation failed may have certified data only."""

    model_config = ConfigDict(extra="allow")

    certified_host_data: CertifiedHostData = Field(description="mngr's own data of the host")
    vps_ip: str | None = Field(default=None, description="Public address of the VPS: IPv4, IPv6 or DNS name")
    ssh_host_public_key: str | None = Field(default=None, description="Public host key of the VPS's sshd")
    container_ssh_host_public_key: str | None = Field(
        default=None, description="Public host key of the container's sshd"
    )
    config: VpsHostConfig | None = Field(default=None, description="How the host was made")
    container_id: str | None = Field(default=None, description="Docker's id of the host's container")
    schema_version: int = Field(
        default=0, ge=0, description="Version of the form of the record that was read; 0 before there was such a field"
    )

    @property
    def host_id(self) -> HostId:
        """The host that this is the record of."""
        return HostId(self.certified_host_data.host_id)


def encode_record(record: VpsDockerHostRecord) -> bytes:
    """The record as JSON in this version's form, with the fields of newer writers that it was read with."""
    data = record.model_dump(mode="json")
    unknown = data.pop(_UNKNOWN_CERTIFIED, None)
    if isinstance(unknown, dict):
        data[_CERTIFIED] = unknown | data[_CERTIFIED]
    data["schema_version"] = max(record.schema_version, SCHEMA_VERSION)
    return _to_json(data)


def decode_record(content: bytes, expected_host_id: HostId) -> VpsDockerHostRecord:
    """Read a record of any version; a version 0 record is one without ``schema_version``.

    Raises HostRecordError, saying why in one line, if it cannot be read or is another host's.
    """
    try:
        data = json_object(content)
    except UnusableDataError as error:
        raise HostRecordError(str(error)) from error
    version = data.get("schema_version")
    certified = data.get(_CERTIFIED)
    if isinstance(certified, dict):
        known = CertifiedHostData.model_fields.keys() | _COMPUTED_BY_MNGR
        unknown = {key: value for key, value in certified.items() if key not in known}
        if unknown:
            data[_CERTIFIED] = {key: value for key, value in certified.items() if key in known}
            data[_UNKNOWN_CERTIFIED] = unknown
    try:
        record = _believable(VpsDockerHostRecord.model_validate(data))
        host_id = record.host_id
    except ValidationError as error:
        problem = describe_invalid(error)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise NewerRecordError(
                f"a newer version of this package wrote it, in form {version} of records ({problem}): update this one"
            ) from error
        raise HostRecordError(f"not a host record: {problem}") from error
    except ValueError as error:
        raise HostRecordError(f"not a host record: {error}") from error
    if host_id != expected_host_id:
        raise HostRecordError(f"it is the record of {host_id}")
    return record


def _believable(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
    """The record, with times that can be compared to others.

    Raises UnusableDataError for an invalid time, address (it would be pinned as it is) or id of an image.
    """
    if record.vps_ip is not None and not _ADDRESS.fullmatch(record.vps_ip):
        raise UnusableDataError("its vps_ip is not an address")
    data = record.certified_host_data
    for snapshot in data.snapshots:
        parse_utc(snapshot.created_at)
        if len(snapshot.id) > _LONGEST_IMAGE or not is_image_reference(snapshot.id):
            raise UnusableDataError("the id of a snapshot is not an image")
    data = replace(data, created_at=parse_utc(data.created_at), updated_at=parse_utc(data.updated_at))
    return replace(record, certified_host_data=data)


def encode_agent_data(agent_data: Mapping[str, object]) -> bytes:
    """One agent's data as JSON. Raises HostRecordError if JSON cannot hold it."""
    try:
        return _to_json(dict(agent_data))
    except (TypeError, ValueError, RecursionError) as error:
        raise HostRecordError(
            f"The data of agent {agent_data.get('id')} cannot be written as JSON: {error}"
        ) from error


def _to_json(data: object) -> bytes:
    return json.dumps(data, indent=2).encode("ascii")


type Records = dict[HostId, VpsDockerHostRecord | HostRecordError]
"""What is kept of hosts: for a record that cannot be read, why. Such a host exists all the same."""

type KeptAgentsByHost = dict[HostId, list[dict[str, Any]]]


def record_path(host_id: HostId) -> str:
    """Path of a host's record below the volume's root; safe in shell text. Raises HostRecordError for a strange id."""
    return f"{agents_path(host_id)}.json"


def agents_path(host_id: HostId) -> str:
    """Path of the directory of a host's agents."""
    return f"host_state/{_safe(host_id)}"


def agent_path(host_id: HostId, agent_id: AgentId) -> str:
    """Path of the data of one agent."""
    return f"{agents_path(host_id)}/{_safe(agent_id)}.json"


def parse_state(line: bytes, *, where: str) -> tuple[Records, KeptAgentsByHost]:
    """Read what ``archive_small_files`` printed in the root of the volume ``where``.

    A file that cannot be read costs no other, and is logged by name. Raises HostRecordError if the whole cannot be
    read.
    """
    try:
        files = parse_files(line)
    except ValueError as error:
        raise HostRecordError(f"The records on {where} cannot be read: {error}") from error
    records: Records = {}
    agents: KeptAgentsByHost = {}
    for path in sorted(files.contents.keys() | files.unread):
        name = _STATE_FILE.fullmatch(path)
        if name is None:
            logger.warning("Ignored {} on {}: its name is not that of a record", path, where)
            continue
        host_id, agent_id = HostId(name[1]), name[2]
        try:
            if path in files.unread:
                raise HostRecordError("it is not a regular file, or too large")
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
        raise HostRecordError(f"{identifier!r} is not an id that a record can have")
    return str(identifier)
