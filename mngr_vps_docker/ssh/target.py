"""Where a connection leads, and the command lines that follow from it: the one place where ssh options are written."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.shell import join

# With persistence 0 the caller ends the shared connection; if it is killed, the connection ends soon by itself.
_SHORTEST_PERSISTENCE_SECONDS: Final = 5
# A silent machine is asked after 3 s and given up after 9, which ends all commands over its shared login. A user whose
# network pauses for longer sets both by ``options``.
_KEEPALIVE_SECONDS: Final = 3
_KEEPALIVE_COUNT: Final = 2
_PLAIN_PATH: Final = re.compile(r"[\w./%+,:@-]+")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """One account on one machine, with everything that makes a login to it trustworthy.

    ``host`` is a DNS name, an IPv4 address or an IPv6 address without brackets. ``host_key_alias`` is the name under
    which ``known_hosts_file`` pins the machine (OpenSSH's HostKeyAlias), so that a reused address does not matter;
    None: its address. ``label`` names the machine in logs and errors; None: by user and host. ``persist_seconds`` is
    how long the shared connection outlives the last command. ``options`` are the user's ssh options, each
    ``Name=value`` (a ProxyCommand, say); they cannot undo those that make a login trustworthy.
    """

    host: str
    identity_file: Path
    known_hosts_file: Path
    host_key_alias: str | None = None
    label: str | None = None
    user: str = "root"
    port: int = 22
    connect_timeout_seconds: float = 60.0
    options: tuple[str, ...] = ()
    persist_seconds: int = 600

    @property
    def name(self) -> str:
        """What logs and errors call the machine."""
        return self.label or f"{self.user}@{self.host}"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of everything that decides which account a login reaches."""
        decisive = (
            self.user,
            self.host,
            str(self.port),
            self.host_key_alias or "",
            str(self.identity_file),
            str(self.known_hosts_file),
            *self.options,
        )
        return hashlib.sha256("\0".join(decisive).encode()).hexdigest()[:16]


@lru_cache(maxsize=128)
def ssh_options(target: SshTarget) -> tuple[str, ...]:
    """The options that every ssh run for ``target`` carries; hermetic, strict and non-interactive.

    The user's own configuration, agent and known_hosts play no part. Keepalives are explicit because Debian's
    BatchMode sets ServerAliveInterval=300 by a patch of its own.
    """
    return (
        "-F", "none",
        "-o", "BatchMode=yes",
        "-o", "IdentitiesOnly=yes",
        "-o", "IdentityAgent=none",
        "-o", f"IdentityFile={_escaped(target.identity_file)}",
        "-o", f"UserKnownHostsFile={_escaped(target.known_hosts_file)}",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "UpdateHostKeys=no",
        "-o", "VerifyHostKeyDNS=no",
        "-o", "NoHostAuthenticationForLocalhost=no",
        # OpenSSH 8.4 does not know it yet.
        "-o", "IgnoreUnknown=KnownHostsCommand",
        "-o", "KnownHostsCommand=none",
        *(() if target.host_key_alias is None else ("-o", f"HostKeyAlias={target.host_key_alias}")),
        # ssh takes the first value that it is given for an option.
        *(word for option in target.options for word in ("-o", option)),
        "-o", f"ConnectTimeout={max(1, round(target.connect_timeout_seconds))}",
        "-o", f"ServerAliveInterval={_KEEPALIVE_SECONDS}",
        "-o", f"ServerAliveCountMax={_KEEPALIVE_COUNT}",
    )  # fmt: skip


def standalone_argv(target: SshTarget, command: str | None) -> tuple[str, ...]:
    """A login of its own, to paste into a terminal."""
    return ("ssh", *ssh_options(target), *_destination(target), *(() if command is None else (command,)))


def master_argv(target: SshTarget, control_path: Path, log_file: Path) -> tuple[str, ...]:
    """Open the shared connection in the background; returns when it is authenticated.

    Its messages go to ``log_file``: a pipe to a process in the background would never close.
    """
    persist_seconds = max(_SHORTEST_PERSISTENCE_SECONDS, target.persist_seconds)
    return (
        "ssh", "-M", "-N", "-f",
        "-E", str(log_file),
        "-o", control_path_option(control_path),
        "-o", f"ControlPersist={persist_seconds}",
        *ssh_options(target),
        *_destination(target),
    )  # fmt: skip


def control_path_option(control_path: Path) -> str:
    """The option that names the shared connection's socket."""
    return f"ControlPath={_escaped(control_path)}"


def shared_argv(target: SshTarget, control_path: Path, command: str, log_file: Path) -> tuple[str, ...]:
    """Run ``command`` over the shared connection, and over nothing else.

    ssh's own messages go to ``log_file``, in detail (-v): they tell whether the machine was asked at all. Without
    ProxyCommand=false ssh would silently log in again where the shared connection is gone or has no session left.
    """
    return (
        "ssh", "-v",
        "-E", str(log_file),
        "-o", control_path_option(control_path),
        "-o", "ControlMaster=no",
        "-o", "ProxyCommand=false",
        *ssh_options(target),
        *_destination(target),
        command,
    )  # fmt: skip


def forward_argv(
    target: SshTarget, control_path: Path, local: tuple[str, int], remote: tuple[str, int]
) -> tuple[str, ...]:
    """Forward an address and port here to one that ``target`` sees; idempotent, but fails if the port is taken."""
    return (
        "ssh", "-O", "forward",
        "-L", ":".join(f"[{host}]:{port}" for host, port in (local, remote)),
        "-o", control_path_option(control_path),
        "-F", "none",
        *_destination(target),
    )  # fmt: skip


def through(target: SshTarget, gateway: SshTarget, control_path: Path, host: str) -> SshTarget:
    """``target`` as it is reached through ``gateway``, which knows it as ``host``.

    Its logins go over the shared connection at ``control_path``, or over one of their own where that is not open.
    """
    argv = (
        "ssh",
        "-o", control_path_option(control_path),
        "-o", "ControlMaster=no",
        *ssh_options(gateway),
        "-W", f"[{host}]:{target.port}",
        *_destination(gateway),
    )  # fmt: skip
    # ssh expands a bare %, and takes the first of two ProxyCommands (ssh_config(5)).
    proxy_command = join(argv).replace("%", "%%")
    return replace(target, options=(f"ProxyCommand={proxy_command}", "ProxyUseFdpass=no", *target.options))


def exit_argv(target: SshTarget, control_path: Path) -> tuple[str, ...]:
    """End the shared connection, and all that runs over it."""
    return ("ssh", "-O", "exit", "-o", control_path_option(control_path), "-F", "none", *_destination(target))


def user_config_argv(user: str, host: str, port: int) -> tuple[str, ...]:
    """Print the user's own configuration for a destination, and on stderr which files were read."""
    return ("ssh", "-G", "-v", "-p", str(port), "-l", user, "--", host)


def _destination(target: SshTarget) -> Sequence[str]:
    return ("-p", str(target.port), "-l", target.user, "--", target.host)


def _escaped(path: Path) -> str:
    """A path as an ssh option takes it.

    ``%`` begins a token there, and all but plain characters are quoted (ssh_config(5)). Raises VpsDockerError for what
    cannot be quoted: ssh expands ``${``, and a line break ends an option.
    """
    text = str(path)
    if "${" in text or not text.isprintable():
        raise VpsDockerError(f"ssh cannot use the path {text!r}: it holds '${{' or unprintable characters")
    text = text.replace("%", "%%")
    if _PLAIN_PATH.fullmatch(text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
