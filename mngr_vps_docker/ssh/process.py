"""Running one program on this machine: the one place where this package starts ssh, and the seam for tests."""

import math
import os
import select
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final, Protocol

from imbue.mngr.errors import BinaryNotInstalledError

# A file's path stands for its content. None is an empty input, which never waits.
type StandardInput = bytes | Path | Iterable[bytes] | None

_CHUNK_BYTES: Final = 1 << 16
# The first part of each stream, where the caller takes no chunks: what ssh itself says is short.
_COLLECTED_BYTES: Final = 1 << 20
# select(2) waits for some weeks at most.
_LONGEST_WAIT_SECONDS: Final = 3600.0
# Grace period for a finished program to close its streams.
_DRAIN_SECONDS: Final = 1.0
# From TERM to KILL.
_TERMINATION_SECONDS: Final = 2.0
# How often a writer that waits for room in the pipe checks whether it is still needed.
_WRITER_POLL_SECONDS: Final = 0.1


class Stream(Enum):
    """Which of a program's two outputs."""

    STDOUT = auto()
    STDERR = auto()


type OnChunk = Callable[[bytes, Stream], None]


class StopReason(Enum):
    """Why a program was ended before it ended by itself."""

    DEADLINE = auto()
    IDLE = auto()
    STALLED = auto()
    COMPLETE = auto()


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a program ended: by itself with ``exit_code``, or by us for the reason ``stop``."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    stop: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Liveness:
    """Checks on a program while it runs.

    After each ``every_seconds`` without output, ``is_alive`` decides whether to keep waiting. Once ``is_complete``,
    the program gets a moment to close its streams. ``give_up`` is called before the program is ended: with the reason,
    or with None because of an exception.
    """

    every_seconds: float
    is_alive: Callable[[], bool]
    is_complete: Callable[[], bool]
    give_up: Callable[[StopReason | None], None]


