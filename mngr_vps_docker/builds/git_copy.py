"""A self-contained git directory for a context whose own one is of no use elsewhere.

In a worktree ``.git`` is a file that leads elsewhere on this machine; a checkout with worktrees names them by paths of
this machine. The copy has the same commits, branch and index, so that ``git status`` shows the same edits. Git runs on
the copy only.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from imbue.mngr_vps_docker.builds.git_checkout import LEAVE_GIT_OUT, SENT_REFS, Checkout, Repository, read_checkout
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.ssh.shell import join

# Settings that say where the commits come from, or how files are compared with them. The others stay here: they may
# hold credentials.
_KEPT_SETTINGS: Final = (
    "core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode",
    "core.sparsecheckout", "core.sparsecheckoutcone", "index.sparse",
)  # fmt: skip
_KEPT_REMOTE_SETTINGS: Final = (".url", ".pushurl", ".fetch")
# In an https URL, a user name may be a token.
_SSH_PASSWORD: Final = re.compile(r"(ssh://[^/:@]*):[^/]*@")
_CREDENTIALS: Final = re.compile(r"(?<!ssh)://[^/]*@")


def needs_own_git_dir(context_dir: Path) -> bool:
    """Whether the ``.git`` of a context does not work in another place."""
    git = context_dir / ".git"
    if git.is_symlink() or git.is_file():
        return True
    has_worktrees = (git / "worktrees").is_dir() and any((git / "worktrees").iterdir())
    return has_worktrees or (git / "objects/info/alternates").exists()


def check_checkout(context_dir: Path, depth: int | None = None) -> None:
    """Raise the BuildContextError of ``self_contained_git_dir`` if it shows without copying.

    For a partial clone it only shows by copying, so that is tried.
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
    """Refuse a branch or index as a power cut leaves it: git cannot send it, or takes a branch for empty."""
    with TemporaryDirectory(prefix="mngr-git-") as folder:
        try:
            copy = _copy_state(checkout, Path(folder))
            copy.git("rev-list", "--quiet", "--max-count=1", "--all", "--indexed-objects")
        except BuildContextError as error:
            raise BuildContextError(f"{error}; repair it, or {LEAVE_GIT_OUT}") from error


def _way_out(context_dir: Path, depth: int | None) -> str:
    # The user runs it, not we: it runs the programs that the settings name.
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

    It has no worktrees, and the remotes of the checkout without passwords. Raises BuildContextError for a checkout
    that git cannot use, that lacks objects, or that leads to files of something else.
    """
    checkout = read_checkout(context_dir)
    with TemporaryDirectory(prefix="mngr-git-") as folder:
        copy = _copy_state(checkout, Path(folder))
        branch = copy.git("symbolic-ref", "--quiet", "HEAD", is_failure_allowed=True)
        _reduce_history(copy, branch, depth)
        # What HEAD, refs and index need, so that the objects of the checkout are not needed any more.
        pack = str(copy.git_dir / "objects/pack/pack")
        copy.git("pack-objects", "--quiet", "--revs", "--all", "--indexed-objects", pack)
        (copy.git_dir / "objects/info/alternates").unlink()
        _copy_settings(checkout, copy, branch.removeprefix("refs/heads/"))
        yield copy.git_dir


def _copy_state(checkout: Checkout, folder: Path) -> Repository:
    """Copy refs, index and what else is the state of a checkout, not its settings; borrow its objects."""
    copy = Repository(checkout.context_dir, folder / ".git")
    copy.git("init", "--quiet", "--template=", f"--object-format={checkout.object_format}")
    for place, name in checkout.state_files():
        target = copy.git_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / name, target, follow_symlinks=False)
    # In quotes, since a path may begin with "#" or contain a newline.
    alternate = os.fsencode(f"{_in_quotes(str(checkout.objects))}\n")
    (copy.git_dir / "objects/info/alternates").write_bytes(alternate)
    return copy


def _reduce_history(copy: Repository, branch: str, depth: int | None) -> None:
    """Leave ``depth`` commits of the current branch, or all branches and tags, and no other refs."""
    if depth is not None and copy.git("rev-parse", "--quiet", "--verify", "HEAD", is_failure_allowed=True):
        # It fetches from itself, which makes it as shallow. By URL: of a plain path, git ignores the depth.
        url = copy.git_dir.resolve().as_uri()
        copy.git("fetch", "--quiet", "--no-tags", "--update-shallow", f"--depth={depth}", url, "HEAD", protocol="file")
        (copy.git_dir / "FETCH_HEAD").unlink(missing_ok=True)
    refs = copy.git("for-each-ref", "--format=%(refname)").splitlines()
    left_out = [ref for ref in refs if (ref != branch if depth is not None else not ref.startswith(SENT_REFS))]
    copy.git("update-ref", "--no-deref", "--stdin", stdin="".join(f"delete {ref}\n" for ref in left_out))


def _copy_settings(checkout: Checkout, copy: Repository, branch: str) -> None:
    # As text: there may be many, and other users of this machine can see the arguments of a command.
    with (copy.git_dir / "config").open("a", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for name, value in checkout.settings:
            is_of_remote = name.startswith("remote.") and name.endswith(_KEPT_REMOTE_SETTINGS)
            is_of_branch = branch != "" and name.startswith(f"branch.{branch}.")
            if is_of_remote or is_of_branch or name.startswith(_KEPT_SETTINGS):
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
    """A setting with the credentials of its URLs removed, except for the user name of ssh."""
    return _CREDENTIALS.sub("://", _SSH_PASSWORD.sub(r"\1@", text))
