"""Refusing an ssh configuration of the user's that would hand a container more than the login.

Our own ssh does not read it (see ``target.ssh_options``), but the ssh that mngr runs does (connect, and the git and
rsync of push, pull and create), and mngr takes no options for it. The agent in a container controls its sshd, and can
use all that the client offers to forward.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.config import LOOPBACK_ADDRESS
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.process import ProcessRunner
from imbue.mngr_vps_docker.ssh.target import user_config_argv

# It takes milliseconds, but a `Match exec` of the user's runs a program.
_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Setting:
    """A setting of ssh_config(5), its risk, and the line that turns it off if it comes first."""

    name: str
    risk: str
    off: str | None

    def is_off(self, value: str) -> bool:
        if self.name in ("SendEnv", "SetEnv"):
            return all(_HARMLESS_VARIABLE.fullmatch(word.partition("=")[0]) for word in value.split())
        return value in ("no", "false")


# Variables that distributions send by default, or that describe a terminal.
_HARMLESS_VARIABLE: Final = re.compile(
    r"LANG|LANGUAGE|LC_[\w*?]+|TERM|COLORTERM|NO_COLOR|TZ|XMODIFIERS|GIT_PROTOCOL", re.ASCII
)
_NO_FORWARDING: Final = "ClearAllForwardings yes"
_SETTINGS: Final = (
    _Setting("ForwardAgent", "its agent could log in elsewhere with the keys of yours", "ForwardAgent no"),
    _Setting("ForwardX11", "its agent could see and control your screen", "ForwardX11 no"),
    _Setting("GSSAPIDelegateCredentials", "its agent could use your Kerberos tickets", "GSSAPIDelegateCredentials no"),
    _Setting("Tunnel", "its agent could reach your network", "Tunnel no"),
    _Setting("RemoteForward", "its agent could reach your network", _NO_FORWARDING),
    # The agent listens at the other end.
    _Setting("LocalForward", "its agent could answer your programs that use that port", _NO_FORWARDING),
    _Setting("DynamicForward", "its agent could answer your programs that use that port", _NO_FORWARDING),
    _Setting("SendEnv", "its agent could read these variables", None),
    _Setting("SetEnv", "its agent could read these variables", None),
)
# For a container that is reached by a forwarded port of this machine.
_UNCHECKED_HOST_KEY: Final = _Setting(
    "NoHostAuthenticationForLocalhost",
    "another user of this machine could answer in its place",
    "NoHostAuthenticationForLocalhost no",
)


def refuse_forwarding(user: str, host: str, port: int, runner: ProcessRunner, label: str | None = None) -> None:
    """Raise VpsDockerError if the user's own ssh to ``user`` at ``host`` would give that machine more than the login.

    ssh tells (``ssh -G``, see ssh(1)) without connecting. Commands that the configuration runs here are the user's
    own. ``label`` names the destination in errors; None: by user and host.
    """
    destination = label or f"{user}@{host}"
    result = runner(user_config_argv(user, host, port), timeout_seconds=_TIMEOUT_SECONDS)
    messages = result.stderr.decode("utf-8", "replace").splitlines()
    if result.exit_code != 0:
        reason = f"ssh -G has not ended within {_TIMEOUT_SECONDS:.0f} s"
        if result.stop is None:
            reason = messages[-1] if messages else "ssh gave no reason"
        raise VpsDockerError(f"ssh cannot use your ssh configuration for {destination}: {reason}")
    settings = (*_SETTINGS, _UNCHECKED_HOST_KEY) if host == LOOPBACK_ADDRESS else _SETTINGS
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        for setting in settings:
            if name == setting.name.lower() and not setting.is_off(value):
                places = _places(setting.name, messages)
                where = f" ({', '.join(places)})" if places else ""
                raise VpsDockerError(
                    f"Your ssh configuration sets {setting.name} {value} for {destination}{where}:"
                    f" {setting.risk}. Change the configuration: {_remedy(setting, user)}"
                )


def _remedy(setting: _Setting, user: str) -> str:
    remedy = "set it only for the hosts that need it"
    if setting.off is None:
        return remedy
    return f"{remedy}, or put 'Match user {user}' with '{setting.off}' at the top of ~/.ssh/config"


def _places(name: str, messages: Sequence[str]) -> list[str]:
    """Where a setting is written, in the files that ssh read according to its ``-v``."""
    setting = re.compile(rf"\s*{name}[\s=]", re.IGNORECASE)
    read = re.compile(r"debug1: Reading configuration data (.+)")
    files = [Path(match[1]) for message in messages if (match := read.fullmatch(message.strip()))]
    return [
        f"{file} line {number}"
        for file in files
        for number, line in enumerate(_lines(file), start=1)
        if setting.match(line)
    ]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
