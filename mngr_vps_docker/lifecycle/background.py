"""A part of an operation that goes on in a thread of its own while the operation goes on, too."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from imbue.mngr_vps_docker.ssh.command_log import operation


class NeverReachedError(Exception):
    """What was waited for will not happen, because the operation has failed."""


class Milestone:
    """Something that the operation will come to, or not."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._is_reached = False

    def reach(self) -> None:
        """Let those go on who wait for it."""
        self._is_reached = True
        self._is_over.set()

    def abandon(self) -> None:
        """Let those end who wait for it, unless it was reached."""
        self._is_over.set()

    def wait(self) -> None:
        """Return when it is reached; raises NeverReachedError if it never will be."""
        self._is_over.wait()
        if not self._is_reached:
            raise NeverReachedError


class BackgroundWork[Answer]:
    """Work beside the operation, once it is started.

    Its remote commands count as part of the step ``title``, and not of the one in which it is started.
    """

    def __init__(self, title: str, work: Callable[[], Answer]) -> None:
        self._title = title
        self._work = work
        self._future: Future[Answer] | None = None

    def start(self) -> None:
        """Begin."""

        def run() -> Answer:
            with operation(self._title):
                return self._work()

        pool = ThreadPoolExecutor(1, thread_name_prefix=self._title)
        self._future = pool.submit(run)
        pool.shutdown(wait=False)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self._future is not None and self._future.done()

    def result(self) -> Answer:
        """Wait for its end and return what it made; raises what it raised. It must have been started."""
        if self._future is None:
            raise RuntimeError(f"{self._title} was not started")
        return self._future.result()

    def wait_until_over(self) -> None:
        """Wait for its end, whatever that is, if it was seen to start."""
        if self._future is not None:
            self._future.exception()
