"""What follows for mngr's list and gc from what the cloud lists, this machine remembers and a VPS answers."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from enum import Enum
from pathlib import Path

import pytest
from support.local_provider import local_provider
from support.memory_provider import REFUSING
from support.memory_provider import SILENT
from support.memory_provider import MemoryCloud
from support.memory_provider import MemoryProvider
from support.memory_provider import Network
from support.memory_provider import record_of
from support.memory_provider import stopped_container
from support.provider import collect_garbage
from support.provider import states

from imbue.mngr.errors import HostNameConflictError
from imbue.mngr.errors import MngrError
from imbue.mngr.errors import ProviderUnavailableError
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.primitives import AgentId
from imbue.mngr.primitives import DiscoveredAgent
from imbue.mngr.primitives import DiscoveredHost
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostName
from imbue.mngr.primitives import HostState
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.discover import MAX_PARALLEL_READINGS
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.testing.faulty_client import Fault
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient
from imbue.mngr_vps_docker.testing.local_machine import LocalMachine
from imbue.mngr_vps_docker.vps_client import VpsClientInterface

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ADDRESS = "192.0.2.1"


class Fleet:
    """A cloud, a network, and one machine that knows them; ``process`` is the provider with nothing in memory."""

    def __init__(self, folder: Path, groups: ExitStack) -> None:
        self.folder = folder
        self.groups = groups
        self.cloud = MemoryCloud(account="test")
        self.network = Network()

    def process(self, client: VpsClientInterface | None = None) -> MemoryProvider:
        process = local_provider(self.folder / "here", "test", client or self.cloud, provider_class=MemoryProvider)
        self.groups.enter_context(process.mngr_ctx.concurrency_group)
        assert isinstance(process, MemoryProvider)
        return process.connect(self.network)

    def note(self, host_id: HostId, phase: HostPhase = HostPhase.READY, address: str = ADDRESS) -> None:
        """What this machine remembers of a host, and its keys."""
        context = self.process()._context
        context.keys.create_vps_host_key(host_id)
        record = record_of(host_id) if phase is HostPhase.READY else None
        entry = JournalEntry(
            host_id=host_id,
            host_name="h1",
            phase=phase,
            created_at=LONG_AGO,
            vps_instance_id=VpsInstanceId(address),
            vps_ip=address,
            record=record,
        )
        context.journal.write(entry)

    def machine(self, host_id: HostId) -> VpsDockerHostStore:
        """A VPS that answers, with the record and the stopped container of a host."""
        (self.folder / ADDRESS).mkdir()
        machine = LocalMachine(self.folder / ADDRESS)
        self.network.machines[ADDRESS] = machine
        machine.volume(f"mngr-host-vol-{host_id.get_uuid().hex}")
        store = VpsDockerHostStore(machine, machine.volume(self.process()._context.state_volume_name).name)
        store.write_host_record(record_of(host_id, stop_reason="STOPPED"))
        (machine.volumes / ".container-ids").write_text("c1\n")
        (machine.volumes / ".containers").write_text(stopped_container(host_id))
        return store

    def set_up(self, host_id: HostId, case: "Case") -> None:
        """Have what there is of a host."""
        begun = datetime.now(UTC) - timedelta(seconds=1 if case.age_seconds is None else case.age_seconds)
        if case.age_seconds is not None:
            self.cloud.order(host_id, ADDRESS, begun)
        if case.has_key:
            self.cloud.take_key(host_id, begun)
        self.cloud.is_listing = case.is_listing
        self.cloud.unlisted = set() if case.is_listed else {ADDRESS}
        if isinstance(case.note, HostPhase):
            self.note(host_id, case.note)
        elif case.note is not None or case.vps is Vps.STOPPED:
            self.process()._context.keys.create_vps_host_key(host_id)
            if case.note is not None:
                self.note_path(host_id).write_text(case.note)
        if case.vps in (Vps.SILENT, Vps.REFUSING):
            self.network.refusals[ADDRESS] = case.vps.value
            return
        store = self.machine(host_id)
        if case.has_agent:
            store.persist_agent_data(host_id, {"id": AgentId.generate(), "name": "a1"})
        if case.vps is Vps.CRASHED:
            store.write_host_record(record_of(host_id))
        elif case.vps is Vps.UNREADABLE:
            self.record_path(host_id).write_text("torn")
        elif case.vps is Vps.RECORDLESS:
            self.record_path(host_id).unlink()

    def listed(self) -> dict[DiscoveredHost, list[DiscoveredAgent]]:
        """What a new process lists."""
        process = self.process()
        return process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)

    def note_path(self, host_id: HostId) -> Path:
        """Where this machine's note of a host is."""
        return self.process()._context.keys.hosts_folder / host_id / "host.json"

    def record_path(self, host_id: HostId) -> Path:
        """Where the record of a host is."""
        (path,) = (self.folder / ADDRESS).glob(f"volumes/*/host_state/{host_id}.json")
        return path


