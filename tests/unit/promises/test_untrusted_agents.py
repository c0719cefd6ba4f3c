"""Whatever an agent writes or its container prints, all other agents and hosts are listed."""

import json
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imbue.mngr.errors import AgentNotFoundOnHostError, MngrError
from imbue.mngr.interfaces.agent import AgentInterface
from imbue.mngr.interfaces.host import OnlineHostInterface
from imbue.mngr.primitives import AgentId, AgentLifecycleState, HostId, HostState
from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.hosts.listing import Listing, parse_listing
from imbue.mngr_vps_docker.hosts.observed_host import NO_COMMAND
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase
from imbue.mngr_vps_docker.text import printable_data
from support.world import World, agent_names, discovered, rows

pytestmark = pytest.mark.usefixtures("agent_types")

ID = AgentId(f"agent-{'a' * 32}")
NOW = datetime.now(UTC).isoformat()
GOOD = {
    "id": ID,
    "name": "a1",
    "type": "generic",
    "command": "sleep 1",
    "work_dir": "/w",
    "create_time": NOW,
    "labels": {"k": "v"},
    "created_branch_name": "mngr/a1",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
AGENTS = st.fixed_dictionaries(
    {"id": st.just(ID)}, optional={name: JSON for name in (*GOOD, "permissions", "plugin") if name != "id"}
)


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


BAD = {
    "nested": GOOD | {"x": nested(300)},
    "nested deeper": GOOD | {"x": nested(900)},
    "a name that is a number": GOOD | {"name": 5},
    "a name that is none": GOOD | {"name": "\x1b[2J"},
    "labels that are none": GOOD | {"labels": 5},
    "labels that are text": GOOD | {"labels": "ab"},
    "labels with a number": GOOD | {"labels": {"a": 5}},
    "a time that is none": GOOD | {"create_time": "never"},
    "a time that is a number": GOOD | {"create_time": 5},
    "a time without a zone": GOOD | {"create_time": "2020-01-01T00:00:00"},
    "a time at the beginning": GOOD | {"create_time": "0001-01-01T00:00:00+00:00"},
    "a type that is a number": GOOD | {"type": 5},
    "a type that is none": GOOD | {"type": "a b"},
    "a command that is a list": GOOD | {"command": ["a"]},
    "a command that is empty": GOOD | {"command": ""},
    "a folder that is a number": GOOD | {"work_dir": 5},
    "a branch that is a number": GOOD | {"created_branch_name": 5},
    "an infinite number": GOOD | {"x": float("inf")},
    "a list": [],
    "another's id": GOOD | {"id": AgentId(f"agent-{'b' * 32}")},
}


def check_others_are_shown(world: World, corrupted: HostId, healthy: HostId) -> list[str]:
    """Assert that no host or kept agent is missing, and return the names of the corrupted host's agents."""
    process = world.process()
    found = discovered(process)
    listed, shown = agent_names(found), rows(process, found)
    assert listed[healthy] == ["kept"]
    assert "kept" in listed[corrupted]
    assert [agent.name for agent in shown[healthy][1]] == ["kept"]
    for host, agents in shown.values():
        for row in (host, *agents):
            row.model_dump_json()
    return listed[corrupted]


def test_invalid_agents_affect_only_themselves(world: World, corrupted: HostId, healthy: HostId) -> None:
    for bad in BAD.values():
        agent_id = AgentId.generate()
        own = {"id": agent_id} if isinstance(bad, dict) and bad["id"] == ID else {}
        world.write_agent(corrupted, agent_id, json.dumps(bad | own if own else bad).encode())
    assert check_others_are_shown(world, corrupted, healthy) == ["kept"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    AGENTS.map(lambda data: json.dumps(data).encode()) | JSON.map(lambda data: json.dumps(data).encode()) | st.binary()
)
def test_whatever_an_agent_writes_all_others_are_shown(
    world: World, corrupted: HostId, healthy: HostId, content: bytes
) -> None:
    world.write_agent(corrupted, ID, content)
    check_others_are_shown(world, corrupted, healthy)


def test_an_agent_without_a_name_is_shown_under_the_one_that_mngr_kept(world: World, corrupted: HostId) -> None:
    """Or it would hide itself, and with it its host, from every command that looks for agents."""
    (kept,) = world.record_path(corrupted).with_suffix("").iterdir()
    agent_id = AgentId(kept.stem)
    for name in ({}, {"name": None}):
        world.write_agent(corrupted, agent_id, json.dumps({"id": agent_id} | name).encode())
        assert world.listed()[corrupted] == ["kept"]


def test_agents_saved_by_earlier_versions_are_validated(world: World, corrupted: HostId, healthy: HostId) -> None:
    local_store = world.local_store
    local_store.update(
        corrupted, lambda known: replace(known, agents=({"id": ID, "name": "kept"}, {"id": ID, "name": 5}))
    )
    world.network.machines.pop(world.address(corrupted))
    assert world.listed() == {corrupted: ["kept"], healthy: ["kept"]}
    world.rows()


def test_half_a_character_costs_that_character_only(world: World, corrupted: HostId) -> None:
    world.write_agent(corrupted, ID, json.dumps(GOOD | {"initial_message": "a\ud800"}).encode())
    assert sorted(world.listed()[corrupted]) == ["a1", "kept"]


@pytest.mark.parametrize("host_name", ["h1", "h.1", "a b\x1b[2J", " ", "é", "-"])
def test_an_unfinished_host_is_shown_by_an_agent_of_its_name(world: World, corrupted: HostId, host_name: str) -> None:
    local_store = world.local_store
    local_store.update(
        corrupted,
        lambda known: replace(known, phase=HostPhase.FAILED, failure_reason="\x1b[2Jno room", agents=(), record=None),
    )
    local_store.update(corrupted, lambda known: replace(known, host_name=host_name))
    host, (agent,) = world.rows()[corrupted]
    assert (host.state, agent.command, agent.type) == (HostState.FAILED, NO_COMMAND, "unfinished-host")
    assert (host.name.isprintable(), host.failure_reason) == (True, r"\x1b[2Jno room")
    if host_name == "h1":
        assert (host.name, agent.name) == ("h1", "h1")


NASTY = "\x1b]0;owned\x07\n"


@pytest.mark.parametrize("failure_reason", [None, NASTY])
def test_no_field_of_a_row_can_act_upon_a_terminal(
    world: World, corrupted: HostId, failure_reason: str | None
) -> None:
    agent = GOOD | {"command": NASTY, "labels": {NASTY: NASTY}, "work_dir": NASTY, "created_branch_name": NASTY}
    world.write_agent(corrupted, ID, json.dumps(agent).encode())
    record = json.loads(world.record_path(corrupted).read_text())
    record["certified_host_data"] |= {
        "host_name": NASTY,
        "failure_reason": failure_reason,
        "image": NASTY,
        "user_tags": {NASTY: NASTY},
        "plugin": {NASTY: {NASTY: [NASTY]}},
        "snapshots": [{"id": "i", "name": NASTY, "created_at": NOW}],
    }
    world.record_path(corrupted).write_text(json.dumps(record))
    world.start(corrupted).stdout = listing(agents=[json.dumps(agent)], url=NASTY, plugin={NASTY: NASTY})
    for on_vps in (False, True):
        if on_vps:
            world.network.containers.clear()
        host, agents = world.rows()[corrupted]
        if not on_vps and failure_reason is None:
            assert [agent.url for agent in agents if agent.id == ID] == [r"\x1b]0;owned\x07"]
        for row in (host, *agents):
            shown = row.model_dump(mode="json")
            assert printable_data(shown) == shown
            assert r"\x1b]0;owned" in str(shown["host"]["tags"] if "host" in shown else shown["tags"])


def listing(
    *,
    agents: list[str],
    resources: str = "cpus=2\nmemory=1048576\ndisk=2097152\n",
    data_json: str | None = None,
    times: str = "1700000000",
    ps: str = "10 1 sh\n11 10 sleep",
    pane: str = "0|sleep|10",
    url: str = "",
    plugin: dict[str, Any] | None = None,
) -> bytes:
    """What mngr's script prints in a container."""
    certified = {"host_id": "h", "host_name": "h", "plugin": {"p": plugin or {}}}
    sections = [
        f"---MNGR_AGENT_START:{number}---\n---MNGR_AGENT_DATA_START---\n{agent}\n---MNGR_AGENT_DATA_END---\n"
        f"USER_MTIME={times}\nAGENT_MTIME={times}\nSTART_MTIME={times}\nTMUX_INFO={pane}\nACTIVE=true\nURL={url}\n"
        "---MNGR_AGENT_END---\n"
        for number, agent in enumerate(agents)
    ]
    return (
        f"{resources}UPTIME=12.5\nBTIME={times}\nLOCK_MTIME={times}\nSSH_ACTIVITY_MTIME={times}\n"
        f"---MNGR_DATA_JSON_START---\n{data_json or json.dumps(certified)}\n---MNGR_DATA_JSON_END---\n"
        f"---MNGR_PS_START---\n{ps}\n---MNGR_PS_END---\n{''.join(sections)}"
    ).encode()


GOOD_JSON = json.dumps(GOOD)
# What a container may say, and what of the agent's row and the host's is then not known.
LISTINGS = {
    "all that is asked": (listing(agents=[GOOD_JSON]), set()),
    "no number of processors": (listing(agents=[GOOD_JSON], resources="cpus=\nmemory=\ndisk=\n"), {"resource"}),
    "a strange number of processors": (
        listing(agents=[GOOD_JSON], resources="cpus=x\nmemory=1\ndisk=1\n"),
        {"resource"},
    ),
    "nothing of its resources": (listing(agents=[GOOD_JSON], resources=""), {"resource"}),
    "times that are none": (listing(agents=[GOOD_JSON], times=str(10**30)), {"boot_time", "start_time"}),
    "times of thousands of digits": (listing(agents=[GOOD_JSON], times="9" * 5000), {"boot_time", "start_time"}),
    "a data.json that is a list": (listing(agents=[GOOD_JSON], data_json="[]"), {"idle_mode"}),
    "a data.json of null sources": (
        listing(agents=[GOOD_JSON], data_json='{"host_id": "h", "host_name": "h", "activity_sources": null}'),
        {"idle_mode"},
    ),
    "a data.json that is nested": (listing(agents=[GOOD_JSON], data_json="[" * 200_000), {"idle_mode", "resource"}),
    "other agents that are none": (
        listing(agents=["[]", "5", "[" * 200_000, "9" * 5000, '{"id": 5}', GOOD_JSON]),
        set(),
    ),
    "processes that descend from each other": (
        listing(agents=[GOOD_JSON], ps="10 11 sh\n11 10 x", pane="0|x|10"),
        set(),
    ),
    "processes that are many things at once": (
        listing(
            agents=[GOOD_JSON],
            ps="\n".join(f"{number} {number - 1} x" for number in range(10, 60) for _ in range(3)),
            pane="0|x|10",
        ),
        set(),
    ),
}


# Its exit code decides nothing: every other case ends as if it had failed.
@pytest.mark.parametrize(("what", "exit_code"), [*zip(LISTINGS, cycle((0, 3)), strict=False)])
def test_a_running_container_that_says(
    world: World, corrupted: HostId, healthy: HostId, what: str, exit_code: int
) -> None:
    said, unknown = LISTINGS[what]
    world.write_agent(corrupted, ID, GOOD_JSON.encode())
    container = world.start(corrupted)
    container.stdout, container.exit_code = said, exit_code
    shown = world.rows()
    assert [agent.name for agent in shown[healthy][1]] == ["kept"]
    host, agents = shown[corrupted]
    (agent,) = (agent for agent in agents if agent.id == ID)
    known = {"resource": host.resource, "boot_time": host.boot_time, "idle_mode": agent.idle_mode}
    known["start_time"] = agent.start_time
    assert host.state is HostState.RUNNING
    assert agent.state is AgentLifecycleState.RUNNING or "processes" in what or "nested" in what
    if "nested" not in what:
        assert {name for name, value in known.items() if value is None} == unknown


@given(
    st.lists(
        st.sampled_from(listing(agents=[GOOD_JSON, "["]).decode().splitlines())
        | st.sampled_from(["UPTIME=nan", "UPTIME=inf", "BTIME=-1", "1 1 a", "2 1 b", "1 2 c", "---MNGR_AGENT_START:"])
        | st.text()
    ).map("\n".join)
)
def test_whatever_a_container_says_is_read(text: str) -> None:
    assert isinstance(parse_listing(text, None), Listing)


@pytest.mark.parametrize("path", ["data.json", f"agents/{ID}/data.json"])
def test_of_what_mngr_notes_in_a_container_no_gigabytes_are_read(world: World, corrupted: HostId, path: str) -> None:
    container = world.start(corrupted)
    host = world.process().get_host(corrupted)
    assert isinstance(host, VpsDockerHost)
    host.read_file(host.host_dir / path)
    host.read_file(Path("/elsewhere/data.json"))
    assert container.limits[-2:] == (8 << 20, 1 << 30)


def shout(_agent: AgentInterface[Any], _host: OnlineHostInterface) -> str:
    raise MngrError("the plugin is confused")


def test_what_a_plugin_has_to_say_is_in_the_row(world: World, corrupted: HostId) -> None:
    world.start(corrupted).stdout = listing(agents=[GOOD_JSON, json.dumps({"id": AgentId.generate(), "name": "a2"})])
    world.write_agent(corrupted, ID, GOOD_JSON.encode())
    generators = {"p": {"who": lambda agent, _host: str(agent.name), "nothing": lambda _agent, _host: None}}
    _host, agents = world.rows(field_generators=generators, on_error=lambda *_: None)[corrupted]
    assert [(agent.name, agent.plugin) for agent in agents] == [("a1", {"p": {"who": "a1"}})]


def test_a_plugin_that_fails_affects_only_its_agent(world: World, corrupted: HostId) -> None:
    world.start(corrupted).stdout = listing(agents=[GOOD_JSON])
    world.write_agent(corrupted, ID, GOOD_JSON.encode())
    said: list[tuple[str, type[BaseException]]] = []
    shown = world.rows(
        field_generators={"p": {"x": shout}}, on_error=lambda who, error: said.append((who.agent_name, type(error)))
    )
    assert shown[corrupted][1] == []
    assert sorted(said) == [("a1", MngrError), ("kept", AgentNotFoundOnHostError)]
    _host, agents = world.rows(field_generators={"p": {"x": shout}})[corrupted]
    assert {agent.name: agent.plugin for agent in agents} == {"a1": {}, "kept": {}}


def test_a_host_lost_while_a_plugin_asks_it_is_shown_as_last_seen(world: World, corrupted: HostId) -> None:
    def lose(_agent: AgentInterface[Any], _host: OnlineHostInterface) -> str:
        raise VpsConnectionError("no answer")

    world.start(corrupted).stdout = listing(agents=[GOOD_JSON])
    world.write_agent(corrupted, ID, GOOD_JSON.encode())
    host, agents = world.rows(field_generators={"p": {"x": lose}})[corrupted]
    assert (host.failure_reason, sorted(agent.name for agent in agents)) == ("no answer", ["a1", "kept"])
