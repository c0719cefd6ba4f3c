"""What a user asks for with ``-s``: options of `docker run`, some of which would let an agent out of its container."""

import csv
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.errors import BuildArgumentError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# From `docker run --help`, Docker 20.10 to 28: the options that take no value; all others take one.
_SWITCHES: Final = _words("""
    --detach --disable-content-trust --help --init --interactive --no-healthcheck --oom-kill-disable --privileged
    --publish-all --quiet --read-only --rm --sig-proxy --tty --use-api-socket
""")
_SHORT_SWITCHES: Final = {
    "d": "--detach", "i": "--interactive", "P": "--publish-all", "q": "--quiet", "t": "--tty"
}  # fmt: skip
_SHORT_OPTIONS: Final = {
    "a": "--attach", "c": "--cpu-shares", "e": "--env", "h": "--hostname", "l": "--label", "m": "--memory",
    "p": "--publish", "u": "--user", "v": "--volume", "w": "--workdir",
}  # fmt: skip
_ALIASES: Final = {"--net": "--network", "--net-alias": "--network-alias", "--dns-opt": "--dns-option"}

# What Docker gives every container anyway:
# https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
_USUAL_CAPABILITIES: Final = _words("""
    AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID
    SYS_CHROOT
""")
_SAFE_SECURITY_OPTIONS: Final = frozenset({"no-new-privileges", "no-new-privileges=true", "no-new-privileges:true"})


@dataclass(frozen=True, slots=True)
class _Option:
    """One option in its long form; ``value`` is "true" for a switch that stands alone."""

    name: str
    value: str

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Whether one of ``names``, each ``--option`` or ``--option=value``, means this option."""
        return self.name in names or f"{self.name}={self.value}" in names


def start_args_of(config: VpsDockerProviderConfig, args: Sequence[str]) -> tuple[str, ...]:
    """The start arguments of a host: the settings' own, then ``args``; see ``checked_start_args``."""
    return checked_start_args((*config.default_start_args, *args), allowed=config.allowed_start_args)


