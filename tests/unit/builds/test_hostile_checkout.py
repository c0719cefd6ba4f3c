"""Checkouts that are made to run a program on the machine that sends them, or to take other files of it along."""

import os
import shlex
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr_vps_docker.builds.context import archive, check_build_context
from imbue.mngr_vps_docker.builds.git_checkout import Repository
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.errors import BuildContextError
from support.git_checkouts import commit, git, use_own_git_settings, write

ABSENT_COMMIT = "1" * 40
# Programs that git runs, by the setting that names them; "{}" is the program.
PROGRAM_SETTINGS = {
    "core.fsmonitor": "{}",
    "core.sshCommand": "{}",
    "core.gitProxy": "{}",
    "core.askPass": "{}",
    "core.pager": "{}",
    "core.editor": "{}",
    "sequence.editor": "{}",
    "core.alternateRefsCommand": "{}",
    "credential.helper": "!{}",
    "gpg.program": "{}",
    "gpg.ssh.defaultKeyCommand": "{}",
    "diff.external": "{}",
    "diff.all.textconv": "{}",
    "diff.all.command": "{}",
    "merge.all.driver": "{}",
    "filter.all.clean": "{}",
    "filter.all.smudge": "{}",
    "filter.all.process": "{}",
    "uploadpack.packObjectsHook": "{}",
    "remote.origin.uploadpack": "{}",
    "remote.origin.receivepack": "{}",
    "remote.origin.vcs": "ext",
    "remote.origin.url": "ext::{}",
    "remote.origin.proxy": "{}",
    "protocol.allow": "always",
    "protocol.ext.allow": "always",
    "submodule.lib.update": "!{}",
    "trailer.x.cmd": "{}",
    "gc.recentObjectsHook": "{}",
    "trace2.eventTarget": "{}",
    **{
        f"alias.{name}": "!{}"
        for name in ("config", "fetch", "upload-pack", "pack-objects", "rev-parse", "ls-files", "ls-tree")
    },
}  # fmt: skip
HOOKS = (
    "post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman", "post-rewrite",
    "update", "pre-receive", "post-receive", "post-update", "proc-receive", "push-to-checkout",
)  # fmt: skip

Send = Callable[..., Path]


@pytest.fixture(autouse=True)
def git_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_git_settings(tmp_path / "home", monkeypatch)


@pytest.fixture
def send(tmp_path: Path) -> Send:
    """Check and archive a context, and return it as it is unpacked."""

    def sent(directory: Path, git_depth: int | None = None) -> Path:
        build = ParsedBuildArgs(
            region="r",
            plan="p",
            os_id=1,
            context_dir=directory,
            dockerfile=directory / "Dockerfile",
            git_depth=git_depth,
        )
        check_build_context(build)
        target = tmp_path / "arrived"
        target.mkdir()
        with archive(build) as chunks:
            subprocess.run(("tar", "-x", "-C", str(target)), input=b"".join(chunks), check=True, timeout=60)
        return target / "context"

    return sent


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the other fixtures copy."""
    folder = tmp_path_factory.mktemp("repositories")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_own_git_settings(folder / "home", monkeypatch)
        for name in ("from-elsewhere", "private"):
            git(folder, "init", "-q", name)
        write(folder / "from-elsewhere", ".gitattributes", "* filter=all diff=all merge=all\n")
        git(folder / "from-elsewhere", "add", ".gitattributes")
        for number in range(3):
            commit(folder / "from-elsewhere", "Dockerfile", f"FROM scratch{number}\n")
        git(folder / "private", "config", "remote.origin.url", "https://user:canary@example.com/private.git")
        commit(folder / "private", "secret", "canary\n")
        yield folder


@pytest.fixture
def checkout(repositories: Path, tmp_path: Path) -> Path:
    """A checkout from elsewhere."""
    return Path(shutil.copytree(repositories / "from-elsewhere", tmp_path / "from-elsewhere"))


@pytest.fixture
def private(repositories: Path, tmp_path: Path) -> Path:
    """A repository of the user's."""
    return Path(shutil.copytree(repositories / "private", tmp_path / "private"))


@pytest.fixture
def programs_that_ran(tmp_path: Path) -> Callable[[], list[str]]:
    (tmp_path / "ran").mkdir()
    return lambda: sorted(path.name for path in (tmp_path / "ran").iterdir())


