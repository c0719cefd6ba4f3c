"""Input is refused in one clear line before any request, or reaches Docker exactly."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbue.mngr.cli.create import _split_cli_args
from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.builds.options import parse_build_args
from imbue.mngr_vps_docker.docker.containers import hidden
from imbue.mngr_vps_docker.docker.run_options import checked_start_args
from imbue.mngr_vps_docker.docker_over_ssh import BuildSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import BuildArgumentError, VpsProvisioningError
from imbue.mngr_vps_docker.host_store import VpsDockerHostStore
from imbue.mngr_vps_docker.lifecycle import checks, create
from imbue.mngr_vps_docker.lifecycle.container import host_container
from imbue.mngr_vps_docker.lifecycle.creation import CreateRequest
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient
from support.builders import record_of
from support.local_machine import LocalMachine
from support.local_provider import local_provider
from support.memory_provider import MemoryCloud, MemoryProvider, Network
from support.world import World

NAME = HostName("h1")
# Its name is short enough to be a part of everything.
CANARY = Path("/tmp/mngr-canary-c9f2")
HARMLESS = [
    f"$(touch {CANARY})", f"`touch {CANARY}`", f";touch {CANARY};", f"\ntouch {CANARY}\n", f"'; touch {CANARY}; '",
    f'"; touch {CANARY}; "', f"|| touch {CANARY}", f"& touch {CANARY} &", f">{CANARY}", "'", '"', "\\", "$", "`", "\n",
    "\t", "é", "🚀", "-", "--", "-x", "--privileged", "--network=host", "=", ":", "/", "@", ",", "..", "{{.ID}}", "%s",
    "*", "~", "#", "!", "a", "Z", "0", "x" * 255, "x" * 300, " ",
]  # fmt: skip
HARMFUL = ["\0", "\r", "\x1b[2J", "\x7f", "\x9b", "\ud800", "\udcff"]
CARRIED = st.one_of(
    st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40),
)
TEXTS = st.one_of(
    CARRIED,
    st.text(st.characters(), max_size=40),
    st.lists(st.sampled_from(HARMLESS + HARMFUL), max_size=4).map("".join),
)


def options(names: str, values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(str.__add__, st.sampled_from(names.split()), values)


TAGS = st.one_of(st.dictionaries(CARRIED, CARRIED, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=3))
START_OPTIONS = "--env= --label= --hostname= --memory= -e -l -itl="
BUILD_OPTIONS = "--label= --build-arg=k= --target= --platform="
START_ARGS = st.one_of(
    st.lists(options(START_OPTIONS, CARRIED), min_size=1, max_size=4),
    st.lists(st.one_of(TEXTS, options(START_OPTIONS, TEXTS), st.just("--env")), max_size=4),
)
BUILD_ARGS = st.one_of(
    st.lists(options(BUILD_OPTIONS, CARRIED), min_size=1, max_size=4),
    st.lists(options(BUILD_OPTIONS, TEXTS), max_size=4),
)


@pytest.mark.parametrize(
    ("option", "last"), [("--build-arg=NAME=a b", ["."]), ("--label=NAME=a b", [])], ids=["-b", "-s"]
)
def test_a_value_with_spaces_is_given_as_the_error_and_the_readme_say(
    option: str, last: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mngr's command line splits what it is given once more, as the shell did before."""
    (tmp_path / "Dockerfile").touch()
    monkeypatch.chdir(tmp_path)

    def accepted(words: list[str]) -> tuple[str, ...]:
        args = _split_cli_args((*words, *last))
        if last:
            return parse_build_args(args, default_region="r", default_plan="p", default_os_id=1).docker_build_args
        return checked_start_args(args)

    with pytest.raises(BuildArgumentError) as refused:
        accepted([option])
    (example,) = re.findall(r"-[bs] '--.*'", str(refused.value))
    assert accepted(shlex.split(example)[1:]) == (option,)
    readme = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    (written,) = re.findall(rf"`{example[:2]} ('.*?')`", readme)
    (value,) = accepted(shlex.split(written))
    assert value.endswith("=two words")


class Accepted(Exception):
    """Nothing is wrong with ``request``, and so the cloud would be asked now."""

    def __init__(self, request: CreateRequest) -> None:
        super().__init__()
        self.request = request


