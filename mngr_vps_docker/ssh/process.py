"""Running one program on this machine: the one place where this package starts ssh, and the seam for tests."""

import math
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import auto
from typing import IO, Final, Protocol

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.mngr.errors import BinaryNotInstalledError
from imbue.mngr_vps_docker.ssh.feeder import StdinWriter
from imbue.mngr_vps_docker.ssh.standard_input import StandardInput, chunks_of

# Called with each piece of output as it comes, and whether it is of stdout (else stderr).
type OnChunk = Callable[[bytes, bool], None]

_READ_BYTES: Final = 1 << 16
# What ssh says of itself is little; what a machine sends before it lets us in is as much as it likes.
_COLLECTED_BYTES: Final = 1 << 20
# selectors can wait for some weeks at most; whoever waits longer looks again.
_LONGEST_WAIT_SECONDS: Final = 3600.0
# How long a program may keep its streams open that has said all that is wanted.
_DRAIN_SECONDS: Final = 1.0
# How long a program that was told to end gets before it is killed.
_TERMINATION_SECONDS: Final = 2.0


class StopReason(UpperCaseStrEnum):
    """Why we ended a program that had not ended by itself."""

    DEADLINE = auto()
    IDLE = auto()
    STALLED = auto()
    UNANSWERED = auto()
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
    """What is to be seen to while a program runs.

    Whenever it has said nothing for ``every_seconds``, ``is_alive`` decides whether to go on. Once it ``is_complete``,
    it has said all that is wanted: what holds its streams open is waited for for a moment only. ``give_up`` is called
    before it is ended because of what is raised or, with the reason, because it has not ended by itself.
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

        The first mebibyte of each stream is collected, or all is handed to ``on_chunk`` instead. The deadline is
        wall-clock time and holds while output flows; ``idle_timeout_seconds`` is how long nothing at all may flow, in
        either direction. If anything is raised meanwhile (Ctrl-C, or by ``on_chunk`` or ``stdin``), the program is
        ended first. Raises BinaryNotInstalledError if there is no such program.
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
    stop: StopReason | None = None
    exit_code: int | None = None
    process = _start(argv, has_stdin=stdin is not None)
    feeder: StdinWriter | None = None
    collected: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}

    def collect(chunk: bytes, is_stdout: bool) -> None:
        collected[is_stdout] += chunk[: _COLLECTED_BYTES - len(collected[is_stdout])]

    try:
        if process.stdin is not None:
            feeder, process.stdin = StdinWriter(chunks_of(stdin), process.stdin), None
        stop = _exchange(process, feeder, on_chunk or collect, deadline, watch, idle_timeout_seconds)
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
            if feeder is not None:
                feeder.stop()
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
    feeder: StdinWriter | None,
    on_chunk: OnChunk,
    deadline: float,
    watch: Liveness | None,
    idle_timeout_seconds: float | None,
) -> StopReason | None:
    """Pass output on until the program has closed both its streams; say why, if it was given up before."""
    idle_seconds = math.inf if idle_timeout_seconds is None else idle_timeout_seconds
    stall_seconds = math.inf if watch is None else watch.every_seconds
    heard_at = checked_at = time.monotonic()
    drained_at = math.inf
    open_streams = 2
    with selectors.DefaultSelector() as selector:
        for source in (process.stdout, process.stderr, feeder):
            if source is not None:
                selector.register(source, selectors.EVENT_READ)
        while open_streams:
            flowed_at = heard_at if feeder is None else max(heard_at, feeder.flowed_at)
            next_at = min(deadline, drained_at, flowed_at + idle_seconds, max(heard_at, checked_at) + stall_seconds)
            ready = selector.select(min(max(0.0, next_at - time.monotonic()), _LONGEST_WAIT_SECONDS))
            for key, _ in ready:
                chunk = b"" if key.fileobj is feeder else os.read(key.fd, _READ_BYTES)
                if chunk:
                    on_chunk(chunk, key.fileobj is process.stdout)
                    heard_at = time.monotonic()
                    continue
                selector.unregister(key.fileobj)
                if key.fileobj is feeder:
                    feeder.check()
                else:
                    open_streams -= 1
            now = time.monotonic()
            if watch is not None and math.isinf(drained_at) and watch.is_complete():
                drained_at = now + _DRAIN_SECONDS
            if open_streams and now >= deadline:
                return StopReason.DEADLINE
            if open_streams and now >= drained_at:
                return StopReason.COMPLETE
            # What is there is taken before anybody is judged by it.
            if ready or now < next_at:
                continue
            if feeder is not None and feeder.flowed_at > flowed_at:
                continue
            if now >= flowed_at + idle_seconds:
                return StopReason.IDLE
            if watch is not None and not watch.is_alive():
                return StopReason.STALLED
            checked_at = time.monotonic()
    return None


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
