"""Running one program on this machine: the one place where this package starts ssh, and the seam for tests."""

import math
import os
import selectors
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import auto
from typing import IO
from typing import Final
from typing import Protocol

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.mngr.errors import BinaryNotInstalledError
from imbue.mngr_vps_docker.ssh.standard_input import StandardInput
from imbue.mngr_vps_docker.ssh.standard_input import chunks_of

# Called with each piece of output as it comes, and whether it is of stdout (else stderr).
type OnChunk = Callable[[bytes, bool], None]

_READ_BYTES: Final = 1 << 16
# What ssh says of itself is little; what a machine sends before it lets us in is as much as it likes.
_COLLECTED_BYTES: Final = 1 << 20
# How long a program that was told to end gets before it is killed.
_TERMINATION_SECONDS: Final = 2.0


class Stop(UpperCaseStrEnum):
    """Why we ended a program that had not ended by itself."""

    DEADLINE = auto()
    IDLE = auto()
    STALLED = auto()
    UNANSWERED = auto()


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """How a program ended: by itself with ``exit_code``, or by us for the reason ``stop``."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class StallCheck:
    """What to do while a program has said nothing at all: every ``every_seconds``, ``is_alive`` decides."""

    every_seconds: float
    is_alive: Callable[[], bool]


class ProcessRunner(Protocol):
    """Runs one program to its end; what tests replace."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float,
        stdin: StandardInput = None,
        on_chunk: OnChunk | None = None,
        stall_check: StallCheck | None = None,
        idle_timeout_seconds: float | None = None,
    ) -> ProcessResult:
        """Run ``argv`` with ``stdin`` (nothing, if None) and return how it ended.

        The first mebibyte of each stream is collected, or all is handed to ``on_chunk`` instead. The deadline is
        wall-clock time and holds while output flows; ``idle_timeout_seconds`` is how long nothing at all may flow, in
        either direction. If anything is raised meanwhile (Ctrl-C, or by ``on_chunk``), the program is ended first.
        Raises BinaryNotInstalledError if there is no such program.
        """
        ...


def run_process(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    stdin: StandardInput = None,
    on_chunk: OnChunk | None = None,
    stall_check: StallCheck | None = None,
    idle_timeout_seconds: float | None = None,
) -> ProcessResult:
    """The real ProcessRunner."""
    deadline = time.monotonic() + timeout_seconds
    stop: Stop | None
    process = _start(argv, has_stdin=stdin is not None)
    collected: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}

    def collect(chunk: bytes, is_stdout: bool) -> None:
        collected[is_stdout] += chunk[: _COLLECTED_BYTES - len(collected[is_stdout])]

    try:
        with selectors.DefaultSelector() as selector:
            stop = _exchange(
                process,
                selector,
                iter(chunks_of(stdin)),
                on_chunk or collect,
                deadline,
                stall_check,
                idle_timeout_seconds,
            )
        exit_code = None if stop is not None else process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        stop, exit_code = Stop.DEADLINE, None
    finally:
        _end(process)
    return ProcessResult(exit_code=exit_code, stdout=bytes(collected[True]), stderr=bytes(collected[False]), stop=stop)


def _start(argv: Sequence[str], *, has_stdin: bool) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            # ssh eats whatever stdin it is given: never this process's own.
            stdin=subprocess.PIPE if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C in the terminal must reach us alone, which then end the program in order.
            process_group=0,
        )
    except FileNotFoundError as error:
        raise BinaryNotInstalledError(argv[0], "reaching a VPS", "Install OpenSSH's client.") from error


def _exchange(
    process: subprocess.Popen[bytes],
    selector: selectors.BaseSelector,
    chunks: Iterator[bytes],
    on_chunk: OnChunk,
    deadline: float,
    stall_check: StallCheck | None,
    idle_timeout_seconds: float | None,
) -> Stop | None:
    """Pass data both ways until the program has closed its output; say why, if it was given up before."""
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            selector.register(stream, selectors.EVENT_READ)
    pending = memoryview(b"")
    if process.stdin is not None:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
    stall_at = math.inf if stall_check is None else time.monotonic() + stall_check.every_seconds
    idle_seconds = math.inf if idle_timeout_seconds is None else idle_timeout_seconds
    idle_at = time.monotonic() + idle_seconds
    while any(key.events & selectors.EVENT_READ for key in selector.get_map().values()):
        now = time.monotonic()
        if now >= deadline:
            return Stop.DEADLINE
        if now >= idle_at:
            return Stop.IDLE
        if stall_check is not None and now >= stall_at:
            if not stall_check.is_alive():
                return Stop.STALLED
            stall_at = time.monotonic() + stall_check.every_seconds
        ready = selector.select(min(deadline, idle_at, stall_at) - now)
        if ready:
            idle_at = time.monotonic() + idle_seconds
        for key, events in ready:
            if events & selectors.EVENT_WRITE:
                pending = _write_some(process, selector, chunks, pending)
                continue
            chunk = os.read(key.fd, _READ_BYTES)
            if not chunk:
                selector.unregister(key.fileobj)
                continue
            stall_at = math.inf
            on_chunk(chunk, key.fileobj is process.stdout)
    return None


def _write_some(
    process: subprocess.Popen[bytes], selector: selectors.BaseSelector, chunks: Iterator[bytes], pending: memoryview
) -> memoryview:
    """Write what the pipe takes, and return what is left of the current chunk; close stdin after the last."""
    stdin = process.stdin
    assert stdin is not None
    try:
        while not pending:
            pending = memoryview(next(chunks))
        return pending[os.write(stdin.fileno(), pending) :]
    except (StopIteration, BrokenPipeError):
        # The program may end without having read all of it; how it ended says what that means.
        selector.unregister(stdin)
        stdin.close()
        return memoryview(b"")
    except BlockingIOError:
        return pending


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the program has ended, and close our ends of its pipes without waiting for anybody else's."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_TERMINATION_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        _close(stream)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()
