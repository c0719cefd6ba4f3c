"""Operations as lists of steps that show what they do and can be taken back."""

import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass

from loguru import logger

from imbue.mngr_vps_docker.errors import VpsDockerError


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
    for index, step in enumerate(steps):
        logger.info("{} ...", step.title)
        started = time.monotonic()
        try:
            step.do(state)
        except BaseException as error:
            if on_failure(step.title, error):
                for problem in undo_steps(steps[: index + 1], state):
                    error.add_note(problem)
            raise
        logger.info("  {:.1f} s", time.monotonic() - started)


def undo_steps[State](steps: Sequence[Step[State]], state: State) -> tuple[str, ...]:
    """Undo ``steps``, last first, every one of them whatever happens, and return what went wrong, a line each."""
    problems: list[str] = []
    for step in reversed(steps):
        if step.undo is None:
            continue
        try:
            step.undo(state)
        except VpsDockerError as error:
            problems.append(f"Could not take back '{step.title}': {error}")
            logger.error("{}", problems[-1])
    return tuple(problems)
