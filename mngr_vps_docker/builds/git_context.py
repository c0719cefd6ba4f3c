"""A git directory that stands on its own, for a checkout whose own one does not.

In a worktree ``.git`` is a file that leads elsewhere on this machine; a checkout that has worktrees names them by
paths of this machine. Inside an image neither works. What is sent instead has the same commits, branch and index, so
that ``git status`` there shows the same edits.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from imbue.mngr_vps_docker.builds.git_checkout import LEAVE_GIT_OUT, Checkout, read_checkout
from imbue.mngr_vps_docker.builds.git_command import Repository
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.ssh.shell import join

# Settings that say where the commits come from, or how files are compared with them. No other leaves the machine: a
# checkout's settings may hold credentials.
_KEPT_SETTINGS: Final = (
    "remote.", "core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase",
    "core.precomposeunicode", "core.sparsecheckout", "core.sparsecheckoutcone", "index.sparse",
)  # fmt: skip
_KEPT_REMOTE_SETTINGS: Final = (".url", ".pushurl", ".fetch")
# The name of a user of ssh is no secret, but that of one of https may be a token.
_SSH_PASSWORD: Final = re.compile(r"(ssh://[^/:@]*):[^/]*@")
_CREDENTIALS: Final = re.compile(r"(?<!ssh)://[^/]*@")


def needs_own_git_dir(context_dir: Path) -> bool:
    """Whether the ``.git`` of a context is of no use in another place as it is."""
    git = context_dir / ".git"
    if git.is_symlink() or git.is_file():
        return True
    has_worktrees = (git / "worktrees").is_dir() and any((git / "worktrees").iterdir())
    return has_worktrees or (git / "objects/info/alternates").exists()


def check_checkout(context_dir: Path, depth: int | None = None) -> None:
    """Raise the BuildContextError that ``self_contained_git_dir`` would raise, if it shows without copying.

    Which objects a partial clone has shows by copying only, so that is tried.
    """
    checkout = read_checkout(context_dir)
    if not checkout.is_partial_clone:
        _check_state(checkout)
        return
    try:
        _try_to_copy(context_dir, depth)
    except BuildContextError as error:
        raise BuildContextError(
            f"{context_dir} is a partial clone, and lacks objects of the commits to send, which are not fetched;"
            f" {_way_out(context_dir, depth)}, or {LEAVE_GIT_OUT}"
        ) from error


def _check_state(checkout: Checkout) -> None:
    """Refuse what a power cut leaves of a branch or the index: git cannot send it, or takes a branch for empty."""
    with TemporaryDirectory(prefix="mngr-git-") as folder:
        try:
            source = _copy_of_state(checkout, Path(folder))
            source.run("rev-list", "--quiet", "--max-count=1", "--all", "--indexed-objects")
        except BuildContextError as error:
            raise BuildContextError(f"{error}; repair it, or {LEAVE_GIT_OUT}") from error


def _way_out(context_dir: Path, depth: int | None) -> str:
    # Fetching runs whatever programs its settings name.
    command = join(("git", "-C", str(context_dir), "fetch", "--refetch", "--no-filter"))
    fetch_all = f"if it is yours, fetch them: `{command}`"
    if depth != 1:
        with suppress(BuildContextError):
            _try_to_copy(context_dir, 1)
            return f"send the last commit only, by -b --git-depth=1, or, {fetch_all}"
    return fetch_all


def _try_to_copy(context_dir: Path, depth: int | None) -> None:
    with self_contained_git_dir(context_dir, depth):
        pass


@contextmanager
def self_contained_git_dir(context_dir: Path, depth: int | None = None) -> Iterator[Path]:
    """Give a temporary git directory with all branches, or with ``depth`` commits of the current one.

    No worktree is registered in it, and its remotes are those of the checkout, without passwords. It is gone
    afterwards. Raises BuildContextError for a checkout that git cannot use, that lacks objects, or that leads to files
    of something else.
    """
    checkout = read_checkout(context_dir)
    with TemporaryDirectory(prefix="mngr-git-") as folder:
        source = _copy_of_state(checkout, Path(folder))
        clone = _new_repository(checkout, Path(folder) / "clone")
        _copy_commits(source, clone, depth)
        _copy_index(source, clone)
        _copy_settings(checkout, source, clone)
        (clone.git_dir / "FETCH_HEAD").unlink(missing_ok=True)
        yield clone.git_dir


def _new_repository(checkout: Checkout, folder: Path) -> Repository:
    folder.mkdir()
    repository = Repository(checkout.context_dir, folder / ".git")
    repository.run("init", "--quiet", "--template=", f"--object-format={checkout.object_format}")
    return repository


def _copy_of_state(checkout: Checkout, folder: Path) -> Repository:
    """Copy refs, index and what else describes the state of a checkout, but not its settings, and use its objects.

    Git may be run on the copy, but not on the checkout, whose settings can name programs.
    """
    source = _new_repository(checkout, folder / "source")
    for place, name in checkout.state_files():
        _copy_file(place, name, source.git_dir)
    (source.git_dir / "objects/info/alternates").write_bytes(_as_alternate(checkout.objects))
    return source


def _as_alternate(path: Path) -> bytes:
    """A line of ``objects/info/alternates``: in quotes, since a path may begin with "#" or have a newline in it."""
    return os.fsencode(f"{_in_quotes(str(path))}\n")


def _copy_file(folder: Path, name: str, target: Path) -> None:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / name, target / name, follow_symlinks=False)


def _copy_commits(source: Repository, clone: Repository, depth: int | None) -> None:
    branch = source.read("symbolic-ref", "--quiet", "HEAD", is_failure_allowed=True)
    # Its commit may be missing all the same: fetch then says so.
    commit = source.read("rev-parse", "--quiet", "--verify", "HEAD", is_failure_allowed=True)
    head = ["+HEAD:refs/mngr/head"] if commit else []
    if depth is None:
        what = [*head, *(f"+refs/{kind}/*:refs/{kind}/*" for kind in ("heads", "remotes", "tags"))]
        limits = []
    else:
        what = head
        limits = [f"--depth={depth}"]
    if what:
        # A URL, since git copies the objects of a plain path as files and then knows no depth.
        url = source.git_dir.parent.resolve().as_uri()
        clone.run("fetch", "--quiet", "--update-head-ok", "--update-shallow", *limits, url, *what, protocol="file")
    if branch:
        clone.run("symbolic-ref", "HEAD", branch)
    if commit:
        # Through HEAD, so that a branch moves with it and a detached HEAD stays detached.
        clone.run("update-ref", *(() if branch else ("--no-deref",)), "HEAD", commit)
        clone.run("update-ref", "-d", "refs/mngr/head")


def _copy_index(source: Repository, clone: Repository) -> None:
    """Copy what is staged, and the contents that are staged but in no commit."""
    for pattern in ("index", "sharedindex.*", "info/exclude", "info/sparse-checkout"):
        for path in source.git_dir.glob(pattern):
            _copy_file(source.git_dir, str(path.relative_to(source.git_dir)), clone.git_dir)
    # Each object once. A list of all paths would have no end for some trees, which hold the same tree again and again.
    has_commit = clone.read("rev-parse", "--quiet", "--verify", "HEAD", is_failure_allowed=True)
    known = b"^HEAD\n" if has_commit else b""
    pack = source.run("pack-objects", "--quiet", "--stdout", "--revs", "--indexed-objects", stdin=known)
    clone.run("unpack-objects", "-q", stdin=pack)


def _copy_settings(checkout: Checkout, source: Repository, clone: Repository) -> None:
    branch = source.read("symbolic-ref", "--quiet", "--short", "HEAD", is_failure_allowed=True)
    # As text, since there may be many, and the arguments of a command can be seen by other users of this machine.
    with (clone.git_dir / "config").open("a", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for name, value in checkout.settings:
            is_kept = name.startswith((*_KEPT_SETTINGS, *((f"branch.{branch}.",) if branch else ())))
            if name.startswith("remote."):
                is_kept = name.endswith(_KEPT_REMOTE_SETTINGS)
            if is_kept:
                file.write(_setting_text(_without_password(name), _without_password(value)))


def _setting_text(name: str, value: str) -> str:
    """A setting as in a file: https://git-scm.com/docs/git-config#_syntax"""
    section, _, rest = name.partition(".")
    subsection, _, key = rest.rpartition(".")
    heading = f"{section} {_in_quotes(subsection)}" if subsection else section
    return f"[{heading}]\n\t{key} = {_in_quotes(value)}\n"


def _in_quotes(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _without_password(text: str) -> str:
    """A setting without what URLs in it have before the ``@``, but for the name of a user of ssh."""
    return _CREDENTIALS.sub("://", _SSH_PASSWORD.sub(r"\1@", text))
