"""Several shell commands in one round trip, each with its own exit code and output.

The script writes, for each command, one header line ``<exit code> <stdout bytes> <stderr bytes>`` and then exactly
those bytes. Sizes come before contents, so nothing that a command prints can be taken for framing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, quote

# What a login shell's start-up files print comes before this line, and is skipped.
_MAGIC: Final = b"mngr-batch-1\n"
_END: Final = b"mngr-batch-end\n"
_HEADER: Final = re.compile(rb"(\d{1,3}) (\d{1,18}) (\d{1,18})\n")

# Of the answers to questions of our own.
_OUTPUT_BYTES: Final = 8 << 20
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


class BatchFormatError(RemoteCommandError):
    """The answer to a batch is not what its script writes: it was cut off, or something else answered."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The end of one command of a batch."""

    exit_code: int
    stdout: bytes
    stderr: bytes

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


def batch_script(commands: Sequence[str], *, is_chain: bool = False, limit_bytes: int = _OUTPUT_BYTES) -> str:
    """The POSIX shell script that runs ``commands``, each in a subshell of its own with an empty stdin.

    They run one after the other; a chain ends with the first that fails. A command that fails, exits or cannot be
    parsed does not keep the others of a batch from running. Messages are in English (LC_ALL=C), so that they can be
    recognised. Of each output ``limit_bytes`` are held: a command that prints more finds nobody to read it.
    """
    end = f"printf '{_END.decode().strip()}\\n'"
    go_on = f"[ $rc -eq 0 ] || {{ {end}; exit 0; }}\n" if is_chain else ""
    ran = "".join(f"run {n} {quote(command)}\nshow {n}\n{go_on}" for n, command in enumerate(commands))
    return f"limit={limit_bytes}\n{_PROLOGUE}{ran}{end}\n"


def parse_batch(stdout: bytes) -> tuple[BatchResult, ...]:
    """The results in what the script of ``batch_script`` wrote, one per command.

    Raises BatchFormatError if the answer is incomplete or is no such answer.
    """
    start = stdout.find(_MAGIC)
    if start < 0:
        raise BatchFormatError("The answer to a batch of remote commands has no beginning")
    results: list[BatchResult] = []
    position = start + len(_MAGIC)
    while stdout[position : position + len(_END)] != _END:
        header = _HEADER.match(stdout, position)
        if header is None:
            raise BatchFormatError(f"The answer to a batch of remote commands is cut off after {len(results)} results")
        exit_code, out_bytes, err_bytes = (int(number) for number in header.groups())
        middle = header.end() + out_bytes
        end = middle + err_bytes
        if end > len(stdout):
            raise BatchFormatError(f"The answer to a batch of remote commands is cut off in result {len(results)}")
        results.append(BatchResult(exit_code, stdout[header.end() : middle], stdout[middle:end]))
        position = end
    if position + len(_END) != len(stdout):
        raise BatchFormatError("The answer to a batch of remote commands goes on after its end")
    return tuple(results)


def run_batch(
    connection: SshConnection,
    commands: Sequence[str],
    *,
    purpose: str,
    timeout_seconds: float,
    effect: Effect = Effect.NON_IDEMPOTENT,
    limit_bytes: int = _OUTPUT_BYTES,
) -> tuple[BatchResult, ...]:
    """Run ``commands`` on the machine, in order and in one round trip, and return one result for each.

    Raises VpsConnectionError or RemoteCommandTimeoutError if the batch did not run to its end, RemoteOutputError if
    all of them together printed more than ``limit_bytes``, BatchFormatError if its answer cannot be read. A command
    that failed is a result, not an error.
    """
    outcome = connection.run(
        batch_script(commands, limit_bytes=limit_bytes),
        purpose=purpose,
        timeout_seconds=timeout_seconds,
        effect=effect,
        limit_bytes=limit_bytes,
    ).checked()
    results = parse_batch(outcome.stdout)
    if len(results) != len(commands):
        raise BatchFormatError(f"{len(commands)} remote commands gave {len(results)} results ({purpose})")
    return results


@dataclass(frozen=True, slots=True)
class ChainStep:
    """One command of a chain; ``purpose`` reads after "Could not", ``secrets`` are variables of the command.

    A step around another one is made of it by ``dataclasses.replace``, so that it keeps what the command needs.
    """

    command: str
    purpose: str
    secrets: Mapping[str, Secret] = field(default_factory=dict)


def run_chain(
    connection: SshConnection,
    steps: Sequence[ChainStep],
    *,
    purpose: str,
    timeout_seconds: float,
    effect: Effect = Effect.NON_IDEMPOTENT,
) -> tuple[CommandOutcome, ...]:
    """Run ``steps`` one after the other until one fails, in one round trip; raises what ``run_batch`` raises.

    There is one outcome for each step that was run, as if it had been run by itself: fewer than steps, if the last of
    them failed. Raises ValueError if a secret has another value in one step than in another.
    """
    script = batch_script([step.command for step in steps], is_chain=True)
    values: dict[str, Secret] = {}
    for step in steps:
        for name, value in step.secrets.items():
            if values.setdefault(name, value) != value:
                raise ValueError(f"{name} has two values in one chain")
    outcome = connection.run(
        ShellScript(script, values), purpose=purpose, timeout_seconds=timeout_seconds, effect=effect
    ).checked()
    results = parse_batch(outcome.stdout)
    failed = next((number for number, result in enumerate(results, 1) if not result.is_success), len(steps))
    if len(results) != failed:
        raise BatchFormatError(f"{len(steps)} remote commands gave {len(results)} results ({purpose})")
    return tuple(
        replace(outcome, purpose=step.purpose, exit_code=end.exit_code, stdout=end.stdout, stderr=end.stderr)
        for step, end in zip(steps, results, strict=False)
    )
