import pytest

from imbue.mngr_vps_docker.docker import errors as errors
from imbue.mngr_vps_docker.docker.errors import classify, docker_error
from imbue.mngr_vps_docker.errors import RemoteCommandTimeoutError
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus

# As printed by Docker 20.10 (client and daemon) and by 24 to 29.
_WORDS = [
    (
        errors.DockerForbiddenError,
        "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get"
        ' "http://%2Fvar%2Frun%2Fdocker.sock/v1.24/containers/json": dial unix /var/run/docker.sock: connect:'
        " permission denied",
    ),
    (
        errors.DockerForbiddenError,
        "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock",
    ),
    (errors.DaemonNotRunningError, "zsh:1: command not found: docker"),
    (errors.NoSuchContainerError, "Error: No such container: x"),
    (errors.NoSuchContainerError, "Error response from daemon: No such container: x"),
    (errors.NoSuchContainerError, "Error: No such object: x"),
    (errors.NoSuchContainerError, "[]\nError response from daemon: No such container: x"),
    (errors.ContainerNotRunningError, "Error response from daemon: Container 0a1b2c is not running"),
    (errors.ContainerNotRunningError, "Error response from daemon: container 0a1b2c is not running"),
    (
        errors.ContainerNotRunningError,
        "Error response from daemon: Container 0a is restarting, wait until the container is running",
    ),
    (errors.NoSuchImageError, "Error: No such image: x"),
    (errors.NoSuchImageError, "Error response from daemon: no such image: nope: No such image: nope:latest"),
    (errors.NoSuchImageError, "Error response from daemon: No such image: x:latest"),
    (
        errors.NoSuchImageError,
        "Unable to find image 'x:latest' locally\ndocker: Error response from daemon: pull access denied for x,"
        " repository does not exist or may require 'docker login': denied: requested access is denied.\n"
        "See 'docker run --help'.",
    ),
    (
        errors.NoSuchImageError,
        "Error response from daemon: manifest for debian:nope not found: manifest unknown: manifest unknown",
    ),
    (
        errors.NoSuchImageError,
        "ERROR: failed to solve: x:1: failed to resolve source metadata for docker.io/library/x:1:"
        " docker.io/library/x:1: not found",
    ),
    (
        errors.NoSuchImageError,
        'Error response from daemon: failed to resolve reference "docker.io/library/x:1":'
        " docker.io/library/x:1: not found",
    ),
    (errors.NoSuchVolumeError, "Error: No such volume: v"),
    (errors.NoSuchVolumeError, "Error response from daemon: get v: no such volume"),
    (
        errors.NameInUseError,
        'docker: Error response from daemon: Conflict. The container name "/c" is already in use by container "0a1b".'
        " You have to remove (or rename) that container to be able to reuse that name.\nSee 'docker run --help'.",
    ),
    (
        errors.PortInUseError,
        "docker: Error response from daemon: driver failed programming external connectivity on endpoint c (0a1b):"
        " Bind for 0.0.0.0:2222 failed: port is already allocated.",
    ),
    (
        errors.PortInUseError,
        "docker: Error response from daemon: failed to set up container networking: driver failed programming external"
        " connectivity on endpoint c (0a1b): failed to bind host port for 0.0.0.0:22:172.17.0.2:22/tcp:"
        " address already in use",
    ),
    (
        errors.PortInUseError,
        "docker: Error response from daemon: driver failed programming external connectivity on endpoint c (0a):"
        " Error starting userland proxy: listen tcp4 0.0.0.0:22: bind: address already in use.",
    ),
    (errors.DiskFullError, "Error response from daemon: write /var/lib/docker/tmp/x: no space left on device"),
    (errors.DiskFullError, "mktemp: failed to create file via template '.new': No space left on device"),
    (
        errors.DaemonNotRunningError,
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
    ),
    (
        errors.DaemonNotRunningError,
        "failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if the"
        " daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory",
    ),
    (errors.DaemonNotRunningError, "bash: line 1: docker: command not found"),
    (errors.DaemonNotRunningError, "sh: 1: docker: not found"),
    (
        errors.PullRateLimitError,
        "Error response from daemon: toomanyrequests: You have reached your pull rate limit. You may increase it by"
        " authenticating and upgrading: https://www.docker.com/increase-rate-limit",
    ),
    (
        errors.PullRateLimitError,
        "Error response from daemon: error from registry: You have reached your unauthenticated pull rate limit.",
    ),
    # Here a container says so, and the container is there.
    (
        errors.ContainerNotRunningError,
        "Error: container 0a is not running\nthe container has ended: No such container: 0a",
    ),
    (errors.UnknownRuntimeError, "docker: Error response from daemon: Unknown runtime specified runsc."),
    (errors.UnknownRuntimeError, "docker: Error response from daemon: unknown or invalid runtime name: runsc"),
    (
        errors.NoShellError,
        "docker: Error response from daemon: OCI runtime create failed: runc create failed: unable to start container"
        ' process: exec: "sh": executable file not found in $PATH: unknown.',
    ),
    (errors.InvalidDockerArgumentError, "unknown flag: --bogus\nSee 'docker run --help'."),
    (errors.InvalidDockerArgumentError, "unknown shorthand flag: 'y' in -y\nSee 'docker run --help'."),
    (
        errors.InvalidDockerArgumentError,
        'invalid argument "lots" for "--cpus" flag: failed to parse lots as a rational number',
    ),
    (errors.InvalidDockerArgumentError, "flag needs an argument: --cpus"),
    (errors.InvalidDockerArgumentError, "docker: invalid reference format: repository name must be lowercase."),
    (errors.InvalidDockerArgumentError, "docker: Error response from daemon: Minimum memory limit allowed is 6MB."),
    (
        errors.InvalidDockerArgumentError,
        "docker: Error response from daemon: Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available.",
    ),
    (
        errors.InvalidDockerArgumentError,
        "docker: Error response from daemon: Invalid container name (a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are"
        " allowed.",
    ),
    (errors.DockerError, "Error response from daemon: something new"),
    (errors.DockerError, ""),
]


