"""Options of `docker run` that a user gives with ``-s``; some would let an agent out of its container."""

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH, VPS_SSH_PORT, VpsDockerProviderConfig
from imbue.mngr_vps_docker.docker.options import (
    SPLIT_AT_SPACES,
    DockerOptions,
    Option,
    Rule,
    always,
    is_foreign_network,
    is_off,
    is_on,
    settings_of,
)
from imbue.mngr_vps_docker.docker.secret_options import without_value
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.primitives import HOST_VOLUME_PREFIX
from imbue.mngr_vps_docker.text import MASK, excerpt
from imbue.mngr_vps_docker.untrusted import check_texts

_KIND: Final = "Start argument"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# All options are from `docker run --help`, Docker 20.10 to 28.
_SWITCHES: Final = _words("""
    --detach --disable-content-trust --help --init --interactive --no-healthcheck --oom-kill-disable --privileged
    --publish-all --quiet --read-only --rm --sig-proxy --tty --use-api-socket
""")
_WITH_VALUE: Final = _words("""
    --add-host --annotation --attach --blkio-weight --blkio-weight-device --cap-add --cap-drop --cgroup-parent
    --cgroupns --cidfile --cpu-count --cpu-percent --cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime
    --cpu-shares --cpus --cpuset-cpus --cpuset-mems --detach-keys --device --device-cgroup-rule --device-read-bps
    --device-read-iops --device-write-bps --device-write-iops --dns --dns-option --dns-search --domainname --entrypoint
    --env --env-file --expose --gpus --group-add --health-cmd --health-interval --health-retries
    --health-start-interval --health-start-period --health-timeout --hostname --io-maxbandwidth --io-maxiops --ip --ip6
    --ipc --isolation --kernel-memory --label --label-file --link --link-local-ip --log-driver --log-opt --mac-address
    --memory --memory-reservation --memory-swap --memory-swappiness --mount --name --network --network-alias
    --oom-score-adj --pid --pids-limit --platform --publish --pull --restart --runtime --security-opt --shm-size
    --stop-signal --stop-timeout --storage-opt --sysctl --tmpfs --ulimit --user --userns --uts --volume --volume-driver
    --volumes-from --workdir
""")
_LETTERS: Final = {
    "a": "--attach", "c": "--cpu-shares", "d": "--detach", "e": "--env", "h": "--hostname", "i": "--interactive",
    "l": "--label", "m": "--memory", "P": "--publish-all", "p": "--publish", "q": "--quiet", "t": "--tty",
    "u": "--user", "v": "--volume", "w": "--workdir",
}  # fmt: skip

# Docker gives these to every container:
# https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
_USUAL_CAPABILITIES: Final = _words("""
    AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID
    SYS_CHROOT
""")
# The drivers that only write on the VPS: https://docs.docker.com/engine/logging/configure/#supported-logging-drivers
_LOCAL_LOG_DRIVERS: Final = _words("json-file local journald none")
# sshd needs the first four to log in (AUDIT_WRITE for a terminal), and apt the others to install.
_NEEDED_CAPABILITIES: Final = _words("AUDIT_WRITE SETGID SETUID SYS_CHROOT CHOWN DAC_OVERRIDE FOWNER")
# apt, sshd, tmux and the activity watcher need less.
_MIN_MEMORY_BYTES: Final = 128 << 20
_MIN_PROCESSES: Final = 32
_MIN_FILES: Final = 64
# As docker/go-units reads a size.
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.ASCII | re.IGNORECASE)
# Programs of the image do not run without these folders.
_SYSTEM_FOLDERS: Final = _words("""
    / /bin /dev /etc /lib /lib64 /proc /sbin /sys /usr /usr/bin /usr/lib /usr/sbin /var /var/lib /var/lib/dpkg
""")
_SAFE_SECURITY_OPTIONS: Final = frozenset({"no-new-privileges", "no-new-privileges=true", "no-new-privileges:true"})
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+", re.ASCII)


