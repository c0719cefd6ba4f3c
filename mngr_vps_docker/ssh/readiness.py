"""Waiting for a machine that is still booting, without disturbing it."""

import socket
import time
from collections.abc import Callable
from typing import Final

from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.target import SshTarget

_POLL_SECONDS: Final = 0.2
_TCP_TIMEOUT_SECONDS: Final = 5.0
# OpenSSH from 9.8 on locks out addresses that log in without success too often (PerSourcePenalties).
_LOGIN_INTERVAL_SECONDS: Final = 1.0
# An image may start sshd before cloud-init has put our host key and our public key in place. Neither failure can harm
# (nothing is sent to a machine that shows the wrong key), but one that lasts is final.
_GRACE_SECONDS_OF: Final = {
    NotStartedReason.HOST_KEY_CHANGED: 30.0,
    NotStartedReason.HOST_KEY_UNKNOWN: 30.0,
    NotStartedReason.AUTHENTICATION: 60.0,
}


def wait_until_ready(target: SshTarget, try_login: Callable[[], LoginFailure | None], timeout_seconds: float) -> None:
    """See SshConnection.wait_until_ready. Only a port that accepts connections is asked to speak ssh."""
    deadline = time.monotonic() + timeout_seconds
    failing_since: dict[NotStartedReason, float] = {}
    detail = "nothing listens there yet"
    while time.monotonic() < deadline:
        if not target.options and not _accepts_connections(target.host, target.port):
            time.sleep(_POLL_SECONDS)
            continue
        failure = try_login()
        if failure is None:
            return
        detail = failure.detail
        now = time.monotonic()
        grace_seconds = _GRACE_SECONDS_OF.get(failure.reason)
        if grace_seconds is None:
            time.sleep(_POLL_SECONDS)
            continue
        if now - failing_since.setdefault(failure.reason, now) > grace_seconds:
            raise VpsAuthenticationError(f"Could not log in to {target.name}: {detail}")
        time.sleep(_LOGIN_INTERVAL_SECONDS)
    raise VpsConnectionError(f"{target.name} was not ready for ssh within {timeout_seconds:.0f} s: {detail}")


def _accepts_connections(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_TCP_TIMEOUT_SECONDS):
            return True
    except OSError:
        # Refused, unreachable, unresolved or silent: all the same to somebody who waits.
        return False
