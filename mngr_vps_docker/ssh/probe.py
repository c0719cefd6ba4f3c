"""A first command whose output is known: a machine that lets us in may still run no command, or not as it is."""

from typing import Final

from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.shell import quote

PROBE_PURPOSE: Final = "check that commands give their exact output"
PROBE_TIMEOUT_SECONDS: Final = 20.0

# What shells, terminals and encodings are most likely to change.
_TEXT: Final = "\\\\ \\n !x ' \" $HOME `id` * ~ #\n."
PROBE_COMMAND: Final = f"printf %s {quote(_TEXT)}"


def probe_failure(outcome: CommandOutcome) -> LoginFailure | None:
    """Why the machine is not ready, judging by what became of ``PROBE_COMMAND``; None if it is."""
    match outcome.status:
        case OutcomeStatus.COMPLETED if outcome.is_success and outcome.stdout == _TEXT.encode():
            return None
        case OutcomeStatus.COMPLETED:
            words = outcome.last_words() or "nothing"
            reason = f"its login shell does not run commands as sh does: asked for {_TEXT!r}, it printed {words!r}"
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
