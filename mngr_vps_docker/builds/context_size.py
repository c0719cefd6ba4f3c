"""How large a build context is, and how much of it has been sent."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from imbue.mngr.primitives import LogLevel
from imbue.mngr_vps_docker.text import logger

_PAGE_BYTES: Final = 4096
_MB: Final = 1_000_000
_LARGE_BYTES: Final = 1000 * _MB
# While it is sent, a line for each twentieth of it, but none for less than this.
_PROGRESS_PARTS: Final = 20
_LEAST_PROGRESS_BYTES: Final = 50 * _MB


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
        """Whether sending it takes minutes over an ordinary line."""
        return self.content_bytes >= _LARGE_BYTES

    @property
    def memory_bytes(self) -> int:
        """What it takes of a tmpfs at most, which holds whole pages, and one more for what it keeps of each path."""
        return self.content_bytes + 2 * _PAGE_BYTES * self.paths


def with_progress(chunks: Iterable[bytes], size: ContextSize) -> Iterator[bytes]:
    """The same chunks; tells the user now and then how much of them was taken."""
    total_bytes = size.content_bytes
    step_bytes = max(total_bytes // _PROGRESS_PARTS, _LEAST_PROGRESS_BYTES)
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
