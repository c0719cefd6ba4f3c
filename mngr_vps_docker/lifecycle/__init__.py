"""What can be done with hosts. A module of it is imported at its first use here: most commands use few of them."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING


def load(*names: str) -> None:
    """Import modules that are needed soon: while something else is waited for, that costs nobody any time."""
    for name in names:
        import_module(f"{__name__}.{name}")


if TYPE_CHECKING:
    from imbue.mngr_vps_docker.lifecycle import checks as checks
    from imbue.mngr_vps_docker.lifecycle import context as context
    from imbue.mngr_vps_docker.lifecycle import create as create
    from imbue.mngr_vps_docker.lifecycle import creation as creation
    from imbue.mngr_vps_docker.lifecycle import destroy as destroy
    from imbue.mngr_vps_docker.lifecycle import details as details
    from imbue.mngr_vps_docker.lifecycle import discover as discover
    from imbue.mngr_vps_docker.lifecycle import listing as listing
    from imbue.mngr_vps_docker.lifecycle import metadata as metadata
    from imbue.mngr_vps_docker.lifecycle import names as names
    from imbue.mngr_vps_docker.lifecycle import power as power
    from imbue.mngr_vps_docker.lifecycle import registry as registry
    from imbue.mngr_vps_docker.lifecycle import snapshot as snapshot
    from imbue.mngr_vps_docker.lifecycle import views as views
    from imbue.mngr_vps_docker.lifecycle import volumes as volumes
else:

    def __getattr__(name: str) -> ModuleType:
        """The module ``name``; raises AttributeError if there is none."""
        full_name = f"{__name__}.{name}"
        try:
            return import_module(full_name)
        except ModuleNotFoundError as error:
            if error.name != full_name:
                raise
            raise AttributeError(f"{__name__} has no module {name}") from error
