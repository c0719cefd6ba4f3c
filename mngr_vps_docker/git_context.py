"""A git directory that stands on its own, for a checkout whose own one does not.

In a worktree ``.git`` is a file that leads elsewhere on this machine; a checkout that has worktrees names them by
paths of this machine. Inside an image neither works. What is sent instead has the same commits, branch and index, so
that ``git status`` there shows the same edits.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from imbue.mngr_vps_docker.errors import BuildContextError

GIT_TIMEOUT_SECONDS = 900.0

# Settings that say where the commits come from, or how files are compared with them. Nothing else leaves the machine:
# a checkout's settings may hold credentials.
_KEPT_SETTINGS = (
    "remote.", "core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase",
    "core.precomposeunicode", "core.sparsecheckout", "core.sparsecheckoutcone", "index.sparse",
)  # fmt: skip
_GIT_SETTINGS = ("core.fsmonitor=false", "core.logAllRefUpdates=false", "gc.auto=0", "protocol.file.allow=always")
_KEPT_REMOTE_SETTINGS = (".url", ".pushurl", ".fetch")
_SUBMODULE_MODE = "160000"


def needs_own_git_dir(context_dir: Path) -> bool:
    """Whether the ``.git`` of a context is of no use in another place as it is."""
    git = context_dir / ".git"
    if git.is_symlink() or git.is_file():
        return True
    has_worktrees = (git / "worktrees").is_dir() and any((git / "worktrees").iterdir())
    return has_worktrees or (git / "objects/info/alternates").exists()


def check_checkout(context_dir: Path) -> None:
    """Raise BuildContextError, with git's own words, where git cannot work in a context."""
    _Repository(context_dir).run("rev-parse", "--is-inside-work-tree")


@contextmanager
def self_contained_git_dir(context_dir: Path, depth: int | None = None) -> Iterator[Path]:
    """Give a temporary git directory with all branches, or with ``depth`` commits of the current one.

    No worktree is registered in it, and its remotes are those of the checkout. It is gone afterwards. Raises
    BuildContextError, with git's own words, where the context is no usable checkout.
    """
    with TemporaryDirectory(prefix="mngr-git-") as folder:
        source, clone = _Repository(context_dir), _Repository(Path(folder) / "clone")
        clone.path.mkdir()
        clone.run(
            "init", "--quiet", "--template=", f"--object-format={source.read('rev-parse', '--show-object-format')}"
        )
        _copy_commits(source, clone, depth)
        _copy_index(source, clone)
        _copy_settings(source, clone)
        git_dir = clone.path / ".git"
        (git_dir / "FETCH_HEAD").unlink(missing_ok=True)
        yield git_dir


class _Repository:
    """git, run in one working tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *args: str, stdin: bytes = b"", is_failure_allowed: bool = False) -> bytes:
        """Run one git command and return its output, which is empty if it failed and may."""
        # Variables of a surrounding git command (a hook, say) would lead to its repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
        settings = [argument for setting in _GIT_SETTINGS for argument in ("-c", setting)]
        try:
            done = subprocess.run(
                ("git", *settings, *args),
                cwd=self.path,
                env=environment,
                input=stdin,
                capture_output=True,
                timeout=GIT_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise BuildContextError(
                f"Sending the git checkout {self.path} needs git, which is not installed"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BuildContextError(f"git {args[0]} did not end within {GIT_TIMEOUT_SECONDS:.0f} s") from error
        if done.returncode == 0:
            return done.stdout
        if is_failure_allowed:
            return b""
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise BuildContextError(f"The git checkout {self.path} cannot be sent: git {args[0]} says: {words}")

    def read(self, *args: str, is_failure_allowed: bool = False) -> str:
        """Run one git command and return its output as text, without the last newline."""
        output = self.run(*args, is_failure_allowed=is_failure_allowed)
        return output.decode("utf-8", "surrogateescape").removesuffix("\n")

    def file(self, name: str) -> Path:
        """The path of a file of the git directory, wherever a worktree has it."""
        return self.path / self.read("rev-parse", "--git-path", name)


def _copy_commits(source: _Repository, clone: _Repository, depth: int | None) -> None:
    branch = source.read("symbolic-ref", "--quiet", "HEAD", is_failure_allowed=True)
    commit = source.read("rev-parse", "--quiet", "--verify", "HEAD^{commit}", is_failure_allowed=True)
    head = ["+HEAD:refs/mngr/head"] if commit else []
    if depth is None:
        what = [*head, *(f"+refs/{kind}/*:refs/{kind}/*" for kind in ("heads", "remotes", "tags"))]
        limits = []
    else:
        what = head
        limits = [f"--depth={depth}"]
    if what:
        # A URL, since git takes a plain path's objects as they lie and then knows no depth.
        url = source.path.resolve().as_uri()
        clone.run("fetch", "--quiet", "--update-head-ok", "--update-shallow", *limits, url, *what)
    if branch:
        clone.run("symbolic-ref", "HEAD", branch)
    if commit:
        # Through HEAD, so that a branch moves with it and a detached HEAD stays detached.
        clone.run("update-ref", *(() if branch else ("--no-deref",)), "HEAD", commit)
        clone.run("update-ref", "-d", "refs/mngr/head")


def _copy_index(source: _Repository, clone: _Repository) -> None:
    """Copy what is staged, and the contents that are staged but in no commit."""
    index = source.file("index")
    if not index.exists():
        return
    for path in (index, *index.parent.glob("sharedindex.*")):
        shutil.copyfile(path, clone.path / ".git" / path.name)
    for name in ("info/exclude", "info/sparse-checkout"):
        path = source.file(name)
        if path.is_file():
            (clone.path / ".git/info").mkdir(exist_ok=True)
            shutil.copyfile(path, clone.path / ".git" / name)
    staged = _object_ids(source.read("ls-files", "--stage", "-z"), id_column=1)
    committed = _object_ids(source.read("ls-tree", "-r", "-z", "HEAD", is_failure_allowed=True), id_column=2)
    if missing := sorted(staged - committed):
        pack = source.run("pack-objects", "--quiet", "--stdout", stdin="".join(f"{i}\n" for i in missing).encode())
        clone.run("unpack-objects", "-q", stdin=pack)


def _object_ids(listing: str, id_column: int) -> set[str]:
    entries = (entry.partition("\t")[0].split(" ") for entry in listing.split("\0") if entry)
    return {entry[id_column] for entry in entries if entry[0] != _SUBMODULE_MODE}


def _copy_settings(source: _Repository, clone: _Repository) -> None:
    branch = source.read("symbolic-ref", "--quiet", "--short", "HEAD", is_failure_allowed=True)
    listing = source.read("config", "--list", "-z", "--show-scope").split("\0")
    for name, value in _kept_settings(listing, branch):
        clone.run("config", "--add", name, value)


def _kept_settings(listing: Sequence[str], branch: str) -> Iterator[tuple[str, str]]:
    """The settings to keep of ``git config --list -z --show-scope``: scope and "name newline value" in turns."""
    for scope, setting in zip(listing[::2], listing[1::2], strict=False):
        name, has_value, value = setting.partition("\n")
        is_kept = name.startswith((*_KEPT_SETTINGS, *((f"branch.{branch}.",) if branch else ())))
        if name.startswith("remote."):
            is_kept = name.endswith(_KEPT_REMOTE_SETTINGS)
        if is_kept and scope in ("local", "worktree"):
            yield name, value if has_value else "true"
