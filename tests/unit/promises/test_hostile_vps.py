"""A VPS whose answers are forged affects its own host only, by errors of this package."""

import copy
import json
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imbue.mngr.errors import BaseMngrError
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.docker import commands
from imbue.mngr_vps_docker.docker.errors import DockerError
from imbue.mngr_vps_docker.docker.models import parse_containers, parse_images, parse_info, server_errors
from imbue.mngr_vps_docker.docker_over_ssh import ContainerSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.hosts.listing import read_resources
from imbue.mngr_vps_docker.hosts.mngr_hosts import outer_host
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.hosts.vps_state import read_vps
from imbue.mngr_vps_docker.lifecycle.vps_identity import generate_host_key
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.state.host_volume import HostVolumeOverSsh
from imbue.mngr_vps_docker.state.record import encode_record
from imbue.mngr_vps_docker.text import printable_data
from support.builders import container_of, local_record_of, record_of
from support.world import ScriptedMachine, World, agent_names, discovered, rows

MIB = 1 << 20
AGENT = {"id": f"agent-{'a' * 32}", "name": "a1", "labels": {"k": "v"}, "create_time": "2026-01-02T03:04:05+00:00"}
FORGED = st.sampled_from(
    [
        *(None, True, -1, 0, 2**62, 2**70, 10**4000, 0.5, 1e300, float("nan"), "", " ", "x", "\ud800", "\x1b[2J\n"),
        *("9" * 5000, "²", "-1", "never", "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "2026-01-02T03:04:05"),
        *("9999-12-31T23:59:59-14:00", [], {}, [[]], ["x"], {"x": {}}, json.loads("[" * 300 + "]" * 300)),
    ]
)


@pytest.fixture
def hostile(world: World, corrupted: HostId) -> ScriptedMachine:
    """A scripted machine in place of the VPS of the corrupted host."""
    hostile = ScriptedMachine(world.vps(corrupted).target)
    world.network.machines[world.address(corrupted)] = hostile
    return hostile


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything in JSON data."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode()


@st.composite
def corrupted(draw: st.DrawFn, data: Any) -> bytes:
    """``data`` as JSON, with forged values in a few places."""
    holder = [copy.deepcopy(data)]
    for *way, last in draw(st.lists(st.sampled_from([place for place in places([data]) if place]), max_size=2)):
        part: Any = holder
        # The first forged value may have replaced the place of the second.
        with suppress(LookupError, TypeError):
            for key in way:
                part = part[key]
            part[last] = copy.deepcopy(draw(FORGED))
    return as_json(holder[0])


def batch(*outputs: bytes) -> bytes:
    results = b"".join(b"0 %d 0\n" % len(output) + output for output in outputs)
    return b"mngr-batch-1\n" + results + b"mngr-batch-end\n"


def files(contents: dict[str, bytes]) -> bytes:
    said = [b"%s:%s" % (b64encode(name.encode()), b64encode(content)) for name, content in contents.items()]
    return b" ".join([*said, b"end\n"])


def answer(host_id: HostId, state_path: str, said: Callable[[Any], bytes]) -> bytes:
    """What a VPS says of its one host, each document as it is ``said``; of the record, at ``state_path``."""
    record = json.loads(encode_record(record_of(host_id, plugin={"p": {"x": 1}})))
    record["certified_host_data"]["snapshots"] = [{"id": "i", "name": "s", "created_at": "2026-01-02T03:04:05Z"}]
    container = [container_of(host_id, "exited")]
    container[0]["HostConfig"] |= {"NanoCpus": 10**9}
    state = {state_path: said(record), f"host_state/{host_id}/{AGENT['id']}.json": said(AGENT)}
    own = {"data.json": said(record["certified_host_data"]), f"agents/{AGENT['id']}/data.json": said(AGENT)}
    volumes = b"state " + files(state) + b"volume mngr-host-vol-%s " % host_id.get_uuid().hex.encode() + files(own)
    return batch(said(container), volumes)


@st.composite
def answers(draw: st.DrawFn, host_id: HostId) -> bytes:
    """What a VPS says of itself, with forged values anywhere."""
    path = f"host_state/{host_id}.json"
    state_path = draw(st.sampled_from([path, "x", "/", f"{path}/x.json"]))
    return answer(host_id, state_path, lambda document: draw(corrupted(document)))


def check(world: World, corrupted: HostId, healthy: HostId, hostile: ScriptedMachine) -> None:
    tracemalloc.start()
    try:
        with suppress(BaseMngrError):
            read_vps(ObservedHost(local_record_of(corrupted)), hostile, state_volume="s")
        process = world.process()
        found = discovered(process)
        listed, shown = agent_names(found), rows(process, found)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()
    assert listed[healthy] == ["kept"]
    assert corrupted in listed
    assert [agent.name for agent in shown[healthy][1]] == ["kept"]
    for host, agents in shown.values():
        for row in (host, *agents):
            row.model_dump_json()
            data = row.model_dump(mode="json")
            assert printable_data(data) == data


def test_a_true_answer_is_believed(world: World, corrupted: HostId, hostile: ScriptedMachine) -> None:
    hostile.stdout = answer(corrupted, f"host_state/{corrupted}.json", as_json)
    found = read_vps(ObservedHost(local_record_of(corrupted)), hostile, state_volume="s")
    assert found.vps_record and found.container and found.data_json
    assert [agent["id"] for agent in (*found.kept_agents, *found.live_agents)] == [AGENT["id"]] * 2


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_forged_answer_affects_only_its_own_host(
    world: World, corrupted: HostId, healthy: HostId, hostile: ScriptedMachine, data: st.DataObject
) -> None:
    hostile.stdout = data.draw(answers(corrupted))
    check(world, corrupted, healthy, hostile)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_noise_instead_of_an_answer_affects_only_its_own_host(
    world: World, corrupted: HostId, healthy: HostId, hostile: ScriptedMachine, data: st.DataObject
) -> None:
    answer = bytearray(data.draw(answers(corrupted)))
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5)):
        answer[position % len(answer)] = value
    hostile.stdout = data.draw(
        st.binary() | st.just(bytes(answer)) | st.integers(0, len(answer)).map(lambda n: answer[:n])
    )
    hostile.exit_code = data.draw(st.sampled_from([0, 1, 255]))
    check(world, corrupted, healthy, hostile)


