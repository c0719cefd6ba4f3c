"""A tar archive as a stream of bytes, in GNU's form: it carries names of any length and bytes as they are."""

import os
import stat
from collections.abc import Iterable, Iterator
from tarfile import BLOCKSIZE, DIRTYPE, FIFOTYPE, GNU_FORMAT, RECORDSIZE, REGTYPE, SYMTYPE, TarInfo
from typing import Final

from imbue.mngr_vps_docker.errors import BuildContextError

_CHUNK_BYTES: Final = 256 * 1024


def tar(entries: Iterable[bytes]) -> Iterator[bytes]:
    """The archive of ``entries``, each of which is a part of what one of the functions below gives."""
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
    """What is at ``path``, under ``name``; ``status`` is what it was a moment ago.

    Raises OSError for what cannot be read, FileNotFoundError before it has given anything; and BuildContextError for
    what became shorter meanwhile.
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
    """The file at ``path``, or that a link there leads to; raises what ``entry`` raises."""
    # Not blocking: what was a file a moment ago may be a FIFO by now.
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
