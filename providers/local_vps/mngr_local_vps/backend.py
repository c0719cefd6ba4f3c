"""The local_vps provider, and the backend by which mngr loads it."""

from imbue.mngr import hookimpl
from imbue.mngr.config.data_types import MngrContext, ProviderInstanceConfig
from imbue.mngr.errors import ConfigStructureError
from imbue.mngr.interfaces.provider_backend import ProviderBackendInterface
from imbue.mngr.interfaces.provider_instance import ProviderInstanceInterface
from imbue.mngr.primitives import ProviderBackendName, ProviderInstanceName
from imbue.mngr_local_vps.client import PLANS, LocalVpsClient
from imbue.mngr_local_vps.config import BACKEND_NAME, LocalVpsProviderConfig
from imbue.mngr_local_vps.operating_systems import OPERATING_SYSTEMS
from imbue.mngr_vps_docker.instance import VpsDockerProvider


class LocalVpsProvider(VpsDockerProvider):
    """Hosts on VPSes that are containers on this machine. The client is all that differs from other clouds."""


class LocalVpsProviderBackend(ProviderBackendInterface):
    """Creates providers whose VPSes are systemd containers on this machine's Docker engine."""

    @staticmethod
    def get_name() -> ProviderBackendName:
        """Return the name that settings use."""
        return BACKEND_NAME

    @staticmethod
    def get_description() -> str:
        """Return one line for mngr's help."""
        return "Runs agents in Docker containers on VPSes that are themselves containers on this machine"

    @staticmethod
    def get_config_class() -> type[ProviderInstanceConfig]:
        """Return the class of the settings."""
        return LocalVpsProviderConfig

    @staticmethod
    def get_build_args_help() -> str:
        """Return the help for -b."""
        return (
            f"--vps-plan= ({', '.join(PLANS)}) and --vps-os= ({', '.join(OPERATING_SYSTEMS)}) choose the VPS;"
            " --git-depth=N shallow-clones the build context; everything else goes to 'docker build' on the VPS."
        )

    @staticmethod
    def get_start_args_help() -> str:
        """Return the help for -s."""
        return "Start args go to 'docker run' on the VPS, after default_start_args."

    @staticmethod
    def build_provider_instance(
        name: ProviderInstanceName, config: ProviderInstanceConfig, mngr_ctx: MngrContext
    ) -> ProviderInstanceInterface:
        """Create the provider without asking the engine anything."""
        if not isinstance(config, LocalVpsProviderConfig):
            raise ConfigStructureError(f"Expected LocalVpsProviderConfig, got {type(config).__name__}")
        return LocalVpsProvider(
            name=name,
            host_dir=config.host_dir,
            mngr_ctx=mngr_ctx,
            config=config,
            vps_client=LocalVpsClient(account=config.account),
        )


@hookimpl
def register_provider_backend() -> tuple[type[ProviderBackendInterface], type[ProviderInstanceConfig]]:
    """Register the provider with mngr."""
    return LocalVpsProviderBackend, LocalVpsProviderConfig
