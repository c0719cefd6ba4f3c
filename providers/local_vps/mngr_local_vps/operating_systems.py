"""The operating systems that a local VPS may have: releases of Debian, each with a Docker engine and without one."""

from dataclasses import dataclass
from typing import Final

from imbue.mngr_vps_docker.errors import VpsApiError

_WITHOUT_DOCKER: Final = "-no-docker"

# The release whose images for containers every VPS has, whatever its own is.
_COMMON_RELEASE: Final = "bookworm"

# forky is the coming release.
_RELEASES: Final = {"debian-12": _COMMON_RELEASE, "debian-13": "trixie", "forky": "forky"}

DEFAULT_OS: Final = "debian-12"
OPERATING_SYSTEMS: Final = tuple(os_id for name in _RELEASES for os_id in (name, name + _WITHOUT_DOCKER))


@dataclass(frozen=True)
class OperatingSystem:
    """One operating system of VPSes, and what its Docker engine has."""

    os_id: str
    release: str

    @property
    def has_docker(self) -> bool:
        """Whether a Docker engine is installed; if not, cloud-init has to do it."""
        return not self.os_id.endswith(_WITHOUT_DOCKER)

    @property
    def container_releases(self) -> tuple[str, ...]:
        """The releases of which a VPS has the images for containers: its own, and the one that all have."""
        return tuple(dict.fromkeys((self.release, _COMMON_RELEASE)))


def find_operating_system(os_id: str) -> OperatingSystem:
    """The operating system of this id; raise VpsApiError 400 for one that is not offered."""
    if os_id not in OPERATING_SYSTEMS:
        raise VpsApiError(400, f"unknown operating system '{os_id}'; valid: {', '.join(OPERATING_SYSTEMS)}")
    return OperatingSystem(os_id, _RELEASES[os_id.removesuffix(_WITHOUT_DOCKER)])


def without_docker(os_id: str) -> str:
    """The operating system of the same release in which cloud-init has to install Docker."""
    return os_id.removesuffix(_WITHOUT_DOCKER) + _WITHOUT_DOCKER


def base_image(release: str) -> str:
    """Inside a VPS: what an image registry has as the small image of this release of Debian."""
    return f"debian:{release}-slim"


def agent_image(release: str) -> str:
    """Inside a VPS: the image of this release for agents, which already has what mngr needs in a container."""
    return f"mngr-agent:{release}"


def agent_image_of_os(os_id: str) -> str:
    """Inside a VPS: the image for agents of the same release as the VPS; raise VpsApiError 400 as above."""
    return agent_image(find_operating_system(os_id).release)
