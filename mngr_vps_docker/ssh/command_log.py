"""The log of every ssh command: one JSON line each, from which it can be read and run again."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Final
from typing import Self
from typing import TextIO

from imbue.mngr_vps_docker.files import PRIVATE_FILE_MODE
from imbue.mngr_vps_docker.files import is_at
from imbue.mngr_vps_docker.files import locked
from imbue.mngr_vps_docker.files import make_private_folder
from imbue.mngr_vps_docker.ssh.shell import joined
from imbue.mngr_vps_docker.terminal import printable

TRACE_VARIABLE: Final = "MNGR_VPS_TRACE"
_ROTATE_AT_BYTES: Final = 10 << 20


@dataclass(frozen=True, slots=True)
class LoggedCommand:
    """One command, as it ended.

    ``argv`` is a command line with a login of its own, not the one that used the shared connection: it works whenever
    it is pasted. Of stdin, which is where secrets travel, there is only size and digest. ``parent`` is the id of the
    operation that the command was part of, ``operation`` its title. ``outcome`` is an OutcomeStatus, or INTERRUPTED.
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
    exit_code: int | None = None
    reason: str | None = None
    detail: str = ""
    stdin_bytes: int | None = None
    stdin_sha256: str | None = None

    @property
    def command_line(self) -> str:
        """The command as one line to paste into a terminal."""
        return joined(self.argv)

    @property
    def result(self) -> str:
        """How it ended, in a word or two."""
        return " ".join(str(part) for part in (self.outcome, self.reason, self.exit_code) if part is not None)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read one line of a log; raises ValueError, KeyError or TypeError for one that is none."""
        values: Mapping[str, Any] = json.loads(line)
        known = {name: values[name] for name in _FIELDS if name in values}
        return cls(**{**known, "argv": tuple(str(word) for word in values["argv"])})

    def to_json(self) -> str:
        """One line of a log, all of it ASCII."""
        return json.dumps(dataclasses.asdict(self))


_FIELDS: Final = tuple(field.name for field in dataclasses.fields(LoggedCommand))


class CommandLog:
    """Appends to ``path`` (0600), from any number of threads and processes; keeps one older file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, command: LoggedCommand) -> None:
        """Add one command."""
        line = f"{command.to_json()}\n".encode()
        make_private_folder(self.path.parent)
        with locked(self.path.with_name(f"{self.path.name}.lock")):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_FILE_MODE)
            try:
                os.write(descriptor, line)
                is_full = os.fstat(descriptor).st_size > _ROTATE_AT_BYTES
            finally:
                os.close(descriptor)
            if is_full:
                self.path.replace(older_log(self.path))


def older_log(path: Path) -> Path:
    """Where the commands before those in ``path`` are."""
    return path.with_name(f"{path.name}.1")


def read_log(path: Path) -> Iterator[LoggedCommand]:
    """The commands of the older log and then of ``path``, oldest first; a line that is none is left out."""
    for part in (older_log(path), path):
        if part.exists():
            with part.open(encoding="ascii", errors="replace") as lines:
                yield from _commands(lines)


def follow_log(path: Path, wait: Callable[[], None]) -> Iterator[LoggedCommand]:
    """Commands that are added to the log from now on, for ever; ``wait`` is called whenever there is none."""
    lines = _opened(path)
    if lines is not None:
        lines.seek(0, os.SEEK_END)
    while True:
        if lines is not None:
            # Asked first: what is written to a log until it is put aside is there when it is read to its end.
            is_put_aside = not is_at(path, lines.fileno())
            yield from _commands(lines)
            if is_put_aside:
                lines.close()
                lines = None
        if lines is None:
            lines = _opened(path)
            if lines is not None:
                continue
        wait()


def _opened(path: Path) -> TextIO | None:
    try:
        return path.open(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None


def _commands(lines: TextIO) -> Iterator[LoggedCommand]:
    # Not an iteration: a file that is being iterated over does not tell where it is.
    while line := lines.readline():
        try:
            yield LoggedCommand.from_json(line)
        except (ValueError, KeyError, TypeError):
            # The last line of a process that was killed while it wrote, or another version's.
            continue


def trace(text: str) -> None:
    """With MNGR_VPS_TRACE=1, show a line on stderr."""
    if os.environ.get(TRACE_VARIABLE) == "1":
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201
