"""Handing a stream from one thread to another, with a bounded part of it in between."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

_POLL_SECONDS: Final = 0.1


class AbandonedError(Exception):
    """The stream will not come to its end: its other end has failed, or has gone. Why, that other end knows."""


class ChunkQueue:
    """At most ``max_chunks`` chunks on the way; each of its two ends notices that the other has gone."""

    def __init__(self, max_chunks: int) -> None:
        self._chunks: queue.Queue[bytes] = queue.Queue(max_chunks)
        self._is_finished = threading.Event()
        self._is_abandoned = threading.Event()

    def put(self, chunk: bytes) -> None:
        """Pass a chunk on, waiting for room; raises AbandonedError."""
        while not self._is_abandoned.is_set():
            with suppress(queue.Full):
                return self._chunks.put(chunk, timeout=_POLL_SECONDS)
        raise AbandonedError

    def finish(self) -> None:
        """Say that nothing more comes."""
        self._is_finished.set()

    def abandon(self) -> None:
        """Say that the stream will not come to its end, or that nobody reads it any more."""
        self._is_abandoned.set()

    def arriving(self) -> Iterator[bytes]:
        """The chunks in order, until the stream is finished; raises AbandonedError."""
        while not self._is_abandoned.is_set():
            # Asked first: what was put before the end is there when the end is seen.
            is_finished = self._is_finished.is_set()
            try:
                chunk = self._chunks.get(timeout=0.001 if is_finished else _POLL_SECONDS)
            except queue.Empty:
                if is_finished:
                    return
            else:
                yield chunk
        raise AbandonedError

    def until_abandoned(self) -> Iterator[bytes]:
        """No chunk at all: raises AbandonedError as soon as the stream is given up, by whichever end."""
        self._is_abandoned.wait()
        raise AbandonedError
        yield b""
