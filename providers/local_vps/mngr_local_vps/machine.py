"""What makes a container a VPS: docker's options, the cloud-init seed and the network."""

import io
import ipaddress
import json
import re
import secrets
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from imbue.mngr_local_vps.engine import describe, run_docker
from imbue.mngr_local_vps.labels import NAME_PREFIX, Kind, label_arguments, own_labels
from imbue.mngr_vps_docker.errors import VpsApiError

SEED_FOLDER: Final = "/var/lib/cloud/seed/nocloud"

# systemd-resolved puts a loopback address into /etc/resolv.conf and lists the real servers in its own file.
_RESOLVER_FILES: Final = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))

# systemd and an inner engine need these. --privileged fails on machines whose root lacks CAP_SYS_RESOURCE.
_CAPABILITIES: Final = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
]

MACHINE_OPTIONS: Final = (
    *(f"--cap-add={capability}" for capability in _CAPABILITIES),
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--security-opt=systempaths=unconfined",
    "--device-cgroup-rule=a *:* rwm",
    "--cgroupns=private",
    "--tmpfs=/run:exec,mode=755",
)

# The first addresses of a network are reserved for the gateway and for containers started by hand.
_FIRST_HOST: Final = 16
_ADDRESS_TRIES: Final = 1000


def disk_options(name: str, labels: dict[str, str]) -> tuple[str, ...]:
    """Docker's options for the labelled volume that stores the inner engine's data."""
    volume_labels = "".join(f",volume-label={key}={value}" for key, value in labels.items())
    return ("--mount", f"type=volume,source={name},target=/var/lib/local-vps{volume_labels}")


def hostname_of(label: str) -> str:
    """A host name as RFC 1123 allows it (letters, digits, hyphens, at most 63), made from an instance's label."""
    cleaned = re.sub(r"[^a-z0-9-]+", "-", label.lower())[:63].strip("-")
    return cleaned or "vps"


def seed_archive(instance_id: str, hostname: str, user_data: str, public_keys: Sequence[str]) -> bytes:
    """cloud-init's NoCloud seed as a tar: user-data byte for byte, meta-data as JSON (which is YAML)."""
    meta_data = {"instance-id": instance_id, "local-hostname": hostname, "public-keys": list(public_keys)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in (("user-data", user_data), ("meta-data", json.dumps(meta_data))):
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o600
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def nameservers() -> tuple[str, ...]:
    """The name servers of this machine that other machines can reach too (not on loopback or link-local)."""
    for file in _RESOLVER_FILES:
        if file.is_file():
            words = [line.split() for line in file.read_text().splitlines()]
            servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and "%" not in word[1]]
            reachable = tuple(server for server in servers if not ipaddress.ip_address(server).is_loopback)
            if reachable:
                return reachable
    return ()


def network_name(account: str) -> str:
    """The name of the network that the VPSes of an account share."""
    return f"{NAME_PREFIX}-{account}"


def ensure_network(account: str) -> ipaddress.IPv4Network:
    """Create the account's network if it does not exist, and return its subnet. Call it under the machine lock.

    A container keeps its address over restarts only if it was created with ``--ip``, which Docker allows only on a
    network created with ``--subnet``. So Docker first chooses a free subnet, which is then given to the real network.
    """
    name = network_name(account)
    labels = label_arguments(own_labels(Kind.NETWORK, account))
    if not describe("network", [name]):
        run_docker("network", "create", *labels, name)
        subnet = _subnet_of(name)
        run_docker("network", "rm", name)
        run_docker("network", "create", *labels, "--subnet", str(subnet), name)
    return _subnet_of(name)


def choose_address(subnet: ipaddress.IPv4Network, taken: Collection[str]) -> str:
    """A free address, chosen at random so that the address of a destroyed VPS is seldom used again at once."""
    for _ in range(_ADDRESS_TRIES):
        offset = _FIRST_HOST + secrets.randbelow(subnet.num_addresses - _FIRST_HOST - 1)
        address = str(subnet[offset])
        if address not in taken:
            return address
    raise VpsApiError(503, f"no free address is left in {subnet}; remove VPSes that are not needed")


def _subnet_of(name: str) -> ipaddress.IPv4Network:
    subnet = run_docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", name).strip()
    return ipaddress.IPv4Network(subnet)