def allowed_start_args(config: VpsDockerProviderConfig, args: Sequence[str], *, state_volume: str) -> tuple[str, ...]:
    """Return the start arguments ``args`` of a host, if the settings allow them.

    ``state_volume`` is the name of the volume that holds the host's record. Raises as ``checked_start_args`` does.
    """
    return checked_start_args(
        args,
        allowed=config.allowed_start_args,
        host_dir=PurePosixPath(config.host_dir),
        ssh_port=config.container_ssh_port,
        state_volume=state_volume,
    )


def checked_start_args(
    args: Sequence[str],
    *,
    allowed: Sequence[str] = (),
    host_dir: PurePosixPath = HOST_VOLUME_PATH,
    ssh_port: int | None = None,
    state_volume: str | None = None,
) -> tuple[str, ...]:
    """Return ``args`` for `docker run`, each option as one word in its long form.

    Raises BuildArgumentError for options that give the container access to the VPS itself, unless they are among
    ``allowed`` (``--option`` or ``--option=value``); for options that keep mngr from the container or its data; and
    for a word that is not an option, which Docker would take for the image.
    """
    check_texts(_KIND, args, may_have_lines=True)
    options = _options_of(host_dir, ssh_port, state_volume)
    found: list[Option] = []
    for option in options.parsed(args):
        if isinstance(option, str):
            raise BuildArgumentError(
                f"{_KIND} '{excerpt(option)}' is not an option of `docker run`; write --option=value in one word"
                f""" ({SPLIT_AT_SPACES} -s '--label=NAME="a b"')"""
            )
        options.check(option, allowed)
        found.append(option)
    missing = ", ".join(sorted(_NEEDED_CAPABILITIES - _capabilities(found)))
    if missing:
        raise BuildArgumentError(
            f"{_KIND} '--cap-drop' cannot be used like this: sshd and apt in the container need {missing}; drop less,"
            " or add them by --cap-add"
        )
    return tuple(option.word for option in found)


def without_values(args: Sequence[str]) -> tuple[str, ...]:
    """Start arguments with MASK in the place of each value that may be secret."""
    try:
        return tuple(MASK if isinstance(option, str) else without_value(option.word) for option in _RUN.parsed(args))
    except BuildArgumentError:
        # Docker cannot read them either.
        return (MASK,)


def _capability(value: str) -> str:
    return value.upper().removeprefix("CAP_")


def _capabilities(options: Sequence[Option]) -> frozenset[str]:
    """The capabilities of the container, at least the needed ones: see oci/caps/utils.go of moby."""
    added, dropped = (
        frozenset(_capability(option.value or "") for option in options if option.name == name)
        for name in ("--cap-add", "--cap-drop")
    )
    if any(option.name == "--privileged" and is_on(option.value or "") for option in options):
        return _NEEDED_CAPABILITIES
    if "ALL" in added:
        return _NEEDED_CAPABILITIES - dropped
    return added if "ALL" in dropped else _USUAL_CAPABILITIES - dropped | added


def _is_too_little_memory(value: str) -> bool:
    size = _SIZE.fullmatch(value)
    # 0 means no limit.
    return size is not None and 0 < float(size[1]) * 1024 ** "bkmgtp".index(size[2].lower() or "b") < _MIN_MEMORY_BYTES


def _is_below(least: int, number: str) -> bool:
    return number.isdecimal() and len(number) < 10 and int(number) < least


def _is_too_few_files(value: str) -> bool:
    name, _, limits = value.partition("=")
    return name == "nofile" and any(_is_below(_MIN_FILES, limit) for limit in limits.split(":"))


@dataclass(frozen=True, slots=True)
class _Mount:
    """Something mounted at ``target``: a volume by its name, a path of the VPS, or "" for a new volume.

    One that ``is_empty`` hides the image's files there; Docker copies those to a new volume.
    """

    source: str
    target: str
    is_unusual: bool = False
    is_empty: bool = False

    @property
    def is_of_vps(self) -> bool:
        return self.is_unusual or (self.source != "" and not _VOLUME_NAME.fullmatch(self.source))


