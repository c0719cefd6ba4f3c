"""Snapshots of a host: Docker images of its container, kept on its VPS and listed in its record.

An image is made before it is listed, and listed no more before it is removed. So what is listed is there; and what is
not, because something ended in between, is removed by a later change to the host's snapshots.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from imbue.mngr.errors import MngrError, SnapshotNotFoundError
from imbue.mngr.interfaces.data_types import CertifiedHostData, SnapshotRecord
from imbue.mngr.primitives import SnapshotId, SnapshotName
from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH
from imbue.mngr_vps_docker.docker import commands
from imbue.mngr_vps_docker.docker.errors import DockerError
from imbue.mngr_vps_docker.docker.models import ImageInfo
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.container import under_vps_lock
from imbue.mngr_vps_docker.lifecycle.image import SnapshotSource
from imbue.mngr_vps_docker.lifecycle.metadata import PlannedChange, change_certified_data
from imbue.mngr_vps_docker.lifecycle.power import SNAPSHOT_REPOSITORY, remove_snapshot_image
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.text import excerpt, logger


def create_snapshot(host: HostAccess, name: SnapshotName | None) -> SnapshotId:
    """Commit the host's container to an image and list it in the record; warn of volumes that are not part of it.

    The host's own volume is not part of it either.
    """
    container = host.config.container_name
    name = name or SnapshotName(f"snapshot-{uuid4().hex}")
    _check_name(host, name, host.observed.certified_data.snapshots)
    # Chosen here, so that all else can be worked out before the image is made.
    image = f"{SNAPSHOT_REPOSITORY}:{uuid4().hex}"
    snapshot = SnapshotRecord(id=image, name=name, created_at=datetime.now(UTC).isoformat())

    def with_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        others = [other for other in data.snapshots if other.id != image]
        _check_name(host, name, others)
        return replace(data, snapshots=[*others, snapshot])

    change = PlannedChange(host, with_snapshot)
    pipeline = Pipeline(host.vps, f"commit container {container}")
    committed = pipeline.add(under_vps_lock(host.host_id, commands.commit(container, image)))
    images = pipeline.add(commands.list_images(SNAPSHOT_REPOSITORY))
    change.add_to(pipeline)
    pipeline.run()
    _ = committed.value, images.value
    record = change.finish()
    if host.observed.container is not None:
        left_out = sorted(host.observed.container.volumes.keys() - {str(HOST_VOLUME_PATH)})
        if left_out:
            logger.warning("Snapshot {} leaves out what is on volumes of the container: {}", name, ", ".join(left_out))
    _remove_unlisted_images(host.with_record(record), images.value)
    return SnapshotId(image)


def _check_name(host: HostAccess, name: SnapshotName, others: Iterable[SnapshotRecord]) -> None:
    if any(other.name == name for other in others):
        raise MngrError(f"Host {host.observed.name} already has a snapshot named {name}; give this one another name")


def delete_snapshot(host: HostAccess, snapshot_id: SnapshotId) -> None:
    """Remove a snapshot's image and its place in the record; the host itself may be stopped."""
    config = host.config
    if all(snapshot.id != snapshot_id for snapshot in host.observed.certified_data.snapshots):
        raise SnapshotNotFoundError(snapshot_id)

    def without_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        return replace(data, snapshots=[kept for kept in data.snapshots if kept.id != snapshot_id])

    record = change_certified_data(host, without_snapshot)
    # Docker keeps an image that a container runs from; this one goes when the container is replaced.
    if config.image != snapshot_id:
        remove_snapshot_image(host.docker, snapshot_id)
    _remove_unlisted_images(host.with_record(record), host.docker.list_images(SNAPSHOT_REPOSITORY))


def _remove_unlisted_images(host: HostAccess, images: Iterable[ImageInfo]) -> None:
    """Remove those ``images`` of which no record knows, except those that another machine may be about to list."""
    observed = host.observed
    if observed.vps_record is None or observed.container is None:
        return
    config = observed.vps_record.config
    used = {observed.container.image_id, observed.container.image, None if config is None else config.image}
    listed = {snapshot.id for snapshot in observed.certified_data.snapshots}
    made_before = datetime.now(UTC) - timedelta(seconds=host.context.timings.unlisted_snapshot_seconds)
    for image in images:
        if {image.id, *image.tags} & (used | listed) or image.created_at is None or image.created_at > made_before:
            continue
        logger.info("Removing image {} of {}, which is not a snapshot of it", image.id, observed.name)
        try:
            remove_snapshot_image(host.docker, image.id)
        except DockerError as error:
            logger.warning("An image that is not a snapshot stays on the VPS of {}: {}", observed.name, error)


def find_snapshot(
    context: ProviderContext, observed_hosts: Iterable[ObservedHost], wanted: SnapshotName
) -> SnapshotSource:
    """Find a snapshot by its name or id among all hosts, on a VPS that can be reached now.

    Raises BuildArgumentError if there is none, or if several hosts have one of that name.
    """
    matches = [
        (observed, snapshot)
        for observed in observed_hosts
        if not observed.is_gone
        for snapshot in observed.certified_data.snapshots
        if wanted in (snapshot.name, snapshot.id)
    ]
    if not matches:
        raise BuildArgumentError(
            f"There is no snapshot '{excerpt(wanted)}'; `mngr snapshot list` shows those there are"
        )
    if len(matches) > 1:
        owners = ", ".join(f"{observed.name} ({snapshot.id})" for observed, snapshot in matches)
        raise BuildArgumentError(f"Several hosts have a snapshot '{excerpt(wanted)}'; give its id instead: {owners}")
    [(observed, snapshot)] = matches
    host = HostAccess(context, observed)
    # Raises one clear error for a host that cannot be worked on.
    _ = host.config
    return SnapshotSource(image_id=snapshot.id, connection=host.vps)
