"""Instances, public keys and snapshots of one account: the labels that describe them, written and read."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote, unquote

from pydantic import Field, JsonValue

from imbue.mngr_local_vps.engine import describe, lines_of, run_docker
from imbue.mngr_local_vps.labels import KIND_LABEL, SNAPSHOT_REPOSITORY, Kind, label_filters, own_labels
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo, VpsSnapshotInfo, VpsSshKeyInfo

_TAGS: Final = f"{KIND_LABEL}.tags"
_KEY_NAME: Final = f"{KIND_LABEL}.key-name"
_PUBLIC_KEY: Final = f"{KIND_LABEL}.public-key"
_DESCRIPTION: Final = f"{KIND_LABEL}.description"

# A paused container is a machine that hangs: a cloud would still call it active.
_STATUS_OF_STATE: Final = {
    "created": VpsInstanceStatus.PENDING,
    "running": VpsInstanceStatus.ACTIVE,
    "paused": VpsInstanceStatus.ACTIVE,
    "restarting": VpsInstanceStatus.ACTIVE,
    "exited": VpsInstanceStatus.HALTED,
    "removing": VpsInstanceStatus.DESTROYING,
}


class StoredKey(VpsSshKeyInfo):
    """A public key of the account, with its text."""

    public_key: str = Field(description="One line of OpenSSH's public key format")


def instance_labels(account: str, tags: Sequence[str]) -> dict[str, str]:
    """The labels of a VPS with these tags."""
    return own_labels(Kind.INSTANCE, account) | {_TAGS: json.dumps(list(tags))}


def key_labels(account: str, name: str, public_key: str) -> dict[str, str]:
    """The labels of a volume that stands for a public key."""
    return own_labels(Kind.SSH_KEY, account) | {_KEY_NAME: name, _PUBLIC_KEY: public_key.strip()}


def snapshot_labels(account: str, description: str) -> dict[str, str]:
    """The labels of a snapshot. The description is quoted, because Docker expands $ and splits at spaces."""
    return own_labels(Kind.SNAPSHOT, account) | {_DESCRIPTION: quote(description, safe="")}


def list_instances_of(account: str) -> list[VpsInstanceInfo]:
    """Every VPS of the account, whatever its status."""
    names = lines_of(run_docker("ps", "--all", "--quiet", *label_filters(Kind.INSTANCE, account)))
    return [_instance_of(description) for description in describe("container", names)]


def find_instance(account: str, instance_id: VpsInstanceId) -> VpsInstanceInfo:
    """One VPS of the account; raise VpsApiError 404 if it does not exist."""
    for description in describe("container", [instance_id]):
        if _is_ours(_text_map(_at(description, "Config", "Labels")), Kind.INSTANCE, account):
            return _instance_of(description)
    raise VpsApiError(404, f"there is no VPS {instance_id}")


def list_keys_of(account: str) -> list[StoredKey]:
    """Every public key of the account."""
    names = lines_of(run_docker("volume", "ls", "--quiet", *label_filters(Kind.SSH_KEY, account)))
    return [_key_of(description) for description in describe("volume", names)]


def find_key(account: str, key_id: str) -> StoredKey:
    """One public key of the account; raise VpsApiError 404 if it does not exist."""
    for description in describe("volume", [key_id]):
        if _is_ours(_text_map(_at(description, "Labels")), Kind.SSH_KEY, account):
            return _key_of(description)
    raise VpsApiError(404, f"there is no ssh key {key_id}")


def list_snapshots_of(account: str) -> list[VpsSnapshotInfo]:
    """Every snapshot of the account, newest first."""
    names = lines_of(run_docker("image", "ls", "--quiet", "--no-trunc", *label_filters(Kind.SNAPSHOT, account)))
    snapshots = [_snapshot_of(description) for description in describe("image", names)]
    return sorted(snapshots, key=lambda snapshot: snapshot.created_at, reverse=True)


def has_disk(account: str, instance_id: VpsInstanceId) -> bool:
    """Whether the disk of a VPS of the account still exists, even if the VPS is gone."""
    return any(
        _is_ours(_text_map(_at(description, "Labels")), Kind.INSTANCE_DISK, account)
        for description in describe("volume", [instance_id])
    )


def _instance_of(description: Mapping[str, JsonValue]) -> VpsInstanceInfo:
    labels = _text_map(_at(description, "Config", "Labels"))
    networks = _at(description, "NetworkSettings", "Networks")
    requested = (
        [_at(network, "IPAMConfig", "IPv4Address") for network in networks.values()]
        if isinstance(networks, dict)
        else []
    )
    state = _at(description, "State", "Status")
    tags: list[str] = json.loads(labels[_TAGS])
    return VpsInstanceInfo(
        id=VpsInstanceId(str(description["Name"]).removeprefix("/")),
        address=next((address for address in requested if isinstance(address, str)), None),
        tags={name: value for name, _, value in (tag.partition("=") for tag in tags)},
        status=_STATUS_OF_STATE.get(str(state), VpsInstanceStatus.UNKNOWN),
        created_at=datetime.fromisoformat(str(description["Created"])),
    )


def _key_of(description: Mapping[str, JsonValue]) -> StoredKey:
    labels = _text_map(_at(description, "Labels"))
    return StoredKey(id=str(description["Name"]), name=labels[_KEY_NAME], public_key=labels[_PUBLIC_KEY])


def _snapshot_of(description: Mapping[str, JsonValue]) -> VpsSnapshotInfo:
    names = description["RepoTags"]
    tags = [str(name) for name in names] if isinstance(names, list) else []
    name = next(tag for tag in tags if tag.startswith(f"{SNAPSHOT_REPOSITORY}:"))
    return VpsSnapshotInfo(
        id=VpsSnapshotId(name.partition(":")[2]),
        description=unquote(_text_map(_at(description, "Config", "Labels"))[_DESCRIPTION]),
        created_at=datetime.fromisoformat(str(description["Created"])),
    )


def _is_ours(labels: Mapping[str, str], kind: Kind, account: str) -> bool:
    return own_labels(kind, account).items() <= labels.items()


def _at(value: JsonValue | Mapping[str, JsonValue], *path: str) -> JsonValue:
    """The value at a path of keys, or None if a key is missing."""
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value if not isinstance(value, Mapping) else dict(value)


def _text_map(value: JsonValue) -> dict[str, str]:
    return {key: str(text) for key, text in value.items()} if isinstance(value, dict) else {}
