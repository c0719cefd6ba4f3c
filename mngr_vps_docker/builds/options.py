"""Arguments that a user gives with ``-b``: which VPS to rent, and options of `docker build` on it."""

import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imbue.mngr_vps_docker.builds.tar_stream import ContextSize
from imbue.mngr_vps_docker.docker.options import (
    SPLIT_AT_SPACES,
    DockerOptions,
    Option,
    Rule,
    always,
    csv_fields,
    is_foreign_network,
    is_on,
    settings_of,
)
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.text import excerpt
from imbue.mngr_vps_docker.untrusted import check_texts

_KIND = "Build argument"
_VPS_OPTIONS = ("--vps-region", "--vps-plan", "--vps-os")


def _long_options(names: str) -> frozenset[str]:
    return frozenset(f"--{name}" for name in names.split())


def _is_directory_context(value: str) -> bool:
    return not value.partition("=")[2].lower().startswith(("http://", "https://", "docker-image://"))


def _is_cache_of_vps(value: str) -> bool:
    """Whether a cache is neither in a registry nor in the image, such as ``type=local,dest=/root``."""
    if "=" not in value:
        return csv_fields(value) is None
    return dict(settings_of(value)).get("type") not in ("registry", "inline")


_OTHER_CACHE = Rule("it would use files or credentials of the VPS; use type=registry or type=inline", _is_cache_of_vps)
# From `docker build --help` (legacy builder and BuildKit, Docker 20.10 to 28) and `depot build --help`.
_BUILD = DockerOptions(
    verb="build",
    kind=_KIND,
    allowing="allowed_build_args",
    switches=_long_options("""
        check compress debug disable-content-trust force-rm help load no-cache pull push quiet rm squash
    """),
    with_value=_long_options("""
        add-host allow annotation attest build-arg build-context build-platform builder cache-from cache-to call
        cgroup-parent cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems file git-depth iidfile isolation label
        memory memory-swap metadata-file network no-cache-filter output platform progress project provenance sbom
        secret security-opt shm-size ssh tag target token ulimit vps-region vps-plan vps-os
    """),
    letters={
        "c": "--cpu-shares", "D": "--debug", "f": "--file", "m": "--memory", "o": "--output", "q": "--quiet",
        "t": "--tag",
    },
    forbidden={
        "--tag": Rule("mngr names the image itself", always),
        "--output": Rule("the image must end up in the Docker of the VPS", always),
        "--push": Rule("the image must end up in the Docker of the VPS", is_on),
        "--check": Rule("it builds no image", is_on),
        "--call": Rule("it builds no image", always),
        "--help": Rule("it builds no image", is_on),
        "--iidfile": Rule("it would write a file on the VPS, not here", always),
        "--metadata-file": Rule("it would write a file on the VPS, not here", always),
        "--secret": Rule("it would read a file or variable of the VPS, not of this machine", always),
        "--ssh": Rule("it would use an agent or key of the VPS, not of this machine", always),
        "--token": Rule("it would be visible on the command line; set DEPOT_TOKEN in the environment", always),
        "--build-arg": Rule(
            "it would take a variable of the VPS, not of this machine; write NAME=value",
            lambda value: "=" not in value,
        ),
    },
    dangers={
        "--network": Rule(
            "a step of the build would reach services of the VPS and the cloud's metadata",
            is_foreign_network,
        ),
        "--allow": Rule("it disables a protection", always),
        "--security-opt": Rule("it disables a protection", always),
        "--cgroup-parent": Rule("a step of the build would leave the limits that Docker sets", always),
        "--cache-to": _OTHER_CACHE,
        "--cache-from": _OTHER_CACHE,
        "--build-context": Rule(
            "it cannot be a directory of this machine; use a URL, https://… or docker-image://…", _is_directory_context
        ),
    },
    unknown=Rule("what it does as root on the VPS is not known", always),
    is_strict=True,
)  # fmt: skip

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_][\w.:/@+-]*", re.ASCII)
# Git takes no depth from 2**31 on.
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedBuildArgs:
    """The build arguments of one host.

    ``dockerfile`` and ``context_dir`` are absolute paths on this machine, both set or both None; the Dockerfile may be
    outside of the context. ``docker_build_args`` are the other arguments of `docker build`. ``git_depth`` is the
    number of commits to send, None for all. ``context_size`` is known once the context is checked.
    """

    region: str
    plan: str
    os_id: int | str
    git_depth: int | None = None
    docker_build_args: tuple[str, ...] = ()
    dockerfile: Path | None = None
    context_dir: Path | None = None
    context_size: ContextSize | None = None

    @property
    def is_build(self) -> bool:
        """Whether an image is built."""
        return self.context_dir is not None


