"""A tar archive as a stream of bytes, its size and its progress.

The archive is in GNU's form, which carries names of any length and bytes as they are.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE, DIRTYPE, FIFOTYPE, GNU_FORMAT, RECORDSIZE, REGTYPE, SYMTYPE, TarInfo
from typing import Final

from imbue.mngr.primitives import LogLevel
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.text import logger

_CHUNK_BYTES: Final = 256 * 1024
_PAGE_BYTES: Final = 4096
_MB: Final = 1_000_000
_LARGE_BYTES: Final = 1000 * _MB
# Progress is logged for each twentieth of the whole, and not more often than for each 50 MB.
_PROGRESS_PARTS: Final = 20
_MIN_PROGRESS_BYTES: Final = 50 * _MB


@dataclass(frozen=True, slots=True)
class ContextSize:
    """How many files, folders and links a build context has, and how many bytes are in its files."""

    paths: int
    content_bytes: int

    def __add__(self, other: "ContextSize") -> "ContextSize":
        return ContextSize(self.paths + other.paths, self.content_bytes + other.content_bytes)

    def __str__(self) -> str:
        return f"{_short(self.content_bytes)} in {self.paths:,} files and folders"

    @property
    def is_large(self) -> bool:
        """Whether sending it over an ordinary line takes minutes."""
        return self.content_bytes >= _LARGE_BYTES

    @property
    def memory_bytes(self) -> int:
        """What it takes of a tmpfs at most: whole pages for the content, and one page for each path."""
        return self.content_bytes + 2 * _PAGE_BYTES * self.paths


def with_progress(chunks: Iterable[bytes], size: ContextSize) -> Iterator[bytes]:
    """The same chunks; logs from time to time how many bytes were taken."""
    total_bytes = size.content_bytes
    step_bytes = max(total_bytes // _PROGRESS_PARTS, _MIN_PROGRESS_BYTES)
    taken_bytes, next_bytes = 0, step_bytes
    for chunk in chunks:
        yield chunk
        taken_bytes += len(chunk)
        if next_bytes <= taken_bytes < total_bytes:
            next_bytes = taken_bytes + step_bytes
            # At the level of Docker's own lines, which come next.
            logger.log(LogLevel.BUILD.value, "Sent {} of {}", _short(taken_bytes), _short(total_bytes))


def _short(size_bytes: int) -> str:
    return f"{size_bytes / 1000:,.1f} kB" if size_bytes < _MB else f"{size_bytes / _MB:,.0f} MB"


def tar(entries: Iterable[bytes]) -> Iterator[bytes]:
    """The archive of ``entries``, which the functions below yield."""
    size_bytes = 0
    for chunk in entries:
        size_bytes += len(chunk)
        yield chunk
    # Two empty blocks end an archive, which is padded to whole records.
    end_bytes = 2 * BLOCKSIZE
    yield b"\0" * (end_bytes + -(size_bytes + end_bytes) % RECORDSIZE)


def folder_entry(name: str) -> bytes:
    """A folder that is not on this machine."""
    return _header(name, DIRTYPE, mode=0o755)


def entry(name: str, path: str, status: os.stat_result) -> Iterator[bytes]:
    """The file, folder, link or FIFO at ``path``, under ``name``; ``status`` is from a moment ago.

    Raises OSError for what cannot be read (FileNotFoundError before it yields anything), and BuildContextError for a
    file that became shorter while it was read.
    """
    mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        yield from file_entry(name, path)
    elif stat.S_ISDIR(status.st_mode):
        yield _header(name, DIRTYPE, mode=mode, mtime=mtime)
    elif stat.S_ISLNK(status.st_mode):
        yield _header(name, SYMTYPE, mode=0o777, mtime=mtime, link=os.readlink(path))  # noqa: PTH115 - plain strings
    else:
        yield _header(name, FIFOTYPE, mode=mode, mtime=mtime)


def file_entry(name: str, path: str) -> Iterator[bytes]:
    """The file at ``path``, links followed; raises what ``entry`` raises."""
    # Not blocking: a file of a moment ago may be a FIFO now.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        yield _header(name, mode=stat.S_IMODE(status.st_mode), mtime=int(status.st_mtime), size=status.st_size)
        left_bytes = status.st_size
        while left_bytes > 0:
            chunk = file.read(min(_CHUNK_BYTES, left_bytes))
            if not chunk:
                raise BuildContextError(f"{path} became shorter while it was sent; try again")
            left_bytes -= len(chunk)
            yield chunk
    yield b"\0" * (-status.st_size % BLOCKSIZE)


def _header(name: str, kind: bytes = REGTYPE, *, mode: int, mtime: int = 0, size: int = 0, link: str = "") -> bytes:
    info = TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, mtime, size, link
    return info.tobuf(format=GNU_FORMAT, encoding="utf-8", errors="surrogateescape")