def _of_volume(value: str) -> _Mount:
    first, *others = value.split(":")
    return _Mount(first, others[0]) if others else _Mount("", first)


def _of_tmpfs(value: str) -> _Mount:
    return _Mount("", value.partition(":")[0], is_empty=True)


def _of_mount(value: str) -> _Mount:
    # See opts/mount.go of docker/cli. Of several settings with one meaning, the last counts.
    aliases = {"src": "source", "dst": "target", "destination": "target"}
    settings = {aliases.get(key, key): setting for key, setting in settings_of(value)}
    kind, target = settings.get("type", "volume").lower(), settings.get("target", "")
    is_plain = kind in ("volume", "tmpfs") and "volume-opt" not in settings
    is_local = settings.get("volume-driver", "local") == "local"
    is_unusual = not (is_plain and is_local and target)
    return _Mount(settings.get("source", ""), target, is_unusual, is_empty=kind == "tmpfs")


_MOUNTS: Final = {"--volume": _of_volume, "--mount": _of_mount, "--tmpfs": _of_tmpfs}
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


def _host_ports(value: str) -> range:
    """The TCP ports of the VPS that ``--publish`` takes: ``[address:]port[-port]:…`` or ``published=port,…``."""
    if "=" in value:
        settings = dict(settings_of(value))
        ports, protocol = settings.get("published", ""), settings.get("protocol", "tcp")
    else:
        mapping, _, protocol = value.partition("/")
        _, _, ports = mapping.rpartition(":")[0].rpartition(":")
    found = _PORTS.fullmatch(ports)
    if found is None or protocol.lower() not in ("", "tcp"):
        return range(0)
    return range(int(found[1]), int(found[2] or found[1]) + 1)


