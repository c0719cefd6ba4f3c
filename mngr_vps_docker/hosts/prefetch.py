"""Asking VPSes in the background: those that are logged in to while the cloud is asked, and those that may be silent.

Most hosts are where this machine saw them last. Only a VPS whose shared login is open is asked ahead, so that one that
is silent is not waited for before the cloud has said that it is there.

All of it runs in daemon threads: a process that needs no answer ends without them, and so does what they have running
on a VPS, which ends with the process that asked.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import BoundedSemaphore, Thread

from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.vps_reader import (
    MAX_PARALLEL_READINGS,
    ask,
    can_be_asked,
    is_logged_in,
    listing_patience,
    with_no_answer,
)
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord

# How often it is looked whether work that waits for a free slot has begun.
_POLL_SECONDS = 0.2


@dataclass(slots=True)
class BackgroundTask[T]:
    """Work in a daemon thread, begun when there is a slot for it."""

    work: Callable[[], T]
    future: Future[T] = field(default_factory=Future)
    began_at: float | None = None
    """When it began, by the monotonic clock, in seconds."""

    def start(self, slots: BoundedSemaphore) -> "BackgroundTask[T]":
        """Start the thread."""
        Thread(target=self.run, args=(slots,), name="ask-vps", daemon=True).start()
        return self

    @property
    def ran_seconds(self) -> float:
        """How long it has run; 0 before it began."""
        return 0.0 if self.began_at is None else time.monotonic() - self.began_at

    def is_done_within(self, seconds: float) -> bool:
        """Wait until it is done, or has run for so long; whether it is done."""
        while not self.future.done() and self.ran_seconds < seconds:
            wait([self.future], seconds - self.ran_seconds if self.began_at is not None else _POLL_SECONDS)
        return self.future.done()

    def run(self, slots: BoundedSemaphore) -> None:
        """Do the work in this thread, unless the future was cancelled before there was a slot for it."""
        with slots:
            if not self.future.set_running_or_notify_cancel():
                return
            self.began_at = time.monotonic()
            try:
                result = self.work()
            # Whatever it is, it is raised where the answer is asked for.
            except Exception as error:  # noqa: BLE001
                self.future.set_exception(error)
            else:
                self.future.set_result(result)


type Look = Callable[[ObservedHost], ObservedHost]


@contextmanager
def looking_at_each(
    look: Look, observed_hosts: Iterable[ObservedHost]
) -> Iterator[list[tuple[ObservedHost, BackgroundTask[ObservedHost]]]]:
    """``look`` at each host in the background, in this order; what is interrupted looks at no further one."""
    slots = BoundedSemaphore(MAX_PARALLEL_READINGS)
    looking = [(observed, BackgroundTask(partial(look, observed))) for observed in observed_hosts]
    try:
        for _, task in looking:
            task.start(slots)
        yield looking
    except BaseException:
        for _, task in looking:
            task.future.cancel()
        raise


def answer_in_time(
    context: ProviderContext, observed: ObservedHost, looking: BackgroundTask[ObservedHost], *, is_silent_awaited: bool
) -> ObservedHost:
    """The host as it is seen by ``looking`` at it, or as it was last seen if that takes too long.

    A VPS that was silent when it was last asked is not waited for unless ``is_silent_awaited``.
    """
    is_silent = observed.entry.is_silent
    seconds = 0.0 if is_silent and not is_silent_awaited else listing_patience(context, observed.entry).answer_seconds
    if looking.is_done_within(seconds):
        return looking.future.result()
    problem = VpsConnectionError(f"VPS {observed.entry.vps_ip} has not answered yet")
    if not is_silent:
        observed = with_no_answer(context, observed, problem, looking.ran_seconds)
    return replace(observed, problem=problem, late_answer=looking.future)


class Prefetch:
    """The VPSes of ``observed_hosts`` that answer over an open login, asked from now on, in the background."""

    def __init__(self, context: ProviderContext, observed_hosts: Iterable[ObservedHost]) -> None:
        slots = BoundedSemaphore(MAX_PARALLEL_READINGS)
        self._asked = {one.host_id: _Asked.begin(context, one, slots) for one in observed_hosts if can_be_asked(one)}

    def has(self, observed: ObservedHost) -> bool:
        """Whether the answer is there or on its way, to what would be asked by what is known of the host now."""
        asked = self._asked.get(observed.host_id)
        return asked is not None and asked.entry == observed.entry and asked.is_logged_in.result()

    def answer(self, context: ProviderContext, observed: ObservedHost) -> ObservedHost:
        """The host as its VPS said, or says now if it was not asked ahead; raises VpsDockerError."""
        if self.has(observed):
            return self._asked[observed.host_id].answer.future.result()
        return ask(context, observed)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was known of a host when its VPS was asked, and what it says."""

    entry: LocalHostRecord
    is_logged_in: Future[bool]
    answer: BackgroundTask[ObservedHost]

    @classmethod
    def begin(cls, context: ProviderContext, observed: ObservedHost, slots: BoundedSemaphore) -> "_Asked":
        """Ask the VPS of a host if that costs no login."""
        logged_in: Future[bool] = Future()

        def begin() -> None:
            try:
                logged_in.set_result(is_logged_in(context, observed))
            # It is asked later then, and the same is raised there.
            except Exception:  # noqa: BLE001
                logged_in.set_result(False)
            if logged_in.result():
                answer.run(slots)

        answer = BackgroundTask(lambda: ask(context, observed))
        Thread(target=begin, name="ask-ahead", daemon=True).start()
        return cls(observed.entry, logged_in, answer)
