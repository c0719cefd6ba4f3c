import json
import subprocess
from typing import Any

import pytest

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.docker import commands
from imbue.mngr_vps_docker.docker.containers import run_container, run_words, unless_there
from imbue.mngr_vps_docker.docker.errors import (
    ContainerNotRunningError,
    DaemonNotRunningError,
    DockerError,
    NoSuchContainerError,
    NoSuchImageError,
    PortInUseError,
)
from imbue.mngr_vps_docker.docker.exec import exec_script
from imbue.mngr_vps_docker.docker.image_build import build_words
from imbue.mngr_vps_docker.docker.secret_options import as_script, without_value
from imbue.mngr_vps_docker.docker_over_ssh import BuildSpec, ContainerSpec
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import RUN_STDIN, as_stdin


def test_words_of_a_bare_container() -> None:
    assert run_words(ContainerSpec(name="c", image="debian")) == (
        *("docker", "run", "--detach", "--name", "c", "debian"),
    )


def test_words_of_a_container_put_the_users_arguments_after_ours_and_before_the_image() -> None:
    spec = ContainerSpec(
        name="mngr-h1",
        image="debian:bookworm-slim",
        entrypoint="sh",
        command=("-c", "trap 'exit 0' TERM; sleep 1"),
        labels={"com.imbue.mngr.host-id": "host-1", "com.imbue.mngr.tags": '{"a": "b c"}'},
        volumes={"mngr-host-vol-1": "/mngr-vol", "/srv/x": "/x:ro"},
        published_ports={2222: 22},
        restart_policy="unless-stopped",
        extra_args=("--cpus", "2", "--name=other"),
    )
    assert run_words(spec) == (
        *("docker", "run", "--detach", "--name", "mngr-h1"),
        *("--label", "com.imbue.mngr.host-id=host-1", "--label", 'com.imbue.mngr.tags={"a": "b c"}'),
        *("--volume", "mngr-host-vol-1:/mngr-vol", "--volume", "/srv/x:/x:ro"),
        *("--publish", "2222:22", "--restart", "unless-stopped", "--entrypoint", "sh"),
        *("--cpus", "2", "--name=other"),
        *("debian:bookworm-slim", "-c", "trap 'exit 0' TERM; sleep 1"),
    )


@pytest.mark.parametrize("image", ["", "--privileged"])
def test_an_image_cannot_be_an_option(image: str) -> None:
    with pytest.raises(BuildArgumentError):
        run_words(ContainerSpec(name="c", image=image))


def test_a_published_address_may_be_ipv6() -> None:
    def publish(address: str) -> str:
        return run_words(ContainerSpec("c", "i", published_ports={1: 2}, publish_address=address))[6]

    assert publish("127.0.0.1") == "127.0.0.1:1:2"
    assert publish("::1") == "[::1]:1:2"


def test_words_of_a_build() -> None:
    spec = BuildSpec("t:1", "/tmp/context dir", "/tmp/context dir/Dockerfile", ("--target", "x", "--build-arg", "k=v"))
    assert build_words(spec) == (
        *("docker", "build", "--force-rm", "--tag", "t:1", "--file", "/tmp/context dir/Dockerfile"),
        *("--target", "x", "--build-arg", "k=v", "--", "/tmp/context dir"),
    )
    assert build_words(BuildSpec("t:1", "/c", builder=DockerBuilder.DEPOT)) == (
        *("depot", "build", "--load", "--tag", "t:1", "--", "/c"),
    )


def test_exec_attaches_stdin_only_where_there_is_some() -> None:
    assert exec_script("c", ("sh", "-c", "x"), has_stdin=False) == "docker exec -- c sh -c x"
    assert exec_script("c", ("true",), has_stdin=True, user="u", workdir="/w d") == (
        "docker exec --interactive --user u --workdir '/w d' -- c true"
    )


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (commands.stop_container("c", 7), "docker stop -t 7 -- c"),
        (commands.remove_container("c"), "docker rm --force --volumes -- c"),
        (commands.inspect_container("c"), "docker container inspect -- c"),
        (commands.logs("c", 9), "docker logs --tail 9 -- c 2>&1"),
        (commands.commit("c", "i:1"), "docker commit --pause=true -- c i:1"),
        (
            commands.commit("c", "i", {"k": 'a "b" $c\\'}),
            """docker commit --change 'LABEL "k"="a \\"b\\" \\$c\\\\"' --pause=true -- c i""",
        ),
        (commands.pull("i"), "docker pull -- i"),
        (commands.find_image("i"), "docker image inspect -- i"),
        (commands.remove_image("i"), "docker image rm -- i"),
        (commands.create_volume("v", {"k": "w"}), "docker volume create --label k=w -- v"),
        (commands.remove_volume("v"), "docker volume rm -- v"),
        (commands.volume_mountpoint("v"), "docker volume inspect --format '{{.Mountpoint}}' -- v"),
        (commands.info(), "docker info --format '{{json .}}'"),
        (
            commands.list_containers({"a": None, "b": "1"}),
            "ids=$(docker ps --all --quiet --no-trunc --filter label=a --filter label=b=1) || exit\n"
            '[ -z "$ids" ] || docker container inspect -- $ids',
        ),
        (
            commands.list_images("r"),
            'ids=$(docker image ls --quiet --no-trunc -- r) || exit\n[ -z "$ids" ] || docker image inspect -- $ids',
        ),
    ],
)
def test_each_verb_is_one_command_line(command: RemoteCommand[Any], script: str) -> None:
    assert command.script == script


