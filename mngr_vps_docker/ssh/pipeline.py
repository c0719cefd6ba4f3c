"""Several commands for one machine in one round trip, each with its own outcome.

The script writes, for each command, one header line ``<exit code> <stdout bytes> <stderr bytes>`` and then exactly
those bytes. Sizes come before contents, so nothing that a command prints can be taken for framing.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, quote

# What a login shell's start-up files print comes before this line, and is skipped.
_MAGIC: Final = b"mngr-batch-1\n"
_END: Final = b"mngr-batch-end\n"
_HEADER: Final = re.compile(rb"(\d{1,3}) (\d{1,18}) (\d{1,18})\n")

# Outputs are held in memory-backed directories where there are some, so that a full disk can still be read.
_PROLOGUE: Final = """\
export LC_ALL=C
for d in /dev/shm /run "${TMPDIR:-/tmp}"; do
  held=$(mktemp -d "$d/mngr-batch.XXXXXXXX" 2>/dev/null) && break
done
[ -n "$held" ] || { echo "no temporary directory can be made" >&2; exit 1; }
trap 'rm -rf "$held"' EXIT
trap 'exit 143' HUP INT TERM
run() { # NUMBER COMMAND
  {
    { ( eval "$2" ) </dev/null 3>&-; echo $? >"$held/code$1"; } 2>&1 >&3 | head -c $limit >"$held/err$1"
  } 3>&1 | head -c $limit >"$held/out$1"
}
show() { # NUMBER
  read -r rc <"$held/code$1" && sizes=$(stat -c %s "$held/out$1" "$held/err$1") || exit
  printf '%s %s %s\\n' $rc $sizes && cat "$held/out$1" "$held/err$1" || exit
}
printf 'mngr-batch-1\\n'
"""


class UnreadableAnswerError(RemoteCommandError):
    """An answer is not what its script writes: it was cut off, or something else answered."""


class Pending[T]:
    """The value of one command of a pipeline, once the pipeline has run."""

    def __init__(self, command: RemoteCommand[T]) -> None:
        self._command = command
        self._outcome: CommandOutcome | None = None
        self._failed_before: Pending[Any] | None = None

    @property
    def value(self) -> T:
        """What the command reads of its outcome.

        Raises what reading it raises. For a command that was not run, because one before it failed, that is what
        reading that one raises, or RemoteCommandError.
        """
        if self._outcome is not None:
            return self._command.read(self._outcome)
        if self._failed_before is not None:
            _ = self._failed_before.value
        raise RemoteCommandError(f"Did not {self._command.purpose}: a command before it did not succeed")


class Pipeline:
    """Commands that run one after the other in one round trip; with ``stops_at_failure`` until one of them fails.

    ``purpose`` reads after "Could not", for errors that concern all of them. Each command runs in a subshell of its
    own with an empty stdin. One that fails, exits or cannot be parsed does not end the script around it. Messages are
    in English (LC_ALL=C), so that they can be classified.
    """

    def __init__(self, connection: SshConnection, purpose: str, *, stops_at_failure: bool = True) -> None:
        self._connection = connection
        self._purpose = purpose
        self._stops_at_failure = stops_at_failure
        self._pending: list[Pending[Any]] = []

    def add[T](self, command: RemoteCommand[T]) -> Pending[T]:
        """Let ``command`` run after those that were added before."""
        pending = Pending(command)
        self._pending.append(pending)
        return pending

    def run(self, *, timeout_seconds: float | None = None) -> None:
        """Run all commands; the outcome of each is its Pending's.

        The deadline is the sum of theirs, unless given. A lost connection is tried again if each of them may be.
        Raises VpsConnectionError or RemoteCommandTimeoutError if they did not run to the end, RemoteOutputError if
        they printed more than the largest of their limits, UnreadableAnswerError if the answer cannot be read, and
        ValueError if a secret has another value in one command than in another.
        """
        commands = [pending._command for pending in self._pending]
        limit_bytes = max(command.limit_bytes for command in commands)
        script = pipeline_script(
            [command.script for command in commands], stops_at_failure=self._stops_at_failure, limit_bytes=limit_bytes
        )
        whole = self._connection.run(
            ShellScript(script, secrets) if (secrets := _secrets(commands)) else script,
            purpose=self._purpose,
            timeout_seconds=timeout_seconds or sum(command.timeout_seconds for command in commands),
            effect=max((command.effect for command in commands), key=list(Effect).index),
            limit_bytes=limit_bytes,
        ).checked()
        ends = list(parse_answer(whole.stdout))
        failed = next((number for number, (exit_code, *_) in enumerate(ends) if exit_code != 0), len(commands) - 1)
        if len(ends) != (failed + 1 if self._stops_at_failure else len(commands)):
            raise UnreadableAnswerError(f"{len(commands)} remote commands gave {len(ends)} answers ({self._purpose})")
        for number, pending in enumerate(self._pending):
            if number < len(ends):
                exit_code, stdout, stderr = ends[number]
                purpose = pending._command.purpose
                pending._outcome = replace(whole, purpose=purpose, exit_code=exit_code, stdout=stdout, stderr=stderr)
            else:
                pending._failed_before = self._pending[failed]


def pipeline_script(scripts: Sequence[str], *, stops_at_failure: bool, limit_bytes: int) -> str:
    """The POSIX shell script that runs ``scripts``, for ``parse_answer``.

    Of each output ``limit_bytes`` are held: a command that prints more gets SIGPIPE.
    """
    end = f"printf '{_END.decode().strip()}\\n'"
    stop = f"[ $rc -eq 0 ] || {{ {end}; exit 0; }}\n" if stops_at_failure else ""
    ran = "".join(f"run {number} {quote(script)}\nshow {number}\n{stop}" for number, script in enumerate(scripts))
    return f"limit={limit_bytes}\n{_PROLOGUE}{ran}{end}\n"


def parse_answer(stdout: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Exit code, stdout and stderr of each command, of what the script of ``pipeline_script`` wrote.

    Raises UnreadableAnswerError if the answer is incomplete or another one.
    """
    start = stdout.find(_MAGIC)
    if start < 0:
        raise UnreadableAnswerError("The answer to several remote commands has no beginning")
    position = start + len(_MAGIC)
    while stdout[position : position + len(_END)] != _END:
        header = _HEADER.match(stdout, position)
        if header is None:
            raise UnreadableAnswerError("The answer to several remote commands is cut off")
        exit_code, out_bytes, err_bytes = (int(number) for number in header.groups())
        middle = header.end() + out_bytes
        position = middle + err_bytes
        if position > len(stdout):
            raise UnreadableAnswerError("The answer to several remote commands is cut off")
        yield exit_code, stdout[header.end() : middle], stdout[middle:position]
    if position + len(_END) != len(stdout):
        raise UnreadableAnswerError("The answer to several remote commands continues after its end")


def _secrets(commands: Sequence[RemoteCommand[Any]]) -> dict[str, Secret]:
    values: dict[str, Secret] = {}
    for command in commands:
        for name, value in command.secrets.items():
            if values.setdefault(name, value) != value:
                raise ValueError(f"{name} has two values in one pipeline")
    return values
