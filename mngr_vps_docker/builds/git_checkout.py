"""The git directory of a checkout, which may come from an untrusted author.

Its settings may name programs, and links, alternates and ``gitdir:`` may lead to other files of this machine. So git
does not run in it: this module finds and examines it, and refuses what leads out of the context, except to the git
directory of a worktree or submodule that names this context as its checkout.
"""

import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.builds.dockerignore import DOCKERIGNORE
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.ssh.shell import join

GIT_TIMEOUT_SECONDS: Final = 900.0

# The last one lists no refs of the checkout: git would run in it for that.
_SETTINGS: Final = (
    "-c", "core.logAllRefUpdates=false", "-c", "gc.auto=0", "-c", "core.alternateRefsCommand=true"
)  # fmt: skip
# The settings of the user and of the machine may name programs, too. Git finds them by HOME, which is used because git
# before 2.32 does not know GIT_CONFIG_GLOBAL.
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": os.devnull,
    "XDG_CONFIG_HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    # Refs are copied as files, and later versions of git may have another default.
    "GIT_DEFAULT_REF_FORMAT": "files",
    # A missing object is an error, and is not fetched by a program that settings name. Git before 2.39.4 knows only
    # GIT_ALLOW_PROTOCOL, which is empty for that.
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}

# Longer than any path.
_MAX_PATH_FILE_BYTES: Final = 16 * 1024
# Extensions, and their values, with which refs and objects have the form that is read here.
_KNOWN_EXTENSIONS: Final = {"objectformat": ("sha1", "sha256"), "refstorage": ("files",)}
_HARMLESS_EXTENSIONS: Final = (
    "noop", "noop-v1", "partialclone", "preciousobjects", "relativeworktrees", "worktreeconfig"
)  # fmt: skip
# Names of branches contain some slashes. Code that walks folders by recursion fails for much deeper ones.
_MAX_DEPTH: Final = 100
SENT_REFS: Final = ("refs/heads/", "refs/remotes/", "refs/tags/")

LEAVE_GIT_OUT: Final = f"add .git at the end of {DOCKERIGNORE}"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of our own, on which git runs; errors name ``context_dir``, the checkout that it is made for."""

    context_dir: Path
    git_dir: Path

    def git(self, *args: str, stdin: str = "", protocol: str = "", is_failure_allowed: bool = False) -> str:
        """Run one git command and return its output without the last newline; "" if it failed and may.

        It can fetch by ``protocol`` only. Raises BuildContextError, with git's own words, for other failures.
        """
        # Variables of a surrounding git command, such as a hook, lead to its repository.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        own = {"GIT_DIR": str(self.git_dir), "GIT_ALLOW_PROTOCOL": protocol}
        try:
            done = subprocess.run(
                ("git", *_SETTINGS, *args),
                cwd=self.git_dir.parent,
                env={**inherited, **_ENVIRONMENT, **own},
                input=os.fsencode(stdin),
                capture_output=True,
                timeout=GIT_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise BuildContextError(
                f"Sending the git checkout {self.context_dir} needs git, which is not installed"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BuildContextError(f"git {args[0]} did not end within {GIT_TIMEOUT_SECONDS:.0f} s") from error
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")
        if is_failure_allowed:
            return ""
        words = " ".join(done.stderr.decode(errors="replace").replace(str(self.git_dir), ".git").split())
        raise BuildContextError(f"The git checkout {self.context_dir} cannot be sent: git {args[0]} says: {words}")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A working tree and its git directory; that of a worktree is inside of the shared one (``common_dir``).

    ``settings`` are those of the repository and of the worktree, names in lower case.
    """

    context_dir: Path
    git_dir: Path
    common_dir: Path
    settings: tuple[tuple[str, str], ...]

    def state_files(self) -> Iterator[tuple[Path, str]]:
        """The files that hold its refs, its index and its lists of ignored files: a folder, and a name below it.

        Raises BuildContextError for a link.
        """
        own = ("HEAD", "index", "info/sparse-checkout", *(path.name for path in self.git_dir.glob("sharedindex.*")))
        for name in own:
            if _file_in(self.git_dir, name) is not None:
                yield self.git_dir, name
        for name in ("packed-refs", "shallow", "info/exclude"):
            if _file_in(self.common_dir, name) is not None:
                yield self.common_dir, name
        for name in SENT_REFS:
            for path in _files_below(self.common_dir / name):
                yield self.common_dir, str(path.relative_to(self.common_dir))

    @property
    def objects(self) -> Path:
        return self.common_dir / "objects"

    @property
    def object_format(self) -> str:
        return dict(self.settings).get("extensions.objectformat", "sha1")

    @property
    def is_partial_clone(self) -> bool:
        """Whether it may lack objects of its commits, which git would fetch when it needs them."""
        return any(
            name == "extensions.partialclone"
            or (name.startswith("remote.") and name.endswith(".promisor") and _is_true(value))
            for name, value in self.settings
        )


def read_checkout(context_dir: Path) -> Checkout:
    """Find and examine the git directory of a context, without running git in it.

    Raises BuildContextError if git cannot use it, if it borrows objects, and if it leads to files of something else.
    """
    try:
        git_dir = _find_git_dir(context_dir)
        common_dir = _find_common_dir(git_dir)
        if not (os.path.lexists(git_dir / "HEAD") and (common_dir / "objects").is_dir()):
            raise BuildContextError(
                f"{context_dir / '.git'} leads to {git_dir}, which is not a git repository; repair it,"
                f" or {LEAVE_GIT_OUT}"
            )
        checkout = Checkout(context_dir, git_dir, common_dir, _settings(context_dir, git_dir, common_dir))
        _check_ownership(checkout)
        _check_extensions(checkout)
        _check_objects(checkout)
        for _ in checkout.state_files():
            pass
    except OSError as error:
        raise BuildContextError(
            f"The git directory of {context_dir} cannot be read: {error.filename}: {error.strerror}; repair it,"
            f" or {LEAVE_GIT_OUT}"
        ) from error
    return checkout