class ProcessRunner(Protocol):
    """Runs one program to its end; what tests replace."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        stdin: StandardInput = None,
        on_chunk: OnChunk | None = None,
        watch: Liveness | None = None,
        idle_timeout_seconds: float | None = None,
    ) -> ProcessResult:
        """Run ``argv`` with ``stdin`` (nothing, if None) and return how it ended.

        The first mebibyte of each stream is collected, unless ``on_chunk`` takes all of it. The deadline is wall-clock
        time and holds while output flows; ``idle_timeout_seconds`` is how long nothing at all may flow, in either
        direction. If anything is raised (Ctrl-C, or by ``on_chunk`` or ``stdin``), the program is ended first. Raises
        BinaryNotInstalledError if there is no such program.
        """
        ...


def run_process(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    stdin: StandardInput = None,
    on_chunk: OnChunk | None = None,
    watch: Liveness | None = None,
    idle_timeout_seconds: float | None = None,
) -> ProcessResult:
    """The real ProcessRunner."""
    deadline = time.monotonic() + timeout_seconds
    collected = {stream: bytearray() for stream in Stream}

    def collect(chunk: bytes, stream: Stream) -> None:
        collected[stream] += chunk[: _COLLECTED_BYTES - len(collected[stream])]

    try:
        process = subprocess.Popen(
            argv,
            # ssh reads whatever stdin it is given: never this process's own.
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C in the terminal must reach us alone; we then end the program in order.
            process_group=0,
        )
    except FileNotFoundError as error:
        raise BinaryNotInstalledError(argv[0], "reaching a VPS", "Install OpenSSH's client.") from error
    stop: StopReason | None = None
    exit_code: int | None = None
    writer: StdinWriter | None = None
    try:
        if process.stdin is not None:
            writer, process.stdin = StdinWriter(chunks_of(stdin), process.stdin), None
        stop = _exchange(process, writer, on_chunk or collect, deadline, watch, idle_timeout_seconds)
        if stop is None:
            exit_code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        stop = StopReason.DEADLINE
    finally:
        try:
            if exit_code is None and watch is not None:
                watch.give_up(stop)
        finally:
            _end(process)
            if writer is not None:
                writer.stop()
    return ProcessResult(exit_code, bytes(collected[Stream.STDOUT]), bytes(collected[Stream.STDERR]), stop)


def _exchange(
    process: subprocess.Popen[bytes],
    writer: "StdinWriter | None",
    on_chunk: OnChunk,
    deadline: float,
    watch: Liveness | None,
    idle_timeout_seconds: float | None,
) -> StopReason | None:
    """Pass output on until the program has closed both its streams; return why, if it is to be ended before."""
    idle_seconds = math.inf if idle_timeout_seconds is None else idle_timeout_seconds
    stall_seconds = math.inf if watch is None else watch.every_seconds
    heard_at = checked_at = time.monotonic()
    drained_at = math.inf
    open_streams = 2
    with selectors.DefaultSelector() as selector:
        for source in (process.stdout, process.stderr, writer):
            if source is not None:
                selector.register(source, selectors.EVENT_READ)
        while open_streams:
            flowed_at = heard_at if writer is None else max(heard_at, writer.flowed_at)
            next_at = min(deadline, drained_at, flowed_at + idle_seconds, max(heard_at, checked_at) + stall_seconds)
            ready = selector.select(min(max(0.0, next_at - time.monotonic()), _LONGEST_WAIT_SECONDS))
            for key, _ in ready:
                chunk = b"" if key.fileobj is writer else os.read(key.fd, _CHUNK_BYTES)
                if chunk:
                    on_chunk(chunk, Stream.STDOUT if key.fileobj is process.stdout else Stream.STDERR)
                    heard_at = time.monotonic()
                    continue
                selector.unregister(key.fileobj)
                if key.fileobj is writer:
                    writer.check()
                else:
                    open_streams -= 1
            now = time.monotonic()
            if watch is not None and math.isinf(drained_at) and watch.is_complete():
                drained_at = now + _DRAIN_SECONDS
            if open_streams and now >= deadline:
                return StopReason.DEADLINE
            if open_streams and now >= drained_at:
                return StopReason.COMPLETE
            # Read what has arrived before judging the silence.
            if ready or now < next_at or (writer is not None and writer.flowed_at > flowed_at):
                continue
            if now >= flowed_at + idle_seconds:
                return StopReason.IDLE
            if watch is not None and not watch.is_alive():
                return StopReason.STALLED
            checked_at = time.monotonic()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the program has ended, and close our ends of its pipes, which others may still hold open."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


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


@dataclass(frozen=True, slots=True)
class PrecededInput:
    """Some bytes, and an input after them."""

    first: bytes
    rest: StandardInput

    def __iter__(self) -> Iterator[bytes]:
        yield self.first
        yield from chunks_of(self.rest)


def is_repeatable(stdin: StandardInput) -> bool:
    """Whether it can be sent a second time; what comes piece by piece cannot."""
    if isinstance(stdin, PrecededInput):
        return is_repeatable(stdin.rest)
    return stdin is None or isinstance(stdin, bytes | Path)


class StdinGate:
    """Holds an input back until it is opened: until then, nothing is taken of an input that can be taken only once."""

    def __init__(self) -> None:
        self._decisions: SimpleQueue[bool] = SimpleQueue()

    def open(self) -> None:
        """Let the input through."""
        self._decisions.put(True)

    def close(self) -> None:
        """Let nothing through, unless the gate was opened before."""
        self._decisions.put(False)

    def behind(self, stdin: Iterable[bytes]) -> Iterator[bytes]:
        """The input once the gate is open; nothing if it is closed."""
        if self._decisions.get():
            yield from stdin


class StdinWriter:
    """Writes ``chunks`` to ``pipe`` and closes it at the end, in a thread of its own, since chunks may be slow.

    ``fileno()`` becomes readable when it has ended; a program that ends without having read all of it is no error.
    """

    def __init__(self, chunks: Iterable[bytes], pipe: IO[bytes]) -> None:
        self.flowed_at = time.monotonic()
        """When something was last written, on the monotonic clock."""
        self._chunks = chunks
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._is_stopped = threading.Event()
        self._result: Future[None] = Future()
        self._end_reader, self._end_writer = os.pipe()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="stdin", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """What a selector waits for."""
        return self._end_reader

    def check(self) -> None:
        """Once it has ended: raise what the input raised, if anything."""
        self._result.result()

    def stop(self) -> None:
        """Write no more, and close the pipe: the program has ended.

        An input that waits is left to its thread, which ends when the input's next chunk comes.
        """
        self._is_stopped.set()
        # An input that does not wait notices by then.
        self._thread.join(2 * _WRITER_POLL_SECONDS)
        if not self._thread.is_alive():
            self._pipe.close()
        os.close(self._end_reader)

    def _run(self) -> None:
        try:
            for chunk in self._chunks:
                if self._is_stopped.is_set() or not self._write(memoryview(chunk)):
                    break
        except BaseException as error:  # noqa: BLE001 - it is raised by check, in the thread that waits for it
            # The pipe stays open: to the program, its end would be that of the input.
            self._result.set_exception(error)
        else:
            self._result.set_result(None)
            self._pipe.close()
        finally:
            if self._is_stopped.is_set():
                self._pipe.close()
            os.close(self._end_writer)

    def _write(self, pending: memoryview) -> bool:
        """Write all of it; return False once the program no longer reads."""
        room = select.poll()
        room.register(self._pipe, select.POLLOUT)
        while pending and not self._is_stopped.is_set():
            if room.poll(_WRITER_POLL_SECONDS * 1000):
                try:
                    pending = pending[os.write(self._pipe.fileno(), pending) :]
                except BrokenPipeError:
                    return False
                self.flowed_at = time.monotonic()
        return True
