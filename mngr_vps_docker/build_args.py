"""What a user asks for with ``-b``: which VPS to rent, and what `docker build` is to do on it."""

import os
import re
import shlex
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from imbue.mngr_vps_docker.errors import BuildArgumentError

BUILD_ARGS_HELP = """\
--vps-region=REGION, --vps-plan=PLAN, --vps-os=OS: where and on what the host runs
--git-depth=N: send only the last N commits of a git checkout
All else goes to `docker build`: --file=Dockerfile, --target=x, --build-arg=k=v, …, and last the context directory.
For example: -b --vps-plan=vc2-2c-4gb -b --file=Dockerfile -b .
"""

_VPS_OPTIONS = ("--vps-region", "--vps-plan", "--vps-os")


def _long_options(names: str) -> frozenset[str]:
    return frozenset(f"--{name}" for name in names.split())


# From `docker build --help` (legacy builder and BuildKit, Docker 20.10 to 28) and `depot build --help`.
_OPTIONS_WITH_VALUE = _long_options("""
    add-host allow annotation attest build-arg build-context build-platform builder cache-from cache-to call
    cgroup-parent cpu-period cpu-quota cpu-shares cpuset-cpus cpuset-mems file iidfile isolation label memory
    memory-swap metadata-file network no-cache-filter output platform progress project provenance sbom secret
    security-opt shm-size ssh tag target token ulimit
""")
_SWITCHES = _long_options("""
    check compress debug disable-content-trust force-rm load no-cache pull push quiet rm squash
""")
_SHORT_OPTIONS = {"-c": "--cpu-shares", "-f": "--file", "-m": "--memory", "-o": "--output", "-t": "--tag"}
_SHORT_SWITCHES = frozenset({"-D", "-q"})

_REFUSED = {
    "--tag": "mngr names the image itself",
    "--output": "the image must end up in the Docker of the VPS",
    "--push": "the image must end up in the Docker of the VPS",
    "--check": "it builds no image",
    "--call": "it builds no image",
    "--iidfile": "it would write a file on the VPS, not here",
    "--metadata-file": "it would write a file on the VPS, not here",
    "--secret": "it would read a file or variable of the VPS, not of this machine",
    "--ssh": "it would use an agent or key of the VPS, not of this machine",
    "--token": "it would show on the command line; set DEPOT_TOKEN in the environment",
}

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_][\w.:/@+-]*", re.ASCII)
# Git takes no depth from 2**31 on.
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedBuildArgs:
    """What the build arguments of one host say.

    ``dockerfile`` and ``context_dir`` are absolute paths on this machine, both set or both None; the Dockerfile need
    not lie in the context. ``docker_build_args`` are the other arguments of `docker build`, without those two.
    ``git_depth`` is the number of commits to send, None for all.
    """

    region: str
    plan: str
    os_id: int | str
    git_depth: int | None = None
    docker_build_args: tuple[str, ...] = ()
    dockerfile: Path | None = None
    context_dir: Path | None = None

    @property
    def is_build(self) -> bool:
        """Whether an image is to be built."""
        return self.context_dir is not None


def parse_build_args(
    args: Sequence[str], *, default_region: str, default_plan: str, default_os_id: int | str
) -> ParsedBuildArgs:
    """Understand ``args``, each one word or an option with its value behind it (``-f Dockerfile``).

    ``--vps-os`` must be a number where ``default_os_id`` is one. Paths are relative to the current directory, as
    in Docker. Everything that can be known on this machine is checked; BuildArgumentError says what would be right.
    """
    words = _Words()
    words.read([word for arg in args for word in _split(arg)])
    context_dir, dockerfile = _find_build(words)
    return ParsedBuildArgs(
        region=words.vps.get("--vps-region", default_region),
        plan=words.vps.get("--vps-plan", default_plan),
        os_id=_os_id(words.vps.get("--vps-os"), default_os_id),
        git_depth=_git_depth(words.git_depth, context_dir),
        docker_build_args=tuple(words.docker),
        dockerfile=dockerfile,
        context_dir=context_dir,
    )


def _split(arg: str) -> list[str]:
    """Split ``-f Dockerfile`` given as one argument; a value with spaces (``--label=a b``) stays whole."""
    option, *_ = arg.split("=", 1)
    if not (arg.startswith("-") and " " in option):
        return [arg]
    try:
        return shlex.split(arg)
    except ValueError as error:
        raise BuildArgumentError(f"Build argument {arg!r} cannot be split into words: {error}") from error


