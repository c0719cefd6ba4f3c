"""The faulty client fails where it is told to, and only there; a fault that was never met does not pass unseen."""

import inspect

import pytest

from imbue.mngr_vps_docker.local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.testing.faulty_client import CALLS
from imbue.mngr_vps_docker.testing.faulty_client import Fault
from imbue.mngr_vps_docker.testing.faulty_client import FaultMoment
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from imbue.mngr_vps_docker.vps_client import VpsSshKeyInfo


class OneKeyClient(LocalVpsClient):
    """A cloud that counts how often it was asked for its keys."""

    asked: int = 0

    def list_ssh_keys(self) -> list[VpsSshKeyInfo]:
        self.asked += 1
        return [VpsSshKeyInfo(id="1", name="one")]


@pytest.mark.parametrize("call", sorted(CALLS))
def test_every_call_of_a_client_can_fail(call: str) -> None:
    client = FaultyClient(real=LocalVpsClient(), faults=(Fault(call, TimeoutError("lost")),))
    arguments = ["x"] * (len(inspect.signature(getattr(VpsClientInterface, call)).parameters) - 1)
    with pytest.raises(TimeoutError, match="lost"):
        getattr(client, call)(*arguments)
    assert client.calls == (call,)
    client.check_that_all_happened()


@pytest.mark.parametrize(("moment", "asked"), [(FaultMoment.BEFORE, 1), (FaultMoment.ANSWER_LOST, 2)])
def test_a_fault_happens_before_or_after_the_cloud_did_it_and_as_often_as_told(
    moment: FaultMoment, asked: int
) -> None:
    real = OneKeyClient()
    client = FaultyClient(real=real, faults=(Fault("list_ssh_keys", TimeoutError(), moment, times=1),))
    with pytest.raises(TimeoutError):
        client.list_ssh_keys()
    assert [key.name for key in client.list_ssh_keys()] == ["one"]
    assert real.asked == asked


def test_a_fault_of_no_call_is_refused() -> None:
    with pytest.raises(ValueError, match="no call 'list_instances'"):
        Fault("list_instances", TimeoutError())


def test_a_fault_that_was_never_met_is_told() -> None:
    with pytest.raises(AssertionError, match="nothing called upload_ssh_key"):
        FaultyClient(real=OneKeyClient(), faults=(Fault("upload_ssh_key", TimeoutError()),)).check_that_all_happened()
