"""The log of every ssh command: one JSON line each, from which it can be read and run again."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final, Self
from uuid import uuid4

from imbue.mngr_vps_docker.files import PRIVATE_FILE_MODE, locked, make_private_folder
from imbue.mngr_vps_docker.ssh.shell import join, quote
from imbue.mngr_vps_docker.text import data_without_passwords, logger, printable, without_passwords

TRACE_VARIABLE: Final = "MNGR_VPS_TRACE"
_LOCK_SECONDS: Final = 5.0
_SUBCOMMAND: Final = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True, slots=True)
class Operation:
    """What commands are part of: all of this process, or a step of it; ``title`` names the steps, outermost first."""

    id: str
    title: str


_current: ContextVar[Operation | None] = ContextVar("operation", default=None)


def current_operation() -> Operation:
    """The innermost operation of this thread; the process, where a thread was given none."""
    return _current.get() or _process_operation()


@contextmanager
def operation(title: str) -> Iterator[Operation]:
    """Run the block as an operation of its own, part of the current one."""
    inner = Operation(_new_id(), f"{current_operation().title} > {title}")
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)


@cache
def _process_operation() -> Operation:
    """The program and its subcommand, but no more of its arguments: they may hold secrets."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    subcommand = sys.argv[1] if len(sys.argv) > 1 else ""
    return Operation(_new_id(), f"{program} {subcommand}" if _SUBCOMMAND.fullmatch(subcommand) else program)


def _new_id() -> str:
    return uuid4().hex[:12]


@dataclass(frozen=True, slots=True)
class LoggedCommand:
    """One command, as it ended.

    ``argv`` is a command line with a login of its own, not the one that used the shared connection: it works whenever
    it is pasted. A command that is too long for an argument is the ``script`` that it reads. ``secrets`` are the names
    of the command's variables whose values are not here; of what it was given on stdin there is only size and digest.
    ``parent`` is the id of the operation that the command was part of, ``operation`` its title. ``outcome`` is an
    OutcomeStatus, or INTERRUPTED.
    """

    id: str
    parent: str
    operation: str
    time: str
    """When it began, in ISO 8601 with the zone."""
    machine: str
    host_id: str
    purpose: str
    is_read_only: bool
    """Whether it only looks, so that running it again changes nothing."""
    argv: tuple[str, ...]
    outcome: str
    milliseconds: int
    stdout_bytes: int
    stderr_bytes: int
    script: str | None = None
    secrets: tuple[str, ...] = ()
    exit_code: int | None = None
    reason: str | None = None
    detail: str = ""
    stdin_bytes: int | None = None
    stdin_sha256: str | None = None

    @property
    def command_line(self) -> str:
        """The command as one line to paste into a terminal."""
        # printf is a part of the shell, and takes what no argument of a program holds.
        return join(self.argv) if self.script is None else f"printf %s {quote(self.script)} | {join(self.argv)}"

    @property
    def result(self) -> str:
        """How it ended, in a word or two."""
        return " ".join(str(part) for part in (self.outcome, self.reason, self.exit_code) if part is not None)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line of a log; raises ValueError, KeyError or TypeError if it is not a command."""
        values: Mapping[str, Any] = json.loads(line)
        known = {name: values[name] for name in _FIELDS if name in values}
        words = {name: tuple(str(word) for word in values[name]) for name in ("argv", "secrets") if name in values}
        return cls(**{**known, **words})

    def to_json(self) -> str:
        """One line of a log, all of it ASCII; passwords in URLs are masked."""
        return json.dumps(data_without_passwords(dataclasses.asdict(self)))


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(LoggedCommand))


class CommandLog:
    """Appends to ``path`` (0600), from any number of threads and processes.

    A file of ``rotate_at_bytes`` replaces the older one, which is kept next to it.
    """

    def __init__(self, path: Path, *, rotate_at_bytes: int = 10 << 20) -> None:
        self.path = path
        self._rotate_at_bytes = rotate_at_bytes
        self._has_failed = False

    def write(self, command: LoggedCommand) -> None:
        """Add one command. A log that cannot be written is warned of once: it must not change what a command did."""
        try:
            self._append(f"{command.to_json()}\n".encode())
        except OSError as error:
            if not self._has_failed:
                logger.warning("Commands are not logged: {}", error)
            self._has_failed = True

    def _append(self, line: bytes) -> None:
        make_private_folder(self.path.parent)
        with locked(self.path.with_name(f"{self.path.name}.lock"), timeout_seconds=_LOCK_SECONDS):
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE_FILE_MODE)
            try:
                size_bytes = os.fstat(descriptor).st_size
                if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != b"\n":
                    # A process was killed while it wrote its line, which must not swallow this one.
                    line = b"\n" + line
                while line:
                    line = line[os.write(descriptor, line) :]
                is_full = os.fstat(descriptor).st_size > self._rotate_at_bytes
            finally:
                os.close(descriptor)
            if is_full:
                self.path.replace(older_log(self.path))


def older_log(path: Path) -> Path:
    """Where the commands before those in ``path`` are."""
    return path.with_name(f"{path.name}.1")


def read_log(path: Path) -> Iterator[LoggedCommand]:
    """The commands of the older log and then of ``path``, oldest first; lines that are not commands are skipped."""
    for part in (older_log(path), path):
        if part.exists():
            with part.open("rb") as lines:
                yield from _commands(lines)


def follow_log(path: Path) -> Iterator[LoggedCommand]:
    """The commands of ``path`` and then those that are added to it, without end; tail(1) knows when it is rotated."""
    with subprocess.Popen(["tail", "-n", "+1", "-F", "--", path], stdout=PIPE, stderr=DEVNULL) as tail:
        assert tail.stdout is not None
        try:
            yield from _commands(tail.stdout)
        finally:
            tail.terminate()


def _commands(lines: Iterable[bytes]) -> Iterator[LoggedCommand]:
    for line in lines:
        # Else it is the last line of a process that was killed while it wrote, or another version's.
        with suppress(ValueError, KeyError, TypeError):
            yield LoggedCommand.from_json(line.decode("ascii", "replace"))


def trace(line: Callable[[], str]) -> None:
    """With MNGR_VPS_TRACE=1, show a line on stderr."""
    if os.environ.get(TRACE_VARIABLE) == "1":
        print(printable(without_passwords(line())), file=sys.stderr, flush=True)  # noqa: T201
