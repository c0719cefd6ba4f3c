"""Streaming from one machine to another through this one, which holds next to none of it."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome

_MAX_CHUNKS: Final = 64
_POLL_SECONDS: Final = 0.1


def pipe(
    source: SshConnection,
    source_command: str,
    sink: SshConnection,
    sink_command: str,
    *,
    purpose: str,
    timeout_seconds: float,
) -> None:
    """Feed what a command prints on one machine to a command on another.

    Raises what went wrong on either side; the source's error first, as the sink's is mostly its consequence.
    """
    stream = _Stream()
    outcomes: list[CommandOutcome] = []

    def read_source() -> None:
        try:
            with suppress(BrokenPipeError):
                outcomes.append(
                    source.stream_bytes(source_command, stream.put, purpose=purpose, timeout_seconds=timeout_seconds)
                )
        finally:
            stream.is_finished.set()

    reader = threading.Thread(target=read_source, name="pipe-source", daemon=True)
    reader.start()
    try:
        sunk = sink.run(sink_command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=stream.arriving())
    finally:
        stream.is_abandoned.set()
        reader.join()
    for outcome in (*outcomes, sunk):
        outcome.checked()


class _Stream:
    """A bounded queue between the two ends, each of which notices that the other has gone."""

    def __init__(self) -> None:
        self._chunks: queue.Queue[bytes] = queue.Queue(_MAX_CHUNKS)
        self.is_finished = threading.Event()
        self.is_abandoned = threading.Event()

    def put(self, chunk: bytes, is_stdout: bool) -> None:
        """Pass a chunk on, waiting for room; raises BrokenPipeError if nobody reads any more."""
        if not is_stdout:
            return None
        while not self.is_abandoned.is_set():
            with suppress(queue.Full):
                return self._chunks.put(chunk, timeout=_POLL_SECONDS)
        raise BrokenPipeError

    def arriving(self) -> Iterator[bytes]:
        """The chunks in order, until the source has finished."""
        while not (self.is_finished.is_set() and self._chunks.empty()):
            with suppress(queue.Empty):
                yield self._chunks.get(timeout=_POLL_SECONDS)
