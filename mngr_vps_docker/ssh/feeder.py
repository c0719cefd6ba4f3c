"""Writing a program's standard input beside everything else: whoever makes an input may take his time over it."""

import os
import select
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextvars import copy_context
from typing import IO, Final

_POLL_SECONDS: Final = 0.1
# An input that never waits has noticed by then that nobody wants it any more.
_FAREWELL_SECONDS: Final = 2 * _POLL_SECONDS


class StdinWriter:
    """Writes ``chunks`` to ``pipe`` from a thread of its own, and closes it after the last.

    ``fileno()`` becomes readable when it has ended; a program that ends without having read all of it is no error.
    """

    def __init__(self, chunks: Iterable[bytes], pipe: IO[bytes]) -> None:
        self.flowed_at = time.monotonic()
        """When something was written last, on the monotonic clock."""
        self._chunks = chunks
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._is_unwanted = threading.Event()
        self._end: Future[None] = Future()
        self._ended, self._ending = os.pipe()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="stdin", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """What a selector waits for."""
        return self._ended

    def check(self) -> None:
        """Once it has ended: raise what the input raised, if that is why."""
        self._end.result()

    def stop(self) -> None:
        """Write no more, and close the pipe: the program has ended.

        An input that is just being waited for is left to its thread, which ends when it comes.
        """
        self._is_unwanted.set()
        self._thread.join(_FAREWELL_SECONDS)
        if not self._thread.is_alive():
            self._pipe.close()
        os.close(self._ended)

    def _run(self) -> None:
        try:
            self._feed()
        except BaseException as error:  # noqa: BLE001 - it is raised by check, in the thread that waits for it
            # The pipe stays open meanwhile: to the program, its end would be that of the input.
            self._end.set_exception(error)
        else:
            self._end.set_result(None)
            self._pipe.close()
        finally:
            if self._is_unwanted.is_set():
                self._pipe.close()
            os.close(self._ending)

    def _feed(self) -> None:
        for chunk in self._chunks:
            if self._is_unwanted.is_set() or not self._write(memoryview(chunk)):
                return

    def _write(self, pending: memoryview) -> bool:
        """Write all of it; False if nobody reads it any more."""
        room = select.poll()
        room.register(self._pipe, select.POLLOUT)
        while pending and not self._is_unwanted.is_set():
            if room.poll(_POLL_SECONDS * 1000):
                try:
                    pending = pending[os.write(self._pipe.fileno(), pending) :]
                except BrokenPipeError:
                    return False
                self.flowed_at = time.monotonic()
        return True
