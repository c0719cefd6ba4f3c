"""Waiting until a machine that boots lets us in and runs a command exactly, at a rate that its sshd accepts."""

import socket
import time
from collections.abc import Callable
from typing import Final

from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsConnectionError
from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.shell import quote
from imbue.mngr_vps_docker.ssh.target import SshTarget

# A machine that lets us in may still run no command, or change its output: shells, terminals and encodings are most
# likely to change this text.
_PROBE_TEXT: Final = "\\\\ \\n !x ' \" $HOME `id` * ~ #\n."
PROBE_COMMAND: Final = f"printf %s {quote(_PROBE_TEXT)}"
PROBE_PURPOSE: Final = "check that commands give their exact output"
PROBE_TIMEOUT_SECONDS: Final = 20.0

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
# These did not reach an sshd.
_NOT_ANSWERED: Final = frozenset(
    {
        NotStartedReason.REFUSED,
        NotStartedReason.CONNECT_TIMEOUT,
        NotStartedReason.NO_ROUTE,
        NotStartedReason.UNKNOWN_NAME,
    }
)


def probe_failure(outcome: CommandOutcome) -> LoginFailure | None:
    """Why the machine is not ready, judging by what became of ``PROBE_COMMAND``; None if it is."""
    match outcome.status:
        case OutcomeStatus.COMPLETED if outcome.is_success and outcome.stdout == _PROBE_TEXT.encode():
            return None
        case OutcomeStatus.COMPLETED:
            words = outcome.last_words() or "nothing"
            reason = (
                f"its login shell does not run commands as sh does: asked for {_PROBE_TEXT!r}, it printed {words!r}"
            )
            return LoginFailure(NotStartedReason.ACCOUNT_REFUSED, reason)
        case OutcomeStatus.TOO_MUCH_OUTPUT:
            return LoginFailure(NotStartedReason.ACCOUNT_REFUSED, f"its login shell does not stop: {outcome.detail}")
        case OutcomeStatus.NEVER_STARTED if outcome.reason is not None:
            return LoginFailure(outcome.reason, outcome.detail)
        case OutcomeStatus.TIMED_OUT:
            silence = f"a first command did not end within {PROBE_TIMEOUT_SECONDS:.0f} s"
            return LoginFailure(NotStartedReason.CONNECT_TIMEOUT, silence)
        case _:
            return LoginFailure(NotStartedReason.CLOSED_BY_PEER, "the connection was lost during a first command")


def wait_until_ready(
    target: SshTarget,
    try_login: Callable[[], LoginFailure | str],
    timeout_seconds: float,
    account_grace_seconds: float,
) -> str:
    """See SshConnection.wait_until_ready; ``try_login`` returns the greeting. It is called once the port is open."""
    deadline = time.monotonic() + timeout_seconds
    grace_seconds_of = {**_GRACE_SECONDS_OF, NotStartedReason.ACCOUNT_REFUSED: account_grace_seconds}
    failing_since: dict[NotStartedReason, float] = {}
    failed_logins = 0
    # Behind a proxy, only ssh can tell. A port that is known to answer is not connected to again just to see.
    is_answering = bool(target.options)
    detail = "nothing listens there yet"
    while time.monotonic() < deadline:
        if not is_answering and not _accepts_connections(target.host, target.port):
            time.sleep(_POLL_SECONDS)
            continue
        answer = try_login()
        if isinstance(answer, str):
            return answer
        detail, now = answer.detail, time.monotonic()
        grace_seconds = grace_seconds_of.get(answer.reason)
        if grace_seconds is not None and now - failing_since.setdefault(answer.reason, now) >= grace_seconds:
            if answer.reason is NotStartedReason.ACCOUNT_REFUSED:
                raise VpsAuthenticationError(f"Logged in to {target.name}, but it does not run commands: {detail}")
            raise VpsAuthenticationError(f"Could not log in to {target.name}: {detail}")
        if answer.reason in _NOT_ANSWERED:
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
        # Refused, unreachable, unresolved or silent.
        return False
