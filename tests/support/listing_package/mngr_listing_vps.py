"""A provider package, installed by being on PYTHONPATH, that lists its VPSes as packages for version 0.1.0 do.

Its client cannot list by tags. The provider reads each VPS itself, in a thread, over what the base class gives it.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from imbue.mngr import hookimpl
from imbue.mngr.config.data_types import MngrContext, ProviderInstanceConfig
from imbue.mngr.errors import HostConnectionError, MngrError
from imbue.mngr.interfaces.provider_backend import ProviderBackendInterface
from imbue.mngr.interfaces.provider_instance import ProviderInstanceInterface
from imbue.mngr.primitives import HostId, ProviderBackendName, ProviderInstanceName
from imbue.mngr_local_vps.backend import LocalVpsProviderBackend
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.config import LocalVpsProviderConfig
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.instance import VpsDockerProvider

NAME = ProviderBackendName("listing-vps")

type Found = tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]


class Client(LocalVpsClient):
    def find_instances(self, tags: Mapping[str, str]) -> None:  # type: ignore[override]
        return None

    def list_addresses(self, tags: Mapping[str, str]) -> list[str]:
        return [vps.address for vps in LocalVpsClient.find_instances(self, tags) if vps.address]


class Provider(VpsDockerProvider):
    vps_client: Client = Field(frozen=True)

    def _discover_host_records(self) -> list[VpsDockerHostRecord]:
        return self._discover_host_records_with_agents()[0]

    def _discover_host_records_with_agents(self) -> Found:
        records: list[VpsDockerHostRecord] = []
        agents: dict[HostId, list[dict[str, Any]]] = {}
        with ThreadPoolExecutor(32) as pool:
            addresses = self.vps_client.list_addresses({"mngr-provider": self.name})
            for found_records, found_agents in pool.map(self._read, addresses):
                records += found_records
                agents |= found_agents
        self._host_record_cache.update({record.host_id: record for record in records})
        return records, agents

    def _read(self, address: str) -> Found:
        try:
            with self._make_outer_for_vps_ip(address) as outer:
                store = self._get_existing_host_store(outer)
                return ([], {}) if store is None else store.list_all_host_records_with_agents()
        except (HostConnectionError, MngrError):
            return [], {}


class Config(LocalVpsProviderConfig):
    backend: ProviderBackendName = Field(default=NAME)


class Backend(LocalVpsProviderBackend):
    @staticmethod
    def get_name() -> ProviderBackendName:
        return NAME

    @staticmethod
    def get_config_class() -> type[ProviderInstanceConfig]:
        return Config

    @staticmethod
    def build_provider_instance(
        name: ProviderInstanceName, config: ProviderInstanceConfig, mngr_ctx: MngrContext
    ) -> ProviderInstanceInterface:
        assert isinstance(config, Config)
        return Provider(
            name=name,
            host_dir=config.host_dir,
            mngr_ctx=mngr_ctx,
            config=config,
            vps_client=Client(account=config.account),
        )


@hookimpl
def register_provider_backend() -> tuple[type[ProviderBackendInterface], type[ProviderInstanceConfig]]:
    return Backend, Config
