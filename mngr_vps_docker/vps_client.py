"""The interface to a cloud's API, which a provider package implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from pydantic import Field

from imbue.imbue_common.frozen_model import FrozenModel
from imbue.imbue_common.mutable_model import MutableModel
from imbue.mngr_vps_docker.primitives import UtcDatetime, VpsInstanceId, VpsInstanceStatus, VpsSnapshotId


class VpsSnapshotInfo(FrozenModel):
    """One whole-machine snapshot as the cloud lists it."""

    id: VpsSnapshotId
    description: str
    created_at: UtcDatetime


class VpsSshKeyInfo(FrozenModel):
    """One public key that the cloud account holds."""

    id: str
    name: str


class VpsInstanceInfo(FrozenModel):
    """One VPS as the cloud lists it, enough to find the host on it without any local state."""

    id: VpsInstanceId
    address: str | None = Field(description="DNS name, IPv4 or IPv6 address; None while the cloud has assigned none")
    tags: Mapping[str, str] = Field(description="The tags given to create_instance, split at the first '='")
    status: VpsInstanceStatus
    created_at: UtcDatetime


class VpsClientInterface(MutableModel, ABC):
    """What a cloud must offer. Every method raises VpsApiError if the cloud answers with an error."""

    @abstractmethod
    def create_instance(
        self,
        label: str,
        region: str,
        plan: str,
        os_id: int | str,
        user_data: str,
        ssh_key_ids: Sequence[str],
        tags: Sequence[str],
    ) -> VpsInstanceId:
        """Order one VPS and return its id at once, without waiting for it to boot.

        ``user_data`` is plain text (encode it here if the API wants base64); each tag is ``key=value``.
        """

    @abstractmethod
    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        """Destroy one VPS. Raises VpsApiError with 404 or 410 if it is already gone."""

    @abstractmethod
    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        """Return the status of one VPS. Raises VpsApiError with 404 or 410 if it does not exist."""

    @abstractmethod
    def get_instance_ip(self, instance_id: VpsInstanceId) -> str:
        """Return the public address (IPv4, IPv6 or DNS name) of one VPS."""

    @abstractmethod
    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        """Wait until one VPS is active, and return its address. Raises VpsProvisioningError at the time-out."""

    @abstractmethod
    def create_snapshot(self, instance_id: VpsInstanceId, description: str) -> VpsSnapshotId:
        """Start a whole-machine snapshot."""

    @abstractmethod
    def delete_snapshot(self, snapshot_id: VpsSnapshotId) -> None:
        """Delete a whole-machine snapshot."""

    @abstractmethod
    def list_snapshots(self) -> list[VpsSnapshotInfo]:
        """List the account's whole-machine snapshots."""

    @abstractmethod
    def upload_ssh_key(self, name: str, public_key: str) -> str:
        """Add one public key to the account and return the key's id."""

    @abstractmethod
    def delete_ssh_key(self, key_id: str) -> None:
        """Remove one public key from the account. Raises VpsApiError with 404 if it is already gone."""

    @abstractmethod
    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        """List the account's public keys."""

    @property
    def max_user_data_bytes(self) -> int:
        """The most user data that ``create_instance`` takes, in bytes of plain text: more is refused before any call.

        Clients of a cloud with another limit override it. The strictest known takes 16 KiB, some of them after base64.
        """
        return 12 * 1024

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo] | None:
        """Return every instance that carries all of ``tags``, whatever its status; one API call where possible.

        This is the only hook that discovery needs. The default, None, says that this client cannot list: then only
        hosts that this machine remembers are found.
        """
        return None