@dataclass(slots=True)
class _Words:
    """The arguments, sorted by whom they are for."""

    vps: dict[str, str] = field(default_factory=dict)
    git_depth: str | None = None
    file: str | None = None
    docker: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    # Where in ``docker`` there are words behind an option that we do not know: its value, or the context directory.
    unclear: list[int] = field(default_factory=list)

    def read(self, args: Sequence[str]) -> None:
        """Sort ``args``."""
        words = iter(args)
        for word in words:
            if not word.strip():
                raise BuildArgumentError("A build argument is empty; remove it, or give its value")
            if word == "--":
                self.paths.extend(words)
            elif not word.startswith("-") or word == "-":
                self.paths.append(word)
            elif word.startswith("--vps-"):
                self._read_vps_option(word, words)
            else:
                self._read_option(word, words)

    def _read_vps_option(self, word: str, words: Iterator[str]) -> None:
        option, value = _option_and_value(word)
        if option not in _VPS_OPTIONS:
            valid = ", ".join(f"{name}=" for name in _VPS_OPTIONS)
            raise BuildArgumentError(f"Unknown build argument '{option}'; those for the VPS are {valid}")
        value = _required(option, value, words)
        if not _PLAIN_WORD.fullmatch(value):
            raise BuildArgumentError(f"{option} needs one plain word, not {value!r}")
        self.vps[option] = value

    def _read_option(self, word: str, words: Iterator[str]) -> None:
        option, value = _option_and_value(word)
        if option in _REFUSED:
            raise BuildArgumentError(f"Build argument '{option}' cannot be used here: {_REFUSED[option]}")
        if option == "--git-depth":
            self.git_depth = _required(option, value, words)
        elif option == "--file":
            self.file = _required(option, value, words)
        elif option in _OPTIONS_WITH_VALUE:
            value = _required(option, value, words)
            if option == "--build-context" and "://" not in value:
                raise BuildArgumentError(f"--build-context={value} cannot be a directory of this machine; use a URL")
            self.docker.append(f"{option}={value}")
        else:
            self.docker.append(word)
            if value is None and option not in _SWITCHES | _SHORT_SWITCHES:
                self._read_what_follows_unknown(words)

    def _read_what_follows_unknown(self, words: Iterator[str]) -> None:
        rest = list(words)
        if rest and not rest[0].startswith("-"):
            self.unclear.append(len(self.docker))
            self.docker.append(rest.pop(0))
        self.read(rest)


def _option_and_value(word: str) -> tuple[str, str | None]:
    """Take ``--file=x``, ``-f=x`` and ``-fx`` apart, the option in its long form; None where there is no value."""
    long_form = _SHORT_OPTIONS.get(word[:2])
    if long_form is not None and not word.startswith("--"):
        return long_form, word[2:].removeprefix("=") or None
    option, has_value, value = word.partition("=")
    return option, value if has_value else None


def _required(option: str, value: str | None, words: Iterator[str]) -> str:
    if value is None:
        value = next(words, "")
        if value.startswith("--"):
            raise BuildArgumentError(f"Build argument '{option}' needs a value before '{value}'; write {option}=…")
    if not value.strip():
        raise BuildArgumentError(f"Build argument '{option}' needs a value; write {option}=…")
    return value


def _os_id(value: str | None, default: int | str) -> int | str:
    if value is None:
        return default
    if isinstance(default, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise BuildArgumentError(f"--vps-os must be a number like {default}, not '{value}'")
    return int(value)


def _git_depth(value: str | None, context_dir: Path | None) -> int | None:
    if value is None:
        return None
    if not _NUMBER.fullmatch(value) or int(value) == 0:
        raise BuildArgumentError(f"--git-depth must be a number of commits, 1 or more, not '{value}'")
    if context_dir is None:
        raise BuildArgumentError("--git-depth needs a context directory to send; add it last, for example: -b .")
    if not (context_dir / ".git").exists():
        raise BuildArgumentError(f"--git-depth needs the top of a git checkout as context, which {context_dir} is not")
    return int(value)


def _find_build(words: _Words) -> tuple[Path | None, Path | None]:
    """Find the context directory and the Dockerfile, and check that they are there."""
    if not words.paths and words.unclear:
        words.paths.append(words.docker.pop(words.unclear[-1]))
    if len(words.paths) > 1:
        raise BuildArgumentError(f"There can be one context directory only, not {' and '.join(words.paths)}")
    if not words.paths:
        if words.file is not None or words.docker:
            raise BuildArgumentError("Building an image needs a context directory; add it last, for example: -b .")
        return None, None
    context_dir = _context_dir(words.paths[0])
    return context_dir, _dockerfile(words.file, context_dir)


def _context_dir(word: str) -> Path:
    if word == "-" or "://" in word or word.startswith("git@"):
        raise BuildArgumentError(f"The build context must be a directory on this machine, not '{word}'")
    path = _absolute(word)
    if not path.is_dir():
        problem = "is not a directory" if path.exists() else "does not exist"
        raise BuildArgumentError(f"The build context '{word}' {problem} ({path})")
    return path


def _dockerfile(word: str | None, context_dir: Path) -> Path:
    if word == "-":
        raise BuildArgumentError("The Dockerfile must be a file on this machine; it cannot come from standard input")
    if word is None:
        # Docker takes either name.
        names = ("Dockerfile", "dockerfile")
        path = next((context_dir / name for name in names if (context_dir / name).is_file()), context_dir / names[0])
    else:
        path = _absolute(word)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise BuildArgumentError(f"The Dockerfile {path} {problem}; name one that is there with --file=PATH")
    if not os.access(path, os.R_OK):
        raise BuildArgumentError(f"The Dockerfile {path} cannot be read; check its permissions")
    return path


def _absolute(word: str) -> Path:
    """The path that ``word`` means in the current directory, which may have been deleted."""
    if "\0" in word:
        raise BuildArgumentError(f"{word!r} cannot be a path")
    try:
        return Path(os.path.abspath(word))  # noqa: PTH100 - resolve() would follow a symlink to another name
    except FileNotFoundError as error:
        raise BuildArgumentError(
            f"The current directory has been deleted, so '{word}' means nothing; change to one that exists"
        ) from error
