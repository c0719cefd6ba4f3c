"""Properties of images in the field: broken package sources, their own files, current Dockerfiles."""

import secrets
import shlex
from pathlib import Path, PurePosixPath

import pytest

from imbue.mngr_vps_docker.builds.context import uploaded_build_context
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.docker.containers import explaining_end
from imbue.mngr_vps_docker.docker.errors import (
    ContainerNotRunningError,
    DockerError,
    InvalidDockerArgumentError,
    WrongArchitectureError,
)
from imbue.mngr_vps_docker.docker.exec import exec_with_secret_stdin
from imbue.mngr_vps_docker.docker_over_ssh import BuildSpec, ContainerSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import RemoteCommandError
from imbue.mngr_vps_docker.setup.container_setup import STATE_CONTAINER_SCRIPT, ContainerSetup, setup_script
from imbue.mngr_vps_docker.ssh.shell import Secret
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from support.booted_vps import Vps
from support.remote import wait_for

SOURCES = "/etc/apt/sources.list.d"
BROKEN_SOURCES = f"""
mkdir -p /srv/empty/dists/s /srv/late
touch /srv/empty/dists/s/InRelease
echo 'deb file:/srv/empty s main' >{SOURCES}/empty.list
echo 'deb http://mirror.invalid/debian s main' >{SOURCES}/unknown-host.list
echo 'deb http://mirror.invalid/debian' >{SOURCES}/malformed.list
echo 'deb [trusted=yes] file:/srv/late ./' >{SOURCES}/late.list
cd /srv/late
touch Packages
echo "Date: $(date -u -R -d '+2 hours')" >Release
echo "SHA256:
 $(sha256sum Packages | cut -d ' ' -f 1) 0 Packages" >>Release
"""
# By fcntl(2), as apt does: F_SETLK with F_WRLCK.
HOLD_LOCK = """
perl -e '
  open F, ">>", "/var/lib/apt/lists/lock";
  $lock = pack "s!s!x4qql", 1, 0, 0, 0, 0;
  fcntl(F, 6, $lock);
  sleep 4;
' >/dev/null 2>&1 &
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Secret:
    """What makes a host of a container."""
    key = load_or_create_key_pair(tmp_path_factory.mktemp("key") / "host")
    private_key = Secret(key.private_key_path.read_text())
    return setup_script(ContainerSetup(PurePosixPath("/mngr"), key.public_key, private_key))


def set_up(vps: Vps, script: Secret, preparation: str, name: str = "") -> str:
    """Run a container of the agents' image, change what is in it, and set it up; what that printed."""
    name = name or f"c-{secrets.token_hex(4)}"
    spec = ContainerSpec(name, vps.agent_image, entrypoint="sh", command=("-c", STATE_CONTAINER_SCRIPT))
    DockerOverSsh(vps.connection).run_container(spec)
    vps.run(f"docker exec {name} sh -ec {shlex.quote(preparation)}", 120).checked()
    return set_up_container(vps, script, name)


def set_up_container(vps: Vps, script: Secret, name: str) -> str:
    command = exec_with_secret_stdin(name, "sh -s", stdin=script, purpose="set up the container", timeout_seconds=300)
    return vps.connection.call(explaining_end(name, command)).checked().text


def test_packages_come_from_the_sources_that_work(vps: Vps, script: Secret) -> None:
    said = set_up(
        vps,
        script,
        f"""{BROKEN_SOURCES}
        dpkg --purge --force-all openssh-server openssh-client 2>/dev/null
        rm -rf /var/cache /var/log
        mkdir -p /etc/ssh
        echo '# mine' | tee /etc/ssh/ssh_config >/etc/ssh/moduli
        sed -n '/^Package: tar$/,/^$/p' /var/lib/dpkg/status >/var/lib/dpkg/updates/0001
        {HOLD_LOCK}""",
        "kept",
    )
    assert vps.run("docker exec kept cat /etc/ssh/ssh_config /etc/ssh/moduli").text == "# mine\n" * 2
    (unused,) = [line for line in said.splitlines() if line.startswith("Not needed")]
    for source in ("file:/srv/empty", "mirror.invalid/debian s", "'deb http://mirror.invalid/debian' in"):
        assert source in unused
    assert "late" not in unused


def test_a_source_that_fails_is_named_if_a_package_is_then_missing(vps: Vps, script: Secret) -> None:
    without = "dpkg --purge --force-all xxd 2>/dev/null; rm /etc/apt/sources.list; rm -rf /var/lib/apt/lists/*"
    with pytest.raises(RemoteCommandError) as failed:
        set_up(vps, script, BROKEN_SOURCES + without)
    message = str(failed.value)
    assert "Unable to locate package xxd" in message and len(message.splitlines()) == 1
    assert "file:/srv/empty s InRelease: Clearsigned file" in message
    assert "mirror.invalid/debian s InRelease: Could not resolve" in message
    assert "'deb http://mirror.invalid/debian' in sources.list.d/malformed.list: apt cannot read it" in message


