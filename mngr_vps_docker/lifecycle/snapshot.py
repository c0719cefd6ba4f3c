"""Snapshots of a host: Docker images of its container, kept on its VPS and listed in its record.

An image is made before it is listed, and listed no more before it is removed. So what is listed is there; and what is
not, because something ended in between, is removed by a later change to the host's snapshots.
"""

from collections.abc import Iterable
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Final
from uuid import uuid4

from imbue.mngr.errors import MngrError
from imbue.mngr.errors import SnapshotNotFoundError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.interfaces.data_types import SnapshotInfo
from imbue.mngr.interfaces.data_types import SnapshotRecord
from imbue.mngr.primitives import SnapshotId
from imbue.mngr.primitives import SnapshotName
from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH
from imbue.mngr_vps_docker.docker_commands import commit_argv
from imbue.mngr_vps_docker.docker_errors import DockerError
from imbue.mngr_vps_docker.docker_errors import checked_docker
from imbue.mngr_vps_docker.docker_objects import ImageInfo
from imbue.mngr_vps_docker.docker_objects import parse_images
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.docker_over_ssh import docker_step
from imbue.mngr_vps_docker.docker_over_ssh import list_images_script
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.lifecycle.container import locked_step
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.image import SnapshotSource
from imbue.mngr_vps_docker.lifecycle.metadata import change_certified_data
from imbue.mngr_vps_docker.lifecycle.metadata import foresee
from imbue.mngr_vps_docker.lifecycle.metadata import settle
from imbue.mngr_vps_docker.lifecycle.power import SNAPSHOT_REPOSITORY
from imbue.mngr_vps_docker.lifecycle.power import remove_snapshot_image
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.lifecycle.sighting import usable
from imbue.mngr_vps_docker.plain_text import shown
from imbue.mngr_vps_docker.remote_batch import ChainStep
from imbue.mngr_vps_docker.remote_batch import run_chain
from imbue.mngr_vps_docker.terminal import logger
from imbue.mngr_vps_docker.terminal import printable
from imbue.mngr_vps_docker.untrusted import as_moment

_COMMIT_TIMEOUT_SECONDS: Final = 1800.0
# What another machine may take to list an image that it has made, by far.
LISTING_SECONDS = 3600.0


def create_snapshot(context: ProviderContext, sighting: HostSighting, name: SnapshotName | None) -> SnapshotId:
    """Commit the host's container to an image and list it in the record; warn of volumes that are not part of it.

    The host's own is not, either.
    """
    address, config = usable(sighting)
    name = name or SnapshotName(f"snapshot-{uuid4().hex}")
    _check_name(sighting, name, sighting.certified_data.snapshots)
    # Chosen here, so that all else can be worked out before the image is made.
    image = f"{SNAPSHOT_REPOSITORY}:{uuid4().hex}"
    snapshot = SnapshotRecord(id=image, name=name, created_at=datetime.now(UTC).isoformat())

    def with_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        others = [other for other in data.snapshots if other.id != image]
        _check_name(sighting, name, others)
        return data.model_copy(update={"snapshots": [*others, snapshot]})

    change = foresee(context, sighting, with_snapshot)
    docker = context.docker(address, sighting.host_id)
    purpose = f"commit container {config.container_name}"
    committed, *outcomes = run_chain(
        docker.connection,
        [
            locked_step(sighting.host_id, docker_step(commit_argv(config.container_name, image, {}), purpose)),
            ChainStep(list_images_script(SNAPSHOT_REPOSITORY), "list the snapshots"),
            *(() if change is None else change.steps),
        ],
        purpose=purpose,
        timeout_seconds=_COMMIT_TIMEOUT_SECONDS,
    )
    checked_docker(committed)
    listed, *outcomes = outcomes
    images = parse_images(checked_docker(listed).text)
    if change is None:
        record = change_certified_data(context, sighting, with_snapshot)
    else:
        record = settle(context, sighting, change, outcomes)
    if sighting.container is not None:
        left_out = sorted(sighting.container.volumes.keys() - {str(HOST_VOLUME_PATH)})
        if left_out:
            logger.warning("Snapshot {} leaves out what is on volumes of the container: {}", name, ", ".join(left_out))
    _remove_unlisted_images(docker, sighting.with_record(record), images)
    return SnapshotId(image)


