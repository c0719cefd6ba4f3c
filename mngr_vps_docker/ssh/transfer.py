"""Streams that are too large to hold: from one machine to another, and from here over several sessions at once."""

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from itertools import chain, cycle
from typing import Final

from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.file_scripts import CUT_OFF
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.ssh.shell import quote

_POLL_SECONDS: Final = 0.1
_PIPED_CHUNKS: Final = 64
# Below sshd's own limit and ours, with room for other commands.
_SESSIONS: Final = 5
_BLOCK_BYTES: Final = 1 << 20
_QUEUED_BLOCKS: Final = 4
# How long a command may take to end by itself, and to say why, once one of its sessions has ended.
_LAST_WORDS_SECONDS: Final = 2.0


class AbandonedError(Exception):
    """The other end of a stream failed or is gone; its own error says why."""


class ChunkQueue:
    """Hands a stream from one thread to another, at most ``max_chunks`` ahead; each end notices if the other fails."""

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
        """Say that the stream will not come to its end, or is no longer read."""
        self._is_abandoned.set()

    def arriving(self) -> Iterator[bytes]:
        """The chunks in order, until the stream is finished; raises AbandonedError."""
        while not self._is_abandoned.is_set():
            # Read first: what was put before the end is there when the end is seen.
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
        """No chunk at all: raises AbandonedError as soon as either end abandons the stream."""
        self._is_abandoned.wait()
        raise AbandonedError
        yield b""


def pipe(
    source: SshConnection,
    source_command: str,
    sink: SshConnection,
    sink_command: str,
    *,
    purpose: str,
    timeout_seconds: float,
) -> None:
    """Feed what a command prints on one machine to a command on another, through this one.

    If the source fails, the sink is ended before it sees an end of its input. Raises what went wrong on either side;
    the source's error first, since it is mostly the cause of the sink's.
    """
    chunks = ChunkQueue(_PIPED_CHUNKS)

    def take(chunk: bytes, stream: Stream) -> None:
        if stream is Stream.STDOUT:
            chunks.put(chunk)

    def read_source() -> CommandOutcome | None:
        outcome = None
        try:
            outcome = source.stream_bytes(
                f"exec </dev/null\n{source_command}",
                take,
                purpose=purpose,
                timeout_seconds=timeout_seconds,
                # Ends a source that is still silent when the sink has ended.
                stdin=chunks.until_abandoned(),
            )
            return outcome
        except AbandonedError:
            # The sink has ended early; its outcome says why.
            return None
        finally:
            if outcome is not None and outcome.is_success:
                chunks.finish()
            else:
                chunks.abandon()

    sunk = None
    with ThreadPoolExecutor(1, thread_name_prefix="pipe-source") as pool:
        reading = pool.submit(copy_context().run, read_source)
        try:
            sunk = sink.run(sink_command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=chunks.arriving())
        except AbandonedError:
            # The source has failed; its outcome says why.
            pass
        finally:
            chunks.abandon()
    for outcome in (reading.result(), sunk):
        if outcome is not None:
            outcome.checked()


def upload(
    connection: SshConnection,
    command: str,
    chunks: Iterable[bytes],
    *,
    fifos: str,
    purpose: str,
    timeout_seconds: float,
) -> CommandOutcome:
    """Run shell text ``command`` with ``chunks`` as its stdin, over several sessions of one login; return its outcome.

    One session has at most 2 MiB on the way (OpenSSH's channel window): over 100 ms it moves 16 MB/s however fast the
    network is. So the stream is cut into blocks that take turns over the sessions, and a FIFO for each session but the
    first brings them together again on the machine. ``fifos`` is the path of a new folder there for them, which the
    caller removes.

    The command must read all of its stdin. It sees an early end where something fails: what it did counts only if the
    outcome is a success. What ``chunks`` raises ends the command, and is raised.
    """
    blocks = _blocks(chunks)
    first, second = next(blocks, b""), next(blocks, None)
    if second is None:
        return connection.run(command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=first)
    queues = [ChunkQueue(_QUEUED_BLOCKS) for _ in range(_SESSIONS)]
    scripts = [_merging(fifos, command), *(_feeding(fifos, number) for number in range(1, _SESSIONS))]
    running: list[Future[CommandOutcome | None]] = []

    def run(number: int) -> CommandOutcome | None:
        outcome = None
        try:
            stdin = queues[number].arriving()
            outcome = connection.run(scripts[number], purpose=purpose, timeout_seconds=timeout_seconds, stdin=stdin)
        except AbandonedError:
            # Another session, or what is to be sent, has failed: this one was ended because of that.
            pass
        finally:
            if outcome is None or not outcome.is_success:
                for other in queues[1:]:
                    other.abandon()
                # The other sessions fail when the command does, which may be about to say why.
                wait(running[:1] if number else (), _LAST_WORDS_SECONDS)
                queues[0].abandon()
        return outcome

    with ThreadPoolExecutor(_SESSIONS, thread_name_prefix="upload") as pool:
        for number in range(_SESSIONS):
            running.append(pool.submit(copy_context().run, run, number))
        try:
            turns = cycle(queues)
            for block, turn in zip(chain((first, second), blocks), turns, strict=False):
                turn.put(b"%d\n" % len(block))
                turn.put(block)
            next(turns).put(b"0\n")
            for stripe in queues:
                stripe.finish()
        except AbandonedError:
            # A session has ended early; its outcome says why.
            pass
        except BaseException:
            for stripe in queues:
                stripe.abandon()
            raise
    outcomes = [outcome for outcome in (future.result() for future in running) if outcome is not None]
    # A session that broke is the cause of what the others say; else the command, which is the first, says it.
    return min(outcomes, key=lambda outcome: (outcome.is_success, outcome.status is OutcomeStatus.COMPLETED))


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ``_BLOCK_BYTES`` bytes, the last one shorter."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        while len(gathered) >= _BLOCK_BYTES:
            yield bytes(gathered[:_BLOCK_BYTES])
            del gathered[:_BLOCK_BYTES]
    if gathered:
        yield bytes(gathered)


def _meet(fifos: str, number: int) -> str:
    """Shell text that makes the FIFO of a session, unless the other end has made it."""
    return f"mkdir -p -m 700 {fifos} && {{ mkfifo {fifos}/{number} 2>/dev/null || [ -p {fifos}/{number} ]; }}"


def _feeding(fifos: str, number: int) -> str:
    return f"{_meet(fifos, number)} && cat >{fifos}/{number}"


def _merging(fifos: str, command: str) -> str:
    """Shell text that runs ``command`` with the blocks of all sessions, in order, as its stdin.

    Each block comes after a line with its size in bytes; a size of 0 ends the stream.
    """
    others = range(1, _SESSIONS)
    meet = " && ".join(_meet(fifos, number) for number in others)
    # Descriptors 1 and 2 are taken.
    opened = " ".join(f"{number + 2}<{fifos}/{number}" for number in others)
    descriptors = " ".join(str(number + 2) for number in others)
    return f"""\
merge() {{
  {meet} && exec {opened} || return
  while :; do for n in 0 {descriptors}; do
    read -r size <&$n || return
    [ "$size" != 0 ] || return 0
    head -c "$size" <&$n || return
  done; done
}}
{{ merge && : >{fifos}/whole; }} | sh -c {quote(command)} || exit
[ -e {fifos}/whole ] || exit {CUT_OFF}
"""
