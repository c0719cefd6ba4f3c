"""Proxies that put a distance before each VPS, as containers in its network: there they have port 22 of their own."""

import secrets
import socket
import time
from pathlib import Path
from typing import Final

from imbue.mngr_local_vps.engine import lines_of, run_docker
from imbue.mngr_local_vps.images import image_of_os
from imbue.mngr_local_vps.machine import network_name
from imbue.mngr_local_vps.operating_systems import DEFAULT_OS
from support import delaying_proxy

_LABEL: Final = "com.imbue.mngr.bench-proxy"
# Of a VPS, and of its container on it.
_PORTS: Final = (22, 2222)
_START_SECONDS: Final = 10.0


def address_from(account: str, address: str, round_trip_ms: int) -> str:
    """Where the VPS at ``address`` is to be reached from ``round_trip_ms`` away."""
    label = f"--filter=label={_LABEL}={address}/{round_trip_ms}"
    running = lines_of(run_docker("ps", "--quiet", label))
    name = running[0] if running else _start(account, address, round_trip_ms)
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    proxy = run_docker("container", "inspect", f"--format={template}", name).strip()
    deadline = time.monotonic() + _START_SECONDS
    while not _accepts_connections(proxy):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the proxy {name} does not answer: {run_docker('logs', name)}")
        time.sleep(0.05)
    return proxy


def remove_proxies() -> None:
    """Remove every proxy there is, which keeps its network in use; those of a bench that was killed, too."""
    if names := lines_of(run_docker("ps", "--all", "--quiet", f"--filter=label={_LABEL}")):
        run_docker("rm", "--force", *names)


def _accepts_connections(address: str) -> bool:
    try:
        with socket.create_connection((address, _PORTS[0]), timeout=1):
            return True
    except OSError:
        return False


def _start(account: str, address: str, round_trip_ms: int) -> str:
    name = f"bench-proxy-{secrets.token_hex(4)}"
    program = Path(delaying_proxy.__file__).read_text()
    run_docker(
        *("run", "--detach", "--rm", f"--name={name}", f"--label={_LABEL}={address}/{round_trip_ms}"),
        *(f"--network={network_name(account)}", "--entrypoint=python3", image_of_os(DEFAULT_OS)),
        *("-c", program, str(round_trip_ms), *(f"{port}:{address}:{port}" for port in _PORTS)),
    )
    return name