@dataclass
class Desk:
    """Where requests are made; the VPS is this machine's shell, with a docker that writes down what it is given."""

    provider: MemoryProvider
    client: FaultyClient
    machine: LocalMachine
    folder: Path

    def ask(self, name: str = NAME, **wishes: Any) -> CreateRequest | None:
        """What is asked for, or None if it is refused as it should be."""
        CANARY.unlink(missing_ok=True)
        asked = len(self.client.calls)
        try:
            self.provider.create_host(HostName(name), **wishes)
        except Accepted as accepted:
            return accepted.request
        except MngrError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
        assert len(self.client.calls) == asked
        assert not CANARY.exists()
        return None

    def given_to_docker(self, request: CreateRequest) -> tuple[Sequence[str], Sequence[str]]:
        """What of the request docker is given: to run the container, and to build its image."""
        docker, written = DockerOverSsh(self.machine), self.folder / "argv"
        spec = host_container(
            self.provider.context,
            host_id=request.host_id,
            host_name=request.name,
            container_name=self.provider.context.container_name(request.name),
            image=request.image,
            start_args=request.start_args,
            tags=request.tags,
        )
        docker.run_container(spec)
        run = written.read_bytes().decode().split("\0")[:-1]
        docker.build(BuildSpec("t", "/context", build_args=request.build.docker_build_args))
        build = written.read_bytes().decode().split("\0")[:-1]
        assert not CANARY.exists()
        return run, build


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    client = FaultyClient(real=MemoryCloud())
    provider = local_provider(folder, "test", client, provider_class=MemoryProvider)
    machine = LocalMachine(folder)
    docker = folder / "bin" / "docker"
    docker.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >{folder}/argv\necho container-id\n")
    (folder / "Dockerfile").write_text("FROM scratch\n")

    def accept(_context: object, request: CreateRequest) -> None:
        raise Accepted(request)

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.enter_context(provider.mngr_ctx.concurrency_group)
        patch.setattr(create, "create_host", accept)
        patch.chdir(folder)
        yield Desk(provider.connect(Network()), client, machine, folder)
    CANARY.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VpsDockerHostStore:
    """The records on another VPS that is this machine's shell."""
    machine = LocalMachine(tmp_path_factory.mktemp("vps"))
    return VpsDockerHostStore(machine, machine.volume("state").name)


def test_what_is_fine_is_asked_of_the_cloud(desk: Desk) -> None:
    request = desk.ask(image="debian:12", tags={"team": "a b"}, start_args=["--cpus=2"], build_args=["."])
    assert request is not None and desk.client.calls
    assert (request.image, request.tags, request.start_args) == ("debian:12", {"team": "a b"}, ("--cpus=2",))


@pytest.mark.parametrize(
    "image",
    [
        "-x",
        "--privileged",
        "UPPER:Case",
        "a\nb",
        "a\0b",
        "a" * 300,
        "a b",
        "a:",
        "a/",
        "/a",
        "a:b:c",
        "a@sha256:1",
        "é",
    ],
)
def test_what_no_image_can_be_called_is_refused(desk: Desk, image: str) -> None:
    assert desk.ask(image=image) is None


@pytest.mark.parametrize(
    "image",
    [
        "debian",
        "debian:bookworm-slim",
        "ghcr.io/a/b_c/d--e.f:V1.2_x",
        "localhost:5000/a",
        "[::1]:5000/a:b",
        "Registry/a",
        f"debian@sha256:{'0' * 64}",
        f"sha256:{'0' * 64}",
        "0" * 64,
        "a" * 255,
    ],
)
def test_what_an_image_can_be_called_is_taken(desk: Desk, image: str) -> None:
    request = desk.ask(image=image)
    assert request is not None and request.image == image


@pytest.mark.parametrize(
    "wishes",
    [
        {"tags": {"a": "\ud800"}},
        {"tags": {"a\ud800": "b"}},
        {"tags": {"a": "\x1b[2J"}},
        {"tags": {"a": "b\nc"}},
        {"tags": {str(number): "x" * 1000 for number in range(100)}},
        {"tags": {"a": "🚀" * 10_000}},
        {"start_args": ["--env=A=\ud800"]},
        {"start_args": ["--memory="]},
        {"start_args": ["--env=A=" + "x" * 1000] * 100},
        {"build_args": ["--label=\udcff"]},
        {"build_args": ["--build-arg=a=\0"]},
        {"authorized_keys": ["ssh-ed25519 \0"]},
        {"known_hosts": ["\ud800"]},
        {"name": "a\nb"},
        {"name": "x" * 255},
        {"name": "h1٣"},
    ],
    ids=lambda wishes: next(iter(wishes)),
)
def test_what_cannot_travel_is_refused(desk: Desk, wishes: dict[str, Any]) -> None:
    assert desk.ask(**wishes) is None