class Vps(Enum):
    """What a VPS answers."""

    SILENT = SILENT
    REFUSING = REFUSING
    STOPPED = "its container was stopped"
    CRASHED = "its container stopped, nobody knows why"
    UNREADABLE = "its record is torn"
    RECORDLESS = "it has no record"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with ExitStack() as groups:
        monkeypatch.setenv("XDG_RUNTIME_DIR", groups.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        yield Fleet(tmp_path, groups)


@dataclass(frozen=True)
class Case:
    """What there is of a host, and what is to follow.

    ``note`` is what this machine remembers, ``vps`` what its VPS says; the VPS is ``age_seconds`` old, or there is
    none (None). ``state`` None means that no host is shown.
    """

    state: HostState | None
    is_garbage: bool = False
    note: HostPhase | str | None = None
    vps: Vps = Vps.SILENT
    age_seconds: float | None = 1e8
    has_key: bool = False
    is_owned: bool = False
    is_listed: bool = True
    is_listing: bool = True
    has_agent: bool = False


CASES = {
    "stopped": Case(HostState.STOPPED, is_garbage=True, note=HostPhase.READY, vps=Vps.STOPPED),
    "stopped with an agent": Case(HostState.STOPPED, note=HostPhase.READY, vps=Vps.STOPPED, has_agent=True),
    "crashed with an agent": Case(HostState.CRASHED, note=HostPhase.READY, vps=Vps.CRASHED, has_agent=True),
    "silent": Case(HostState.CRASHED, note=HostPhase.READY),
    "refusing": Case(HostState.UNAUTHENTICATED, note=HostPhase.READY, vps=Vps.REFUSING),
    "with an unreadable record": Case(HostState.CRASHED, note=HostPhase.READY, vps=Vps.UNREADABLE, has_agent=True),
    "left out of a listing": Case(HostState.CRASHED, note=HostPhase.READY, is_listed=False),
    "of a cloud that cannot list": Case(HostState.CRASHED, note=HostPhase.READY, is_listing=False),
    "that the cloud knows no more": Case(None, note=HostPhase.READY, age_seconds=None),
    "with a note that cannot be read": Case(HostState.STOPPED, note="torn", vps=Vps.STOPPED, has_agent=True),
    "with a note that cannot be read, silent": Case(HostState.FAILED, note="torn"),
    "with a note that cannot be read, refusing": Case(HostState.UNAUTHENTICATED, note="torn", vps=Vps.REFUSING),
    "with a note that cannot be read, unlisted": Case(HostState.FAILED, note="torn", is_listing=False),
    "being made": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True),
    "being made, not ordered yet": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True, age_seconds=None),
    "being made for ages": Case(HostState.BUILDING, note=HostPhase.CREATING, is_owned=True, has_key=True),
    "never finished": Case(HostState.FAILED, is_garbage=True, note=HostPhase.CREATING),
    "never finished just now": Case(HostState.FAILED, is_garbage=True, note=HostPhase.CREATING, age_seconds=1),
    "never finished, silent, unlisted": Case(
        HostState.FAILED, is_garbage=True, note=HostPhase.CREATING, is_listed=False
    ),
    "failed": Case(HostState.FAILED, is_garbage=True, note=HostPhase.FAILED, vps=Vps.REFUSING),
    "half destroyed": Case(HostState.FAILED, is_garbage=True, note=HostPhase.DESTROYING, vps=Vps.STOPPED),
    # The rest is of another machine, which only the cloud tells of.
    "of another machine": Case(HostState.UNAUTHENTICATED, vps=Vps.REFUSING),
    "of another machine, silent": Case(HostState.FAILED),
    "of another machine, young and silent": Case(HostState.FAILED, age_seconds=1),
    "of another machine that shares its keys": Case(HostState.STOPPED, vps=Vps.STOPPED, has_agent=True),
    "of another machine, its record unreadable": Case(HostState.FAILED, vps=Vps.UNREADABLE),
    "of another machine, without a record": Case(HostState.FAILED, vps=Vps.RECORDLESS),
    "being made by another machine": Case(HostState.BUILDING, age_seconds=1, has_key=True, vps=Vps.REFUSING),
    "left unfinished by another machine": Case(HostState.FAILED, is_garbage=True, has_key=True, vps=Vps.REFUSING),
    "being ordered by another machine": Case(None, age_seconds=None, has_key=True),
}


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
