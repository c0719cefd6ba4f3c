"""The steps of a failed operation are undone, last first, even if undoing one fails."""

from collections.abc import Callable

import pytest
from loguru import logger

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.lifecycle.steps import Step, run_steps


def recording(
    name: str,
    *,
    failing: type[BaseException] | None = None,
    undo_failing: type[BaseException] | None = None,
) -> Step[list[str]]:
    def do(log: list[str]) -> None:
        log.append(name)
        if failing is not None:
            raise failing(name)

    def undo(log: list[str]) -> None:
        log.append(f"undo {name}")
        if undo_failing is not None:
            raise undo_failing(f"{name} stays")

    return Step(name, do, undo)


def test_steps_run_in_order() -> None:
    log: list[str] = []
    run_steps([recording("a"), recording("b")], log, on_failure=lambda *_: True)
    assert log == ["a", "b"]


@pytest.mark.parametrize("error", [VpsDockerError, KeyboardInterrupt, OSError])
def test_a_failed_step_and_all_before_it_are_undone_in_reverse(error: type[BaseException]) -> None:
    log: list[str] = []
    with pytest.raises(error):
        run_steps([recording("a"), recording("b", failing=error), recording("c")], log, on_failure=lambda *_: True)
    assert log == ["a", "b", "undo b", "undo a"]


@pytest.mark.parametrize("error", [VpsDockerError, ConnectionError, KeyError])
def test_what_cannot_be_undone_is_named_and_the_rest_undone(error: type[Exception]) -> None:
    log: list[str] = []
    steps = [recording("a"), recording("b", undo_failing=error), recording("c", failing=VpsDockerError)]
    with pytest.raises(VpsDockerError) as raised:
        run_steps(steps, log, on_failure=lambda *_: True)
    assert log[-3:] == ["undo c", "undo b", "undo a"]
    assert "b stays" in raised.value.__notes__[0]


def test_a_failure_that_is_to_be_kept_is_not_undone() -> None:
    log: list[str] = []
    with pytest.raises(VpsDockerError):
        run_steps([recording("a"), recording("b", failing=VpsDockerError)], log, on_failure=lambda *_: False)
    assert log == ["a", "b"]


def test_a_second_ctrl_c_ends_the_undoing() -> None:
    log: list[str] = []
    steps = [recording("a"), recording("b", undo_failing=KeyboardInterrupt), recording("c", failing=KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, log, on_failure=lambda *_: True)
    assert log[-2:] == ["undo c", "undo b"]


def test_ctrl_c_while_a_step_is_logged_undoes_what_was_done() -> None:
    for line in ("b ...", "0.0 s"):
        log: list[str] = []
        sink = logger.add(_interrupting_at(line), level="INFO", format="{message}", catch=False)
        try:
            with pytest.raises(KeyboardInterrupt):
                run_steps([recording("a"), recording("b")], log, on_failure=lambda *_: True)
        finally:
            logger.remove(sink)
        assert log[-1] == "undo a"


def _interrupting_at(line: str) -> Callable[[str], None]:
    def write(message: str) -> None:
        if line in message:
            raise KeyboardInterrupt

    return write