@pytest.mark.parametrize("prefix", ["-x-", "mngr prefix-", "a/b-", "é-", "m\n", "x" * 250])
def test_a_prefix_with_which_docker_can_name_nothing_is_refused(world: World, prefix: str) -> None:
    client = FaultyClient(real=world.cloud)
    provider = world.process(client)
    config = provider.mngr_ctx.config.model_copy(update={"prefix": prefix})
    context = provider.mngr_ctx.model_copy(update={"config": config})
    with pytest.raises(MngrError, match="MNGR_PREFIX") as raised:
        provider.model_copy(update={"mngr_ctx": context}).create_host(NAME)
    assert str(raised.value).isprintable()
    assert client.calls == ()


@pytest.mark.parametrize(
    "name", ["a_b", "a.b", "h1-", "-h1", "--", "x" * 59, "h\u043est", "h1\u200b", "$(x)", "a\x1b[2J"]
)
def test_what_no_host_can_be_called_is_refused(desk: Desk, name: str) -> None:
    assert desk.ask(name=name) is None


class SmallCloud(MemoryCloud):
    """A cloud that takes less user data than most."""

    @property
    def max_user_data_bytes(self) -> int:
        return 4096


def test_a_cloud_that_takes_too_little_user_data_is_asked_for_nothing(world: World) -> None:
    client = FaultyClient(real=SmallCloud())
    provider = world.process(client)
    with pytest.raises(VpsProvisioningError, match=r"needs \d+ bytes of user data, but this cloud takes 4096"):
        provider.create_host(NAME)
    assert client.calls == ()
    assert MemoryCloud().max_user_data_bytes == 12 * 1024


def words_after(argv: Sequence[str], word: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == word]


@given(name=TEXTS.filter(str.strip), image=TEXTS.filter(str.strip), tags=TAGS)
@settings(max_examples=60)
def test_names_and_tags_are_refused_or_arrive_as_they_are(
    desk: Desk, name: str, image: str, tags: Mapping[str, str]
) -> None:
    for wishes in ({"name": name}, {"image": image}, {"tags": tags}):
        request = desk.ask(**wishes)
        if request is None:
            continue
        run, _ = desk.given_to_docker(request)
        assert words_after(run, "--name") == [f"test-{HostName(wishes.get('name', NAME))}"]
        assert run[-3] == wishes.get("image", desk.provider.config.default_image)
        labels = dict(label.split("=", 1) for label in words_after(run, "--label"))
        assert json.loads(labels["com.imbue.mngr.tags"]) == wishes.get("tags", {})


@given(start_args=START_ARGS, build_args=BUILD_ARGS, words=st.lists(TEXTS, min_size=1, max_size=3))
@settings(max_examples=60)
def test_arguments_are_refused_or_arrive_as_they_are(
    desk: Desk, start_args: list[str], build_args: list[str], words: list[str]
) -> None:
    request = desk.ask(start_args=start_args)
    if request is not None:
        run, _ = desk.given_to_docker(request)
        # What ends mngr's own process 1 comes last, and counts.
        given = [*(hidden(word) for word in request.start_args), "--stop-signal=SIGTERM"]
        assert run[len(run) - 3 - len(given) : -3] == given
    request = desk.ask(build_args=[*build_args, "."])
    if request is not None:
        _, build = desk.given_to_docker(request)
        assert build[4:-2] == build_args
    request = desk.ask(build_args=[*build_args, *words])
    if request is not None:
        desk.given_to_docker(request)


@given(tags=TAGS)
@settings(max_examples=20)
def test_tags_in_a_record_run_nothing_where_it_is_written(desk: Desk, store: VpsDockerHostStore, tags: Any) -> None:
    if desk.ask(tags=tags) is None:
        return
    host_id = HostId.generate()
    store.write_host_record(record_of(host_id, user_tags=tags))
    record = store.read_host_record(host_id)
    assert record is not None and record.certified_host_data.user_tags == tags
    assert not CANARY.exists()


def test_a_probable_secret_is_warned_of_before_anything_is_paid_for(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings = list[str]()
    monkeypatch.setattr(checks.logger, "warning", lambda text, *words: warnings.append(text.format(*words)))
    (tmp_path / "Dockerfile").touch()
    build_args = ["--build-arg=NPM_TOKEN=hunter2", "--build-arg=VERSION=1", str(tmp_path)]
    assert desk.ask(start_args=["-eDB_PASSWORD=hunter2", "-eMONKEY=1", "-eKEYBOARD=us"], build_args=build_args)
    assert [warning.partition(":")[0] for warning in warnings] == [
        "The value of --env=DB_PASSWORD=*** is kept in the host's record, in `docker inspect` and in every snapshot",
        "The value of --build-arg=NPM_TOKEN=*** stays in the image (`docker history`), and in every snapshot",
    ]
    assert all("--host-env" in warning for warning in warnings)