def program(tmp_path: Path, name: str) -> str:
    """A program that notes that it ran."""
    path = tmp_path / "programs" / name.replace("/", "_")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n: >'{tmp_path}/ran/{path.name}'\nexit 1\n")
    path.chmod(0o755)
    return str(path)


def plant_programs(tmp_path: Path, config: Path) -> None:
    """Name programs in a settings file, everywhere where git runs one."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in HOOKS:
        (hooks / hook).symlink_to(program(tmp_path, f"hook {hook}"))
    settings = {"core.hooksPath": str(hooks)} | PROGRAM_SETTINGS
    for name, value in settings.items():
        planted = program(tmp_path, name)
        git(tmp_path, "config", "--file", str(config), "--add", name, value.format(planted))


def move_git_dir(checkout: Path) -> Path:
    """Make ``.git`` a file, as in a worktree."""
    (checkout / ".git").rename(checkout / "realgit")
    (checkout / ".git").write_text("gitdir: realgit\n")
    return checkout / "realgit"


def pretend_worktree(checkout: Path) -> Path:
    write(checkout, ".git/worktrees/x/HEAD", "ref: refs/heads/x\n")
    return checkout / ".git"


def leave_as_is(checkout: Path) -> Path:
    return checkout / ".git"


def make_room(path: Path) -> Path:
    """Remove what is at a path, and make the folder that it is in."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def follow_advice(error: BuildContextError) -> None:
    """Run the command that a message names."""
    subprocess.run(shlex.split(str(error).split("`")[1]), check=True, timeout=60)


FORMS = pytest.mark.parametrize(
    ("make", "git_depth"),
    [(move_git_dir, None), (pretend_worktree, None), (leave_as_is, 1)],
    ids=["a .git file", "worktrees", "a depth"],
)
Make = Callable[[Path], Path]


