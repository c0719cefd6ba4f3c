"""Starting containers: what ``docker run`` gets, and what is done where a start fails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from imbue.mngr_vps_docker.docker.commands import (
    SLOW_SECONDS,
    is_running_script,
    label_words,
    logs_script,
    printed_id,
    pull_script,
    remove_script,
    stop_script,
)
from imbue.mngr_vps_docker.docker.errors import docker_error
from imbue.mngr_vps_docker.docker.secret_options import as_script
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import ShellScript, ShellText, join

# Before the name of a variable of the image, or of the start arguments, that only the user's sessions may see.
HIDDEN_PREFIX: Final = "MNGR_CONTAINER_ENV_"
_PLAIN_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The variables of an image as words of a shell, with any content.
_VARIABLES_AS_WORDS: Final = (
    "{{with .Config}}{{range .Env}}" + """'{{join (split . "'") "'\\\\''"}}' """ + "{{end}}{{end}}"
)
_REPLACED_STOP_SECONDS: Final = 10
_LAST_LOG_LINES: Final = 3


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


def run_container(spec: ContainerSpec, *, timeout_seconds: float = SLOW_SECONDS) -> RemoteCommand[str]:
    """Create and start a container in the background; its value is the container's id.

    An image that the machine lacks is pulled. A container that was made but could not be started (a port in use, a
    missing runtime) is removed again.
    """

    def read(outcome: CommandOutcome) -> str:
        if not outcome.is_success:
            # What it printed is the id of the container that did not start.
            raise docker_error(outcome, outcome.error_text)
        return printed_id(outcome)

    run = run_script(spec)
    # Docker prints the new container's id even where starting it fails: by it, no other container is removed.
    script = (
        f"id=$({run}); rc=$?\n"
        'if [ $rc -ne 0 ] && [ -n "$id" ]; then docker rm --force --volumes -- "$id" >/dev/null 2>&1; fi\n'
        "printf '%s\\n' \"$id\"; exit $rc"
    )
    return RemoteCommand(ShellScript(script, run.secrets), f"start container {spec.name}", read, timeout_seconds)


def replace_container(spec: ContainerSpec, *, aside: str, timeout_seconds: float) -> RemoteCommand[str]:
    """``run_container`` in the place of the container that has the name, if there is one.

    The old one is stopped and called ``aside`` until the new one runs, and has its name back if that does not start.
    Its volumes are the new one's too, those without a name as well: what is on them is in no image. Where this was
    interrupted, a second run completes it.
    """
    run = run_container(spec, timeout_seconds=timeout_seconds)
    with_volumes = run_container(replace(spec, extra_args=(*spec.extra_args, "--volumes-from", aside)))
    remove = remove_script(aside)
    return run.with_script(
        f"if {is_running_script(spec.name)} >/dev/null 2>&1; then\n"
        f"  {remove} >/dev/null 2>&1\n"
        f"  {stop_script(spec.name, _REPLACED_STOP_SECONDS)} >/dev/null && {_rename(spec.name, aside)} || exit\n"
        "fi\n"
        f"if {is_running_script(aside)} >/dev/null 2>&1; then\n"
        f"  ({with_volumes.script}); rc=$?\n"
        f"else ({run.script}); rc=$?; fi\n"
        f"if [ $rc -eq 0 ]; then {remove}; else {_rename(aside, spec.name)}; fi >/dev/null 2>&1\n"
        "exit $rc"
    )


def unless_there(container: str, command: RemoteCommand[str]) -> RemoteCommand[None]:
    """``command``, but nothing if there is a container of that name."""

    def read(outcome: CommandOutcome) -> None:
        if not outcome.is_success:
            command.read(outcome)

    script = f"{is_running_script(container)} >/dev/null 2>&1 && exit 0\n{command.script}"
    return RemoteCommand(
        command.with_script(script).script, command.purpose, read, command.timeout_seconds, command.effect
    )


def explaining_end[T](container: str, command: RemoteCommand[T]) -> RemoteCommand[T]:
    """``command``; if it fails because the container has ended, its error says what the container printed last.

    It also says so if the image is for another processor than the machine's.
    """
    image = join(("docker", "container", "inspect", "--format", "{{.Image}}", "--", container))
    architecture = join(("docker", "version", "--format", "{{.Server.Arch}}"))
    return command.with_script(
        f"({command.script}); rc=$?\n"
        f'if [ $rc -ne 0 ] && [ "$({is_running_script(container)})" = false ]; then\n'
        f"  said=$({logs_script(container, _LAST_LOG_LINES)} 2>&1 | tr -s '\\n' ' ')\n"
        '  said="the container has ended: ${said% }"\n'
        f"  image=$({image}) && image=$(docker image inspect --format '{{{{.Architecture}}}}' -- \"$image\") &&\n"
        f"    machine=$({architecture})\n"
        '  [ "${image:-$machine}" = "$machine" ] ||\n'
        '    said="$said, and the image is for $image where the machine is $machine"\n'
        "  printf '%s\\n' \"$said\" >&2\n"
        "fi\n"
        "exit $rc"
    )


def run_words(spec: ContainerSpec) -> tuple[str, ...]:
    """``docker run``, detached. Raises BuildArgumentError if the image's name would be taken for an option.

    There is no ``--`` before the image: an option of the user's that lacks its value would swallow it unnoticed.
    """
    if not spec.image or spec.image.startswith("-"):
        raise BuildArgumentError(f"{spec.image!r} is not the name of an image")
    argv = ["docker", "run", "--detach", "--name", spec.name]
    argv += label_words(spec.labels)
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


def run_script(spec: ContainerSpec) -> ShellScript:
    """``run_words`` as shell text, which first hides the environment of the image, if ``spec`` says so.

    Each variable of the image is set under a name with HIDDEN_PREFIX and unset under its own: that is what
    ``--env NAME`` does, unless this shell has such a variable. The image must not learn its value, so the container
    gets an empty one. In a snapshot they are hidden already; a value that such a variable still has under its own
    name was set here, and is dropped. A missing image is pulled.
    """
    run = as_script(run_words(spec))
    if not spec.hides_environment:
        return run
    inspect = join(("docker", "inspect", "--type=image", "--format", _VARIABLES_AS_WORDS, "--", spec.image))
    hide = f"""\
words=$({inspect}) || words=$({pull_script(spec.image)} >&2 && {inspect}) || exit
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


def _rename(container: str, name: str) -> ShellText:
    return join(("docker", "rename", "--", container, name))


def _published(host_port: int, container_port: int, address: str | None) -> str:
    ports = f"{host_port}:{container_port}"
    if address is None:
        return ports
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}"