def parse_build_args(
    args: Sequence[str],
    *,
    default_region: str,
    default_plan: str,
    default_os_id: int | str,
    allowed: Sequence[str] = (),
) -> ParsedBuildArgs:
    """Parse ``args``, each one word or an option with its value behind it (``-f Dockerfile``).

    ``--vps-os`` must be a number where ``default_os_id`` is one. Paths are relative to the current directory, as in
    Docker. Checks everything that this machine can know; raises BuildArgumentError, which says what is right. Options
    that could harm the VPS, on which Docker builds as root, are refused unless they are among ``allowed``.
    """
    check_texts(_KIND, args, may_have_lines=True)
    words = [word for arg in args for word in _split(arg)]
    if not all(word.strip() for word in words):
        raise BuildArgumentError("A build argument is empty; remove it, or give its value")
    own: dict[str, str] = {}
    docker: list[str] = []
    paths: list[str] = []
    for option in _BUILD.parsed(words):
        if isinstance(option, str):
            paths.append(option)
        elif option.name.startswith("--vps-"):
            own[option.name] = _checked_vps_option(option)
        else:
            _BUILD.check(option, allowed)
            if option.name in ("--git-depth", "--file"):
                own[option.name] = option.value or ""
            else:
                docker.append(option.word)
    if "--" in paths:
        paths.remove("--")
    if len(paths) > 1:
        raise BuildArgumentError(
            f"There can be one context directory only, not {excerpt(' and '.join(paths))} ({SPLIT_AT_SPACES}"
            """ -b '--build-arg=NAME="a b"')"""
        )
    file = own.get("--file")
    if not paths and (file is not None or docker):
        raise BuildArgumentError("Building an image needs a context directory; add it last, for example: -b .")
    context_dir = _context_dir(paths[0]) if paths else None
    return ParsedBuildArgs(
        region=own.get("--vps-region", default_region),
        plan=own.get("--vps-plan", default_plan),
        os_id=_os_id(own.get("--vps-os"), default_os_id),
        git_depth=_git_depth(own.get("--git-depth"), context_dir),
        docker_build_args=tuple(docker),
        dockerfile=_dockerfile(file, context_dir) if context_dir else None,
        context_dir=context_dir,
    )


def _split(arg: str) -> list[str]:
    """Split ``-f Dockerfile`` given as one argument; a value with spaces (``--label=a b``) stays whole."""
    if not (arg.startswith("-") and " " in arg.partition("=")[0]):
        return [arg]
    try:
        return shlex.split(arg)
    except ValueError as error:
        raise BuildArgumentError(f"{_KIND} '{excerpt(arg)}' cannot be split into words: {error}") from error


def _checked_vps_option(option: Option) -> str:
    if option.name not in _VPS_OPTIONS or option.value is None:
        valid = ", ".join(f"{name}=" for name in _VPS_OPTIONS)
        raise BuildArgumentError(f"Unknown build argument '{excerpt(option.name)}'; those for the VPS are {valid}")
    if not _PLAIN_WORD.fullmatch(option.value):
        raise BuildArgumentError(f"{option.name} needs one plain word, not '{excerpt(option.value)}'")
    return option.value


def _os_id(value: str | None, default: int | str) -> int | str:
    if value is None:
        return default
    if isinstance(default, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise BuildArgumentError(f"--vps-os must be a number like {default}, not '{excerpt(value)}'")
    return int(value)


def _git_depth(value: str | None, context_dir: Path | None) -> int | None:
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) == 0:
        raise BuildArgumentError(f"--git-depth must be a number of commits, 1 or more, not '{excerpt(value)}'")
    if context_dir is None:
        raise BuildArgumentError("--git-depth needs a context directory to send; add it last, for example: -b .")
    if not (context_dir / ".git").exists():
        raise BuildArgumentError(f"--git-depth needs the top of a git checkout as context, which {context_dir} is not")
    return int(value)


def _context_dir(word: str) -> Path:
    if word == "-" or "://" in word or word.startswith("git@"):
        raise BuildArgumentError(f"The build context must be a directory on this machine, not '{excerpt(word)}'")
    path = _absolute(word)
    mode = _mode(path)
    if not stat.S_ISDIR(mode):
        problem = "is not a directory" if mode else "does not exist"
        raise BuildArgumentError(f"The build context '{excerpt(word)}' {problem} ({excerpt(str(path))})")
    return path


def _dockerfile(word: str | None, context_dir: Path) -> Path:
    if word == "-":
        raise BuildArgumentError("The Dockerfile must be a file on this machine; it cannot come from standard input")
    if word is None:
        # Docker takes either name.
        names = ("Dockerfile", "dockerfile")
        paths = [context_dir / name for name in names]
        path = next((path for path in paths if stat.S_ISREG(_mode(path))), paths[0])
    else:
        path = _absolute(word)
    mode, name = _mode(path), excerpt(str(path))
    if not stat.S_ISREG(mode):
        problem = "is not a file" if mode else "does not exist"
        raise BuildArgumentError(f"The Dockerfile {name} {problem}; name another one with --file=PATH")
    if not os.access(path, os.R_OK):
        raise BuildArgumentError(f"The Dockerfile {name} cannot be read; check its permissions")
    return path


def _mode(path: Path) -> int:
    """The st_mode of ``path``; 0 if it does not exist."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise BuildArgumentError(f"'{excerpt(str(path))}' cannot be used: {error.strerror}") from error


def _absolute(word: str) -> Path:
    try:
        return Path(os.path.abspath(word))  # noqa: PTH100 - resolve() would follow a symlink to another name
    except FileNotFoundError as error:
        raise BuildArgumentError(
            f"The current directory has been deleted, so '{excerpt(word)}' means nothing; change to one that exists"
        ) from error