def _file_in(folder: Path, name: str) -> Path | None:
    """The path of a file below ``folder``, None where it is missing.

    Raises BuildContextError for a link, also on the way to the file, and for other kinds of files.
    """
    path = folder / name
    _check_link(path)
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(mode):
        raise _leads_out(path)
    return path


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder that may be missing; raises BuildContextError for other kinds of files."""
    _check_link(folder)
    if not os.path.lexists(folder):
        return
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise _leads_out(folder)
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.path.count("/") - str(folder).count("/") > _MAX_DEPTH:
                        raise BuildContextError(f"{folder} has folders that are nested too deeply; {LEAVE_GIT_OUT}")
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)
                else:
                    raise _leads_out(Path(entry.path))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _check_link(path: Path) -> None:
    if _real(path) != path:
        raise _leads_out(path)


def _leads_out(path: Path) -> BuildContextError:
    return BuildContextError(
        f"{path} of the git directory is a link or not an ordinary file, and is not followed; replace it by a copy,"
        f" or {LEAVE_GIT_OUT}"
    )


def _find_git_dir(context_dir: Path) -> Path:
    git = context_dir / ".git"
    if not git.is_file():
        return _real(git)
    path = _path_in(git)
    if not path.startswith("gitdir: "):
        raise BuildContextError(f"{git} does not say where its git directory is; repair it, or {LEAVE_GIT_OUT}")
    return _real(context_dir / path.removeprefix("gitdir: "))


def _find_common_dir(git_dir: Path) -> Path:
    path = _file_in(git_dir, "commondir")
    return git_dir if path is None else _real(git_dir / _path_in(path))


def _path_in(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_MAX_PATH_FILE_BYTES + 1)
    if len(content) > _MAX_PATH_FILE_BYTES or b"\0" in content:
        raise BuildContextError(f"{file} does not hold a path; repair it, or {LEAVE_GIT_OUT}")
    return os.fsdecode(content).rstrip("\r\n")


def _settings(context_dir: Path, git_dir: Path, common_dir: Path) -> tuple[tuple[str, str], ...]:
    path = _file_in(common_dir, "config")
    settings = () if path is None else _read_settings(context_dir, path)
    worktree_path = _file_in(git_dir, "config.worktree")
    if worktree_path is not None and _is_true(dict(settings).get("extensions.worktreeconfig", "false")):
        settings += _read_settings(context_dir, worktree_path)
    return settings


def _read_settings(context_dir: Path, path: Path) -> tuple[tuple[str, str], ...]:
    """The names, in lower case, and values in a settings file, without those of files that it includes."""
    nowhere = Repository(context_dir, Path(os.devnull))
    listing = nowhere.git("config", "--file", str(path), "--no-includes", "--null", "--list")
    # A name without a value means "true".
    settings = (setting.partition("\n") for setting in listing.split("\0") if setting)
    return tuple((name, value if has_value else "true") for name, has_value, value in settings)


def _is_true(value: str) -> bool:
    return value.lower() not in ("", "0", "false", "no", "off")


def _check_ownership(checkout: Checkout) -> None:
    """Refuse a git directory outside of the context that does not name the context as its checkout.

    The author of a context controls the files in it, but not those of another repository of this machine.
    """
    context_dir, git_dir, common_dir = _real(checkout.context_dir), checkout.git_dir, checkout.common_dir
    if git_dir.is_relative_to(context_dir) and common_dir.is_relative_to(context_dir):
        return
    if git_dir == common_dir:
        # Git sets it in a submodule.
        worktree = dict(checkout.settings).get("core.worktree")
        is_own = worktree is not None and _real(git_dir / worktree) == context_dir
        command = ("git", f"--git-dir={git_dir}", "config", "core.worktree", str(context_dir))
    else:
        path = _file_in(git_dir, "gitdir")
        is_own = (
            git_dir.parent == common_dir / "worktrees"
            and path is not None
            and _real((git_dir / _path_in(path)).parent) == context_dir
        )
        command = ("git", f"--git-dir={common_dir}", "worktree", "repair", str(context_dir))
    if not is_own:
        raise BuildContextError(
            f"{checkout.context_dir / '.git'} leads to {git_dir}, which does not name this directory as its checkout,"
            f" so it is not sent; if both are yours, `{join(command)}` adds that; or {LEAVE_GIT_OUT}"
        )


def _check_extensions(checkout: Checkout) -> None:
    for name, value in checkout.settings:
        extension = name.removeprefix("extensions.")
        is_known = extension in _HARMLESS_EXTENSIONS or value in _KNOWN_EXTENSIONS.get(extension, ())
        if extension != name and not is_known:
            raise BuildContextError(
                f"The git directory of {checkout.context_dir} has the extension {extension}={value}, which cannot be"
                f" sent; use a clone without it, or {LEAVE_GIT_OUT}"
            )


def _check_objects(checkout: Checkout) -> None:
    for _ in _files_below(checkout.objects):
        pass
    alternates = _file_in(checkout.objects, "info/alternates")
    if alternates is not None and alternates.stat().st_size:
        repack = join(("git", "-C", str(checkout.context_dir), "repack", "-a", "-d"))
        raise BuildContextError(
            f"{checkout.context_dir} borrows objects of another repository, which is not read; if both are yours, run"
            f" `{repack}` and remove {alternates}; or {LEAVE_GIT_OUT}"
        )
