"""What follows for mngr's list and gc from what the cloud lists, this machine remembers and a VPS answers."""

import threading
from contextlib import nullcontext

import pytest
from support.fleet import ADDRESS
from support.fleet import CASES
from support.fleet import LONG_AGO
from support.fleet import Fleet
from support.provider import collect_garbage
from support.provider import states

from imbue.mngr.errors import HostNameConflictError
from imbue.mngr.errors import MngrError
from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostName
from imbue.mngr.primitives import HostState
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.lifecycle.discover import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.testing.faulty_client import Fault
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient
from imbue.mngr_vps_docker.testing.local_machine import LocalMachine


@pytest.mark.parametrize("name", CASES)
def test_a_host(fleet: Fleet, name: str) -> None:
    case, host_id = CASES[name], HostId.generate()
    fleet.set_up(host_id, case)
    journal = fleet.process()._context.journal
    with journal.owned(host_id) if case.is_owned else nullcontext():
        assert states(fleet.process()) == ({} if case.state is None else {host_id: case.state})
        try:
            collect_garbage(fleet.process())
        except MngrError as error:
            assert "Volumes are not listed while hosts cannot be read" in str(error)
    assert (ADDRESS in fleet.cloud.instances) is (case.age_seconds is not None and not case.is_garbage)
    assert bool(fleet.cloud.keys) is (case.has_key and not case.is_garbage)


def test_many_vpses_that_do_not_answer_cost_one_time_out_and_are_asked_once(fleet: Fleet) -> None:
    for number in range(MAX_PARALLEL_READINGS):
        host_id, address = HostId.generate(), f"192.0.2.{number}"
        fleet.note(host_id, address=address)
        fleet.cloud.order(host_id, address, LONG_AGO)
    # Nobody goes on before all have begun.
    fleet.network.before_login = threading.Barrier(MAX_PARALLEL_READINGS, timeout=60).wait
    process = fleet.process()
    found = process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)
    assert [host.host_state for host in found] == [HostState.CRASHED] * MAX_PARALLEL_READINGS
    for host, agents in found.items():
        assert isinstance(process.get_host(host.host_id), OfflineHost)
        shown, _agents = process.get_host_and_agent_details(host, agents)
        assert "Connection timed out" in (shown.failure_reason or "")
    assert len(fleet.network.logins) == len(set(fleet.network.logins)) == MAX_PARALLEL_READINGS


def test_one_silent_vps_hides_no_other_and_keeps_every_volume(fleet: Fleet) -> None:
    silent, stopped = HostId.generate(), HostId.generate()
    fleet.note(silent, address="192.0.2.2")
    fleet.note(stopped)
    fleet.machine(stopped)
    fleet.cloud.order(silent, "192.0.2.2", LONG_AGO)
    fleet.cloud.order(stopped, ADDRESS, LONG_AGO)
    process = fleet.process()
    assert states(process) == {silent: HostState.CRASHED, stopped: HostState.STOPPED}
    with pytest.raises(MngrError, match="Volumes are not listed"):
        process.list_volumes()
    process.destroy_host(silent)
    assert [volume.host_id for volume in process.list_volumes()] == [stopped]


def test_a_cloud_that_leaves_out_the_time_zone_is_understood(fleet: Fleet) -> None:
    here, elsewhere = HostId.generate(), HostId.generate()
    fleet.note(here, address="192.0.2.2")
    fleet.cloud.order(here, "192.0.2.2", LONG_AGO)
    fleet.cloud.order(elsewhere, ADDRESS, LONG_AGO.replace(tzinfo=None))
    fleet.cloud.take_key(elsewhere, LONG_AGO)
    assert states(fleet.process()) == {here: HostState.CRASHED, elsewhere: HostState.FAILED}


@pytest.mark.parametrize("call", ["find_instances", "get_instance_status"])
def test_a_cloud_that_does_not_answer_is_no_empty_list(fleet: Fleet, call: str) -> None:
    host_id = HostId.generate()
    fleet.note(host_id)
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    fleet.cloud.unlisted = {ADDRESS}
    down = FaultyClient(real=fleet.cloud, faults=(Fault(call, ConnectionError("no route to the API")),))
    with pytest.raises(ProviderUnavailableError, match="no route to the API"):
        states(fleet.process(down))
    assert states(fleet.process()) == {host_id: HostState.CRASHED}


