"""Operations as lists of steps that show what they do and can be undone, also when the process is told to end."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from imbue.mngr_vps_docker.errors import describe_error
from imbue.mngr_vps_docker.ssh.command_log import operation
from imbue.mngr_vps_docker.text import logger

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Step[State]:
    """One part of an operation.

    ``title`` is what the user sees while it runs. ``undo`` must work when ``do`` got nowhere, half-way or to its end.
    """

    title: str
    do: Callable[[State], None]
    undo: Callable[[State], None] | None = None


def run_steps[State](
    steps: Sequence[Step[State]], state: State, *, on_failure: Callable[[str, BaseException], bool]
) -> None:
    """Run ``steps`` in order, each with its time shown.

    When one fails, or the user interrupts it, ``on_failure(title, error)`` says whether to take everything back: then
    each step so far is undone, last first, and the error is raised again. What an undo could not do is logged as an
    error and added to the raised error as notes.
    """
    begun: list[Step[State]] = []
    # All of it is inside: Ctrl-C may come between two steps, or while one is announced.
    try:
        for step in steps:
            begun.append(step)
            logger.info("{} ...", step.title)
            started = time.monotonic()
            with operation(step.title):
                step.do(state)
            logger.info("  {:.1f} s", time.monotonic() - started)
    except BaseException as error:
        if begun and on_failure(begun[-1].title, error):
            for problem in undo_steps(begun, state):
                error.add_note(problem)
        raise


def undo_steps[State](steps: Sequence[Step[State]], state: State) -> tuple[str, ...]:
    """Undo ``steps``, last first, every one of them whatever they raise, and return what went wrong, a line each.

    Only an interruption (Ctrl-C once more) ends it before the first step is reached.
    """
    problems: list[str] = []
    for step in reversed(steps):
        if step.undo is None:
            continue
        try:
            step.undo(state)
        # A provider package's client may raise anything; one that fails must not keep the others from being undone.
        except Exception as error:  # noqa: BLE001
            problems.append(f"Could not take back '{step.title}': {describe_error(error)}")
            logger.error("{}", problems[-1])
    return tuple(problems)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit (128 + signal), as Ctrl-C is KeyboardInterrupt already.

    The first one only: those that follow do not disturb the cleaning up. Python handles signals in the main thread
    alone, so elsewhere this does nothing; and a signal that is ignored already (nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {
        number: handler for number in _ENDING_SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for ending in replaced:
            signal.signal(ending, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in replaced:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
