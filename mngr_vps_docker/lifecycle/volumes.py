"""The hosts' volumes as mngr sees them: one Docker volume to a host, on its VPS."""

from collections.abc import Sequence

from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.interfaces.data_types import VolumeInfo
from imbue.mngr.interfaces.volume import HostVolume
from imbue.mngr.primitives import HostId, VolumeId
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost


def host_id_of(volume_id: VolumeId) -> HostId:
    """The host that a volume belongs to: both ids share their hexadecimal part."""
    return HostId(f"host-{volume_id.get_uuid().hex}")


def list_volumes(context: ProviderContext, observed_hosts: Sequence[ObservedHost]) -> list[VolumeInfo]:
    """The volumes of all hosts.

    Raises ProviderUnavailableError if any host could not be read: mngr's gc deletes the volumes of hosts that it did
    not see, and skips this provider instead.
    """
    unread = [observed.name for observed in observed_hosts if observed.problem is not None and not observed.is_read]
    if unread:
        reason = f"Volumes are not listed while hosts cannot be read: {', '.join(unread)}"
        raise ProviderUnavailableError(context.provider_name, reason)
    return [
        VolumeInfo(
            volume_id=VolumeId(f"vol-{observed.host_id.get_uuid().hex}"),
            name=HostAccess(context, observed).volume_name,
            size_bytes=0,
            host_id=observed.host_id,
        )
        for observed in observed_hosts
        if observed.is_read and observed.record is not None
    ]


def volume_for_host(host: HostAccess) -> HostVolume | None:
    """The host's folder of mngr, readable while the host is stopped; None while its VPS cannot be read."""
    if not host.observed.is_read or host.observed.record is None:
        return None
    return HostVolume(volume=host.volume)
