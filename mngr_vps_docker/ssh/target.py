"""Where a connection leads, and the command lines that follow from it: the one place where ssh options are written."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.shell import join

# With persistence 0 the caller ends the shared connection; should it be killed, nobody keeps it for long.
_SHORTEST_PERSISTENCE_SECONDS: Final = 5
# A machine that is silent is asked after 3 s, and given up after 9: whatever waits on a shared login whose machine is
# gone ends then. A user whose network pauses for longer sets both by ``options``.
_KEEPALIVE_SECONDS: Final = 3
_KEEPALIVE_COUNT: Final = 2
_PLAIN_PATH: Final = re.compile(r"[\w./%+,:@-]+")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """One account on one machine, with everything that makes a login to it trustworthy.

    ``host`` is a DNS name, an IPv4 address or an IPv6 address without brackets. ``host_key_alias`` is the name under
    which ``known_hosts_file`` pins the machine (OpenSSH's HostKeyAlias), so that a reused address does not matter;
    None: its address. ``label`` is what logs and errors call the machine; None: by user and host. ``persist_seconds``
    is how long the shared connection outlives the last command. ``options`` are ssh options of the user's, each
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
        """16 hexadecimal digits that stand for everything that decides whom a login reaches, and as whom."""
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
    """A login of its own: what people are shown, to paste into a terminal."""
    return ("ssh", *ssh_options(target), *_destination(target), *(() if command is None else (command,)))


def master_argv(target: SshTarget, control_path: Path, log_file: Path) -> tuple[str, ...]:
    """Open the shared connection; returns when it is authenticated and goes on in the background.

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
    """The word of a command line that says where the shared connection's socket is."""
    return f"ControlPath={_escaped(control_path)}"


def shared_argv(target: SshTarget, control_path: Path, command: str, log_file: Path) -> tuple[str, ...]:
    """Run ``command`` over the shared connection, and over nothing else.

    ssh's own words go to ``log_file``, apart from the command's, and in detail: they tell whether the machine was
    asked at all. Without ProxyCommand=false ssh would silently log in anew where the shared connection is gone or has
    no session to spare.
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
    """Let the shared connection lead from an address and port here to one that ``target`` sees.

    It fails if the port is taken; asking again for what is there already does not.
    """
    return (
        "ssh", "-O", "forward",
        "-L", ":".join(f"[{host}]:{port}" for host, port in (local, remote)),
        "-o", control_path_option(control_path),
        "-F", "none",
        *_destination(target),
    )  # fmt: skip


def through(target: SshTarget, gateway: SshTarget, control_path: Path, host: str) -> SshTarget:
    """``target`` as it is reached by way of ``gateway``, which knows it as ``host``.

    Its logins travel over the shared connection at ``control_path``; where that is not open, over one of their own.
    """
    argv = (
        "ssh",
        "-o", control_path_option(control_path),
        "-o", "ControlMaster=no",
        *ssh_options(gateway),
        "-W", f"[{host}]:{target.port}",
        *_destination(gateway),
    )  # fmt: skip
    # ssh puts its own values in the place of a bare %, and takes the first ProxyCommand of two.
    proxy_command = join(argv).replace("%", "%%")
    return replace(target, options=(f"ProxyCommand={proxy_command}", "ProxyUseFdpass=no", *target.options))


def exit_argv(target: SshTarget, control_path: Path) -> tuple[str, ...]:
    """End the shared connection, and all that runs over it."""
    return ("ssh", "-O", "exit", "-o", control_path_option(control_path), "-F", "none", *_destination(target))


def user_config_argv(user: str, host: str, port: int) -> tuple[str, ...]:
    """Print what the user's own configuration says of a destination, and on stderr which files were read."""
    return ("ssh", "-G", "-v", "-p", str(port), "-l", user, "--", host)


def _destination(target: SshTarget) -> Sequence[str]:
    return ("-p", str(target.port), "-l", target.user, "--", target.host)


def _escaped(path: Path) -> str:
    """A path as an ssh option takes it.

    ``%`` begins a token there, and whatever else is not quite plain is quoted (ssh_config(5)). Raises VpsDockerError
    for what no quoting saves: ssh puts a variable in the place of ``${``, and a line ends an option.
    """
    text = str(path)
    if "${" in text or not text.isprintable():
        raise VpsDockerError(f"ssh cannot use the path {text!r}: it holds '${{' or what cannot be printed")
    text = text.replace("%", "%%")
    if _PLAIN_PATH.fullmatch(text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