def assert_nothing_is_stolen(arrived: Path) -> None:
    for path in (path for path in arrived.rglob("*") if path.is_file()):
        assert b"canary" not in path.read_bytes(), path
    if (arrived / ".git").exists():
        objects = git(arrived, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
        assert "canary" not in "".join(git(arrived, "cat-file", "-p", name) for name in objects)


@FORMS
@pytest.mark.parametrize("marks", [("extensions.partialClone", "remote.origin.promisor"), ("remote.origin.promisor",)])
@pytest.mark.parametrize(
    "settings",
    [
        {"remote.origin.url": "ssh://x@localhost/x", "core.sshCommand": "{}"},
        {"remote.origin.url": "file:///x", "remote.origin.uploadpack": "{}"},
        {"remote.origin.url": "ext::{}", "protocol.ext.allow": "always"},
        {"remote.origin.url": "git://localhost/x", "core.gitProxy": "{}"},
    ],
    ids=["ssh", "file", "ext", "git"],
)
def test_a_partial_clone_is_refused_before_its_remote_is_asked(
    checkout: Path,
    tmp_path: Path,
    send: Send,
    programs_that_ran: Callable[[], list[str]],
    make: Make,
    git_depth: int | None,
    settings: dict[str, str],
    marks: tuple[str, ...],
) -> None:
    git_dir = make(checkout)
    values = {"extensions.partialClone": "origin", "remote.origin.promisor": "true"}
    partial = {"core.repositoryformatversion": "1"} | {mark: values[mark] for mark in marks}
    for name, value in (partial | settings).items():
        git(tmp_path, "config", "--file", str(git_dir / "config"), name, value.format(program(tmp_path, "p")))
    (git_dir / "refs/heads/main").write_text(f"{ABSENT_COMMIT}\n")
    with pytest.raises(BuildContextError) as refusal:
        send(checkout, git_depth)
    assert programs_that_ran() == []
    assert "is a partial clone" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_what_is_refused_can_be_left_out(checkout: Path, send: Send) -> None:
    git_dir = pretend_worktree(checkout)
    (git_dir / "info").rename(git_dir / "elsewhere")
    (git_dir / "info").symlink_to("elsewhere")
    write(git_dir, "keep", "")
    write(checkout, ".dockerignore", "*\n!Dockerfile\n!**/keep\n")
    with pytest.raises(BuildContextError, match=r"or add \.git at the end of \.dockerignore"):
        send(checkout)
    write(checkout, ".dockerignore", "*\n!Dockerfile\n!**/keep\n.git\n")
    assert not (send(checkout) / ".git").exists()


@FORMS
@pytest.mark.parametrize("is_included", [False, True])
def test_no_program_of_a_checkout_s_settings_runs(
    checkout: Path,
    tmp_path: Path,
    send: Send,
    programs_that_ran: Callable[[], list[str]],
    make: Make,
    git_depth: int | None,
    is_included: bool,
) -> None:
    git(checkout, "update-index", "--split-index")
    git_dir = make(checkout)
    write(checkout, "untracked", "x\n")
    config = git_dir / "included" if is_included else git_dir / "config"
    plant_programs(tmp_path, config)
    if is_included:
        git(tmp_path, "config", "--file", str(git_dir / "config"), "include.path", "included")
        git(tmp_path, "config", "--file", str(git_dir / "config"), "includeIf.gitdir:/**.path", "included")
    send(checkout, git_depth)
    assert programs_that_ran() == []


@FORMS
def test_no_program_runs_for_an_object_that_is_missing(
    checkout: Path,
    tmp_path: Path,
    send: Send,
    programs_that_ran: Callable[[], list[str]],
    make: Make,
    git_depth: int | None,
) -> None:
    git_dir = make(checkout)
    plant_programs(tmp_path, git_dir / "config")
    (git_dir / "refs/heads/main").write_text(f"{ABSENT_COMMIT}\n")
    with pytest.raises(BuildContextError, match="cannot be sent"):
        send(checkout, git_depth)
    assert programs_that_ran() == []


def test_no_program_fetches_what_git_lacks(
    checkout: Path, tmp_path: Path, programs_that_ran: Callable[[], list[str]]
) -> None:
    """Not even where settings that count name one: those are never copied, and this holds by itself."""
    partial = {"core.repositoryformatversion": "1", "extensions.partialClone": "origin"}
    fetched = {"remote.origin.promisor": "true", "remote.origin.url": "file:///x"}
    for name, value in (partial | fetched | {"remote.origin.uploadpack": program(tmp_path, "p")}).items():
        git(checkout, "config", name, value)
    with pytest.raises(BuildContextError, match="cannot be sent"):
        Repository(checkout, checkout / ".git").git("cat-file", "-p", ABSENT_COMMIT)
    assert programs_that_ran() == []


def test_no_program_in_a_checkout_runs_by_its_name(
    checkout: Path,
    tmp_path: Path,
    send: Send,
    programs_that_ran: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    move_git_dir(checkout)
    for name in ("git", "git-upload-pack"):
        (checkout / name).symlink_to(program(tmp_path, name))
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    send(checkout)
    assert programs_that_ran() == []


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("HOME", "home", "home/.gitconfig"),
        ("XDG_CONFIG_HOME", "xdg", "xdg/git/config"),
        ("GIT_CONFIG_GLOBAL", "given", "given"),
    ],
)
def test_no_program_of_the_user_s_git_settings_runs(
    checkout: Path,
    tmp_path: Path,
    send: Send,
    programs_that_ran: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    name: str,
) -> None:
    move_git_dir(checkout)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    plant_programs(tmp_path, tmp_path / name)
    monkeypatch.setenv(variable, str(tmp_path / value))
    send(checkout)
    assert programs_that_ran() == []


def test_no_setting_of_the_user_leads_git_elsewhere(checkout: Path, tmp_path: Path, send: Send) -> None:
    move_git_dir(checkout)
    git(tmp_path, "config", "--global", "url.file:///elsewhere.insteadOf", "file://")
    git(tmp_path, "config", "--global", "transfer.hideRefs", "refs/heads")
    assert git(send(checkout), "log", "--format=%s", "-1") == "change Dockerfile"


