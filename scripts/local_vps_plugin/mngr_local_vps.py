"""Registers the local-vps backend with mngr: all that a provider's plugin has to do."""

from imbue.mngr import hookimpl
from imbue.mngr.config.data_types import ProviderInstanceConfig
from imbue.mngr.interfaces.provider_backend import ProviderBackendInterface
from imbue.mngr_vps_docker.local_vps.backend import LocalVpsProviderBackend
from imbue.mngr_vps_docker.local_vps.config import LocalVpsProviderConfig


@hookimpl
def register_provider_backend() -> tuple[type[ProviderBackendInterface], type[ProviderInstanceConfig]]:
    """Offer the backend to mngr."""
    return LocalVpsProviderBackend, LocalVpsProviderConfig
