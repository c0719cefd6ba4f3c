"""Waiting for a machine that is still booting, without disturbing it."""

import socket
import time
from collections.abc import Callable
from typing import Final

from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsConnectionError
from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.target import SshTarget

_POLL_SECONDS: Final = 0.2
_TCP_TIMEOUT_SECONDS: Final = 5.0
# OpenSSH from 9.8 on adds up what failed logins cost (PerSourcePenalties: 5 s for a refused key, 1 s for a connection
# that tries none), and locks an address out from 15 s on. At these intervals the sum stays below that.
_LOGIN_INTERVALS_SECONDS: Final = (1.0, 2.0, 5.0)
# An image may start sshd before cloud-init has put our host key and our public key in place. Neither failure can harm
# (nothing is sent to a machine that shows the wrong key), but one that lasts is final.
_GRACE_SECONDS_OF: Final = {
    NotStartedReason.HOST_KEY_CHANGED: 30.0,
    NotStartedReason.HOST_KEY_UNKNOWN: 30.0,
    NotStartedReason.AUTHENTICATION: 60.0,
}
# No sshd has seen any of that.
_NOT_ANSWERED: Final = frozenset(
    {
        NotStartedReason.REFUSED,
        NotStartedReason.CONNECT_TIMEOUT,
        NotStartedReason.NO_ROUTE,
        NotStartedReason.UNKNOWN_NAME,
    }
)


def wait_until_ready(
    target: SshTarget,
    try_login: Callable[[], LoginFailure | None],
    timeout_seconds: float,
    account_grace_seconds: float,
) -> None:
    """See SshConnection.wait_until_ready. Only a port that accepts connections is asked to speak ssh."""
    deadline = time.monotonic() + timeout_seconds
    grace_seconds_of = {**_GRACE_SECONDS_OF, NotStartedReason.ACCOUNT_REFUSED: account_grace_seconds}
    failing_since: dict[NotStartedReason, float] = {}
    failed_logins = 0
    # Behind a proxy of the user's, only ssh can tell. And what is known to answer is not connected to for nothing.
    is_answering = bool(target.options)
    detail = "nothing listens there yet"
    while time.monotonic() < deadline:
        if not is_answering and not _accepts_connections(target.host, target.port):
            time.sleep(_POLL_SECONDS)
            continue
        failure = try_login()
        if failure is None:
            return
        detail, now = failure.detail, time.monotonic()
        grace_seconds = grace_seconds_of.get(failure.reason)
        if grace_seconds is not None and now - failing_since.setdefault(failure.reason, now) >= grace_seconds:
            if failure.reason is NotStartedReason.ACCOUNT_REFUSED:
                raise VpsAuthenticationError(f"Logged in to {target.name}, but it does not run commands: {detail}")
            raise VpsAuthenticationError(f"Could not log in to {target.name}: {detail}")
        if failure.reason in _NOT_ANSWERED:
            is_answering = bool(target.options)
            time.sleep(_POLL_SECONDS)
        else:
            is_answering = True
            time.sleep(_LOGIN_INTERVALS_SECONDS[min(failed_logins, len(_LOGIN_INTERVALS_SECONDS) - 1)])
            failed_logins += 1
    raise VpsConnectionError(f"{target.name} was not ready for ssh within {timeout_seconds:.0f} s: {detail}")


def _accepts_connections(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_TCP_TIMEOUT_SECONDS):
            return True
    except OSError:
        # Refused, unreachable, unresolved or silent: all the same to somebody who waits.
        return False
