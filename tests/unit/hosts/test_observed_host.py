"""The state, age and agents of a host, from what the cloud, its VPS and this machine say."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from imbue.mngr.primitives import HostId, HostState
from imbue.mngr_vps_docker.docker.models import ContainerInfo, parse_container
from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsConnectionError
from imbue.mngr_vps_docker.hosts.details import host_details
from imbue.mngr_vps_docker.hosts.host_access import HostAccess
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord
from support.builders import LONG_AGO, container_of, local_record_of, record_of
from support.world import World

HOST_ID = HostId()
AGENT = {"id": f"agent-{'1' * 32}", "name": "a1"}
UNREACHABLE = VpsConnectionError("no answer")
REFUSED = VpsAuthenticationError("our key was refused")


def record(stop_reason: str | None = None, failure_reason: str | None = None) -> VpsDockerHostRecord:
    return record_of(HOST_ID, stop_reason=stop_reason, failure_reason=failure_reason)


def entry(phase: HostPhase = HostPhase.READY, **changes: object) -> LocalHostRecord:
    return local_record_of(HOST_ID, phase, **{"record": record(), **changes})


def container(status: str) -> ContainerInfo:
    return parse_container(json.dumps([container_of(HOST_ID, status)]))


def read(local_record: LocalHostRecord, status: str | None, **changes: object) -> ObservedHost:
    values = {"vps_record": record(), "container": None if status is None else container(status), **changes}
    return ObservedHost(local_record, is_read=True, **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """What was found, and what is to follow: mngr's gc may remove what ``is_garbage``, old as everything here is."""

    observed: ObservedHost
    state: HostState
    is_online: bool = False
    is_garbage: bool = False
    agents: tuple[str, ...] = ()


CASES = {
    "runs": Case(read(entry(), "running"), HostState.RUNNING, is_online=True, is_garbage=True),
    "runs with an agent": Case(
        read(entry(), "running", live_agents=(AGENT,)),
        HostState.RUNNING,
        is_online=True,
        agents=("a1",),
    ),
    "runs, and refuses us": Case(read(entry(), "running", problem=REFUSED), HostState.UNAUTHENTICATED),
    "was stopped": Case(read(entry(), "exited", stop_word="STOPPED"), HostState.STOPPED, is_garbage=True),
    "went idle": Case(read(entry(), "exited", stop_word="PAUSED"), HostState.PAUSED, is_garbage=True),
    "is paused by Docker's own means": Case(
        read(entry(record=record("STOPPED")), "paused", vps_record=record("STOPPED")), HostState.PAUSED
    ),
    "was stopped with an agent": Case(
        read(entry(), "exited", stop_word="STOPPED", kept_agents=(AGENT,)),
        HostState.STOPPED,
        agents=("a1",),
    ),
    "crashed": Case(read(entry(), "exited"), HostState.CRASHED, is_garbage=True),
    "crashed with an agent": Case(read(entry(), "exited", live_agents=(AGENT,)), HostState.CRASHED, agents=("a1",)),
    "says nonsense about its stop": Case(
        read(entry(), "exited", stop_word="DESTROYED", live_agents=(AGENT,)),
        HostState.CRASHED,
        agents=("a1",),
    ),
    "has lost its container": Case(read(entry(), None), HostState.CRASHED),
    "does not answer": Case(ObservedHost(entry(), problem=UNREACHABLE), HostState.RUNNING),
    "does not answer, with an agent": Case(
        ObservedHost(entry(agents=(AGENT,)), problem=UNREACHABLE), HostState.RUNNING, agents=("a1",)
    ),
    "was stopped and does not answer": Case(
        ObservedHost(entry(record=record("STOPPED")), problem=UNREACHABLE), HostState.STOPPED
    ),
    "refuses our key": Case(ObservedHost(entry(), problem=REFUSED), HostState.UNAUTHENTICATED),
    "has an unreadable record, but we know it": Case(
        read(entry(), "running", vps_record=None, is_record_unreadable=True),
        HostState.RUNNING,
        is_online=True,
        is_garbage=True,
    ),
    "has an unreadable record": Case(
        read(entry(record=None), "running", vps_record=None, is_record_unreadable=True),
        HostState.FAILED,
        agents=("h1",),
    ),
    "is another machine's and does not answer": Case(
        ObservedHost(entry(record=None), problem=UNREACHABLE), HostState.FAILED, agents=("h1",)
    ),
    "is another machine's and refuses us": Case(
        ObservedHost(entry(record=None), problem=REFUSED), HostState.UNAUTHENTICATED, agents=("h1",)
    ),
    "is another machine's and unknown": Case(ObservedHost(entry(record=None)), HostState.FAILED, agents=("h1",)),
    "is being made": Case(
        ObservedHost(entry(HostPhase.CREATING, record=None), is_being_made=True), HostState.BUILDING
    ),
    "is being destroyed": Case(ObservedHost(entry(HostPhase.DESTROYING), is_being_made=True), HostState.BUILDING),
    "was never finished": Case(
        ObservedHost(entry(HostPhase.CREATING, record=None)), HostState.FAILED, is_garbage=True, agents=("h1",)
    ),
    "failed": Case(
        ObservedHost(entry(HostPhase.FAILED, record=None, failure_reason="no more room")),
        HostState.FAILED,
        is_garbage=True,
        agents=("h1",),
    ),
    "was half destroyed": Case(
        ObservedHost(entry(HostPhase.DESTROYING)), HostState.FAILED, is_garbage=True, agents=("h1",)
    ),
    "was half destroyed, and the cloud knows it no more": Case(
        ObservedHost(entry(HostPhase.DESTROYING), is_gone=True), HostState.DESTROYED, is_garbage=True
    ),
    "is gone by another's hand": Case(
        ObservedHost(entry(gone_since=LONG_AGO), is_gone=True), HostState.DESTROYED, is_garbage=True
    ),
    "was gone for the first time just now": Case(
        ObservedHost(entry(gone_since=datetime.now(UTC)), is_gone=True), HostState.DESTROYED
    ),
    "got no agent before mngr ended": Case(
        read(entry(), "running", is_volume_read=True, is_abandoned=True),
        HostState.FAILED,
        is_garbage=True,
        agents=("h1",),
    ),
    "got none that could be read before mngr ended": Case(
        read(entry(), "running", is_volume_read=False, is_abandoned=True),
        HostState.FAILED,
        agents=("h1",),
    ),
    "was recorded as failed": Case(
        read(entry(), None, vps_record=record(failure_reason="the image was lost")),
        HostState.FAILED,
        agents=("h1",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_host_that(name: str) -> None:
    case = CASES[name]
    observed = case.observed
    data = observed.certified_data
    is_old = datetime.now(UTC) - data.updated_at > timedelta(days=100)
    assert observed.state is case.state
    assert observed.is_online is case.is_online
    assert tuple(agent["name"] for agent in observed.agents) == case.agents
    assert is_old is case.is_garbage
    assert bool(data.failure_reason) is (case.state is HostState.FAILED or "another machine's" in name)
    assert observed.name == data.host_name == "h1"


def test_a_vps_that_needs_a_reboot_says_so_and_is_used_as_before(world: World) -> None:
    observed = read(entry(), "running", needs_reboot=True)
    row = host_details(HostAccess(world.context, observed), None)
    assert "`mngr exec <agent> --outer reboot`" in str(row.failure_reason)
    assert (row.state, observed.is_online, observed.certified_data.failure_reason) == (HostState.RUNNING, True, None)
