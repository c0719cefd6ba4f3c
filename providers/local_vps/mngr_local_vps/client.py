"""The reference client: a cloud whose VPSes are systemd containers on this machine's Docker engine.

All state is in the engine (see ``labels``), so several processes can use one account at once.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from pydantic import Field

from imbue.mngr_local_vps.engine import (
    machine_lock,
    remove_if_there,
    remove_machine,
    require_suitable_engine,
    run_docker,
)
from imbue.mngr_local_vps.images import require_image
from imbue.mngr_local_vps.inventory import (
    find_instance,
    find_key,
    has_disk,
    instance_labels,
    key_labels,
    list_instances_of,
    list_keys_of,
    list_snapshots_of,
    snapshot_labels,
)
from imbue.mngr_local_vps.labels import NAME_PREFIX, SNAPSHOT_REPOSITORY, Kind, label_arguments, own_labels
from imbue.mngr_local_vps.machine import (
    MACHINE_OPTIONS,
    SEED_FOLDER,
    choose_address,
    disk_options,
    ensure_network,
    hostname_of,
    nameservers,
    network_name,
    seed_archive,
)
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsInstanceInfo, VpsSnapshotInfo, VpsSshKeyInfo

DEFAULT_ACCOUNT: Final = "default"
ACCOUNT_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,39}$"

DEFAULT_REGION: Final = "local"
DEFAULT_PLAN: Final = "shared"

# Docker's options for each plan: no limits, or one core and 1 GiB. A real machine allows half of its memory for
# /dev/shm; Docker's default is 64 MB.
_OPTIONS_OF_PLAN: Final[Mapping[str, tuple[str, ...]]] = {
    DEFAULT_PLAN: ("--shm-size=1g",),
    "1c-1gb": ("--cpus=1", "--memory=1g", "--shm-size=512m"),
}
PLANS: Final = tuple(_OPTIONS_OF_PLAN)
_POLL_SECONDS: Final = 0.2


class LocalVpsClient(VpsClientInterface):
    """VPSes on this machine; each account sees only its own."""

    account: str = Field(
        default=DEFAULT_ACCOUNT, pattern=ACCOUNT_PATTERN, description="Owner of the VPSes, as at a cloud"
    )

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
        if region != DEFAULT_REGION:
            raise VpsApiError(400, f"unknown region '{region}'; valid: {DEFAULT_REGION}")
        if plan not in _OPTIONS_OF_PLAN:
            raise VpsApiError(400, f"unknown plan '{plan}'; valid: {', '.join(PLANS)}")
        image = require_image(str(os_id))
        require_suitable_engine()
        public_keys = [find_key(self.account, key_id).public_key for key_id in ssh_key_ids]
        instance_id = VpsInstanceId(f"{NAME_PREFIX}-{secrets.token_hex(6)}")
        hostname = hostname_of(label)
        with ExitStack() as undo:
            undo.callback(self._remove, instance_id)
            with machine_lock():
                subnet = ensure_network(self.account)
                taken = [instance.address for instance in list_instances_of(self.account) if instance.address]
                run_docker(
                    "create",
                    f"--name={instance_id}",
                    f"--hostname={hostname}",
                    f"--network={network_name(self.account)}",
                    f"--ip={choose_address(subnet, taken)}",
                    f"--env=LOCAL_VPS_NAMESERVERS={' '.join(nameservers())}",
                    *disk_options(instance_id, own_labels(Kind.INSTANCE_DISK, self.account)),
                    *label_arguments(instance_labels(self.account, tags)),
                    *MACHINE_OPTIONS,
                    *_OPTIONS_OF_PLAN[plan],
                    image,
                )
            seed = seed_archive(instance_id, hostname, user_data, public_keys)
            run_docker("cp", "-", f"{instance_id}:{SEED_FOLDER}", stdin=seed)
            run_docker("start", instance_id)
            undo.pop_all()
        return instance_id

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        try:
            find_instance(self.account, instance_id)
        except VpsApiError as error:
            # An earlier destroy may have been interrupted between the two removals.
            if not (error.is_gone and has_disk(self.account, instance_id)):
                raise
        self._remove(instance_id)

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        return find_instance(self.account, instance_id).status

    def get_instance_ip(self, instance_id: VpsInstanceId) -> str:
        address = find_instance(self.account, instance_id).address
        if address is None:
            raise VpsApiError(409, f"VPS {instance_id} has no address")
        return address

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        deadline = time.monotonic() + timeout_seconds
        while True:
            status = self.get_instance_status(instance_id)
            if status == VpsInstanceStatus.ACTIVE:
                return self.get_instance_ip(instance_id)
            if status == VpsInstanceStatus.HALTED:
                log = run_docker("logs", "--tail", "20", instance_id).strip()
                raise VpsProvisioningError(f"VPS {instance_id} stopped instead of booting. The end of its log:\n{log}")
            if time.monotonic() >= deadline:
                raise VpsProvisioningError(
                    f"VPS {instance_id} was not active within {timeout_seconds:.0f} s (it is {status})"
                )
            time.sleep(_POLL_SECONDS)

    def create_snapshot(self, instance_id: VpsInstanceId, description: str) -> VpsSnapshotId:
        """Save the VPS's file system as an image, without the volume of its inner engine."""
        find_instance(self.account, instance_id)
        snapshot_id = VpsSnapshotId(secrets.token_hex(6))
        labels = snapshot_labels(self.account, description)
        changes = [part for key, value in labels.items() for part in ("--change", f"LABEL {key}={value}")]
        run_docker("commit", *changes, instance_id, f"{SNAPSHOT_REPOSITORY}:{snapshot_id}", timeout_seconds=600)
        return snapshot_id

    def delete_snapshot(self, snapshot_id: VpsSnapshotId) -> None:
        if all(snapshot.id != snapshot_id for snapshot in self.list_snapshots()):
            raise VpsApiError(404, f"there is no snapshot {snapshot_id}")
        run_docker("image", "rm", f"{SNAPSHOT_REPOSITORY}:{snapshot_id}")

    def list_snapshots(self) -> list[VpsSnapshotInfo]:
        return list_snapshots_of(self.account)

    def upload_ssh_key(self, name: str, public_key: str) -> str:
        key_id = f"{NAME_PREFIX}-key-{secrets.token_hex(6)}"
        run_docker("volume", "create", *label_arguments(key_labels(self.account, name, public_key)), key_id)
        return key_id

    def delete_ssh_key(self, key_id: str) -> None:
        find_key(self.account, key_id)
        run_docker("volume", "rm", key_id)

    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        return [VpsSshKeyInfo(id=key.id, name=key.name) for key in list_keys_of(self.account)]

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo]:
        return [instance for instance in list_instances_of(self.account) if tags.items() <= instance.tags.items()]

    def _remove(self, instance_id: VpsInstanceId) -> None:
        """Remove the container and its volume, and with the last VPS the network."""
        remove_machine(instance_id)
        remove_if_there("volume", "rm", "--force", instance_id)
        with machine_lock():
            if not list_instances_of(self.account):
                remove_if_there("network", "rm", network_name(self.account))
