"""What follows for mngr from what the cloud, the VPS and this machine say of a host."""

from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from datetime import timedelta

import pytest
from support.fleet import Fleet

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostId
from imbue.mngr.primitives import HostState
from imbue.mngr_vps_docker.docker_objects import ContainerInfo
from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.host_record import VpsDockerHostRecord
from imbue.mngr_vps_docker.host_record import VpsHostConfig
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.details import host_details
from imbue.mngr_vps_docker.lifecycle.sighting import HostSighting
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.vps_state import HostReading

HOST_ID = HostId()
LONG_AGO = datetime.now(UTC) - timedelta(days=400)
AGENT = {"id": f"agent-{'1' * 32}", "name": "a1"}
UNREACHABLE = VpsConnectionError("no answer")
REFUSED = VpsAuthenticationError("our key was refused")


def record(stop_reason: str | None = None, failure_reason: str | None = None) -> VpsDockerHostRecord:
    return VpsDockerHostRecord(
        certified_host_data=CertifiedHostData(
            host_id=HOST_ID,
            host_name="h1",
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
            stop_reason=stop_reason,
            failure_reason=failure_reason,
        ),
        config=VpsHostConfig(
            vps_instance_id=VpsInstanceId("i"), region="r", plan="p", os_id=1, container_name="c", volume_name="v"
        ),
    )


def entry(phase: HostPhase = HostPhase.READY, *, has_record: bool = True, **changes: object) -> JournalEntry:
    made = JournalEntry(
        host_id=HOST_ID, host_name="h1", phase=phase, created_at=LONG_AGO, record=record() if has_record else None
    )
    return made.model_copy(update=changes)


def container(status: str) -> ContainerInfo:
    return ContainerInfo(
        id="c", name="c", status=status, exit_code=0, created_at=LONG_AGO, started_at=LONG_AGO, finished_at=LONG_AGO,
        labels={}, image="i", image_id="i", nano_cpus=None, memory_bytes=None, ports=(), volumes={},
    )  # fmt: skip


