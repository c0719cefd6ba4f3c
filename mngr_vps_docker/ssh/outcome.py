"""How a remote command ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import auto
from typing import Self

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.mngr_vps_docker.errors import (
    RemoteCommandError,
    RemoteCommandTimeoutError,
    RemoteOutputError,
    SshBusyError,
    SshdDownError,
    VpsAuthenticationError,
    VpsConnectionError,
    VpsDockerError,
)


class Effect(UpperCaseStrEnum):
    """What running a command a second time would do: nothing, the same, or something else.

    Only the first two are repeated after a lost connection; only the first is replayed.
    """

    READ_ONLY = auto()
    IDEMPOTENT = auto()
    NON_IDEMPOTENT = auto()


class OutcomeStatus(UpperCaseStrEnum):
    """How far a remote command got.

    LOST began, and its end was not seen; UNANSWERED was sent to a machine that has said nothing since.
    """

    COMPLETED = auto()
    NEVER_STARTED = auto()
    UNANSWERED = auto()
    LOST = auto()
    TIMED_OUT = auto()
    TOO_MUCH_OUTPUT = auto()

    @property
    def logged(self) -> str:
        """The command log's word, which is the same for LOST and UNANSWERED."""
        return OutcomeStatus.LOST.value if self is OutcomeStatus.UNANSWERED else self.value


class NotStartedReason(UpperCaseStrEnum):
    """Why ssh did not run the command."""

    REFUSED = auto()
    CONNECT_TIMEOUT = auto()
    NO_ROUTE = auto()
    UNKNOWN_NAME = auto()
    CLOSED_BY_PEER = auto()
    SESSION_REFUSED = auto()
    BUSY = auto()
    AUTHENTICATION = auto()
    ACCOUNT_REFUSED = auto()
    HOST_KEY_CHANGED = auto()
    HOST_KEY_UNKNOWN = auto()
    OTHER = auto()


_AUTHENTICATION_REASONS = frozenset(
    {
        NotStartedReason.AUTHENTICATION,
        NotStartedReason.HOST_KEY_CHANGED,
        NotStartedReason.HOST_KEY_UNKNOWN,
    }
)
# A proxy in front of the machine accepts the connection, and hangs up where nothing listens behind it.
_SSHD_DOWN_REASONS = frozenset({NotStartedReason.REFUSED, NotStartedReason.CLOSED_BY_PEER})
# The machine answers, but has no room for the command: its sshd refused it, or our own limit.
_BUSY_REASONS = frozenset({NotStartedReason.SESSION_REFUSED, NotStartedReason.BUSY})


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How one remote command ended.

    ``exit_code`` is set exactly when ``status`` is COMPLETED, ``reason`` exactly when it is NEVER_STARTED. ``stdout``
    and ``stderr`` are the command's own bytes (of a streamed command: the end of them). ``greeting`` is what the
    start-up files of the login shell printed before. ``detail`` is what ssh said, or why the command was ended.
    ``elapsed_seconds`` includes all waiting; ``ran_seconds`` is by the machine's clock, None if that is unknown.
    ``log_id`` is its id in the command log, None if it is not logged.
    """

    status: OutcomeStatus
    argv: Sequence[str] = field(repr=False)
    host: str
    purpose: str
    elapsed_seconds: float
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    greeting: str = ""
    reason: NotStartedReason | None = None
    detail: str = ""
    log_id: str | None = None
    ran_seconds: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the command ended with exit code 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def error_text(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr.decode("utf-8", "replace")

    def checked(self) -> Self:
        """Return this outcome if the command succeeded, else raise what ``error`` returns."""
        if self.is_success:
            return self
        raise self.error()

    def error(self) -> VpsDockerError:
        """The error for this outcome, in one line: what failed, where, how, and its last words."""
        where = f"{self.purpose} on {self.host}{self.reference}"
        match self.status:
            case OutcomeStatus.NEVER_STARTED if self.reason is NotStartedReason.ACCOUNT_REFUSED:
                return VpsAuthenticationError(
                    f"Logged in to {self.host}, but it did not {self.purpose}: {self.detail}"
                )
            case OutcomeStatus.NEVER_STARTED if self.reason in _AUTHENTICATION_REASONS:
                return VpsAuthenticationError(f"Could not log in to {self.host} to {self.purpose}: {self.detail}")
            case OutcomeStatus.NEVER_STARTED if self.reason in _SSHD_DOWN_REASONS:
                return SshdDownError(f"{self.host} is up but its sshd is not ({self.purpose}): {self.detail}")
            case OutcomeStatus.NEVER_STARTED if self.reason in _BUSY_REASONS:
                return SshBusyError(f"{self.host} is busy, and did not {self.purpose}: {self.detail}")
            case OutcomeStatus.NEVER_STARTED:
                return VpsConnectionError(f"{self.host} is unreachable ({self.purpose}): {self.detail}")
            case OutcomeStatus.UNANSWERED:
                return VpsConnectionError(
                    f"{self.host} is unreachable ({self.purpose}{self.reference}): {self.detail}"
                )
            case OutcomeStatus.LOST:
                return VpsConnectionError(f"The connection was lost during: {where}")
            case OutcomeStatus.TIMED_OUT:
                why = f" ({self.detail})" if self.detail else ""
                return RemoteCommandTimeoutError(f"Timed out after {self.elapsed_seconds:.0f} s{why}: {where}")
            case OutcomeStatus.TOO_MUCH_OUTPUT:
                return RemoteOutputError(f"Ended because {self.detail}: {where}")
            case OutcomeStatus.COMPLETED:
                return RemoteCommandError(f"{where} failed with exit code {self.exit_code}: {self.last_words()}")

    @property
    def reference(self) -> str:
        """The command's id in the log, for the end of an error message."""
        return "" if self.log_id is None else f" [command {self.log_id}]"

    def last_words(self, line_count: int = 5) -> str:
        """The last lines of stderr (of stdout, where stderr is empty), joined into one line."""
        return last_lines(self.error_text, line_count) or last_lines(self.text, line_count)


def last_lines(text: str, line_count: int = 5) -> str:
    """The last lines of a text, joined into one line."""
    return " / ".join(line.strip() for line in text.strip().splitlines()[-line_count:] if line.strip())