@pytest.mark.parametrize(
    "name",
    [
        "HEAD",
        "config",
        "index",
        "sharedindex.x",
        "packed-refs",
        "shallow",
        "commondir",
        "info",
        "info/exclude",
        "info/sparse-checkout",
        "refs/heads",
        "refs/heads/stolen",
        "refs/remotes",
        "refs/tags/deep/stolen",
        "objects",
        "objects/info",
        "objects/info/alternates",
        "objects/pack",
        "objects/pack/pack-x.pack",
        "objects/00",
        "objects/00/" + "0" * 38,
    ],
)
def test_no_link_out_of_a_git_directory_is_followed(checkout: Path, private: Path, send: Send, name: str) -> None:
    git_dir = move_git_dir(checkout)
    target = private / "secret" if name in ("info/exclude", "sharedindex.x") else private / ".git" / name
    if name == "refs/heads/stolen":
        target = private / ".git/refs/heads/main"
    link = make_room(git_dir / name)
    link.symlink_to(target)
    with pytest.raises(BuildContextError, match=r"not followed|not a git repository") as refusal:
        send(checkout)
    assert str(link) in str(refusal.value) or str(git_dir) in str(refusal.value)


@pytest.mark.parametrize("name", ["HEAD", "index", "info/exclude", "refs/heads", "refs/heads/x", "objects/00/0"])
def test_no_pipe_in_a_git_directory_is_waited_for(checkout: Path, send: Send, name: str) -> None:
    os.mkfifo(make_room(move_git_dir(checkout) / name))
    with pytest.raises(BuildContextError, match="not followed"):
        send(checkout)


@pytest.mark.parametrize("name", ["HEAD", "index", "info/exclude", "objects/pack"])
def test_no_link_that_leads_to_itself_is_followed(checkout: Path, send: Send, name: str) -> None:
    link = make_room(move_git_dir(checkout) / name)
    link.symlink_to(link)
    with pytest.raises(BuildContextError, match="not followed"):
        send(checkout)


