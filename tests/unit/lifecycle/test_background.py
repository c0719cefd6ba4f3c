"""Work in the background of an operation ends with it."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.lifecycle import background
from imbue.mngr_vps_docker.lifecycle.background import BackgroundWork, Milestone, NeverReachedError
from imbue.mngr_vps_docker.lifecycle.creation import Creation
from imbue.mngr_vps_docker.ssh.command_log import current_operation
from imbue.mngr_vps_docker.state.local_store import HostPhase
from support.builders import create_request, local_record_of
from support.world import ADDRESS, World


def test_work_waits_for_its_milestone_and_is_part_of_its_step() -> None:
    milestone = Milestone()

    def work() -> str:
        milestone.wait()
        return current_operation().title

    begun = BackgroundWork("Doing it", work)
    begun.start()
    assert not begun.is_over
    milestone.reach()
    assert begun.result() == f"{current_operation().title} > Doing it"
    assert begun.is_over


def test_what_waits_for_what_never_comes_is_ended() -> None:
    milestone = Milestone()
    begun = BackgroundWork("Waiting", milestone.wait)
    begun.start()
    milestone.abandon()
    begun.wait_until_over()
    with pytest.raises(NeverReachedError):
        begun.result()


class InterruptedPool(ThreadPoolExecutor):
    """Ctrl-C comes just as the thread has begun."""

    submitted: ClassVar[list[Future[Any]]] = []

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        self.submitted.append(super().submit(*arguments, **options))
        raise KeyboardInterrupt


def test_an_interruption_at_its_very_beginning_ends_it_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host_id, provider = HostId.generate(), world.process()
    creation = Creation(
        provider.context,
        create_request(host_id=host_id),
        local_record_of(host_id, HostPhase.CREATING, vps_ip=ADDRESS),
    )
    monkeypatch.setattr(background, "ThreadPoolExecutor", InterruptedPool)
    with pytest.raises(KeyboardInterrupt):
        creation.begin_image_work("Preparing the image", lambda: str(creation.is_docker_ready.wait()))
    creation.stop_image_work()
    (begun,) = InterruptedPool.submitted
    assert isinstance(begun.exception(timeout=30), NeverReachedError)


def test_what_was_reached_stays_so() -> None:
    milestone = Milestone()
    milestone.reach()
    milestone.abandon()
    milestone.wait()
