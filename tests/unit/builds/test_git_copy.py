"""Real checkouts, archived as a build context, unpacked elsewhere, and asked by git there, with the original gone."""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.builds.context import archive, check_build_context
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.errors import BuildContextError
from support.git_checkouts import commit, git, use_own_git_settings, write

ORIGIN = "https://example.com/project.git"


@pytest.fixture(autouse=True)
def git_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_git_settings(tmp_path / "home", monkeypatch)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    directory = tmp_path / "checkout"
    directory.mkdir()
    git(directory, "init", "-q")
    git(directory, "remote", "add", "origin", ORIGIN)
    git(directory, "config", "branch.main.remote", "origin")
    git(directory, "config", "branch.main.merge", "refs/heads/main")
    git(directory, "config", "http.extraheader", "Authorization: canary")
    for number in range(5):
        commit(directory, "Dockerfile", f"FROM scratch{number}\n")
    write(directory, ".gitignore", "ignored\n")
    commit(directory, "tracked", "1\n")
    git(directory, "tag", "v1")
    git(directory, "branch", "other", "HEAD~2")
    return directory


@pytest.fixture
def worktree(checkout: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "work tree %41"
    git(checkout, "worktree", "add", "-q", "-b", "feature", str(directory))
    return directory


def edit(directory: Path) -> None:
    """Every kind of uncommitted edit."""
    write(directory, "staged", "staged, in no commit\n")
    write(directory, "half", "staged half\n")
    git(directory, "add", "staged", "half")
    write(directory, "half", "on disk\n")
    write(directory, "tracked", "edited\n")
    write(directory, "untracked", "untracked\n")
    write(directory, "ignored", "ignored by git, not by Docker\n")
    write(directory, "intended", "added later\n")
    git(directory, "add", "--intent-to-add", "intended")
    write(directory, "excluded", "by info/exclude\n")
    exclude = directory / git(directory, "rev-parse", "--git-path", "info/exclude")
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text("excluded\n")


Arrive = Callable[..., Path]


def build_of(directory: Path, git_depth: int | None = None) -> ParsedBuildArgs:
    return ParsedBuildArgs(
        region="r",
        plan="p",
        os_id=1,
        context_dir=directory,
        dockerfile=directory / "Dockerfile",
        git_depth=git_depth,
    )


@pytest.fixture
def arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrive:
    """Bring a checkout to where nothing of this machine's is; afterwards nothing temporary is left."""

    def arrived(directory: Path, git_depth: int | None = None) -> Path:
        build = build_of(directory, git_depth)
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        check_build_context(build)
        target = tmp_path / "arrived"
        target.mkdir()
        with archive(build) as chunks:
            subprocess.run(("tar", "-x", "-C", str(target)), input=b"".join(chunks), check=True, timeout=60)
        assert list(scratch.iterdir()) == []
        # A copy that still needs the original fails.
        directory.rename(directory.with_name("gone"))
        if (tmp_path / "checkout").exists():
            (tmp_path / "checkout").rename(tmp_path / "checkout-gone")
        return target / "context"

    return arrived


def status(directory: Path) -> str:
    return git(directory, "status", "--porcelain=v2", "--branch", "--ignored")


def test_a_worktree_arrives_as_a_clone_with_its_edits(worktree: Path, checkout: Path, arrive: Arrive) -> None:
    commit(worktree, "new", "in the worktree\n")
    git(worktree, "update-ref", "refs/own/x", "HEAD~1")
    git(worktree, "pack-refs", "--all")
    edit(worktree)
    before = (
        status(worktree),
        git(worktree, "diff"),
        git(worktree, "diff", "--cached"),
        git(worktree, "log", "--all"),
    )
    after = arrive(worktree)
    assert (after / ".git").is_dir()
    assert (status(after), git(after, "diff"), git(after, "diff", "--cached"), git(after, "log", "--all")) == before
    assert git(after, "symbolic-ref", "HEAD") == "refs/heads/feature"
    assert git(after, "for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/feature",
        "refs/heads/main",
        "refs/heads/other",
        "refs/tags/v1",
    ]
    assert (after / "ignored").exists()
    assert len(git(after, "worktree", "list").splitlines()) == 1
    assert git(after, "remote", "-v").split()[:2] == ["origin", ORIGIN]
    git(after, "fsck", "--strict")


def test_nothing_of_this_machine_and_no_credential_is_in_the_clone(
    worktree: Path, arrive: Arrive, tmp_path: Path
) -> None:
    git_dir = arrive(worktree) / ".git"
    for path in (path for path in git_dir.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"canary" not in content, path


def test_a_checkout_that_has_worktrees_arrives_without_them(worktree: Path, checkout: Path, arrive: Arrive) -> None:
    git(checkout, "worktree", "add", "-q", str(checkout / "nested"))
    edit(checkout)
    after = arrive(checkout)
    assert not (after / ".git/worktrees").exists()
    assert not (after / "nested/.git").exists()
    assert len(git(after, "worktree", "list").splitlines()) == 1
    assert "? nested/" in status(after)
    assert git(after, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(after, "config", "branch.main.merge") == "refs/heads/main"


def test_an_ordinary_checkout_arrives_as_it_is(checkout: Path, arrive: Arrive) -> None:
    (checkout / ".git/hooks/own").write_text("x")
    edit(checkout)
    before = status(checkout)
    after = arrive(checkout)
    assert (after / ".git/hooks/own").exists()
    assert status(after) == before


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (3, 3), (100, 6)])
def test_a_depth_bounds_the_history_and_keeps_the_edits(
    checkout: Path, arrive: Arrive, depth: int, count: int
) -> None:
    edit(checkout)
    before = status(checkout)
    after = arrive(checkout, depth)
    assert git(after, "rev-list", "--count", "--all") == str(count)
    assert status(after) == before
    assert git(after, "rev-parse", "--is-shallow-repository") == ("true" if depth < 6 else "false")
    git(after, "fsck")


def test_a_detached_head_stays_detached(worktree: Path, arrive: Arrive) -> None:
    head = git(worktree, "rev-parse", "HEAD~1")
    git(worktree, "checkout", "-q", "--detach", "HEAD~1")
    lone = commit(worktree, "lone", "on no branch\n")
    after = arrive(worktree)
    assert git(after, "rev-parse", "HEAD", "HEAD~1").split() == [lone, head]
    assert subprocess.run(("git", "symbolic-ref", "-q", "HEAD"), cwd=after, check=False).returncode == 1


def test_a_branch_without_commits_arrives(checkout: Path, tmp_path: Path, arrive: Arrive) -> None:
    git(checkout, "worktree", "add", "-q", str(tmp_path / "unborn"))
    git(tmp_path / "unborn", "checkout", "-q", "--orphan", "fresh")
    git(tmp_path / "unborn", "rm", "-rfq", ".")
    write(tmp_path / "unborn", "Dockerfile", "FROM scratch\n")
    git(tmp_path / "unborn", "add", "Dockerfile")
    after = arrive(tmp_path / "unborn", 1)
    assert status(after).splitlines()[:2] == ["# branch.oid (initial)", "# branch.head fresh"]
    assert git(after, "show", ":Dockerfile") == "FROM scratch"


def test_a_conflict_arrives_unresolved(worktree: Path, arrive: Arrive) -> None:
    git(worktree, "checkout", "-q", "-b", "left", "HEAD")
    commit(worktree, "tracked", "left\n")
    git(worktree, "checkout", "-q", "-b", "right", "HEAD~1")
    commit(worktree, "tracked", "right\n")
    assert subprocess.run(("git", "merge", "left"), cwd=worktree, check=False, capture_output=True).returncode == 1
    before = git(worktree, "ls-files", "--stage")
    after = arrive(worktree)
    assert git(after, "ls-files", "--stage") == before
    assert git(after, "cat-file", "-p", ":3:tracked") == "left"


def test_a_shallow_checkout_with_a_worktree_stays_as_shallow(checkout: Path, tmp_path: Path, arrive: Arrive) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=2", checkout.as_uri(), str(shallow))
    git(shallow, "worktree", "add", "-q", "-b", "of-shallow", str(tmp_path / "of shallow"))
    assert git(arrive(tmp_path / "of shallow"), "rev-list", "--count", "HEAD") == "2"


def test_a_split_index_arrives(worktree: Path, arrive: Arrive) -> None:
    git(worktree, "update-index", "--split-index")
    edit(worktree)
    before = status(worktree)
    assert status(arrive(worktree)) == before


def test_submodules_arrive_as_files(worktree: Path, checkout: Path, tmp_path: Path, arrive: Arrive) -> None:
    shutil.copytree(checkout, tmp_path / "library", ignore=shutil.ignore_patterns("worktrees"))
    git(worktree, "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    git(worktree, "commit", "-q", "-m", "add lib")
    after = arrive(worktree)
    assert (after / "lib/tracked").read_text() == "1\n"
    assert not (after / "lib/.git").exists()
    assert git(after, "status", "--porcelain") == ""


FILTERS = pytest.mark.parametrize("objects", ["blob:none", "tree:0"])


@pytest.fixture
def partial(checkout: Path, tmp_path: Path, objects: str) -> Path:
    """A worktree of a partial clone, which has the objects of its last commit, in a place that cannot be reached."""
    commit(checkout, "tracked", "2\n")
    git(checkout, "config", "uploadpack.allowFilter", "true")
    git(checkout, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tmp_path, "clone", "-q", "--no-local", f"--filter={objects}", checkout.as_uri(), str(tmp_path / "partial"))
    directory = tmp_path / "of partial"
    git(tmp_path / "partial", "worktree", "add", "-q", "-b", "feature", str(directory))
    return directory


@FILTERS
def test_a_partial_clone_is_refused_with_what_to_do(partial: Path, arrive: Arrive) -> None:
    with pytest.raises(
        BuildContextError, match=r"is a partial clone, .* --git-depth=1, or, if it is yours,"
    ) as refusal:
        check_build_context(build_of(partial))
    assert len(str(refusal.value).splitlines()) == 1
    subprocess.run(shlex.split(str(refusal.value).split("`")[1]), check=True, timeout=60, capture_output=True)
    assert git(arrive(partial), "rev-list", "--count", "HEAD") == "7"


@FILTERS
def test_the_last_commit_of_a_partial_clone_arrives_without_being_fetched(
    partial: Path, checkout: Path, arrive: Arrive
) -> None:
    checkout.rename(checkout.with_name("unreachable"))
    edit(partial)
    before = git(partial, "status", "--porcelain")
    after = arrive(partial, 1)
    assert git(after, "rev-list", "--count", "--all") == "1"
    assert git(after, "status", "--porcelain") == before
    git(after, "fsck")


@FILTERS
def test_no_depth_is_advised_that_does_not_help(partial: Path) -> None:
    git(partial, "sparse-checkout", "set", "--no-cone", "/Dockerfile")
    git(partial, "update-ref", "HEAD", git(partial, "rev-parse", "HEAD~1"))
    for depth in (None, 1):
        with pytest.raises(BuildContextError, match=r"is a partial clone, .* fetched; if it is yours, fetch .* `git"):
            check_build_context(build_of(partial, depth))


@pytest.mark.parametrize(
    ("scope", "name", "depth"),
    [
        ("--global", "transfer.fsckObjects", None),
        ("--global", "fetch.fsckObjects", 1),
        ("--global", "receive.fsckObjects", None),
        ("--local", "transfer.fsckObjects", 1),
        ("--local", "fetch.fsckObjects", None),
    ],
)
def test_old_flawed_objects_arrive_as_they_are(
    worktree: Path, arrive: Arrive, scope: str, name: str, depth: int | None
) -> None:
    tree = git(worktree, "rev-parse", "HEAD^{tree}")
    flawed = f"tree {tree}\nauthor n<e@example.com> 1 +0000\ncommitter n <e> 1 +0000\n\nno space, no parent\n"
    made = subprocess.run(
        ("git", "hash-object", "-w", "-t", "commit", "--literally", "--stdin"),
        cwd=worktree,
        input=flawed,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    git(worktree, "update-ref", "HEAD", made.stdout.strip())
    git(worktree, "config", scope, name, "true")
    assert git(arrive(worktree, depth), "rev-parse", "HEAD") == made.stdout.strip()


@pytest.mark.parametrize("content", ["", "\0" * 41, f"{'1' * 40}\n"], ids=["empty", "zeros", "absent"])
@pytest.mark.parametrize(("branch", "depth"), [("feature", None), ("feature", 1), ("other", None)])
def test_a_damaged_branch_is_named_before_anything_is_sent(
    worktree: Path, checkout: Path, branch: str, depth: int | None, content: str
) -> None:
    """As a power cut leaves it."""
    (checkout / ".git/refs/heads" / branch).write_text(content)
    with pytest.raises(BuildContextError, match=f"bad object refs/heads/{branch}; repair it, or add .git at the end"):
        check_build_context(build_of(worktree, depth))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("index", "", "smaller than expected"), ("index", "\0" * 300, "corrupt"), ("HEAD", "", "not a git repository")],
)
def test_a_damaged_file_of_a_worktree_is_said_before_anything_is_sent(
    worktree: Path, name: str, content: str, words: str
) -> None:
    Path(git(worktree, "rev-parse", "--absolute-git-dir"), name).write_text(content)
    with pytest.raises(BuildContextError, match=f"{words}.*; repair it, or add .git at the end") as refusal:
        check_build_context(build_of(worktree))
    assert "mngr-git-" not in str(refusal.value)


def test_an_ignored_git_directory_is_not_sent_in_any_form(worktree: Path, arrive: Arrive) -> None:
    write(worktree, ".dockerignore", ".git\n")
    assert not (arrive(worktree) / ".git").exists()


@pytest.mark.parametrize("exception", ["keep.log", "**/keep.log", ".git/config", "**/.git/x"])
def test_a_git_directory_of_which_nothing_is_taken_is_not_looked_at(
    worktree: Path, checkout: Path, arrive: Arrive, exception: str
) -> None:
    write(worktree, ".dockerignore", f".git\n!{exception}\n")
    write(worktree, "keep.log", "")
    checkout.rename(checkout.with_name("moved"))
    after = arrive(worktree, 1)
    assert not (after / ".git").exists()
    assert (after / "keep.log").exists()


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_git_directory_is_looked_at_if_something_in_it_is_taken(
    worktree: Path, checkout: Path, arrive: Arrive, is_taken: bool
) -> None:
    write(checkout, ".dockerignore", ".git\n!**/keep.log\n")
    if is_taken:
        write(checkout, ".git/keep.log", "")
    (checkout / ".git/objects/info/alternates").write_text("/nowhere\n")
    if is_taken:
        with pytest.raises(BuildContextError, match="borrows objects"):
            arrive(checkout)
    else:
        assert not (arrive(checkout) / ".git").exists()


def test_a_worktree_whose_checkout_is_gone_is_explained(worktree: Path, checkout: Path, arrive: Arrive) -> None:
    checkout.rename(checkout.with_name("moved"))
    with pytest.raises(BuildContextError, match="which is not a git repository"):
        arrive(worktree)


def test_variables_of_a_surrounding_git_command_lead_nowhere(
    worktree: Path, arrive: Arrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(worktree, "rev-parse", "HEAD")
    with monkeypatch.context() as inside_a_hook:
        inside_a_hook.setenv("GIT_DIR", "/nowhere")
        inside_a_hook.setenv("GIT_INDEX_FILE", "/nowhere/index")
        after = arrive(worktree)
    assert git(after, "rev-parse", "HEAD") == head