def ended(exit_code: int, stdout: str = "", stderr: str = "") -> CommandOutcome:
    """The outcome of a command that ran to its end."""
    return CommandOutcome(OutcomeStatus.COMPLETED, (), "m", "test", 0.0, exit_code, stdout.encode(), stderr.encode())


CONTAINER = json.dumps([{"Id": "1", "Name": "/c", "Created": "2026-01-01T00:00:00Z", "State": {"Status": "exited"}}])
NO_CONTAINER = "Error: No such container: c"


@pytest.mark.parametrize(
    ("command", "outcome", "expected"),
    [
        (commands.start_container("c"), ended(0, "c\n"), None),
        (commands.start_container("c"), ended(1, "", NO_CONTAINER), NoSuchContainerError),
        (commands.stop_if_running("c", 1), ended(0, "c\n"), True),
        (commands.stop_if_running("c", 1), ended(87), False),
        (commands.stop_if_running("c", 1), ended(1, "", NO_CONTAINER), NoSuchContainerError),
        (commands.remove_container("c"), ended(0, "", NO_CONTAINER), NoSuchContainerError),
        (commands.remove_container("c", is_missing_ok=True), ended(0, "", NO_CONTAINER), None),
        (commands.commit("c", "i"), ended(0, "warning\nsha256:1\n"), "sha256:1"),
        (commands.commit("c", "i"), ended(0, "\n"), DockerError),
        (commands.find_container("c"), ended(1, "[]\n", NO_CONTAINER), None),
        (commands.find_container("c"), ended(0, "not JSON"), DockerError),
        (commands.find_container("c"), ended(1, "", "docker: not found"), DaemonNotRunningError),
        (commands.list_containers({}), ended(0, ""), ()),
        (commands.list_containers({}), ended(1, "[]\n", f"{NO_CONTAINER}\n{NO_CONTAINER}"), ()),
        (commands.list_containers({}), ended(1, "[]\n", f"{NO_CONTAINER}\nother"), NoSuchContainerError),
        (commands.list_images("r"), ended(0, ""), ()),
        (commands.remove_image("i", is_missing_ok=True), ended(1, "", "Error: No such image: i"), None),
        (commands.remove_image("i"), ended(1, "", "Error: No such image: i"), NoSuchImageError),
        (commands.volume_mountpoint("v"), ended(0, "/a b\n"), "/a b"),
        (
            commands.info(),
            ended(0, '{"ServerErrors": ["Cannot connect to the Docker daemon"]}'),
            DaemonNotRunningError,
        ),
        (run_container(ContainerSpec("c", "i")), ended(0, "id1\n"), "id1"),
        (run_container(ContainerSpec("c", "i")), ended(125, "id1\n", "port is already allocated"), PortInUseError),
        (unless_there("c", run_container(ContainerSpec("c", "i"))), ended(0), None),
        (
            unless_there("c", run_container(ContainerSpec("c", "i"))),
            ended(1, "", "container c is not running"),
            ContainerNotRunningError,
        ),
    ],
)
def test_each_verb_reads_its_own_answer(
    command: RemoteCommand[Any], outcome: CommandOutcome, expected: object
) -> None:
    if isinstance(expected, type):
        with pytest.raises(DockerError) as raised:
            command.read(outcome)
        assert raised.type is expected
    else:
        assert command.read(outcome) == expected


def test_a_container_is_read_of_what_docker_printed() -> None:
    found = commands.inspect_container("c").read(ended(0, CONTAINER))
    assert (found.id, found.name, found.is_running) == ("1", "c", False)


def test_values_of_variables_reach_docker_word_for_word_and_are_in_no_text() -> None:
    values = ["a b", "it's\n$HOME `id`", "x=y", ""]
    script = as_script(("printf", "[%s]", *(f"--env=A={value}" for value in values), "--label=c"))
    assert not any(value in script for value in values[:3])
    done = subprocess.run(["sh", "-c", RUN_STDIN], input=as_stdin(script), capture_output=True, timeout=10, check=True)
    assert done.stdout.decode() == "".join(f"[--env=A={value}]" for value in values) + "[--label=c]"


def test_the_values_of_a_container_and_a_build_are_secrets_of_their_commands() -> None:
    command = run_container(ContainerSpec("c", "i", extra_args=("--env=A=hunter2",)))
    assert [secret.revealed for secret in command.secrets.values()] == ["hunter2"]
    assert "hunter2" not in command.script
    assert without_value("--build-arg=A=hunter2") == "--build-arg=A=***"
    assert without_value("--env=A") == "--env=A"
