"""Snapshots of a host: Docker images of its container, kept on its VPS and listed in its record."""

from collections.abc import Iterable
from datetime import UTC
from datetime import datetime
from uuid import uuid4

from imbue.mngr.errors import MngrError
from imbue.mngr.errors import SnapshotNotFoundError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.interfaces.data_types import SnapshotInfo
from imbue.mngr.interfaces.data_types import SnapshotRecord
from imbue.mngr.primitives import SnapshotId
from imbue.mngr.primitives import SnapshotName
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.image import SnapshotSource
from imbue.mngr_vps_docker.lifecycle.metadata import change_certified_data
from imbue.mngr_vps_docker.lifecycle.power import remove_snapshot_image
from imbue.mngr_vps_docker.lifecycle.power import usable
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting


def create_snapshot(context: ProviderContext, sighting: HostSighting, name: SnapshotName | None) -> SnapshotId:
    """Commit the host's container to an image and list it in the record. The host's volume is not part of it."""
    address, config = usable(sighting)
    name = name or SnapshotName(f"snapshot-{uuid4().hex}")
    if any(snapshot.name == name for snapshot in sighting.certified_data.snapshots):
        raise MngrError(f"Host {sighting.name} already has a snapshot named {name}; give this one another name")
    docker = context.docker(address, sighting.host_id)
    # The tag only keeps the image from being pruned; snapshots are known by image id.
    image_id = docker.commit(config.container_name, image=f"mngr-snapshot:{uuid4().hex}")
    snapshot = SnapshotRecord(id=image_id, name=name, created_at=datetime.now(UTC).isoformat())

    def with_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        return data.model_copy(update={"snapshots": [*data.snapshots, snapshot]})

    change_certified_data(context, sighting, with_snapshot)
    return SnapshotId(image_id)


def list_snapshots(sighting: HostSighting) -> list[SnapshotInfo]:
    """The host's snapshots, newest first; asks no machine."""
    newest_first = sorted(sighting.certified_data.snapshots, key=lambda snapshot: snapshot.created_at, reverse=True)
    return [
        SnapshotInfo(
            id=SnapshotId(snapshot.id),
            name=SnapshotName(snapshot.name),
            created_at=datetime.fromisoformat(snapshot.created_at),
            recency_idx=index,
        )
        for index, snapshot in enumerate(newest_first)
    ]


def delete_snapshot(context: ProviderContext, sighting: HostSighting, snapshot_id: SnapshotId) -> None:
    """Remove a snapshot's image and its place in the record; the host itself may be stopped."""
    address, config = usable(sighting)
    if all(snapshot.id != snapshot_id for snapshot in sighting.certified_data.snapshots):
        raise SnapshotNotFoundError(snapshot_id)
    # Docker keeps an image that a container runs from; this one goes when the container is replaced.
    if config.image != snapshot_id:
        remove_snapshot_image(context.docker(address, sighting.host_id), snapshot_id)

    def without_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        return data.model_copy(update={"snapshots": [kept for kept in data.snapshots if kept.id != snapshot_id]})

    change_certified_data(context, sighting, without_snapshot)


def find_snapshot(context: ProviderContext, sightings: Iterable[HostSighting], wanted: SnapshotName) -> SnapshotSource:
    """Find a snapshot by its name or id among all hosts, on a VPS that can be reached now.

    Raises BuildArgumentError if there is none, or if several hosts have one of that name.
    """
    matches = [
        (sighting, snapshot)
        for sighting in sightings
        for snapshot in sighting.certified_data.snapshots
        if wanted in (snapshot.name, snapshot.id)
    ]
    if not matches:
        raise BuildArgumentError(f"There is no snapshot '{wanted}'; `mngr snapshot list` shows those that exist")
    if len(matches) > 1:
        owners = ", ".join(f"{sighting.name} ({snapshot.id})" for sighting, snapshot in matches)
        raise BuildArgumentError(f"Several hosts have a snapshot '{wanted}'; give its id instead: {owners}")
    [(sighting, snapshot)] = matches
    address, _config = usable(sighting)
    return SnapshotSource(image_id=snapshot.id, connection=context.vps(address, sighting.host_id))
