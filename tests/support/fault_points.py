"""Every point at which an operation can be cut short: before and after each call of the cloud, and each ssh.

A point is named by the step of the operation and the call, as in "Ordering the VPS: after create_instance". One run of
an operation records the points that it meets; further runs each have one fault at one of them.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from enum import auto
from typing import Final

from pydantic import ConfigDict, Field

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.mngr_vps_docker.ssh.command_log import current_operation
from imbue.mngr_vps_docker.ssh.process import Liveness, OnChunk, ProcessResult, ProcessRunner, StandardInput
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient

# What is asked again and again while something is waited for; only the first time is a point.
_POLLED: Final = frozenset({"get_instance_status", "login"})


class FaultKind(UpperCaseStrEnum):
    """What happens at a point."""

    KILL = auto()
    INTERRUPT = auto()
    ERROR = auto()


class FaultError(OSError):
    """What goes wrong at a point, by no fault of the cloud or the machines."""


class FaultPoints:
    """The points that one process meets, and the fault at one of them.

    Strict: a process that ends without having met its point must not count as one that survived the fault, which
    ``is_met`` tells.
    """

    def __init__(self, point: str | None = None, kind: FaultKind = FaultKind.ERROR) -> None:
        self._point = point
        self._kind = kind
        self._counts: Counter[str] = Counter()
        self._met: list[str] = []
        self._lock = threading.Lock()

    @property
    def met(self) -> tuple[str, ...]:
        """The points so far, in order."""
        return tuple(self._met)

    @property
    def is_met(self) -> bool:
        """Whether the point of the fault was met."""
        return self._point in self._met

    def around[Answer](self, call: str, act: Callable[[], Answer]) -> Answer:
        """Do something between two points."""
        place = self._place(call)
        if place is None:
            return act()
        step, call = place
        self._meet(f"{step}: before {call}")
        answer = act()
        self._meet(f"{step}: after {call}")
        return answer

    def _place(self, call: str) -> tuple[str, str] | None:
        """The step that is under way and the name of the call in it; None for one that is not a point."""
        _, _, step = current_operation().title.rpartition(" > ")
        with self._lock:
            self._counts[f"{step}: {call}"] += 1
            number = self._counts[f"{step}: {call}"]
        if number == 1:
            return step, call
        return None if call in _POLLED else (step, f"{call} {number}")

    def _meet(self, point: str) -> None:
        with self._lock:
            self._met.append(point)
        if point != self._point:
            return
        match self._kind:
            case FaultKind.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultKind.INTERRUPT:
                # As from a terminal: to the process, whichever thread is at the point.
                os.kill(os.getpid(), signal.SIGINT)
            case FaultKind.ERROR:
                raise FaultError(f"a fault at '{point}'")


class FaultPointClient(FaultyClient):
    """A client with a point before and after each of its calls."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    points: FaultPoints = Field(description="Where the calls are counted")

    def _call[Answer](self, name: str, act: Callable[[], Answer]) -> Answer:
        return self.points.around(name, lambda: FaultyClient._call(self, name, act))


class FaultPointRunner:
    """A ProcessRunner with a point before and after each login and each remote command.

    Requests to the shared connection itself (-O), and to the ssh program (-V), reach no machine and do not count.
    """

    def __init__(self, real: ProcessRunner, points: FaultPoints) -> None:
        self._real = real
        self._points = points

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
        """Run it as ``real`` does."""

        def run() -> ProcessResult:
            return self._real(
                argv,
                timeout_seconds=timeout_seconds,
                stdin=stdin,
                on_chunk=on_chunk,
                watch=watch,
                idle_timeout_seconds=idle_timeout_seconds,
            )

        if "-O" in argv or "-V" in argv:
            return run()
        return self._points.around("login" if "-M" in argv else "command", run)
