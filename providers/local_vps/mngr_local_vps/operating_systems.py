"""The operating systems of local VPSes: releases of Debian, each with and without a Docker engine."""

from dataclasses import dataclass
from typing import Final

from imbue.mngr_vps_docker.errors import VpsApiError

_WITHOUT_DOCKER: Final = "-no-docker"

# Every VPS contains the container images of this release and those of its own.
_COMMON_RELEASE: Final = "bookworm"

# forky is the coming release.
_RELEASES: Final = {"debian-12": _COMMON_RELEASE, "debian-13": "trixie", "forky": "forky"}

DEFAULT_OS: Final = "debian-12"
OPERATING_SYSTEMS: Final = tuple(os_id for name in _RELEASES for os_id in (name, name + _WITHOUT_DOCKER))


@dataclass(frozen=True)
class OperatingSystem:
    """One operating system of VPSes."""

    os_id: str
    release: str

    @property
    def has_docker(self) -> bool:
        """Whether a Docker engine is installed; if not, cloud-init installs one."""
        return not self.os_id.endswith(_WITHOUT_DOCKER)

    @property
    def container_releases(self) -> tuple[str, ...]:
        """The releases whose container images a VPS contains."""
        return tuple(dict.fromkeys((self.release, _COMMON_RELEASE)))


def find_operating_system(os_id: str) -> OperatingSystem:
    """The operating system with this id; raise VpsApiError 400 if it does not exist."""
    if os_id not in OPERATING_SYSTEMS:
        raise VpsApiError(400, f"unknown operating system '{os_id}'; valid: {', '.join(OPERATING_SYSTEMS)}")
    return OperatingSystem(os_id, _RELEASES[os_id.removesuffix(_WITHOUT_DOCKER)])


def without_docker(os_id: str) -> str:
    """The operating system of the same release in which cloud-init must install Docker."""
    return os_id.removesuffix(_WITHOUT_DOCKER) + _WITHOUT_DOCKER


def base_image(release: str) -> str:
    """Inside a VPS: the name of the small image of this release, as at an image registry."""
    return f"debian:{release}-slim"


def agent_image(release: str) -> str:
    """Inside a VPS: the name of the image for agents, which contains the packages that mngr needs."""
    return f"mngr-agent:{release}"


def agent_image_of_os(os_id: str) -> str:
    """Inside a VPS: the image for agents of the VPS's own release; raise VpsApiError 400 as above."""
    return agent_image(find_operating_system(os_id).release)
