import subprocess

import pytest

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.docker import commands as commands
from imbue.mngr_vps_docker.docker.commands import BuildSpec, ContainerSpec
from imbue.mngr_vps_docker.docker_over_ssh import run_step
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.ssh.shell import RUN_STDIN, as_stdin


def test_run_argv_of_a_bare_container() -> None:
    assert commands.run_argv(ContainerSpec(name="c", image="debian")) == (
        *("docker", "run", "--detach", "--name", "c", "debian"),
    )


def test_run_argv_puts_the_users_arguments_after_ours_and_before_the_image() -> None:
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
    assert commands.run_argv(spec) == (
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
        commands.run_argv(ContainerSpec(name="c", image=image))


def test_a_published_address_may_be_ipv6() -> None:
    def publish(address: str) -> str:
        return commands.run_argv(ContainerSpec("c", "i", published_ports={1: 2}, publish_address=address))[6]

    assert publish("127.0.0.1") == "127.0.0.1:1:2"
    assert publish("::1") == "[::1]:1:2"


def test_build_argv() -> None:
    spec = BuildSpec("t:1", "/tmp/context dir", "/tmp/context dir/Dockerfile", ("--target", "x", "--build-arg", "k=v"))
    assert commands.build_argv(spec) == (
        *("docker", "build", "--force-rm", "--tag", "t:1", "--file", "/tmp/context dir/Dockerfile"),
        *("--target", "x", "--build-arg", "k=v", "--", "/tmp/context dir"),
    )
    assert commands.build_argv(BuildSpec("t:1", "/c", builder=DockerBuilder.DEPOT)) == (
        *("depot", "build", "--load", "--tag", "t:1", "--", "/c"),
    )


def test_exec_argv_attaches_stdin_only_where_there_is_some() -> None:
    assert commands.exec_argv("c", ("sh", "-c", "x"), has_stdin=False) == (
        "docker",
        "exec",
        "--",
        "c",
        "sh",
        "-c",
        "x",
    )
    assert commands.exec_argv("c", ("true",), has_stdin=True, user="u", workdir="/w d") == (
        *("docker", "exec", "--interactive", "--user", "u", "--workdir", "/w d", "--", "c", "true"),
    )


def test_argvs_of_the_other_verbs() -> None:
    table = {
        commands.stop_argv("c", 7): "stop -t 7 -- c",
        commands.remove_container_argv("c"): "rm --force --volumes -- c",
        commands.inspect_container_argv("c", "d"): "container inspect -- c d",
        commands.list_container_ids_argv({"a": None, "b": "1"}): (
            "ps --all --quiet --no-trunc --filter label=a --filter label=b=1"
        ),
        commands.logs_argv("c", 9): "logs --tail 9 -- c",
        commands.commit_argv("c", "i:1", {}): "commit --pause=true -- c i:1",
        commands.pull_argv("i"): "pull -- i",
        commands.inspect_image_argv("i"): "image inspect -- i",
        commands.inspect_image_argv("i", "j"): "image inspect -- i j",
        commands.list_image_ids_argv("r"): "image ls --quiet --no-trunc -- r",
        commands.remove_image_argv("i"): "image rm -- i",
        commands.save_argv("i"): "save -- i",
        commands.load_argv(): "load",
        commands.create_volume_argv("v", {"k": "w"}): "volume create --label k=w -- v",
        commands.remove_volume_argv("v"): "volume rm -- v",
        commands.volume_mountpoint_argv("v"): "volume inspect --format {{.Mountpoint}} -- v",
        commands.image_of_container_argv("c"): "container inspect --format {{.Image}} -- c",
        commands.architecture_of_image_argv("i"): "image inspect --format {{.Architecture}} -- i",
        commands.architecture_argv(): "version --format {{.Server.Arch}}",
        commands.info_argv(): "info --format {{json .}}",
    }
    for argv, expected in table.items():
        assert " ".join(argv) == f"docker {expected}"


def test_commit_labels_are_quoted_as_a_dockerfile_wants_it() -> None:
    argv = commands.commit_argv("c", "i", {"k": 'a "b" $c\\'})
    assert argv[2:4] == ("--change", 'LABEL "k"="a \\"b\\" \\$c\\\\"')


def test_values_of_variables_reach_docker_word_for_word_and_are_in_no_text() -> None:
    values = ["a b", "it's\n$HOME `id`", "x=y", ""]
    script = commands.as_script(("printf", "[%s]", *(f"--env=A={value}" for value in values), "--label=c"))
    assert not any(value in script for value in values[:3])
    done = subprocess.run(["sh", "-c", RUN_STDIN], input=as_stdin(script), capture_output=True, timeout=10, check=True)
    assert done.stdout.decode() == "".join(f"[--env=A={value}]" for value in values) + "[--label=c]"


def test_the_values_of_a_container_and_a_build_are_secrets_of_their_commands() -> None:
    step = run_step(ContainerSpec("c", "i", extra_args=("--env=A=hunter2",)))
    assert [secret.revealed for secret in step.secrets.values()] == ["hunter2"]
    assert "hunter2" not in step.command
    assert commands.without_value("--build-arg=A=hunter2") == "--build-arg=A=***"
    assert commands.without_value("--env=A") == "--env=A"
