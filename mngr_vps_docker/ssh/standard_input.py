"""What goes to a program's standard input."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Final

# A file's path stands for its content. None is an empty input, which never waits.
type StandardInput = bytes | Path | Iterable[bytes] | None

_CHUNK_BYTES: Final = 1 << 16


def chunks_of(stdin: StandardInput) -> Iterator[bytes]:
    """The input piece by piece; a file is read as it goes."""
    if isinstance(stdin, bytes):
        for start in range(0, len(stdin), _CHUNK_BYTES):
            yield stdin[start : start + _CHUNK_BYTES]
    elif isinstance(stdin, Path):
        with stdin.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    elif stdin is not None:
        yield from stdin


class PrecededInput:
    """Some bytes, and an input after them."""

    def __init__(self, first: bytes, rest: StandardInput) -> None:
        self.is_repeatable = is_repeatable(rest)
        self._first = first
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield from chunks_of(self._first)
        yield from chunks_of(self._rest)


def is_repeatable(stdin: StandardInput) -> bool:
    """Whether it can be sent a second time; what comes piece by piece cannot."""
    if isinstance(stdin, PrecededInput | MeteredInput):
        return stdin.is_repeatable
    return stdin is None or isinstance(stdin, bytes | Path)


class StdinGate:
    """Holds an input back until it is opened: as long as it is not, nothing was taken of what can be taken once."""

    def __init__(self) -> None:
        self._decisions: SimpleQueue[bool] = SimpleQueue()

    def open(self) -> None:
        """Let the input through."""
        self._decisions.put(True)

    def close(self) -> None:
        """Let nothing through that has not been let through before."""
        self._decisions.put(False)

    def behind(self, stdin: Iterable[bytes]) -> Iterator[bytes]:
        """The input, once the gate is open; nothing, if it is closed."""
        if self._decisions.get():
            yield from stdin


class MeteredInput:
    """An input that counts and digests what was taken of it, each time from its beginning."""

    def __init__(self, stdin: StandardInput) -> None:
        self.is_repeatable = is_repeatable(stdin)
        self._stdin = stdin
        self._digest = hashlib.sha256()
        self.byte_count = 0

    def __iter__(self) -> Iterator[bytes]:
        self._digest = hashlib.sha256()
        self.byte_count = 0
        for chunk in chunks_of(self._stdin):
            self._digest.update(chunk)
            self.byte_count += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was taken, in hexadecimal."""
        return self._digest.hexdigest()