def reading(status: str | None, **changes: object) -> HostReading:
    values = {"record": record(), "container": None if status is None else container(status)}
    return HostReading(HOST_ID, **(values | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """What was found, and what is to follow: mngr's gc may remove what ``is_garbage``, old as everything here is."""

    sighting: HostSighting
    state: HostState
    is_online: bool = False
    is_garbage: bool = False
    agents: tuple[str, ...] = ()


CASES = {
    "runs": Case(HostSighting(entry(), reading("running")), HostState.RUNNING, is_online=True, is_garbage=True),
    "runs with an agent": Case(
        HostSighting(entry(), reading("running", live_agents=(AGENT,))),
        HostState.RUNNING,
        is_online=True,
        agents=("a1",),
    ),
    "runs, and refuses us": Case(HostSighting(entry(), reading("running"), REFUSED), HostState.UNAUTHENTICATED),
    "was stopped": Case(
        HostSighting(entry(), reading("exited", stop_reason="STOPPED")), HostState.STOPPED, is_garbage=True
    ),
    "went idle": Case(
        HostSighting(entry(), reading("exited", stop_reason="PAUSED")), HostState.PAUSED, is_garbage=True
    ),
    "is paused by Docker's own means": Case(
        HostSighting(entry(record=record("STOPPED")), reading("paused", record=record("STOPPED"))), HostState.PAUSED
    ),
    "was stopped with an agent": Case(
        HostSighting(entry(), reading("exited", stop_reason="STOPPED", persisted_agents=(AGENT,))),
        HostState.STOPPED,
        agents=("a1",),
    ),
    "crashed": Case(HostSighting(entry(), reading("exited")), HostState.CRASHED, is_garbage=True),
    "crashed with an agent": Case(
        HostSighting(entry(), reading("exited", live_agents=(AGENT,))), HostState.CRASHED, agents=("a1",)
    ),
    "says nonsense about its stop": Case(
        HostSighting(entry(), reading("exited", stop_reason="DESTROYED", live_agents=(AGENT,))),
        HostState.CRASHED,
        agents=("a1",),
    ),
    "has lost its container": Case(HostSighting(entry(), reading(None)), HostState.CRASHED),
    "does not answer": Case(HostSighting(entry(), problem=UNREACHABLE), HostState.RUNNING),
    "does not answer, with an agent": Case(
        HostSighting(entry(agents=(AGENT,)), problem=UNREACHABLE), HostState.RUNNING, agents=("a1",)
    ),
    "was stopped and does not answer": Case(
        HostSighting(entry(record=record("STOPPED")), problem=UNREACHABLE), HostState.STOPPED
    ),
    "refuses our key": Case(HostSighting(entry(), problem=REFUSED), HostState.UNAUTHENTICATED),
    "has an unreadable record, but we know it": Case(
        HostSighting(entry(), reading("running", record=None, is_record_unreadable=True)),
        HostState.RUNNING,
        is_online=True,
        is_garbage=True,
    ),
    "has an unreadable record": Case(
        HostSighting(entry(has_record=False), reading("running", record=None, is_record_unreadable=True)),
        HostState.FAILED,
        agents=("h1",),
    ),
    "is another machine's and does not answer": Case(
        HostSighting(entry(has_record=False), problem=UNREACHABLE), HostState.FAILED, agents=("h1",)
    ),
    "is another machine's and refuses us": Case(
        HostSighting(entry(has_record=False), problem=REFUSED), HostState.UNAUTHENTICATED, agents=("h1",)
    ),
    "is another machine's and unknown": Case(HostSighting(entry(has_record=False)), HostState.FAILED, agents=("h1",)),
    "is being made": Case(
        HostSighting(entry(HostPhase.CREATING, has_record=False), is_being_made=True), HostState.BUILDING
    ),
    "is being destroyed": Case(HostSighting(entry(HostPhase.DESTROYING), is_being_made=True), HostState.BUILDING),
    "was never finished": Case(
        HostSighting(entry(HostPhase.CREATING, has_record=False)), HostState.FAILED, is_garbage=True, agents=("h1",)
    ),
    "failed": Case(
        HostSighting(entry(HostPhase.FAILED, has_record=False, failure_reason="no more room")),
        HostState.FAILED,
        is_garbage=True,
        agents=("h1",),
    ),
    "was half destroyed": Case(
        HostSighting(entry(HostPhase.DESTROYING)), HostState.FAILED, is_garbage=True, agents=("h1",)
    ),
    "was half destroyed, and the cloud knows it no more": Case(
        HostSighting(entry(HostPhase.DESTROYING), is_gone=True), HostState.DESTROYED, is_garbage=True
    ),
    "is gone by another's hand": Case(
        HostSighting(entry(gone_since=LONG_AGO), is_gone=True), HostState.DESTROYED, is_garbage=True
    ),
    "was gone for the first time just now": Case(
        HostSighting(entry(gone_since=datetime.now(UTC)), is_gone=True), HostState.DESTROYED
    ),
    "got no agent before mngr ended": Case(
        HostSighting(entry(), reading("running", is_volume_read=True), is_abandoned=True),
        HostState.FAILED,
        is_garbage=True,
        agents=("h1",),
    ),
    "got none that could be read before mngr ended": Case(
        HostSighting(entry(), reading("running", is_volume_read=False), is_abandoned=True),
        HostState.FAILED,
        agents=("h1",),
    ),
    "was recorded as failed": Case(
        HostSighting(entry(), reading(None, record=record(failure_reason="the image was lost"))),
        HostState.FAILED,
        agents=("h1",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_host_that(name: str) -> None:
    case = CASES[name]
    sighting = case.sighting
    data = sighting.certified_data
    is_old = datetime.now(UTC) - data.updated_at > timedelta(days=100)
    assert sighting.state is case.state
    assert sighting.is_online is case.is_online
    assert tuple(agent["name"] for agent in sighting.agents) == case.agents
    assert is_old is case.is_garbage
    assert bool(data.failure_reason) is (case.state is HostState.FAILED or "another machine's" in name)
    assert sighting.name == data.host_name == "h1"


def test_a_vps_that_needs_a_reboot_says_so_and_is_used_as_before(fleet: Fleet) -> None:
    sighting = HostSighting(entry(), reading("running", needs_reboot=True))
    row = host_details(fleet.process()._context, sighting, None)
    assert "`mngr exec <agent> --outer reboot`" in str(row.failure_reason)
    assert (row.state, sighting.is_online, sighting.certified_data.failure_reason) == (HostState.RUNNING, True, None)