def test_hosts_are_listed_where_the_cloud_does_not_tell_its_keys(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    fleet.cloud.take_key(host_id, LONG_AGO)
    down = FaultyClient(real=fleet.cloud, faults=(Fault("list_ssh_keys", VpsApiError(503, "busy")),))
    assert states(fleet.process(down)) == {host_id: HostState.FAILED}
    with pytest.raises(MngrError, match="Volumes are not listed"):
        collect_garbage(fleet.process(down))
    assert list(fleet.cloud.instances) == [ADDRESS]


def test_a_key_that_the_create_of_a_host_could_not_take_back_is_taken_back_by_the_next_command(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    fleet.cloud.take_key(host_id, LONG_AGO)
    journal = fleet.process()._context.journal
    journal.update(host_id, ssh_key_id=f"key of {host_id}", ssh_key_name=fleet.cloud.keys[f"key of {host_id}"])
    busy = FaultyClient(real=fleet.cloud, faults=(Fault("delete_ssh_key", VpsApiError(503, "busy")),))
    assert states(fleet.process(busy)) == {host_id: HostState.STOPPED}
    assert len(fleet.cloud.keys) == 1
    assert states(fleet.process()) == {host_id: HostState.STOPPED}
    assert fleet.cloud.keys == {}
    entry = journal.read(host_id)
    assert entry is not None and entry.ssh_key_name is None


def test_a_key_is_nobodys_only_if_no_provider_of_the_account_has_its_vps(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO, provider="another")
    fleet.cloud.take_key(host_id, LONG_AGO)
    assert states(fleet.process()) == {}
    collect_garbage(fleet.process())
    assert (len(fleet.cloud.instances), len(fleet.cloud.keys)) == (1, 1)
    fleet.cloud.instances.clear()
    assert states(fleet.process()) == {host_id: HostState.FAILED}
    collect_garbage(fleet.process())
    assert fleet.cloud.keys == {}


def test_a_note_that_cannot_be_read_is_made_anew_from_the_vps_and_kept(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["with a note that cannot be read"])
    states(fleet.process())
    assert fleet.note_path(host_id).with_suffix(".unreadable").read_text() == "torn"
    fleet.network.machines.clear()
    ((_host, agents),) = fleet.listed().items()
    assert [agent.agent_name for agent in agents] == ["a1"]


def test_a_vps_that_may_exist_is_not_forgotten_where_the_cloud_cannot_list(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["with a note that cannot be read, unlisted"])
    for _ in range(2):
        with pytest.raises(MngrError, match=f"may have a VPS.*mngr-host-id={host_id}"):
            fleet.process().destroy_host(host_id)
        assert states(fleet.process()) == {host_id: HostState.FAILED}
    fleet.cloud.is_listing = True
    fleet.process().destroy_host(host_id)
    assert (states(fleet.process()), fleet.cloud.instances) == ({}, {})


def test_looking_at_a_host_takes_nothing_back_from_who_destroys_it(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    journal = fleet.process()._context.journal
    machine = fleet.network.machines[ADDRESS]
    assert isinstance(machine, LocalMachine)
    machine.before_command = lambda _purpose: journal.update(host_id, phase=HostPhase.DESTROYING)
    states(fleet.process())
    entry = journal.read(host_id)
    assert entry is not None
    assert (entry.phase, [agent["name"] for agent in entry.agents]) == (HostPhase.DESTROYING, ["a1"])


def test_the_name_of_a_host_that_is_gone_can_be_taken(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.note(host_id)
    full = FaultyClient(real=fleet.cloud, faults=(Fault("upload_ssh_key", VpsApiError(403, "no more keys")),))
    with pytest.raises(VpsProvisioningError, match="no more keys"):
        fleet.process(full).create_host(HostName("h1"))
    fleet.cloud.order(host_id, ADDRESS, LONG_AGO)
    with pytest.raises(HostNameConflictError):
        fleet.process(full).create_host(HostName("h1"))


def test_a_record_that_is_spoiled_again_and_again_is_replaced_and_the_spoiled_one_kept(fleet: Fleet) -> None:
    host_id = HostId.generate()
    fleet.set_up(host_id, CASES["stopped with an agent"])
    states(fleet.process())
    path = fleet.record_path(host_id)
    for number in range(2):
        path.write_text(f"spoiled {number}")
        fleet.process().add_tags_to_host(host_id, {f"k{number}": "v"})
        assert path.with_name(f"{path.name}.unreadable").read_text() == f"spoiled {number}"
    assert fleet.process().get_host_tags(host_id) == {"k0": "v", "k1": "v"}
