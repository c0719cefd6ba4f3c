"""Settings of the local_vps provider: those of every VPS provider, with this cloud's defaults, and the account."""

from typing import Final

from pydantic import Field

from imbue.mngr.primitives import ProviderBackendName
from imbue.mngr_local_vps.client import ACCOUNT_PATTERN, DEFAULT_ACCOUNT, DEFAULT_PLAN, DEFAULT_REGION
from imbue.mngr_local_vps.operating_systems import DEFAULT_OS, agent_image_of_os
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig

BACKEND_NAME: Final = ProviderBackendName("local-vps")


class LocalVpsProviderConfig(VpsDockerProviderConfig):
    """Settings of a provider whose VPSes run on this machine."""

    backend: ProviderBackendName = Field(default=BACKEND_NAME, description="Provider backend (always local-vps)")
    account: str = Field(
        default=DEFAULT_ACCOUNT,
        pattern=ACCOUNT_PATTERN,
        description="Owner of the VPSes; sees only its own",
    )
    default_image: str = Field(
        default=agent_image_of_os(DEFAULT_OS),
        description="Image of a host without a Dockerfile; every local VPS contains it",
    )
    default_region: str = Field(default=DEFAULT_REGION, description="Region of a new VPS; only this one exists")
    default_plan: str = Field(default=DEFAULT_PLAN, description="Size of a new VPS; -b --vps-plan= overrides it")
    default_os_id: int | str = Field(
        default=DEFAULT_OS, description="Operating system of a new VPS; -b --vps-os= overrides it"
    )
    security_upgrades: bool = Field(
        default=False,
        description="Whether VPSes install security upgrades; off, because they are short-lived",
    )
