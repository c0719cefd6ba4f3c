"""Letting an operation clean up after itself when its process is told to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


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