def test_why_a_host_was_not_read_is_one_line_of_its_row(
    world: World, corrupted: HostId, hostile: ScriptedMachine
) -> None:
    hostile.stderr, hostile.exit_code = b"a\tb", 1
    host, _ = world.rows()[corrupted]
    assert host.failure_reason is not None and host.failure_reason.isprintable()


NAME = HostId.generate()


def run_pipeline(vps: ScriptedMachine) -> object:
    pipeline = Pipeline(vps, "test")
    answer = pipeline.add(commands.info())
    pipeline.run()
    return answer.value


READERS: dict[str, Callable[[ScriptedMachine], object]] = {
    "the daemon": lambda vps: DockerOverSsh(vps).info(),
    "a container": lambda vps: DockerOverSsh(vps).inspect_container("c"),
    "containers": lambda vps: DockerOverSsh(vps).list_containers({"k": None}),
    "an image": lambda vps: DockerOverSsh(vps).inspect_image("i"),
    "images": lambda vps: DockerOverSsh(vps).list_images("r"),
    "a new container": lambda vps: DockerOverSsh(vps).run_container(ContainerSpec(name="c", image="i")),
    "a new image": lambda vps: DockerOverSsh(vps).commit("c", image="i"),
    "a volume": lambda vps: DockerOverSsh(vps).volume_mountpoint("v"),
    "a removal": lambda vps: DockerOverSsh(vps).remove_container("c"),
    "a command in a container": lambda vps: DockerOverSsh(vps).exec("c", "true", purpose="test", timeout_seconds=1),
    "a pipeline": run_pipeline,
    "a record": lambda vps: VpsDockerHostStore(vps, "s").read_host_record(NAME),
    "records": lambda vps: VpsDockerHostStore(vps, "s").list_all_host_records_with_agents(),
    "agents": lambda vps: VpsDockerHostStore(vps, "s").list_persisted_agent_data_for_host(NAME),
    "a record that is written": lambda vps: VpsDockerHostStore(vps, "s").write_host_record(record_of(NAME)),
    "an agent that is kept": lambda vps: VpsDockerHostStore(vps, "s").persist_agent_data(NAME, {"id": AgentId()}),
    "a file": lambda vps: HostVolumeOverSsh(connection=vps, volume_name="v").read_file("f"),
    "a folder": lambda vps: HostVolumeOverSsh(connection=vps, volume_name="v").listdir(""),
    "a file that is replaced": lambda vps: HostVolumeOverSsh(connection=vps, volume_name="v").replace_file(
        "f", b"", expected=b""
    ),
    "what a machine has": lambda vps: read_resources(vps, None),
    "a host key": generate_host_key,
}


@pytest.mark.parametrize("what", READERS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stdout=st.binary()
    | FORGED.map(as_json)
    | FORGED.map(lambda value: as_json([value]))
    | st.just("nested").map(lambda _: b"[" * 20_000)
    | st.just(b"cpus=1\nmemory=99999999999999999999\ndisk=\n")
    | corrupted({"ServerErrors": ["x"], "NCPU": 1, "MemTotal": 1})
    | st.lists(st.binary(max_size=9)).map(lambda outputs: batch(*outputs)),
    stderr=st.binary() | st.just(b"mngr-exec-started\n") | st.just(b"Error: No such container: c\n"),
    exit_code=st.sampled_from([0, 1, *range(80, 90), 124, 125, 137, 255]),
)
def test_hostile_output_raises_only_errors_of_this_package(
    world: World, hostile: ScriptedMachine, what: str, stdout: bytes, stderr: bytes, exit_code: int
) -> None:
    hostile.stdout, hostile.stderr, hostile.exit_code = stdout, stderr, exit_code
    with suppress(BaseMngrError, FileNotFoundError):
        READERS[what](hostile)


@pytest.mark.parametrize("parse", [parse_containers, parse_images, parse_info])
def test_a_description_that_would_fill_the_memory_is_not_read(parse: Callable[[str], object]) -> None:
    text = f"[{','.join(['{}'] * 250_000)}]"
    with pytest.raises(DockerError, match="too many values"):
        parse(text)
    assert server_errors(f'{{"ServerErrors": {text}}}') == ""


KEY = "ssh-ed25519 " + "A" * 68


@pytest.mark.parametrize("said", ["", "ssh-ed25519 A", f"* {KEY}", f"{KEY}\n* {KEY}", f"{KEY} x", KEY + "\x1b[2J"])
def test_an_invalid_host_key_is_not_pinned(hostile: ScriptedMachine, said: str) -> None:
    hostile.stdout = said.encode()
    with pytest.raises(VpsProvisioningError) as refused:
        generate_host_key(hostile)
    assert str(refused.value).isprintable()


@given(st.binary() | st.just(b"9" * 5000) | st.just(b"9" * 18) | st.just(b"1_0"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_invalid_time_raises_an_error_of_this_package(
    world: World, corrupted: HostId, hostile: ScriptedMachine, stdout: bytes
) -> None:
    hostile.stdout = stdout
    outer = outer_host(world.context, world.address(corrupted), corrupted)
    with suppress(BaseMngrError):
        outer.get_file_mtime(Path("/f"))
