"""What the command that is being run is part of: an operation of mngr, and the step of it."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

_SUBCOMMAND: Final = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: all of this process, or a named part of it. ``title`` names the parts from outer to inner."""

    id: str
    title: str


def _new_id() -> str:
    return uuid4().hex[:12]


def _process_title() -> str:
    """The program and its subcommand, but no more of its arguments: they may hold secrets."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    subcommand = sys.argv[1] if len(sys.argv) > 1 else ""
    return f"{program} {subcommand}" if _SUBCOMMAND.fullmatch(subcommand) else program


_current: ContextVar[Operation | None] = ContextVar("span", default=None)
_process: Operation | None = None


def current_span() -> Operation:
    """The innermost operation of this thread; a thread that was given none works for the process."""
    global _process
    if _process is None:
        _process = Operation(_new_id(), _process_title())
    return _current.get() or _process


@contextmanager
def span(title: str) -> Iterator[Operation]:
    """Run the block as an operation of its own, part of the present one."""
    inner = Operation(_new_id(), f"{current_span().title} > {title}")
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)
