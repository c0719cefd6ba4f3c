"""The whole of what a provider adds to the base class, once its client can list instances."""

from imbue.mngr_vps_docker.instance import VpsDockerProvider


class LocalVpsProvider(VpsDockerProvider):
    """Hosts on VPSes that are containers on this machine."""