def _check_name(sighting: HostSighting, name: SnapshotName, others: Iterable[SnapshotRecord]) -> None:
    if any(other.name == name for other in others):
        raise MngrError(f"Host {sighting.name} already has a snapshot named {name}; give this one another name")


def list_snapshots(sighting: HostSighting) -> list[SnapshotInfo]:
    """The host's snapshots, newest first; asks no machine."""
    newest_first = sorted(sighting.certified_data.snapshots, key=lambda snapshot: snapshot.created_at, reverse=True)
    return [
        SnapshotInfo(
            id=SnapshotId(snapshot.id),
            name=SnapshotName(printable(snapshot.name)),
            created_at=as_moment(snapshot.created_at),
            recency_idx=index,
        )
        for index, snapshot in enumerate(newest_first)
    ]


def delete_snapshot(context: ProviderContext, sighting: HostSighting, snapshot_id: SnapshotId) -> None:
    """Remove a snapshot's image and its place in the record; the host itself may be stopped."""
    address, config = usable(sighting)
    if all(snapshot.id != snapshot_id for snapshot in sighting.certified_data.snapshots):
        raise SnapshotNotFoundError(snapshot_id)

    def without_snapshot(data: CertifiedHostData) -> CertifiedHostData:
        return data.model_copy(update={"snapshots": [kept for kept in data.snapshots if kept.id != snapshot_id]})

    record = change_certified_data(context, sighting, without_snapshot)
    docker = context.docker(address, sighting.host_id)
    # Docker keeps an image that a container runs from; this one goes when the container is replaced.
    if config.image != snapshot_id:
        remove_snapshot_image(docker, snapshot_id)
    _remove_unlisted_images(docker, sighting.with_record(record), docker.list_images(SNAPSHOT_REPOSITORY))


def _remove_unlisted_images(docker: DockerOverSsh, sighting: HostSighting, images: Iterable[ImageInfo]) -> None:
    """Remove those ``images`` of which no record knows, except those that another machine may be about to list."""
    if sighting.reading is None or sighting.reading.record is None or sighting.container is None:
        return
    config = sighting.reading.record.config
    used = {sighting.container.image_id, sighting.container.image, None if config is None else config.image}
    listed = {snapshot.id for snapshot in sighting.certified_data.snapshots}
    made_before = datetime.now(UTC) - timedelta(seconds=LISTING_SECONDS)
    for image in images:
        if {image.id, *image.tags} & (used | listed) or image.created_at is None or image.created_at > made_before:
            continue
        logger.info("Removing image {} of {}, which is no snapshot of it", image.id, sighting.name)
        try:
            remove_snapshot_image(docker, image.id)
        except DockerError as error:
            logger.warning("An image that is no snapshot stays on the VPS of {}: {}", sighting.name, error)


def find_snapshot(context: ProviderContext, sightings: Iterable[HostSighting], wanted: SnapshotName) -> SnapshotSource:
    """Find a snapshot by its name or id among all hosts, on a VPS that can be reached now.

    Raises BuildArgumentError if there is none, or if several hosts have one of that name.
    """
    matches = [
        (sighting, snapshot)
        for sighting in sightings
        if not sighting.is_gone
        for snapshot in sighting.certified_data.snapshots
        if wanted in (snapshot.name, snapshot.id)
    ]
    if not matches:
        raise BuildArgumentError(f"There is no snapshot '{shown(wanted)}'; `mngr snapshot list` shows those there are")
    if len(matches) > 1:
        owners = ", ".join(f"{sighting.name} ({snapshot.id})" for sighting, snapshot in matches)
        raise BuildArgumentError(f"Several hosts have a snapshot '{shown(wanted)}'; give its id instead: {owners}")
    [(sighting, snapshot)] = matches
    address, _config = usable(sighting)
    return SnapshotSource(image_id=snapshot.id, connection=context.vps(address, sighting.host_id))
