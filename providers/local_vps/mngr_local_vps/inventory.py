"""Instances, public keys and snapshots of one account: the labels that describe them, written and read."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from pydantic import Field

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
        if _is_ours(description["Config"]["Labels"], Kind.INSTANCE, account):
            return _instance_of(description)
    raise VpsApiError(404, f"there is no VPS {instance_id}")


def list_keys_of(account: str) -> list[StoredKey]:
    """Every public key of the account."""
    names = lines_of(run_docker("volume", "ls", "--quiet", *label_filters(Kind.SSH_KEY, account)))
    return [_key_of(description) for description in describe("volume", names)]


def find_key(account: str, key_id: str) -> StoredKey:
    """One public key of the account; raise VpsApiError 404 if it does not exist."""
    for description in describe("volume", [key_id]):
        if _is_ours(description["Labels"], Kind.SSH_KEY, account):
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
        _is_ours(description["Labels"], Kind.INSTANCE_DISK, account)
        for description in describe("volume", [instance_id])
    )


def _instance_of(container: Mapping[str, Any]) -> VpsInstanceInfo:
    networks = container["NetworkSettings"]["Networks"].values()
    requested = ((network["IPAMConfig"] or {}).get("IPv4Address") for network in networks)
    tags: Sequence[str] = json.loads(container["Config"]["Labels"][_TAGS])
    return VpsInstanceInfo(
        id=VpsInstanceId(container["Name"].removeprefix("/")),
        address=next(filter(None, requested), None),
        tags={name: value for name, _, value in (tag.partition("=") for tag in tags)},
        status=_STATUS_OF_STATE.get(container["State"]["Status"], VpsInstanceStatus.UNKNOWN),
        created_at=datetime.fromisoformat(container["Created"]),
    )


def _key_of(volume: Mapping[str, Any]) -> StoredKey:
    labels = volume["Labels"]
    return StoredKey(id=volume["Name"], name=labels[_KEY_NAME], public_key=labels[_PUBLIC_KEY])


def _snapshot_of(image: Mapping[str, Any]) -> VpsSnapshotInfo:
    name = next(tag for tag in image["RepoTags"] if tag.startswith(f"{SNAPSHOT_REPOSITORY}:"))
    return VpsSnapshotInfo(
        id=VpsSnapshotId(name.partition(":")[2]),
        description=unquote(image["Config"]["Labels"][_DESCRIPTION]),
        created_at=datetime.fromisoformat(image["Created"]),
    )


def _is_ours(labels: Mapping[str, str] | None, kind: Kind, account: str) -> bool:
    return own_labels(kind, account).items() <= (labels or {}).items()