def test_an_image_for_another_processor_is_named_as_such(vps: Vps, script: Secret) -> None:
    """A program for 64-bit ARM, of which the header is all that the kernel looks at."""
    elf = r"\177ELF\002\001\001\000\000\000\000\000\000\000\000\000\002\000\267\000\001"
    build = f"""mkdir -p /srv/arm && cd /srv/arm && printf '{elf}' >sh && head -c 200 /dev/zero >>sh && chmod 755 sh
    printf 'FROM scratch\nCOPY sh /bin/sh\n' >Dockerfile && docker build -q --platform=linux/arm64 -t arm ."""
    vps.run(build).checked()
    docker = DockerOverSsh(vps.connection)
    docker.run_container(ContainerSpec("arm", "arm", entrypoint="sh", command=("-c", STATE_CONTAINER_SCRIPT)))
    wait_for(lambda: not (found := docker.inspect_container("arm")) or not found.is_running)
    with pytest.raises(WrongArchitectureError, match="error, and the image is for arm64 where the machine is amd64"):
        set_up_container(vps, script, "arm")


def test_a_container_that_ends_at_once_is_explained_by_what_it_printed(vps: Vps, script: Secret) -> None:
    docker = DockerOverSsh(vps.connection)
    ends = ("-c", "echo 'sh: error while loading libc'; exit 1")
    docker.run_container(ContainerSpec("ends", vps.agent_image, entrypoint="sh", command=ends))
    wait_for(lambda: not (found := docker.inspect_container("ends")) or not found.is_running)
    with pytest.raises(ContainerNotRunningError, match="has ended: sh: error while loading libc"):
        set_up_container(vps, script, "ends")


DOCKERFILE = """\
# syntax=docker/dockerfile:1
FROM {image}
ARG WORD
COPY --chmod=750 Dockerfile /copied
RUN --mount=type=cache,target=/cache echo "found $(stat -c %a /copied) $WORD" >/cache/x && cat /cache/x
"""


def test_a_dockerfile_for_buildkit_is_built_by_it(vps: Vps) -> None:
    """No registry can be reached here, so what the first line names cannot be fetched."""
    docker, lines = DockerOverSsh(vps.connection), list[str]()
    vps.run(f"mkdir -p /srv/c && printf %s {shlex.quote(DOCKERFILE.format(image=vps.agent_image))} >/srv/c/Dockerfile")
    # Another builder is selected, which leaves its images with itself.
    vps.run("docker buildx create --use --name another")

    def build(*args: str) -> None:
        docker.build(BuildSpec("b:1", "/srv/c", build_args=args), on_line=lambda line, _: lines.append(line))

    if vps.run("DOCKER_BUILDKIT=1 docker build --help").is_success:
        build("--build-arg=WORD=two words")
        assert any("found 750 two words" in line for line in lines)
        assert docker.inspect_image("b:1") is not None
    else:
        with pytest.raises(DockerError, match=r"requires BuildKit.*docker-buildx"):
            build()


def test_a_step_of_a_build_has_no_more_rights_than_a_container(vps: Vps) -> None:
    show = "grep -hE '^(Cap|NoNew|Seccomp:)' /proc/self/status"
    container = vps.run(f"docker run --rm {vps.agent_image} {show}").checked().text
    step = vps.build(f"FROM {vps.agent_image}\nRUN {show} >/rights\n")
    assert step.is_success and "Seccomp:\t2" in container
    assert vps.run("docker run --rm built cat /rights").text == container
    for flag in ("--network=host", "--security=insecure"):
        assert not vps.build(f"FROM {vps.agent_image}\nRUN {flag} true # {secrets.token_hex(4)}\n").is_success


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "../Dockerfile"])
@pytest.mark.parametrize("memory_share", [8, 10**9], ids=["memory", "disk"])
def test_docker_builds_of_what_was_uploaded_into_memory_or_to_disk(
    vps: Vps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dockerfile: str, memory_share: int
) -> None:
    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context._MEMORY_SHARE", memory_share)
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "sub" / "a.txt").touch()
    (project / dockerfile).write_text(f"FROM {vps.agent_image}\nCOPY . /ctx/\nRUN test -f /ctx/sub/a.txt\n")
    build = ParsedBuildArgs(region="r", plan="p", os_id=1, context_dir=project, dockerfile=project / dockerfile)
    with uploaded_build_context(vps.connection, build, timeout_seconds=60) as remote:
        folder = PurePosixPath(remote.context_dir).parent
        assert vps.run(f"test -L {folder}").is_success == (memory_share == 8)
        DockerOverSsh(vps.connection).build(BuildSpec("uploaded", remote.context_dir, remote.dockerfile))
    assert not vps.run(f"test -e {folder} || test -L {folder}").is_success


def test_builds_stream_their_output_and_tell_why_they_failed(vps: Vps) -> None:
    docker, lines = DockerOverSsh(vps.connection), list[str]()
    dockerfile = f"FROM {vps.agent_image}\nARG WORD\nRUN echo said-$WORD && test $WORD = good\n"
    vps.run(f"mkdir -p /srv/w && printf %s {shlex.quote(dockerfile)} >/srv/w/Dockerfile").checked()

    def build(*args: str) -> None:
        docker.build(BuildSpec("words", "/srv/w", build_args=args), on_line=lambda line, _: lines.append(line))

    containers = {container.id for container in docker.list_containers({})}
    build("--build-arg=WORD=good")
    assert any("said-good" in line for line in lines)
    assert docker.inspect_image("words") is not None
    with pytest.raises(DockerError, match=r"(?s)test \$WORD = good.*exit code 1.*said-bad"):
        build("--build-arg=WORD=bad")
    with pytest.raises(InvalidDockerArgumentError):
        build("--no-such-option")
    assert {container.id for container in docker.list_containers({})} == containers
