"""Where a connection leads, and the ssh options that follow from it: the one place where ssh options are written."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SshTarget:
    """One account on one machine, with everything that makes a login to it trustworthy.

    ``host`` is a DNS name, an IPv4 address or an IPv6 address without brackets. ``host_key_alias`` is the name under
    which ``known_hosts_file`` pins the machine (OpenSSH's HostKeyAlias), so that a reused address does not matter.
    ``label`` names the machine in logs and errors.
    """

    host: str
    identity_file: Path
    known_hosts_file: Path
    host_key_alias: str
    label: str
    user: str = "root"
    port: int = 22
    connect_timeout_seconds: float = 60.0
    extra_options: tuple[str, ...] = ()


def ssh_options(target: SshTarget) -> tuple[str, ...]:
    """The options that every ssh and scp run for ``target`` carries; hermetic, strict and non-interactive.

    The user's own configuration, agent and known_hosts play no part. Keepalives are explicit because Debian's
    BatchMode sets ServerAliveInterval=300 by a patch of its own.
    """
    return (
        "-F", "none",
        "-o", "BatchMode=yes",
        "-o", "IdentitiesOnly=yes",
        "-o", "IdentityAgent=none",
        "-o", f"IdentityFile={target.identity_file}",
        "-o", f"UserKnownHostsFile={target.known_hosts_file}",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "UpdateHostKeys=no",
        "-o", f"HostKeyAlias={target.host_key_alias}",
        "-o", f"ConnectTimeout={max(1, round(target.connect_timeout_seconds))}",
        "-o", "ServerAliveInterval=15",
        "-o", "ServerAliveCountMax=4",
        *target.extra_options,
    )  # fmt: skip
