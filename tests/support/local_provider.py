"""The local_vps provider used through its own methods, as mngr uses it, with any client in place of its own."""

from pathlib import Path
from typing import Any

import pluggy

from imbue.mngr.config.data_types import MngrConfig, MngrContext
from imbue.mngr.primitives import ProviderInstanceName
from imbue.mngr_local_vps.backend import LocalVpsProvider
from imbue.mngr_local_vps.config import LocalVpsProviderConfig
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.host_cache import HostCache
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.vps_client import VpsClientInterface

PROVIDER_NAME = ProviderInstanceName("local-vps")


class LocalProvider(LocalVpsProvider):
    """The provider with public ways to what its operations are given and have seen."""

    @property
    def context(self) -> ProviderContext:
        """What its operations are given."""
        return self._context

    @property
    def hosts(self) -> HostCache:
        """What it has seen of its hosts."""
        return self._hosts


def settings_of_os(os_id: str) -> dict[str, str]:
    """The settings with which VPSes have this operating system, and containers without a Dockerfile the same."""
    return {"default_os_id": os_id, "default_image": agent_image_of_os(os_id)}


def local_provider[Provider: LocalProvider](
    profile: Path,
    account: str,
    client: VpsClientInterface,
    *,
    provider_class: type[Provider] = LocalProvider,  # type: ignore[assignment]
    timings: Timings | None = None,
    **settings: Any,
) -> Provider:
    """The provider as a new process has it, on the state that is in ``profile``."""
    profile.mkdir(parents=True, exist_ok=True)
    config = LocalVpsProviderConfig.model_validate({"account": account, **settings})
    mngr_config = MngrConfig(
        prefix=f"{account}-", providers={PROVIDER_NAME: config}, default_host_dir=profile / "mngr"
    )
    return provider_class(
        name=PROVIDER_NAME,
        host_dir=config.host_dir,
        mngr_ctx=MngrContext(config=mngr_config, pm=pluggy.PluginManager("mngr"), profile_dir=profile),
        config=config,
        vps_client=client,
        timings=timings or Timings(),
    )
