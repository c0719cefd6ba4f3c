"""A command for a machine as a value that reads its own answer.

``SshConnection.call`` runs one; a ``Pipeline`` (``ssh.pipeline``) runs several in one round trip.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, ShellText

# What is taken of the answer to a question of our own.
ANSWER_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class RemoteCommand[T]:
    """What to run on a machine, and how to read its outcome.

    ``script`` is shell text, ``purpose`` reads after "Could not" ("read host records"). ``read`` returns the value of
    the command's outcome, or raises what the outcome means. At ``timeout_seconds``, and when it has printed more than
    ``limit_bytes``, the command is ended. ``effect`` is what running it a second time would do.
    """

    script: str
    purpose: str
    read: Callable[[CommandOutcome], T]
    timeout_seconds: float
    effect: Effect = Effect.NON_IDEMPOTENT
    limit_bytes: int = ANSWER_BYTES

    @property
    def secrets(self) -> Mapping[str, Secret]:
        """The secret variables of the script, by name."""
        return self.script.secrets if isinstance(self.script, ShellScript) else {}

    def with_script(self, text: str) -> Self:
        """The same command with other shell text, which is built around its script and so has the same secrets."""
        return replace(self, script=ShellScript(text, self.secrets) if self.secrets else ShellText(text))