def lead_by_file(checkout: Path, git_dir: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").write_text(f"gitdir: {git_dir}\n")


def lead_by_link(checkout: Path, git_dir: Path) -> None:
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").symlink_to(git_dir)


def lead_by_linked_file(checkout: Path, git_dir: Path) -> None:
    move_git_dir(checkout)
    (checkout / ".git").unlink()
    (checkout / "elsewhere").write_text(f"gitdir: {git_dir}\n")
    (checkout / ".git").symlink_to("elsewhere")


def lead_by_commondir(checkout: Path, git_dir: Path) -> None:
    (move_git_dir(checkout) / "commondir").write_text(f"{git_dir}\n")


def lead_by_commondir_of_a_worktree(checkout: Path, git_dir: Path) -> None:
    own = move_git_dir(checkout)
    shutil.move(own, checkout / "worktrees/x")
    write(checkout, "worktrees/x/commondir", f"{git_dir}\n")
    write(checkout, "worktrees/x/gitdir", f"{checkout}/.git\n")
    (checkout / ".git").write_text("gitdir: worktrees/x\n")


@pytest.mark.parametrize("kind", ["repository", "submodule", "worktree"])
@pytest.mark.parametrize(
    "lead",
    [lead_by_file, lead_by_link, lead_by_linked_file, lead_by_commondir, lead_by_commondir_of_a_worktree],
)
def test_a_repository_that_is_not_the_checkout_s_is_not_sent(
    checkout: Path, private: Path, send: Send, lead: Callable[[Path, Path], None], kind: str
) -> None:
    git(private, "worktree", "add", "-q", str(private.with_name("private-worktree")))
    if kind == "submodule":
        git(private, "config", "core.worktree", str(private))
    lead(checkout, private / ".git/worktrees/private-worktree" if kind == "worktree" else private / ".git")
    with pytest.raises(BuildContextError, match=r"does not name this directory as its checkout|not a git repository"):
        send(checkout)


def test_a_git_directory_elsewhere_is_sent_once_it_names_its_checkout(
    checkout: Path, tmp_path: Path, send: Send
) -> None:
    git(checkout, "init", "-q", "--separate-git-dir", str(tmp_path / "separate"))
    with pytest.raises(BuildContextError, match="config core") as refusal:
        send(checkout)
    follow_advice(refusal.value)
    assert git(send(checkout), "status", "--porcelain") == ""


def test_a_worktree_that_was_moved_is_sent_once_git_knows_its_place(
    checkout: Path, tmp_path: Path, send: Send
) -> None:
    git(checkout, "worktree", "add", "-q", str(tmp_path / "before"))
    (tmp_path / "before").rename(tmp_path / "moved")
    with pytest.raises(BuildContextError, match="worktree repair") as refusal:
        send(tmp_path / "moved")
    follow_advice(refusal.value)
    assert git(send(tmp_path / "moved"), "symbolic-ref", "HEAD") == "refs/heads/before"


def test_a_submodule_is_sent(checkout: Path, private: Path, send: Send) -> None:
    git(private, "submodule", "--quiet", "add", str(checkout), "lib")
    assert git(send(private / "lib"), "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")


@FORMS
@pytest.mark.parametrize("is_chained", [False, True])
def test_no_objects_of_another_repository_are_sent(
    checkout: Path, private: Path, send: Send, tmp_path: Path, make: Make, git_depth: int | None, is_chained: bool
) -> None:
    git_dir = make(checkout)
    stolen = git(private, "rev-parse", "HEAD")
    (git_dir / "refs/heads/main").write_text(f"{stolen}\n")
    lender = private
    if is_chained:
        lender = checkout / "chained"
        git(tmp_path, "clone", "-q", "--shared", "--bare", str(private), str(lender / ".git"))
    write(git_dir, "objects/info/alternates", f"{lender}/.git/objects\n")
    with pytest.raises(BuildContextError, match="borrows objects of another repository"):
        send(checkout, git_depth)


def test_a_clone_that_borrows_objects_is_sent_once_it_has_its_own(checkout: Path, tmp_path: Path, send: Send) -> None:
    borrower = tmp_path / "borrower"
    git(tmp_path, "clone", "-q", "--shared", str(checkout), str(borrower))
    with pytest.raises(BuildContextError, match="borrows objects of another repository") as refusal:
        send(borrower)
    follow_advice(refusal.value)
    (borrower / ".git/objects/info/alternates").unlink()
    arrived = send(borrower)
    git(arrived, "fsck")
    assert git(arrived, "rev-list", "--count", "HEAD") == "3"


@pytest.mark.parametrize("name", ["include.path", "includeIf.gitdir:/**.path"])
def test_no_setting_of_another_repository_is_sent(checkout: Path, private: Path, send: Send, name: str) -> None:
    git_dir = move_git_dir(checkout)
    git(git_dir, "config", "--file", "config", name, str(private / ".git/config"))
    arrived = send(checkout)
    # Not only its password, which no URL keeps.
    assert b"example.com" not in (arrived / ".git/config").read_bytes()


def test_the_worktree_that_a_checkout_names_is_not_used(checkout: Path, private: Path, send: Send) -> None:
    git_dir = move_git_dir(checkout)
    git(git_dir, "config", "--file", "config", "core.worktree", str(private))
    arrived = send(checkout)
    assert_nothing_is_stolen(arrived)
    assert git(arrived, "log", "--format=%s", "-1") == "change Dockerfile"


@pytest.mark.parametrize("git_depth", [None, 1])
def test_an_unusable_git_directory_does_not_lead_to_one_above(
    private: Path, send: Send, git_depth: int | None
) -> None:
    vendored = private / "vendored"
    write(vendored, "Dockerfile", "FROM scratch\n")
    write(vendored, ".git/worktrees/x/HEAD", "ref: refs/heads/x\n")
    with pytest.raises(BuildContextError, match="not a git repository"):
        send(vendored, git_depth)


@pytest.mark.parametrize(
    "content",
    [b"gitdir: /nowhere", b"gitdir: ", b"gitdir: .git", b"x", b"", b"gitdir: a\0b", b"gitdir: " + b"x" * 5000],
)
def test_a_git_file_that_leads_nowhere_is_explained(checkout: Path, send: Send, content: bytes) -> None:
    move_git_dir(checkout)
    (checkout / ".git").write_bytes(content)
    with pytest.raises(BuildContextError, match=r"add \.git at the end of \.dockerignore") as refusal:
        send(checkout)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("refstorage", "reftable"), ("objectformat", "--template=/x"), ("unknown", "true")]
)
def test_a_repository_of_a_form_that_is_not_known_is_refused(
    checkout: Path, send: Send, name: str, value: str
) -> None:
    git_dir = move_git_dir(checkout)
    git(git_dir, "config", "--file", "config", f"extensions.{name}", value)
    with pytest.raises(BuildContextError, match=f"extension {name}={value}"):
        send(checkout)