_SHARED_NAMESPACE: Final = Rule(
    "the container would share that part of the VPS, or of another container",
    lambda value: value == "host" or value.startswith("container:"),
)
_FILES_OF_VPS: Final = "the container would see files of the VPS; use a named volume"
_DANGERS: Final = {
    "--privileged": Rule("the container could do whatever root on the VPS can", is_on),
    "--use-api-socket": Rule("the container would control the Docker of the VPS", is_on),
    "--network": Rule(
        "the container would reach the VPS's own services, another container's and the cloud's metadata; use the plain"
        " name of a network",
        is_foreign_network,
    ),
    "--pid": _SHARED_NAMESPACE,
    "--ipc": _SHARED_NAMESPACE,
    "--uts": _SHARED_NAMESPACE,
    "--userns": _SHARED_NAMESPACE,
    "--cgroupns": _SHARED_NAMESPACE,
    "--cgroup-parent": Rule("the container would leave the limits that Docker sets", always),
    "--annotation": Rule("it can disable a protection", always),
    "--cap-add": Rule(
        "root in the container could use it to get out", lambda value: _capability(value) not in _USUAL_CAPABILITIES
    ),
    "--device": Rule("the container would have access to a device of the VPS", always),
    "--device-cgroup-rule": Rule("the container would have access to devices of the VPS", always),
    "--gpus": Rule("the container would have access to devices of the VPS", always),
    "--security-opt": Rule("it disables a protection", lambda value: value not in _SAFE_SECURITY_OPTIONS),
    "--volume": Rule(_FILES_OF_VPS, lambda value: _of_volume(value).is_of_vps),
    "--mount": Rule(_FILES_OF_VPS, lambda value: _of_mount(value).is_of_vps),
    "--volume-driver": Rule("it could mount anything as a volume", lambda value: value != "local"),
    "--volumes-from": Rule("the container would see another container's files", always),
    "--log-driver": Rule(
        "Docker on the VPS would send the container's output elsewhere; use json-file, local, journald or none",
        lambda value: value not in _LOCAL_LOG_DRIVERS,
    ),
    "--oom-kill-disable": Rule("the VPS would run out of memory instead of the container", is_on),
    "--oom-score-adj": Rule("the VPS's own services would be killed first", lambda value: value.startswith("-")),
}
_FORBIDDEN: Final = {
    "--env": Rule(
        "the record of the host is lost, and this machine keeps no values of --env; create a new host",
        lambda value: value.endswith(f"={MASK}"),
    ),
    "--name": Rule("mngr names the container itself", always),
    "--user": Rule(
        "mngr sets up the container and runs its agents as root; let a command of the agent change to another user",
        lambda value: value.partition(":")[0] not in ("root", "0"),
    ),
    "--entrypoint": Rule("mngr uses an entry point of its own", always),
    "--rm": Rule("a stopped host must not be removed", is_on),
    "--detach": Rule("the container runs in the background", is_off),
    "--restart": Rule("a host that stopped must stay stopped until it is started", lambda value: value != "no"),
    "--cidfile": Rule("it would write a file on the VPS, not here", always),
    "--env-file": Rule("it would read a file of the VPS, not of this machine", always),
    "--label-file": Rule("it would read a file of the VPS, not of this machine", always),
    "--help": Rule("no container would run", is_on),
    "--attach": Rule("the container runs in the background", always),
    "--read-only": Rule("mngr sets up a container after its start, in its own file system", is_on),
    "--network": Rule(
        "the container's sshd would be unreachable",
        lambda value: "none" in (value, dict(settings_of(value.lower())).get("name")),
    ),
    "--memory": Rule(f"mngr needs {_MIN_MEMORY_BYTES >> 20} MiB in a container", _is_too_little_memory),
    "--pids-limit": Rule(
        f"mngr needs {_MIN_PROCESSES} processes in a container",
        # 0 means no limit.
        lambda value: value != "0" and _is_below(_MIN_PROCESSES, value),
    ),
    "--ulimit": Rule(f"mngr needs {_MIN_FILES} open files in a container", _is_too_few_files),
    "--workdir": Rule("it must be an absolute path", lambda value: not value.startswith("/")),
    "--pull": Rule("mngr itself fetches the image before", lambda value: value == "always"),
    "--label": Rule("labels with this prefix are mngr's own", lambda value: value.startswith("com.imbue.mngr.")),
}
_RUN: Final = DockerOptions(
    verb="run",
    kind=_KIND,
    allowing="allowed_start_args",
    switches=_SWITCHES,
    with_value=_WITH_VALUE,
    letters=_LETTERS,
    aliases={"--net": "--network", "--net-alias": "--network-alias", "--dns-opt": "--dns-option"},
    forbidden=_FORBIDDEN,
    dangers=_DANGERS,
    unknown=Rule("what it allows the container to do is not known", always),
)


def _options_of(host_dir: PurePosixPath, ssh_port: int | None, state_volume: str | None) -> DockerOptions:
    """The options of `docker run`, with the mounts and ports refused that mngr needs for one host."""

    def is_taken(read: Callable[[str], _Mount], value: str) -> bool:
        mount = read(value)
        path = PurePosixPath(posixpath.normpath(f"/{mount.target.lstrip('/')}"))
        is_own = mount.source == state_volume or mount.source.startswith(HOST_VOLUME_PREFIX)
        is_hiding = mount.is_empty and str(path) in _SYSTEM_FOLDERS
        return is_own or is_hiding or path.is_relative_to(HOST_VOLUME_PATH) or path.is_relative_to(host_dir)

    def is_port_taken(value: str) -> bool:
        return any(port in _host_ports(value) for port in (VPS_SSH_PORT, ssh_port))

    mounts = {
        name: Rule("it would hide or expose mngr's own data, or hide the image's programs", partial(is_taken, read))
        for name, read in _MOUNTS.items()
    }
    ports = {"--publish": Rule("the sshd of the VPS or of the container uses that port", is_port_taken)}
    return replace(_RUN, forbidden={**_FORBIDDEN, **mounts, **ports})
