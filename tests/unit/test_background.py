"""What goes on beside an operation ends with it."""

import pytest

from imbue.mngr_vps_docker.lifecycle.background import BackgroundWork
from imbue.mngr_vps_docker.lifecycle.background import Milestone
from imbue.mngr_vps_docker.lifecycle.background import NeverReachedError
from imbue.mngr_vps_docker.ssh.span import current_span


def test_work_waits_for_its_milestone_and_is_part_of_its_step() -> None:
    milestone = Milestone()

    def work() -> str:
        milestone.wait()
        return current_span().title

    begun = BackgroundWork("Doing it", work)
    assert not begun.is_over
    milestone.reach()
    assert begun.result() == f"{current_span().title} > Doing it"
    assert begun.is_over


def test_what_waits_for_what_never_comes_is_ended() -> None:
    milestone = Milestone()
    begun = BackgroundWork("Waiting", milestone.wait)
    milestone.abandon()
    begun.wait_until_over()
    with pytest.raises(NeverReachedError):
        begun.result()


def test_what_was_reached_stays_so() -> None:
    milestone = Milestone()
    milestone.reach()
    milestone.abandon()
    milestone.wait()