@pytest.mark.parametrize(("kind", "printed"), _WORDS)
def test_dockers_words_are_recognised(kind: type[errors.DockerError], printed: str) -> None:
    assert classify(printed)[0] is kind


# What people met, and the words of the hint that lead on.
_HINTS = [
    (
        "docker: Error response from daemon: failed to create shim task: OCI runtime create failed: runc create"
        " failed: unable to start container process: error during container init: unable to join session keyring:"
        " unable to create session key: disk quota exceeded: unknown.",
        "kernel.keys.maxkeys",
    ),
    (
        "docker: Error response from daemon: OCI runtime create failed: container_linux.go:349: starting container"
        ' process caused "process_linux.go:449: container init caused \\"join session keyring: create session key:'
        ' disk quota exceeded\\"": unknown.',
        "kernel.keys.maxkeys",
    ),
    ("write /var/lib/docker/tmp/x: disk quota exceeded", "free space"),
    ("docker: Error response from daemon: max depth exceeded.\nSee 'docker run --help'.", "125 layers"),
    ("failed to register layer: max depth exceeded", "125 layers"),
    (
        'error getting credentials - err: exec: "docker-credential-desktop": executable file not found in $PATH,'
        " out: ``",
        "~/.docker/config.json",
    ),
    (
        'ERROR: failed to solve: debian: error getting credentials - err: exec: "docker-credential-ecr-login":'
        " executable file not found in $PATH, out: ``",
        "~/.docker/config.json",
    ),
    (
        'Error response from daemon: Get "https://registry-1.docker.io/v2/": x509: certificate has expired or is not'
        " yet valid: current time 2026-01-01T00:00:00Z is before 2026-02-02T00:00:00Z",
        "clock",
    ),
    (
        "docker: Error response from daemon: driver failed programming external connectivity on endpoint c (0a):"
        " (iptables failed: iptables --wait -t nat -A DOCKER -p tcp -d 0/0 --dport 2222 -j DNAT: iptables: No"
        " chain/target/match by that name.\n (exit status 1)).",
        "systemctl restart docker",
    ),
    (
        "docker: Error response from daemon: OCI runtime create failed: runc create failed: unable to start container"
        ' process: exec: "sh": executable file not found in $PATH: unknown.',
        "shell",
    ),
    ("no matching manifest for linux/arm64/v8 in the manifest list entries", "processor"),
    ("standard_init_linux.go:228: exec user process caused: exec format error", "processor"),
    (
        "docker: Error response from daemon: image with reference x:1 was found but does not match the specified"
        " platform: wanted linux/arm64, actual: linux/amd64.",
        "processor",
    ),
    (
        "docker: Error response from daemon: image with reference x:1 was found but its platform (linux/amd64) does"
        " not match the specified platform (linux/arm64)",
        "processor",
    ),
    ("Error response from daemon: Get https://r.example/v2/x/manifests/1: no basic auth credentials", "docker login"),
]


@pytest.mark.parametrize(("printed", "way_out"), _HINTS)
def test_each_refusal_comes_with_its_own_way_out(printed: str, way_out: str) -> None:
    assert way_out in classify(printed)[2]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words", ["repository ", "memory", 'invalid argument "', "manifest for ", "error during\n", "session key"]
)
def test_a_line_without_end_does_not_take_for_ever_to_recognise(words: str) -> None:
    assert len(classify(words * (2_000_000 // len(words)))[1]) < 2000


def _outcome(**changes: object) -> CommandOutcome:
    values: dict[str, object] = {
        "status": OutcomeStatus.COMPLETED,
        "argv": ("ssh",),
        "host": "vps 1.2.3.4",
        "purpose": "start container c",
        "elapsed_seconds": 1.0,
        "exit_code": 125,
    }
    return CommandOutcome(**(values | changes))  # type: ignore[arg-type]


def test_the_message_is_one_line_with_dockers_words_and_a_hint() -> None:
    error = docker_error(_outcome(stderr=b"docker: Error response from daemon: Bind for 0.0.0.0:22 failed: port is"
                                         b" already allocated.\nSee 'docker run --help'.\n"))  # fmt: skip
    assert str(error) == (
        "Could not start container c on vps 1.2.3.4: Bind for 0.0.0.0:22 failed: port is already allocated."
        " (choose another port, or stop what listens there ('ss -ltnp' on the machine))"
    )


def test_what_ssh_met_is_not_dockers_refusal() -> None:
    error = docker_error(
        _outcome(status=OutcomeStatus.TIMED_OUT, exit_code=None, stderr=b"Error: No such container: c")
    )
    assert isinstance(error, RemoteCommandTimeoutError)
