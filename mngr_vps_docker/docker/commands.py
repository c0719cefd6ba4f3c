"""Docker command lines as values: what to run, built by pure functions, apart from running it.

Every function returns an argument vector. Names of things come after ``--``, so that no name is taken for an option.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, join, quote
from imbue.mngr_vps_docker.text import MASK

type Argv = tuple[str, ...]

# Of a variable of the image, or of the start arguments, which only the user's sessions are to see.
HIDDEN_PREFIX: Final = "MNGR_CONTAINER_ENV_"
_PLAIN_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The variables of an image as words of a shell, whatever is in them.
_VARIABLES_AS_WORDS: Final = (
    "{{with .Config}}{{range .Env}}" + """'{{join (split . "'") "'\\\\''"}}' """ + "{{end}}{{end}}"
)
_WORD_WITH_SECRET: Final = re.compile(r"(--(?:env|build-arg)=([^=]*)=)(.*)", re.DOTALL)


# BuildKit, if Docker has it: up to Docker 22 it must be asked for, and from 23 on it needs the plugin buildx, without
# which asking for it is an error. Of several builders, the one that belongs to Docker leaves the image there.
_CHOOSE_BUILDER: Final = """\
export BUILDX_BUILDER=default DOCKER_BUILDKIT=1
docker build --help >/dev/null 2>&1 || unset DOCKER_BUILDKIT
"""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A container's TCP port, reachable at a port of the machine; on all of its addresses if ``host_ip`` is None."""

    host_port: int
    container_port: int
    host_ip: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What ``docker run`` shall start.

    ``command`` follows the image. ``volumes`` maps a volume's name (or a directory of the machine, an absolute path)
    to where the container sees it; ``published_ports`` a TCP port of the machine to one of the container, on the
    machine's address ``publish_address`` (all of them if None). ``restart_policy`` is Docker's word
    (``unless-stopped``…). ``extra_args`` are raw ``docker run`` options of the user, in order; they come after ours
    (where an option counts once, the user's wins). With ``hides_environment``, its processes have none of
    the image's variables: see ``run_script``.
    """

    name: str
    image: str
    command: Sequence[str] = ()
    entrypoint: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    published_ports: Mapping[int, int] = field(default_factory=dict)
    publish_address: str | None = None
    restart_policy: str | None = None
    extra_args: Sequence[str] = ()
    hides_environment: bool = False


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build: ``build_args`` are raw options in order, ``context_dir`` and ``dockerfile`` paths on the machine.

    With DEPOT, the machine's ``depot`` builds at depot.dev and loads the result into the machine's Docker. With
    ``is_own_syntax``, a line ``# syntax=`` of the Dockerfile is left out: it names an image that reads the rest.
    """

    tag: str
    context_dir: str
    dockerfile: str | None = None
    build_args: Sequence[str] = ()
    builder: DockerBuilder = DockerBuilder.DOCKER
    is_own_syntax: bool = False


def as_script(argv: Argv) -> ShellScript:
    """The command as shell text, in which the values of ``--env=`` and ``--build-arg=`` are secrets."""
    words: list[str] = []
    values: dict[str, Secret] = {}
    for word in argv:
        found = _WORD_WITH_SECRET.fullmatch(word)
        if found is None:
            words.append(quote(word))
        else:
            name = f"mngr_value_{len(values)}"
            values[name] = Secret(found[3])
            words.append(f'{quote(found[1])}"${name}"')
    return ShellScript(" ".join(words), values)


def without_value(word: str) -> str:
    """An option of `docker run` or `docker build` with MASK in the place of a value that may be secret."""
    return _WORD_WITH_SECRET.sub(rf"\g<1>{MASK}", word)


def variable_of(word: str) -> str | None:
    """The name of the variable to which an option of `docker run` or `docker build` gives a value, if it does."""
    found = _WORD_WITH_SECRET.fullmatch(word)
    return None if found is None else found[2]


def run_argv(spec: ContainerSpec) -> Argv:
    """``docker run``, detached. Raises BuildArgumentError if the image's name would be taken for an option.

    There is no ``--`` before the image: an option of the user's that lacks its value would swallow it unnoticed.
    """
    if not spec.image or spec.image.startswith("-"):
        raise BuildArgumentError(f"{spec.image!r} is no name of an image")
    argv = ["docker", "run", "--detach", "--name", spec.name]
    argv += _labels(spec.labels)
    for source, target in spec.volumes.items():
        argv += ["--volume", f"{source}:{target}"]
    for host_port, container_port in spec.published_ports.items():
        argv += ["--publish", _published(host_port, container_port, spec.publish_address)]
    if spec.restart_policy is not None:
        argv += ["--restart", spec.restart_policy]
    if spec.entrypoint is not None:
        argv += ["--entrypoint", spec.entrypoint]
    if spec.hides_environment:
        argv += ["--env", _PLAIN_PATH]
    return (*argv, *spec.extra_args, spec.image, *spec.command)


def build_script(spec: BuildSpec) -> ShellScript:
    """``build_argv`` by the best builder that the machine's Docker has; values of build arguments are secrets."""
    build = as_script(build_argv(spec))
    text = str(build)
    if spec.is_own_syntax:
        dockerfile = spec.dockerfile or f"{spec.context_dir}/Dockerfile"
        text = f"sed '0,/^#[[:space:]]*syntax[[:space:]]*=/I{{//d}}' {quote(dockerfile)} | {text}"
    if spec.builder is DockerBuilder.DOCKER:
        text = _CHOOSE_BUILDER + text
    return ShellScript(text, build.secrets)


def run_script(spec: ContainerSpec) -> ShellScript:
    """``run_argv`` as shell text, which first hides the environment of the image, if ``spec`` says so.

    Each variable of the image is set under a name with HIDDEN_PREFIX and unset under its own: that is what Docker
    makes of ``--env NAME``, unless this shell has such a variable. Its value is not the image's to know, so the
    container has none. In a snapshot they are hidden already; a value that such a variable still has under its own
    name was set here, and is dropped. A missing image is pulled.
    """
    run = as_script(run_argv(spec))
    if not spec.hides_environment:
        return run
    inspect = join(("docker", "inspect", "--type=image", "--format", _VARIABLES_AS_WORDS, "--", spec.image))
    hide = f"""\
words=$({inspect}) || words=$({join(pull_argv(spec.image))} >&2 && {inspect}) || exit
eval "set -- $words"
own="
$(env)"
for variable; do
  shift
  name=${{variable%%=*}}
  case $variable in ({HIDDEN_PREFIX}* | "$name") continue ;; esac
  case $own in (*"
$name="*) set -- "$@" --env "$name=" ;; (*) set -- "$@" --env "$name" ;; esac
  case $words in (*"'{HIDDEN_PREFIX}$name="*) continue ;; esac
  [ "$variable" = "{_PLAIN_PATH}" ] || set -- "$@" --env "{HIDDEN_PREFIX}$variable"
done
"""
    return ShellScript(f'{hide}docker run "$@"{run.removeprefix("docker run")}', run.secrets)


def hidden(word: str) -> str:
    """An option of `docker run`, with HIDDEN_PREFIX before the name of the variable if it is one that sets any."""
    return f"--env={HIDDEN_PREFIX}{word.removeprefix('--env=')}" if word.startswith("--env=") else word


def build_argv(spec: BuildSpec) -> Argv:
    """``docker build`` or ``depot build``.

    ``--force-rm`` is for the older builder, which leaves the container of a failed step behind.
    """
    is_depot = spec.builder is DockerBuilder.DEPOT
    program = ("depot", "build", "--load") if is_depot else ("docker", "build", "--force-rm")
    dockerfile = "-" if spec.is_own_syntax else spec.dockerfile
    file = () if dockerfile is None else ("--file", dockerfile)
    return (*program, "--tag", spec.tag, *file, *spec.build_args, "--", spec.context_dir)


def exec_argv(
    container: str, command: Sequence[str], *, has_stdin: bool, user: str | None = None, workdir: str | None = None
) -> Argv:
    """``docker exec``; stdin is attached only where there is some, since it would otherwise be eaten."""
    argv = ["docker", "exec"]
    if has_stdin:
        argv.append("--interactive")
    if user is not None:
        argv += ["--user", user]
    if workdir is not None:
        argv += ["--workdir", workdir]
    return (*argv, "--", container, *command)


def start_script(container: str) -> str:
    """Shell text that starts a stopped container, or resumes a paused one; a running one is left as it is."""
    start, resume = (join(("docker", verb, "--", container)) for verb in ("start", "unpause"))
    # Docker refuses to start one that is paused.
    return f"said=$({start} 2>&1) || {resume} >/dev/null 2>&1 || {{ printf '%s\\n' \"$said\" >&2; exit 1; }}"


def stop_argv(container: str, timeout_seconds: int) -> Argv:
    """``docker stop``; after ``timeout_seconds`` the container is killed."""
    return ("docker", "stop", "-t", str(timeout_seconds), "--", container)


def rename_container_argv(container: str, name: str) -> Argv:
    """``docker rename``, of a running or stopped container."""
    return ("docker", "rename", "--", container, name)


def remove_container_argv(container: str) -> Argv:
    """``docker rm`` of a running or stopped container, with its anonymous volumes."""
    return ("docker", "rm", "--force", "--volumes", "--", container)


def commit_argv(container: str, image: str, labels: Mapping[str, str], *, is_paused: bool = True) -> Argv:
    """``docker commit`` to the tag ``image``; without a pause, files that change meanwhile may be half-written."""
    changes = [
        part for key, value in labels.items() for part in ("--change", f"LABEL {_quoted(key)}={_quoted(value)}")
    ]
    return ("docker", "commit", *changes, f"--pause={'true' if is_paused else 'false'}", "--", container, image)


def inspect_container_argv(*containers: str) -> Argv:
    """``docker container inspect``: a JSON list."""
    return ("docker", "container", "inspect", "--", *containers)


def container_is_running_argv(container: str) -> Argv:
    """``docker container inspect``: ``true`` or ``false``."""
    return ("docker", "container", "inspect", "--format", "{{.State.Running}}", "--", container)


def image_of_container_argv(container: str) -> Argv:
    """``docker container inspect``: the id of the image that the container runs."""
    return ("docker", "container", "inspect", "--format", "{{.Image}}", "--", container)


def list_container_ids_argv(labels: Mapping[str, str | None]) -> Argv:
    """``docker ps`` of running and stopped containers that carry all ``labels`` (with any value, where it is None)."""
    filters = [
        part
        for key, value in labels.items()
        for part in ("--filter", f"label={key}" if value is None else f"label={key}={value}")
    ]
    return ("docker", "ps", "--all", "--quiet", "--no-trunc", *filters)


def logs_argv(container: str, tail_lines: int) -> Argv:
    """``docker logs``: the last ``tail_lines`` lines, on the stream that each was written to."""
    return ("docker", "logs", "--tail", str(tail_lines), "--", container)


def pull_argv(image: str) -> Argv:
    """``docker pull``."""
    return ("docker", "pull", "--", image)


def inspect_image_argv(*images: str) -> Argv:
    """``docker image inspect``: a JSON list."""
    return ("docker", "image", "inspect", "--", *images)


def architecture_of_image_argv(image: str) -> Argv:
    """``docker image inspect``: the processor that the image is for, in Go's words (amd64, arm64, …)."""
    return ("docker", "image", "inspect", "--format", "{{.Architecture}}", "--", image)


def list_image_ids_argv(repository: str) -> Argv:
    """``docker image ls`` of the images that have a tag in ``repository``."""
    return ("docker", "image", "ls", "--quiet", "--no-trunc", "--", repository)


def remove_image_argv(image: str) -> Argv:
    """``docker image rm``: removes the tag, and the image with its last tag."""
    return ("docker", "image", "rm", "--", image)


def save_argv(image: str) -> Argv:
    """``docker save``: the image as a tar stream on stdout."""
    return ("docker", "save", "--", image)


def load_argv() -> Argv:
    """``docker load``: images from a tar stream on stdin."""
    return ("docker", "load")


def create_volume_argv(volume: str, labels: Mapping[str, str]) -> Argv:
    """``docker volume create``; an existing volume is left as it is."""
    return ("docker", "volume", "create", *_labels(labels), "--", volume)


def remove_volume_argv(volume: str) -> Argv:
    """``docker volume rm``."""
    return ("docker", "volume", "rm", "--", volume)


def volume_mountpoint_argv(volume: str) -> Argv:
    """``docker volume inspect``: the directory of the machine that holds the volume's files."""
    return ("docker", "volume", "inspect", "--format", "{{.Mountpoint}}", "--", volume)


def list_volume_mountpoints_argv() -> Argv:
    """``docker volume ls``: one line ``<name> <directory>`` per volume."""
    return ("docker", "volume", "ls", "--format", "{{.Name}} {{.Mountpoint}}")


def info_argv() -> Argv:
    """``docker info``: one JSON object."""
    return ("docker", "info", "--format", "{{json .}}")


def architecture_argv() -> Argv:
    """``docker version``: the machine's processor, in Go's words (amd64, arm64, …)."""
    return ("docker", "version", "--format", "{{.Server.Arch}}")


def _labels(labels: Mapping[str, str]) -> list[str]:
    return [part for key, value in labels.items() for part in ("--label", f"{key}={value}")]


def _published(host_port: int, container_port: int, address: str | None) -> str:
    ports = f"{host_port}:{container_port}"
    if address is None:
        return ports
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}"


def _quoted(word: str) -> str:
    """One word of a Dockerfile instruction."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
