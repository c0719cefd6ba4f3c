"""Which ssh this machine has: read once, so that one that cannot do what is asked of it is named at the start."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.process import ProcessRunner, run_process

# Debian 11's; the oldest whose behaviour with a shared connection is known to be the one described in this package.
OLDEST_OPENSSH: Final = (8, 4)
_TIMEOUT_SECONDS: Final = 10.0
_VERSION: Final = re.compile(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class OpenSshVersion:
    """A release of OpenSSH."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def parse_version(text: str) -> OpenSshVersion | None:
    """The version in what ``ssh -V`` prints ("OpenSSH_9.2p1 Debian-2, OpenSSL 3.0"); None if that is no OpenSSH."""
    found = _VERSION.search(text)
    return None if found is None else OpenSshVersion(int(found.group(1)), int(found.group(2)))


@cache
def installed_openssh(runner: ProcessRunner = run_process) -> OpenSshVersion:
    """The OpenSSH client on PATH.

    Raises BinaryNotInstalledError if there is none, VpsDockerError if it is another ssh or too old a one.
    """
    result = runner(("ssh", "-V"), timeout_seconds=_TIMEOUT_SECONDS)
    # OpenSSH answers on stderr, others on stdout.
    answer = (result.stderr or result.stdout).decode(errors="replace").strip()
    version = parse_version(answer)
    oldest = OpenSshVersion(*OLDEST_OPENSSH)
    if version is None or version < oldest:
        raise VpsDockerError(f"The ssh on PATH must be OpenSSH {oldest} or newer, but says that it is: {answer}")
    return version
