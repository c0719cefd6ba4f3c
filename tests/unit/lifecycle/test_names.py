"""No two hosts get one name, however many ask for it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from imbue.mngr.errors import HostNameConflictError
from imbue.mngr.primitives import HostName
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord, LocalHostStore
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.provider import states
from support.world import CASES, World

NEW = HostName("new")
FULL = Fault("upload_ssh_key", VpsApiError(403, "no more keys"))
SECONDS = 0.3


def create(world: World) -> type[Exception]:
    """How a create of a host of that name ends where the cloud takes no key."""
    with pytest.raises((HostNameConflictError, VpsProvisioningError)) as raised:
        world.process(FaultyClient(real=world.cloud, faults=(FULL,))).create_host(NEW)
    return raised.type


def test_of_creates_at_once_one_gets_the_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalHostStore.write

    def write_late(local_store: LocalHostStore, entry: LocalHostRecord) -> LocalHostRecord:
        threading.Event().wait(SECONDS / 10)
        return write(local_store, entry)

    monkeypatch.setattr(LocalHostStore, "write", write_late)
    all_have_begun = threading.Barrier(4, timeout=60)
    # The one that gets the name keeps it until the others were refused.
    refused = threading.Semaphore(0)

    class BusyClient(FaultyClient):
        def upload_ssh_key(self, name: str, public_key: str) -> str:
            for _ in range(3):
                assert refused.acquire(timeout=60)
            return super().upload_ssh_key(name, public_key)

    def create_too() -> type[Exception]:
        process = world.process(BusyClient(real=world.cloud, faults=(FULL,)))
        all_have_begun.wait()
        with pytest.raises((HostNameConflictError, VpsProvisioningError)) as raised:
            process.create_host(NEW)
        if raised.type is HostNameConflictError:
            refused.release()
        return raised.type

    with ThreadPoolExecutor() as pool:
        ends = [end.result() for end in [pool.submit(create_too) for _ in range(4)]]
    assert sorted(end.__name__ for end in ends) == ["HostNameConflictError"] * 3 + ["VpsProvisioningError"]


def test_a_name_that_a_host_is_just_being_given_is_taken(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    process = world.process()
    states(process)
    machine = world.vps(host_id)
    with ThreadPoolExecutor() as pool:
        begun = []

        def create_at_once(purpose: str) -> None:
            if purpose.startswith("write the record") and not begun:
                begun.append(pool.submit(create, world))
                # It waits until the host has its name, or else has an end by then.
                threading.Event().wait(SECONDS)

        machine.before_command = create_at_once
        process.rename_host(host_id, NEW)
        assert [end.result() for end in begun] == [HostNameConflictError]
    assert world.process().get_host(NEW).id == host_id


def test_a_name_that_is_given_up_elsewhere_is_free(world: World) -> None:
    host_id = world.arrange(CASES["stopped with an agent"])
    local_store = world.local_store
    states(world.process())
    entry = local_store.update(host_id, lambda known: replace(known, host_name=NEW))
    assert entry is not None and entry.record is not None
    assert create(world) is VpsProvisioningError