def test_a_repository_with_long_hashes_is_sent(tmp_path: Path, send: Send) -> None:
    directory = tmp_path / "long"
    git(tmp_path, "init", "-q", "--object-format=sha256", str(directory))
    head = commit(directory, "Dockerfile", "FROM scratch\n")
    move_git_dir(directory)
    assert git(send(directory), "rev-parse", "HEAD") == head


@pytest.mark.parametrize("name", ["#hash", 'quo"te', "new\nline", "back\\slash", "h\u00e4", "col:on", " space "])
def test_a_path_of_any_name_is_sent(checkout: Path, tmp_path: Path, send: Send, name: str) -> None:
    checkout.rename(tmp_path / name)
    move_git_dir(tmp_path / name)
    assert git(send(tmp_path / name), "status", "--porcelain") == "?? realgit/"


def test_a_tree_that_holds_itself_many_times_is_walked_once(checkout: Path, send: Send) -> None:
    tree = git(checkout, "rev-parse", "HEAD^{tree}")
    for _ in range(5):
        listing = "".join(f"040000 tree {tree}\t{number}\n" for number in range(10))
        made = subprocess.run(
            ("git", "mktree"), cwd=checkout, input=listing, capture_output=True, text=True, check=True, timeout=60
        )
        tree = made.stdout.strip()
    git(checkout, "update-ref", "HEAD", git(checkout, "commit-tree", "-m", "100,000 folders", tree))
    move_git_dir(checkout)
    tracemalloc.start()
    arrived = send(checkout)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4_000_000
    assert git(arrived, "rev-parse", "HEAD^{tree}") == tree


def test_settings_of_any_number_and_text_are_copied_at_once(
    checkout: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ["a b", "#;", 'quo"te', "back\\slash", "new\nline", "tab\t", " space ", "h\u00e4", "", "-e"]
    git(checkout, "update-index", "--split-index")
    config = move_git_dir(checkout) / "config"
    for value in values:
        git(checkout, "config", "--file", str(config), "--add", 'remote.a "b\\ c.d.url', value)
    with config.open("a") as file:
        file.writelines(f'[remote "{number}"]\nurl = x\n' for number in range(1000))
    commands: list[str] = []
    real_git = Repository.git

    def counted(self: Repository, *args: str, **options: Any) -> str:
        commands.append(args[0])
        return real_git(self, *args, **options)

    monkeypatch.setattr(Repository, "git", counted)
    arrived = send(checkout)
    assert len(commands) < 20
    assert git(arrived, "config", "--null", "--get-all", 'remote.a "b\\ c.d.url').split("\0")[:-1] == values
    assert git(arrived, "config", "remote.999.url") == "x"


def test_a_ref_of_many_parts_is_refused(checkout: Path, send: Send) -> None:
    write(move_git_dir(checkout), "refs/heads/" + "a/" * 400 + "a", f"{ABSENT_COMMIT}\n")
    with pytest.raises(BuildContextError, match="nested too deeply"):
        send(checkout)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://user:canary@example.com/p.git", "https://example.com/p.git"),
        ("https://canary@example.com/p.git", "https://example.com/p.git"),
        ("https://user:can@ry:canary@example.com/p.git", "https://example.com/p.git"),
        ("HTTP://canary@example.com/p@x.git", "HTTP://example.com/p@x.git"),
        ("ssh://git:canary@example.com/p.git", "ssh://git@example.com/p.git"),
        ("ssh://git@example.com:22/p.git", "ssh://git@example.com:22/p.git"),
        ("git@example.com:p.git", "git@example.com:p.git"),
        ("file:///a@b/c", "file:///a@b/c"),
        ("../other@x", "../other@x"),
    ],
)
def test_no_password_in_a_url_is_sent(checkout: Path, send: Send, url: str, sent: str) -> None:
    for name in ("remote.origin.url", "remote.origin.pushurl", "branch.main.remote"):
        git(checkout, "config", name, url)
    git_dir = move_git_dir(checkout)
    git(git_dir, "config", "--file", "config", f"remote.{url}.fetch", "+refs/heads/*:refs/remotes/x/*")
    write(checkout, ".dockerignore", "realgit\n")
    arrived = send(checkout)
    for name in ("remote.origin.url", "remote.origin.pushurl", "branch.main.remote"):
        assert git(arrived, "config", name) == sent
    assert "canary" not in (arrived / ".git/config").read_text()
