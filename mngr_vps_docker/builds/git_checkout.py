"""The git directory of a checkout, which may come from an untrusted author.

Git is not run in it: settings there may name programs to run, and links, alternates and ``gitdir:`` may lead to other
files of this machine. So this module finds the git directory and examines it. It refuses what leads out of the
context, except to the git directory of a worktree or submodule that names this context as its checkout.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.builds.dockerignore import DOCKERIGNORE
from imbue.mngr_vps_docker.builds.git_command import read_settings
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.ssh.shell import join

# Longer than any path.
_MAX_PATH_FILE_BYTES: Final = 16 * 1024
# Extensions, and their values, with which refs and objects have the form that is read here.
_KNOWN_EXTENSIONS: Final = {"objectformat": ("sha1", "sha256"), "refstorage": ("files",)}
_HARMLESS_EXTENSIONS: Final = (
    "noop", "noop-v1", "partialclone", "preciousobjects", "relativeworktrees", "worktreeconfig"
)  # fmt: skip
# Names of branches have some slashes in them. Code that walks folders by recursion fails for much deeper ones.
_DEEPEST: Final = 100
_SENT_REFS: Final = ("refs/heads", "refs/remotes", "refs/tags")
_FALSE: Final = ("", "0", "false", "no", "off")
LEAVE_GIT_OUT: Final = f"add .git at the end of {DOCKERIGNORE}"


@dataclass(frozen=True, slots=True)
class Checkout:
    """A working tree and its git directory; that of a worktree is inside of the one it shares (``common_dir``).

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
            if file_in(self.git_dir, name) is not None:
                yield self.git_dir, name
        for name in ("packed-refs", "shallow", "info/exclude"):
            if file_in(self.common_dir, name) is not None:
                yield self.common_dir, name
        for name in _SENT_REFS:
            for path in _files_below(self.common_dir / name):
                yield self.common_dir, str(path.relative_to(self.common_dir))

    @property
    def objects(self) -> Path:
        """The folder of its objects."""
        return self.common_dir / "objects"

    @property
    def object_format(self) -> str:
        """The hash that names its objects."""
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
    """Find the git directory of a context and examine it.

    Raises BuildContextError if git cannot use it, if it lacks objects, and if it leads to files of something else.
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


def file_in(folder: Path, name: str) -> Path | None:
    """The path of a file below ``folder``, which is not a link itself; None where the file is missing.

    Raises BuildContextError for a link, also on the way to the file, and for what is not a file.
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
    """Every file below a folder, which need not exist; raises BuildContextError for anything but files and folders."""
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
                    if entry.path.count("/") - str(folder).count("/") > _DEEPEST:
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
    path = file_in(git_dir, "commondir")
    return git_dir if path is None else _real(git_dir / _path_in(path))


def _path_in(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_MAX_PATH_FILE_BYTES + 1)
    if len(content) > _MAX_PATH_FILE_BYTES or b"\0" in content:
        raise BuildContextError(f"{file} does not hold a path; repair it, or {LEAVE_GIT_OUT}")
    return os.fsdecode(content).rstrip("\r\n")


def _settings(context_dir: Path, git_dir: Path, common_dir: Path) -> tuple[tuple[str, str], ...]:
    path = file_in(common_dir, "config")
    settings = () if path is None else read_settings(context_dir, path)
    worktree_path = file_in(git_dir, "config.worktree")
    if worktree_path is not None and _is_true(dict(settings).get("extensions.worktreeconfig", "false")):
        settings += read_settings(context_dir, worktree_path)
    return settings


def _is_true(value: str) -> bool:
    return value.lower() not in _FALSE


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
        path = file_in(git_dir, "gitdir")
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
    alternates = file_in(checkout.objects, "info/alternates")
    if alternates is not None and alternates.stat().st_size:
        repack = join(("git", "-C", str(checkout.context_dir), "repack", "-a", "-d"))
        raise BuildContextError(
            f"{checkout.context_dir} borrows objects of another repository, which is not read; if both are yours, run"
            f" `{repack}` and remove {alternates}; or {LEAVE_GIT_OUT}"
        )
