"""A cloud whose listing lags and whose answers are slow or wrong: nothing is lost or leaked."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.primitives import HostName, HostState
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultMoment, FaultyClient
from support.provider import ProviderLab, states

HOST = HostName("h1")
LOST = ConnectionError("connection reset by peer")


@pytest.fixture
def lab(vps_image: None, os_id: str, tmp_path: Path) -> Iterator[ProviderLab]:
    """An account in which each test leaves nothing."""
    lab = ProviderLab(tmp_path, os_id)
    left = ["not looked at"]
    try:
        yield lab
        left = lab.leftovers()
    finally:
        lab.tear_down()
    assert left == []


def test_a_host_lives_and_goes_while_the_cloud_is_slow_and_busy(lab: ProviderLab) -> None:
    slow = (Fault(call, delay_seconds=1.0) for call in ("upload_ssh_key", "create_instance", "destroy_instance"))
    busy = Fault("delete_ssh_key", VpsApiError(503, "busy"), times=1)
    client = FaultyClient(real=lab.cloud, faults=(*slow, busy), listing_lag_calls=2)
    provider = lab.process(client)
    host_id = provider.create_host(HOST).id
    assert lab.cloud.list_ssh_keys() == []
    # Of the account as it was before, of which the cloud still tells, nothing is believed but what it says by id.
    for _ in range(3):
        assert states(provider) == {host_id: HostState.RUNNING}
    provider.destroy_host(host_id)
    client.check_that_all_happened()


def test_a_lost_order_is_found_though_the_listing_lags(lab: ProviderLab) -> None:
    client = FaultyClient(
        real=lab.cloud, faults=(Fault("create_instance", LOST, FaultMoment.ANSWER_LOST),), listing_lag_calls=3
    )
    with pytest.raises(VpsProvisioningError, match="connection reset by peer"):
        lab.process(client, timings=Timings(cloud_poll_seconds=0.05)).create_host(HOST)
    client.check_that_all_happened()


@pytest.mark.parametrize(
    ("call", "transform"),
    [
        ("wait_for_instance_active", lambda _address: "192.0.2.1"),
        ("wait_for_instance_active", lambda _address: "127.0.0.1"),
        ("upload_ssh_key", lambda _key_id: "no-such-key"),
    ],
)
def test_a_false_answer_fails_a_create_and_leaves_nothing(
    lab: ProviderLab, call: str, transform: Callable[[str], str]
) -> None:
    client = FaultyClient(real=lab.cloud, faults=(Fault(call, transform=transform),))
    with pytest.raises(VpsProvisioningError, match="failed"):
        lab.process(client, vps_boot_timeout=3.0, ssh_connect_timeout=1.0).create_host(HOST)
    client.check_that_all_happened()


class TwiceClient(FaultyClient):
    """A client that asks again where an answer was lost on the way, so that the cloud does it twice."""

    def create_instance(self, *arguments: Any, **order: Any) -> VpsInstanceId:
        super().create_instance(*arguments, **order)
        return super().create_instance(*arguments, **order)

    def upload_ssh_key(self, name: str, public_key: str) -> str:
        super().upload_ssh_key(name, public_key)
        return super().upload_ssh_key(name, public_key)


def test_what_the_cloud_made_twice_is_removed_twice(lab: ProviderLab) -> None:
    provider = lab.process(TwiceClient(real=lab.cloud))
    host_id = provider.create_host(HOST).id
    # A key that is left would say to other machines that the host was never finished.
    assert lab.cloud.list_ssh_keys() == []
    assert len(lab.cloud.find_instances({})) == 2
    lab.process().destroy_host(host_id)
