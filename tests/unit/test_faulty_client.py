"""FaultyClient fails or changes an answer where it is told to, and only there; an unused fault is reported."""

import inspect
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus
from imbue.mngr_vps_docker.testing.faulty_client import CALLS, Fault, FaultMoment, FaultyClient
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsInstanceInfo, VpsSshKeyInfo


class OneKeyClient(LocalVpsClient):
    """A cloud that counts how often its keys are listed."""

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
def test_a_fault_happens_before_or_after_the_call_reaches_the_cloud(moment: FaultMoment, asked: int) -> None:
    real = OneKeyClient()
    client = FaultyClient(real=real, faults=(Fault("list_ssh_keys", TimeoutError(), moment, times=1),))
    with pytest.raises(TimeoutError):
        client.list_ssh_keys()
    assert [key.name for key in client.list_ssh_keys()] == ["one"]
    assert real.asked == asked


def test_a_fault_of_an_unknown_call_is_refused() -> None:
    with pytest.raises(ValueError, match="no call 'list_instances'"):
        Fault("list_instances", TimeoutError())


def test_a_fault_that_never_happened_is_reported() -> None:
    with pytest.raises(AssertionError, match="no call of upload_ssh_key"):
        FaultyClient(real=OneKeyClient(), faults=(Fault("upload_ssh_key", TimeoutError()),)).check_that_all_happened()


def test_an_answer_may_be_late_or_transformed() -> None:
    added = [VpsSshKeyInfo(id="2", name="two")]
    faults = (
        Fault("list_ssh_keys", delay_seconds=0.01, times=1),
        Fault("list_ssh_keys", times=1, transform=lambda keys: [*keys, *added]),
    )
    client = FaultyClient(real=OneKeyClient(), faults=faults)
    answers = [[key.name for key in client.list_ssh_keys()] for _ in range(3)]
    assert answers == [["one"], ["one", "two"], ["one"]]
    client.check_that_all_happened()


def test_a_call_cannot_both_fail_and_answer() -> None:
    with pytest.raises(ValueError, match="an error or a transform"):
        Fault("list_ssh_keys", TimeoutError(), transform=list)


class ManyInstancesClient(LocalVpsClient):
    """A cloud with the given instances, each tagged with its number."""

    numbers: frozenset[int] = frozenset()

    def find_instances(self, tags: Mapping[str, str]) -> list[VpsInstanceInfo]:
        return [
            VpsInstanceInfo(
                id=VpsInstanceId(f"i-{number}"),
                address=None,
                tags={"number": str(number)},
                status=VpsInstanceStatus.ACTIVE,
                created_at=datetime.now(UTC),
            )
            for number in sorted(self.numbers)
            if tags.items() <= {"number": str(number)}.items()
        ]


def test_a_listing_that_lags_misses_what_is_new_and_still_shows_what_is_gone() -> None:
    real = ManyInstancesClient(numbers=frozenset({1, 2}))
    client = FaultyClient(real=real, listing_lag_calls=2)

    def listed(**tags: str) -> list[str]:
        return [instance.id for instance in client.find_instances(tags) or ()]

    assert listed() == ["i-1", "i-2"]
    real.numbers = frozenset({2, 3})
    assert listed() == ["i-1", "i-2"]
    assert listed(number="3") == []
    assert listed(number="3") == ["i-3"]
    assert listed() == ["i-2", "i-3"]


def test_a_lag_does_not_make_a_client_list() -> None:
    class UnlistableClient(LocalVpsClient):
        def find_instances(self, tags: Mapping[str, str]) -> None:  # type: ignore[override]
            return None

    assert FaultyClient(real=UnlistableClient(), listing_lag_calls=1).find_instances({}) is None