def checked_start_args(args: Sequence[str], *, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """Return ``args`` if `docker run` can be given them.

    Raises BuildArgumentError for what would let the agent in the container at the VPS itself, unless it is among
    ``allowed`` (``--option`` or ``--option=value``); for what would keep mngr from finding its container, always; and
    for a word that is no option, which Docker would take for the image.
    """
    for option in _options(args):
        shown = option.name if option.value == "true" else f"{option.name}={option.value}"
        is_ours = _OURS.get(option.name)
        if is_ours is not None and is_ours.is_met(option.value):
            raise BuildArgumentError(f"Start argument '{shown}' cannot be used: {is_ours.why}")
        danger = _DANGERS.get(option.name)
        if danger is not None and danger.is_met(option.value) and not option.is_one_of(allowed):
            raise BuildArgumentError(
                f"Start argument '{shown}' is refused: {danger.why}. If that is what you want, add '{shown}' to"
                " allowed_start_args in the provider's settings"
            )
    return tuple(args)


def _options(args: Sequence[str]) -> Iterator[_Option]:
    words = iter(args)
    for word in words:
        if "\0" in word:
            raise BuildArgumentError(f"Start argument {word!r} cannot be an argument")
        if word.startswith("--") and len(word) > 2:
            name, has_value, value = word.partition("=")
            name = _ALIASES.get(name, name)
            if not has_value:
                value = "true" if name in _SWITCHES else _next(words, name)
            yield _Option(name, value)
        elif word.startswith("-") and word not in ("-", "--"):
            yield from _short_options(word, words)
        else:
            raise BuildArgumentError(f"Start argument '{word}' is no option of `docker run`; write --option=value")


def _short_options(word: str, words: Iterator[str]) -> Iterator[_Option]:
    """Take ``-it`` and ``-p8080:80`` apart, as Docker does."""
    for position, letter in enumerate(word[1:], start=1):
        rest = word[position + 1 :].removeprefix("=")
        if letter in _SHORT_OPTIONS:
            yield _Option(_SHORT_OPTIONS[letter], rest or _next(words, f"-{letter}"))
            return
        if letter not in _SHORT_SWITCHES:
            raise BuildArgumentError(f"Start argument '{word}' is no option of `docker run`")
        if word[position + 1 : position + 2] == "=":
            yield _Option(_SHORT_SWITCHES[letter], rest)
            return
        yield _Option(_SHORT_SWITCHES[letter], "true")


def _next(words: Iterator[str], option: str) -> str:
    value = next(words, None)
    if value is None:
        raise BuildArgumentError(f"Start argument '{option}' needs a value; write {option}=…")
    return value


@dataclass(frozen=True, slots=True)
class _Rule:
    """When an option is refused, by its value, and why."""

    why: str
    is_met: Callable[[str], bool]


def _always(_value: str) -> bool:
    return True


def _is_on(value: str) -> bool:
    # Go's strconv.ParseBool; what it does not know, Docker refuses.
    return value not in ("0", "f", "F", "false", "FALSE", "False")


def _is_off(value: str) -> bool:
    return not _is_on(value)


def _is_foreign_namespace(value: str) -> bool:
    return value == "host" or value.startswith("container:")


def _is_unusual_capability(value: str) -> bool:
    return value.upper().removeprefix("CAP_") not in _USUAL_CAPABILITIES


def _is_bind(value: str) -> bool:
    # A single path is a new volume of the container's own; a name is one that Docker keeps.
    source, is_mount, _target = value.partition(":")
    return bool(is_mount) and source.startswith(("/", ".", "~", "\\"))


def _is_mount_of_vps(value: str) -> bool:
    if "\n" in value or "\r" in value:
        return True
    (fields,) = csv.reader([value])
    settings = dict(field.lower().partition("=")[::2] for field in fields)
    return settings.get("type", "volume").strip() not in ("volume", "tmpfs") or "volume-opt" in settings


_SHARED_NAMESPACE: Final = _Rule(
    "the container would share that part of the VPS, or of another container", _is_foreign_namespace
)
_DANGERS: Final = {
    "--privileged": _Rule("the container could do whatever root on the VPS can", _is_on),
    "--use-api-socket": _Rule("the container would control the Docker of the VPS", _is_on),
    "--network": _Rule(
        "the container would reach what only the VPS may: its own services and the cloud's metadata",
        _is_foreign_namespace,
    ),
    "--pid": _SHARED_NAMESPACE,
    "--ipc": _SHARED_NAMESPACE,
    "--uts": _SHARED_NAMESPACE,
    "--userns": _SHARED_NAMESPACE,
    "--cgroupns": _SHARED_NAMESPACE,
    "--cap-add": _Rule("root in the container could use it to get out", _is_unusual_capability),
    "--device": _Rule("the container would get at a device of the VPS", _always),
    "--device-cgroup-rule": _Rule("the container would get at devices of the VPS", _always),
    "--security-opt": _Rule("it takes a defence away", lambda value: value not in _SAFE_SECURITY_OPTIONS),
    "--volume": _Rule("the container would see files of the VPS; use a named volume", _is_bind),
    "--mount": _Rule("the container would see files of the VPS; use a named volume", _is_mount_of_vps),
    "--volumes-from": _Rule("the container would see another container's files", _always),
    "--oom-kill-disable": _Rule("the VPS would run out of memory instead of the container", _is_on),
    "--oom-score-adj": _Rule("the VPS's own services would be killed first", lambda value: value.startswith("-")),
}
_OURS: Final = {
    "--name": _Rule("mngr names the container itself", _always),
    "--entrypoint": _Rule("mngr keeps the container running by an entry point of its own", _always),
    "--rm": _Rule("a stopped host must not vanish", _is_on),
    "--detach": _Rule("the container runs in the background", _is_off),
    "--restart": _Rule("a host that stopped must stay so until it is started", lambda value: value != "no"),
    "--cidfile": _Rule("it would write a file on the VPS, not here", _always),
    "--help": _Rule("no container would run", _is_on),
    "--label": _Rule("labels that begin so are mngr's own", lambda value: value.startswith("com.imbue.mngr.")),
}
