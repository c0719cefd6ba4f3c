"""Streaming from one machine to another through this one, which holds next to none of it."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Final

from imbue.mngr_vps_docker.ssh.chunk_queue import AbandonedError, ChunkQueue
from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome

_MAX_CHUNKS: Final = 64


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

    What the source has not finished is never taken for whole: if it fails, the sink is ended. Raises what went wrong
    on either side; the source's error first, as the sink's is mostly its consequence.
    """
    queue = ChunkQueue(_MAX_CHUNKS)

    def take(chunk: bytes, stream: Stream) -> None:
        if stream is Stream.STDOUT:
            queue.put(chunk)

    def read_source() -> CommandOutcome | None:
        outcome = None
        try:
            outcome = source.stream_bytes(
                f"exec </dev/null\n{source_command}",
                take,
                purpose=purpose,
                timeout_seconds=timeout_seconds,
                # A source that has nothing to say yet is ended all the same when there is no sink any more.
                stdin=queue.until_abandoned(),
            )
            return outcome
        except AbandonedError:
            # The sink has ended before its time; its outcome says why.
            return None
        finally:
            if outcome is not None and outcome.is_success:
                queue.finish()
            else:
                queue.abandon()

    sunk = None
    with ThreadPoolExecutor(1, thread_name_prefix="pipe-source") as pool:
        reading = pool.submit(copy_context().run, read_source)
        try:
            sunk = sink.run(sink_command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=queue.arriving())
        except AbandonedError:
            # The source has failed, and its outcome says why.
            pass
        finally:
            queue.abandon()
    for outcome in (reading.result(), sunk):
        if outcome is not None:
            outcome.checked()
