"""The local cloud for the bench: its VPSes are behind proxies, and its API answers at once.

The speed of a cloud's API is not measured, so the instances are read from a file that the bench writes. mngr
finds this module by an entry point that ``lab`` creates.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import PrivateAttr, TypeAdapter

from bench.distance import address_from, remove_proxies
from imbue.mngr import hookimpl
from imbue.mngr.config.data_types import MngrContext, ProviderInstanceConfig
from imbue.mngr.interfaces.provider_backend import ProviderBackendInterface
from imbue.mngr.interfaces.provider_instance import ProviderInstanceInterface
from imbue.mngr.primitives import ProviderBackendName, ProviderInstanceName
from imbue.mngr_local_vps.backend import LocalVpsProvider, LocalVpsProviderBackend
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.config import LocalVpsProviderConfig
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo, VpsSshKeyInfo

BACKEND: Final = "distant-vps"
INVENTORY_VARIABLE: Final = "BENCH_INVENTORY"
ROUND_TRIP_VARIABLE: Final = "BENCH_ROUND_TRIP_MS"
_INVENTORY: Final = TypeAdapter(list[VpsInstanceInfo])
_CLOUD_INIT_ENDED: Final = "until [ -e /run/cloud-init/result.json ]; do sleep 0.1; done"


def read_inventory(path: Path) -> list[VpsInstanceInfo]:
    """The VPSes that there are, each at the address of its proxy."""
    return _INVENTORY.validate_json(path.read_bytes()) if path.exists() else []


def write_inventory(path: Path, instances: Sequence[VpsInstanceInfo]) -> None:
    """What ``read_inventory`` is to read."""
    path.write_bytes(_INVENTORY.dump_json(list(instances)))


class DistantVpsClient(LocalVpsClient):
    """The local cloud from ``round_trip_ms`` away. To it a VPS is active when its cloud-init has ended."""

    inventory: Path
    round_trip_ms: int
    _became_active: list[float] = PrivateAttr(default_factory=list)

    @property
    def became_active(self) -> Sequence[float]:
        """When each VPS that was waited for had become so, on the monotonic clock."""
        return self._became_active

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        address = super().wait_for_instance_active(instance_id, timeout_seconds)
        run_docker("exec", str(instance_id), "sh", "-c", _CLOUD_INIT_ENDED, timeout_seconds=timeout_seconds)
        proxy = address_from(self.account, address, self.round_trip_ms)
        self._became_active.append(time.monotonic())
        return proxy

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        remove_proxies()
        super().destroy_instance(instance_id)
        left = [found for found in read_inventory(self.inventory) if found.id != instance_id]
        write_inventory(self.inventory, left)

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo]:
        return [found for found in read_inventory(self.inventory) if tags.items() <= found.tags.items()]

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        known = (found.status for found in read_inventory(self.inventory) if found.id == instance_id)
        return next(known, None) or super().get_instance_status(instance_id)

    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        return []

    def delete_ssh_key(self, key_id: str) -> None:
        """Left to the end of the bench."""


def distant_client(account: str) -> DistantVpsClient:
    """The client that the environment describes."""
    return DistantVpsClient(
        account=account,
        inventory=Path(os.environ[INVENTORY_VARIABLE]),
        round_trip_ms=int(os.environ[ROUND_TRIP_VARIABLE]),
    )


class DistantVpsBackend(LocalVpsProviderBackend):
    """Makes providers of the local cloud that go through the proxies."""

    @staticmethod
    def get_name() -> ProviderBackendName:
        return ProviderBackendName(BACKEND)

    @staticmethod
    def build_provider_instance(
        name: ProviderInstanceName, config: ProviderInstanceConfig, mngr_ctx: MngrContext
    ) -> ProviderInstanceInterface:
        assert isinstance(config, LocalVpsProviderConfig)
        return LocalVpsProvider(
            name=name,
            host_dir=config.host_dir,
            mngr_ctx=mngr_ctx,
            config=config,
            vps_client=distant_client(config.account),
        )


@hookimpl
def register_provider_backend() -> tuple[type[ProviderBackendInterface], type[ProviderInstanceConfig]]:
    """Offer the backend to mngr."""
    return DistantVpsBackend, LocalVpsProviderConfig
