"""The image of a new host is prepared in the background, which ends with the operation."""

from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import pytest

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.lifecycle.creation import Creation
from imbue.mngr_vps_docker.ssh.command_log import current_operation
from imbue.mngr_vps_docker.state.local_store import HostPhase
from support.builders import create_request, local_record_of
from support.world import ADDRESS, World


@pytest.fixture
def creation(world: World) -> Creation:
    host_id = HostId.generate()
    entry = local_record_of(host_id, HostPhase.CREATING, vps_ip=ADDRESS)
    return Creation(world.context, create_request(host_id=host_id), entry)


def test_it_waits_for_docker_and_is_part_of_its_step(creation: Creation) -> None:
    def work() -> str:
        creation.docker_ready.result()
        return current_operation().title

    creation.begin_image_work("Doing it", work)
    assert creation.image_work is not None and not creation.image_work.done()
    creation.docker_ready.set_result(None)
    assert creation.image_work.result() == f"{current_operation().title} > Doing it"
    creation.stop_image_work()


def test_it_ends_if_docker_never_is_ready(creation: Creation) -> None:
    creation.begin_image_work("Waiting", lambda: str(creation.docker_ready.result()))
    creation.stop_image_work()
    assert creation.image_work is not None
    with pytest.raises(CancelledError):
        creation.image_work.result()


class InterruptedPool(ThreadPoolExecutor):
    """Ctrl-C comes just as the thread has begun."""

    def submit(self, *arguments: Any, **options: Any) -> Future[Any]:
        self.submitted = super().submit(*arguments, **options)
        raise KeyboardInterrupt


def test_an_interruption_as_it_begins_ends_it_too(creation: Creation) -> None:
    creation.image_pool = pool = InterruptedPool(1)
    with pytest.raises(KeyboardInterrupt):
        creation.begin_image_work("Preparing the image", lambda: str(creation.docker_ready.result()))
    creation.stop_image_work()
    assert isinstance(pool.submitted.exception(timeout=30), CancelledError)
