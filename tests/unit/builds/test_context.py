"""Each archive is unpacked by the system's tar, as on a VPS, and looked at there."""

import os
import secrets
import socket
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from loguru import logger

from imbue.mngr.primitives import LogLevel
from imbue.mngr_vps_docker.builds.context import archive, check_build_context, uploaded_build_context
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.errors import BuildContextError, RemoteCommandError
from support.local_machine import LocalMachine


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def build_of(context_dir: Path, dockerfile: str = "Dockerfile", git_depth: int | None = None) -> ParsedBuildArgs:
    return ParsedBuildArgs(
        region="r",
        plan="p",
        os_id=1,
        context_dir=context_dir,
        dockerfile=context_dir / dockerfile,
        git_depth=git_depth,
    )


def names_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def vps(tmp_path: Path) -> LocalMachine:
    """This machine in the place of a VPS."""
    (tmp_path / "vps").mkdir()
    return LocalMachine(tmp_path / "vps")


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Path]:
    """Unpack the archive of a build with tar and return where."""

    def unpacked(build: ParsedBuildArgs) -> Path:
        target = tmp_path / f"unpacked{len(list(tmp_path.glob('unpacked*')))}"
        target.mkdir()
        with (
            archive(build) as chunks,
            subprocess.Popen(("tar", "-x", "-p", "-f", "-", "-C", str(target)), stdin=subprocess.PIPE) as tar,
        ):
            assert tar.stdin is not None
            for chunk in chunks:
                tar.stdin.write(chunk)
            tar.stdin.close()
        assert tar.returncode == 0
        return target

    return unpacked


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    write(directory, {"Dockerfile": "FROM scratch\n", "a.txt": "a\n", "sub/b.txt": "b\n"})
    return directory


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the user is told."""
    lines: list[str] = []
    sink = logger.add(lines.append, level=LogLevel.BUILD.value, format="{message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
def left_on_vps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Where there is something of this test, and not of others that run at the same time."""
    token = secrets.token_hex(16)
    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context.secrets.token_hex", lambda _: token)
    return lambda: [place for place in ("/dev/shm", "/var/tmp") if os.path.lexists(f"{place}/mngr-build-{token}")]


@pytest.fixture
def set_memory(vps: LocalMachine) -> Callable[[int, int], None]:
    """Have the VPS say how much memory is available, and how much of it is free for files, in KiB."""

    def say(available_kib: int, free_for_files_kib: int) -> None:
        program = Path(vps.environment["PATH"].split(":")[0])
        for name, answer in (("awk", f"{available_kib}"), ("df", f"Avail\n{free_for_files_kib}")):
            (program / name).write_text(f"#!/bin/sh\nprintf '{answer}\n'\n")
            (program / name).chmod(0o755)

    return say


def test_files_arrive_as_they_are(project: Path, unpack: Callable[..., Path]) -> None:
    (project / "run").write_bytes(bytes(range(256)) * 5000)
    (project / "run").chmod(0o751)
    os.utime(project / "run", (1_000_000_000, 1_000_000_000))
    (project / "empty").mkdir(mode=0o700)
    (project / "link").symlink_to("a.txt")
    (project / "dangling").symlink_to("/nowhere/" + "x" * 200)
    (project / "dirlink").symlink_to("sub")
    os.mkfifo(project / "fifo")
    odd = ["with space", "new\nline", "-dash", "h\u00e4", os.fsdecode(b"\xff\xfe"), "d/" * 70 + "deep", "n" * 200]
    write(project, {name: name[:3] for name in odd if name != os.fsdecode(b"\xff\xfe")})
    (project / os.fsdecode(b"\xff\xfe")).write_text("x")
    (project / "future").touch()
    os.utime(project / "future", (2**33, 2**33))
    context = unpack(build_of(project)) / "context"

    assert names_below(context) == names_below(project)
    assert (context / "run").read_bytes() == (project / "run").read_bytes()
    for name in ("run", "empty", "fifo", "sub"):
        assert (context / name).stat().st_mode == (project / name).stat().st_mode
    assert (context / "run").stat().st_mtime == 1_000_000_000
    for name in ("link", "dangling", "dirlink"):
        assert (context / name).readlink() == (project / name).readlink()


def test_a_socket_is_left_out_as_docker_does(
    project: Path, unpack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        (project / "link-to-sock").symlink_to("sock")
        assert names_below(unpack(build_of(project)) / "context") == names_below(project) - {"sock"}


@pytest.mark.parametrize("call", ["lstat", "listdir", "readlink", "open"])
def test_what_vanishes_while_it_is_looked_at_is_not_sent(
    project: Path, unpack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write(project, {"z/x.tmp": ""})
    (project / "l.tmp").symlink_to("a.txt")
    real_call = getattr(os, call)

    def vanishing(path: str | Path, *args: int) -> object:
        if str(path).endswith((".tmp", "/z")):
            raise FileNotFoundError(2, "No such file or directory")
        return real_call(path, *args)

    monkeypatch.setattr(f"imbue.mngr_vps_docker.builds.context.os.{call}", vanishing)
    check_build_context(build_of(project))
    assert names_below(unpack(build_of(project)) / "context") >= {"Dockerfile", "a.txt", "sub", "sub/b.txt"}


def test_the_same_directory_gives_the_same_archive(project: Path) -> None:
    with archive(build_of(project)) as first, archive(build_of(project)) as second:
        assert b"".join(first) == b"".join(second)


def test_memory_does_not_grow_with_the_context(project: Path) -> None:
    with (project / "large").open("wb") as file:
        file.truncate(200_000_000)
    with archive(build_of(project)) as chunks:
        tracemalloc.start()
        size_bytes = sum(len(chunk) for chunk in chunks)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size_bytes > 200_000_000
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize(
    ("ignore", "sent"),
    [
        ("", {"a.txt", "sub", "sub/b.txt", "sub/keep", "sub/deep", "sub/deep/keep", "top"}),
        ("sub", {"a.txt", "top"}),
        ("*", set()),
        ("*\n!sub/keep", {"sub", "sub/keep"}),
        ("*\n!**/keep", {"sub", "sub/keep", "sub/deep", "sub/deep/keep"}),
        ("sub/*\n!sub/deep", {"a.txt", "sub", "sub/deep", "sub/deep/keep", "top"}),
        ("**/*.txt\n!a.txt", {"a.txt", "sub", "sub/keep", "sub/deep", "sub/deep/keep", "top"}),
        ("Dockerfile\n.dockerignore\ntop", {"a.txt", "sub", "sub/b.txt", "sub/keep", "sub/deep", "sub/deep/keep"}),
    ],
)
def test_dockerignore_decides_but_docker_gets_what_it_reads_itself(
    project: Path, unpack: Callable[..., Path], ignore: str, sent: set[str]
) -> None:
    write(project, {".dockerignore": ignore, "top": "", "sub/keep": "", "sub/deep/keep": ""})
    assert names_below(unpack(build_of(project)) / "context") == sent | {"Dockerfile", ".dockerignore"}


def test_a_dockerfile_in_an_ignored_folder_arrives_with_its_own_ignore_file(
    project: Path, unpack: Callable[..., Path]
) -> None:
    own = "docker/app.dockerignore"
    write(project, {"docker/app": "FROM scratch\n", own: "docker\n*.txt\n", ".dockerignore": "sub\n", "docker/x": ""})
    context = unpack(build_of(project, "docker/app")) / "context"
    expected = {".dockerignore", "Dockerfile", "docker", "docker/app", own, "sub", "sub/b.txt"}
    assert names_below(context) == expected
    # The legacy builder reads only this one.
    assert (context / ".dockerignore").read_text() == "docker\n*.txt\n"


def test_a_dockerfile_outside_the_context_arrives_next_to_it(project: Path, unpack: Callable[..., Path]) -> None:
    write(project.parent, {"out/Dockerfile": "FROM outside\n", "out/Dockerfile.dockerignore": "sub\n"})
    unpacked = unpack(build_of(project, "../out/Dockerfile"))
    assert names_below(unpacked / "dockerfile") == {"Dockerfile", "Dockerfile.dockerignore"}
    assert names_below(unpacked / "context") == {"Dockerfile", "a.txt"}


@pytest.mark.parametrize(
    ("link", "target", "dockerfile"),
    [
        ("Dockerfile", "../out/Dockerfile", "Dockerfile"),
        ("docker", "../out", "docker/Dockerfile"),
        ("docker", "../out", "docker/deep/Dockerfile"),
    ],
)
def test_a_dockerfile_that_links_out_of_the_context_is_refused(
    project: Path, link: str, target: str, dockerfile: str
) -> None:
    write(project.parent, {"out/Dockerfile": "secret\n", "out/deep/Dockerfile": "secret\n"})
    (project / link).unlink(missing_ok=True)
    (project / link).symlink_to(target)
    with pytest.raises(BuildContextError, match=f"{project / dockerfile} leads out of the build context"):
        check_build_context(build_of(project, dockerfile))


def test_an_ignore_file_that_links_out_of_the_context_is_refused(project: Path) -> None:
    write(project.parent, {"out/ignore": "sub\n"})
    (project / ".dockerignore").symlink_to("../out/ignore")
    with pytest.raises(BuildContextError, match=f"{project}/.dockerignore leads out of the build context"):
        check_build_context(build_of(project))


@pytest.mark.parametrize("links", [{"Dockerfile": "docker/app"}, {"Dockerfile": "b/one", "b": "docker"}])
@pytest.mark.parametrize("ignore", ["", "docker\n", "*\n"])
def test_a_dockerfile_is_read_through_links_before_the_rules_apply(
    project: Path, unpack: Callable[..., Path], links: dict[str, str], ignore: str
) -> None:
    write(project, {"docker/app": "FROM app\n", "docker/ignore": f"sub\n{ignore}"})
    (project / "docker/one").symlink_to("two")
    (project / "docker/two").symlink_to("app")
    (project / "Dockerfile").unlink()
    for name, target in (links | {".dockerignore": "docker/ignore"}).items():
        (project / name).symlink_to(target)
    unpacked = unpack(build_of(project))
    assert (unpacked / "dockerfile/Dockerfile").read_text() == "FROM app\n"
    assert (unpacked / "context/.dockerignore").read_text() == f"sub\n{ignore}"
    assert not (unpacked / "context/.dockerignore").is_symlink()
    assert not (unpacked / "context/sub").exists()
    assert (unpacked / "context/docker").exists() is (ignore == "")


def test_a_dockerfile_in_a_folder_that_is_a_link_is_read_with_its_own_ignore_file(
    project: Path, unpack: Callable[..., Path]
) -> None:
    write(project, {"build/app": "FROM app\n", "build/rules": "sub\n"})
    (project / "docker").symlink_to("build")
    (project / "build/app.dockerignore").symlink_to("rules")
    unpacked = unpack(build_of(project, "docker/app"))
    assert (unpacked / "dockerfile/app").read_text() == "FROM app\n"
    assert (unpacked / "dockerfile/app.dockerignore").read_text() == "sub\n"
    assert not (unpacked / "context/sub").exists()


@pytest.fixture
def deep_folder(project: Path) -> Iterator[str]:
    """A folder with nearly the longest path that there can be."""
    name = "d/" * 1800
    subprocess.run(("mkdir", "-p", name), cwd=project, check=True, timeout=60)
    yield name
    # What pytest removes folders with cannot remove so deep ones.
    subprocess.run(("rm", "-rf", "d"), cwd=project, check=True, timeout=60)


def test_folders_may_be_nested_deeply(project: Path, deep_folder: str) -> None:
    with archive(build_of(project)) as chunks:
        listing = subprocess.run(("tar", "-t"), input=b"".join(chunks), capture_output=True, check=True, timeout=60)
    assert f"context/{deep_folder}" in listing.stdout.decode().splitlines()
    for ignore in ("d\n!nothing\n", "d\n!**/nothing\n"):
        write(project, {".dockerignore": ignore})
        with archive(build_of(project)) as chunks:
            assert b"d/d" not in b"".join(chunks)


@pytest.fixture
def deeper_folders(project: Path) -> Iterator[None]:
    """Folders below each other, at a path that is longer than there can be."""
    script = "import os\nfor _ in range(1100): os.mkdir('1234'); os.chdir('1234')"
    subprocess.run((sys.executable, "-c", script), cwd=project, check=True, timeout=60)
    yield
    subprocess.run(("rm", "-rf", "1234"), cwd=project, check=True, timeout=60)


@pytest.mark.usefixtures("deeper_folders")
def test_a_path_that_is_too_long_is_named_before_anything_is_sent(project: Path) -> None:
    with pytest.raises(BuildContextError, match=r"/1234/1234/.*… is a path of .* name its folder in") as refusal:
        check_build_context(build_of(project))
    assert len(str(refusal.value)) < 500
    for ignore in ("1234\n!nothing\n", "1234\n!**/nothing\n"):
        write(project, {".dockerignore": ignore})
        check_build_context(build_of(project))


def test_a_path_that_is_too_long_for_the_vps_is_named_before_anything_is_sent(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context._LONGEST_NAME_BYTES", len("Dockerfile"))
    write(project, {"sub/longer.txt": ""})
    with pytest.raises(BuildContextError, match=r"sub/longer\.txt… is a path of 14 characters"):
        check_build_context(build_of(project))


@pytest.mark.parametrize(
    ("ignore", "folders"),
    [
        ("modules\n!README.md\n", {"", "sub"}),
        ("modules\n!modules/a/keep\n", {"", "sub", "modules", "modules/a"}),
        ("*\n!sub/b.txt\n", {"", "sub"}),
        ("modules\n!**/keep\n", {"", "sub", "modules", "modules/a", "modules/b", "modules/a/deep"}),
    ],
)
def test_only_folders_that_an_exception_can_reach_are_looked_into_and_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, ignore: str, folders: set[str]
) -> None:
    write(project, {".dockerignore": ignore, "modules/a/deep/x": "", "modules/b/x": "", "modules/a/keep": ""})
    looked_into: list[str] = []
    real_listdir = os.listdir

    def counted(path: str) -> list[str]:
        looked_into.append(os.path.relpath(path, project).removeprefix("."))
        return real_listdir(path)

    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context.os.listdir", counted)
    build = check_build_context(build_of(project))
    assert sorted(looked_into) == sorted(folders)
    with archive(build) as chunks:
        list(chunks)
    assert sorted(looked_into) == sorted([*folders, *folders])


def test_an_upload_lasts_as_long_as_its_block(
    vps: LocalMachine, project: Path, left_on_vps: Callable[[], list[str]], tmp_path: Path
) -> None:
    write(tmp_path, {"out/Dockerfile": "FROM outside\n"})
    with uploaded_build_context(vps, build_of(project), timeout_seconds=60) as remote:
        assert Path(remote.dockerfile).read_text() == "FROM scratch\n"
        assert names_below(Path(remote.context_dir)) == names_below(project)
        assert left_on_vps()
        assert stat.S_IMODE(Path(remote.context_dir).parent.stat().st_mode) == 0o700
    with (
        pytest.raises(KeyboardInterrupt),
        uploaded_build_context(vps, build_of(project, "../out/Dockerfile"), timeout_seconds=60) as remote,
    ):
        assert Path(remote.dockerfile).read_text() == "FROM outside\n"
        raise KeyboardInterrupt
    assert left_on_vps() == []


@pytest.mark.parametrize(
    ("size_kib", "available_kib", "free_kib", "places"),
    [
        (0, 10_000, 10_000, ["/dev/shm", "/var/tmp"]),
        (500, 10_000, 10_000, ["/dev/shm", "/var/tmp"]),
        (500, 4_000, 10_000, ["/var/tmp"]),
        (500, 10_000, 1_000, ["/var/tmp"]),
    ],
)
def test_a_context_is_kept_in_memory_where_that_has_plenty_of_room(
    vps: LocalMachine,
    project: Path,
    left_on_vps: Callable[[], list[str]],
    set_memory: Callable[[int, int], None],
    size_kib: int,
    available_kib: int,
    free_kib: int,
    places: list[str],
) -> None:
    (project / "large").write_bytes(bytes(size_kib * 1024))
    set_memory(available_kib, free_kib)
    with uploaded_build_context(vps, build_of(project), timeout_seconds=60) as remote:
        assert left_on_vps() == places
        assert names_below(Path(remote.context_dir)) == names_below(project)
    assert left_on_vps() == []


@pytest.mark.parametrize(
    ("size_bytes", "line"),
    [
        (3_000_000, "The build context has 3 MB in 5 files and folders\n"),
        (
            2_000_000_000,
            "The build context has 2,000 MB in 5 files and folders;"
            " name what the image does not need in .dockerignore\n",
        ),
    ],
)
def test_the_size_of_a_context_is_said_before_anything_is_sent(
    project: Path, said: list[str], size_bytes: int, line: str
) -> None:
    with (project / "large").open("wb") as file:
        file.truncate(size_bytes)
    check_build_context(build_of(project))
    assert said == [line]


def test_how_much_of_a_large_context_is_sent_is_said_line_by_line(
    vps: LocalMachine, project: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imbue.mngr_vps_docker.builds.tar_stream._MIN_PROGRESS_BYTES", 250_000)
    (project / "large").write_bytes(bytes(1_000_000))
    with uploaded_build_context(vps, build_of(project), timeout_seconds=60):
        assert said == ["Sent 265.2 kB of 1 MB\n", "Sent 527.4 kB of 1 MB\n", "Sent 789.5 kB of 1 MB\n"]


@pytest.mark.parametrize("name", ["awk", "df"])
def test_a_vps_that_cannot_tell_its_memory_has_the_context_on_disk(
    vps: LocalMachine, project: Path, left_on_vps: Callable[[], list[str]], name: str
) -> None:
    program = Path(vps.environment["PATH"].split(":")[0]) / name
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with uploaded_build_context(vps, build_of(project), timeout_seconds=60):
        assert left_on_vps() == ["/var/tmp"]


def test_a_context_is_on_disk_where_the_memory_takes_no_folder(
    vps: LocalMachine, project: Path, left_on_vps: Callable[[], list[str]], set_memory: Callable[[int, int], None]
) -> None:
    set_memory(10_000, 10_000)
    program = Path(vps.environment["PATH"].split(":")[0]) / "mkdir"
    program.write_text('#!/bin/sh\ncase $* in */dev/shm/*) exit 1;; esac\nexec /bin/mkdir "$@"\n')
    program.chmod(0o755)
    with uploaded_build_context(vps, build_of(project), timeout_seconds=60) as remote:
        assert left_on_vps() == ["/var/tmp"]
        assert names_below(Path(remote.context_dir)) == names_below(project)


def test_a_failed_upload_leaves_nothing_and_says_why(
    vps: LocalMachine, project: Path, left_on_vps: Callable[[], list[str]], tmp_path: Path
) -> None:
    tar = tmp_path / "vps" / "bin" / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: No space left on device' >&2; exit 2\n")
    tar.chmod(0o755)
    with (
        pytest.raises(RemoteCommandError, match="No space left on device"),
        uploaded_build_context(vps, build_of(project), timeout_seconds=60),
    ):
        pass
    assert left_on_vps() == []


def test_a_problem_while_sending_is_the_error_that_is_raised(
    vps: LocalMachine, project: Path, left_on_vps: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = project / "sub" / "b.txt"
    real_open = os.open

    def refusing(path: str, flags: int) -> int:
        if path == str(unreadable):
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags)

    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context.os.open", refusing)
    with (
        pytest.raises(BuildContextError, match=r"b\.txt of the build context cannot be read: Permission denied"),
        uploaded_build_context(vps, build_of(project), timeout_seconds=60),
    ):
        pass
    assert left_on_vps() == []


def test_what_cannot_be_read_is_found_before_anything_is_sent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By a stand-in, since root can read every file.
    monkeypatch.setattr("imbue.mngr_vps_docker.builds.context.os.access", lambda path, _: not path.endswith("b.txt"))
    with pytest.raises(BuildContextError, match=r"b\.txt of the build context cannot be read: Permission denied"):
        check_build_context(build_of(project))
    write(project, {".dockerignore": "sub\n"})
    check_build_context(build_of(project))


def test_a_device_is_found_before_anything_is_sent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By a stand-in, since only root can make one.
    null, real_lstat = os.lstat(os.devnull), os.lstat
    monkeypatch.setattr(
        "imbue.mngr_vps_docker.builds.context.os.lstat",
        lambda path: null if str(path).endswith("b.txt") else real_lstat(path),
    )
    with pytest.raises(BuildContextError, match=r"b\.txt is a device, which cannot be sent"):
        check_build_context(build_of(project))
    write(project, {".dockerignore": "sub\n"})
    check_build_context(build_of(project))


@pytest.mark.parametrize("name", [".dockerignore", "Dockerfile.dockerignore"])
def test_an_ignore_file_that_is_not_a_file_is_found_before_anything_is_sent(project: Path, name: str) -> None:
    (project / name).symlink_to("nowhere")
    with pytest.raises(BuildContextError, match=f"{name} is not a file"):
        check_build_context(build_of(project))
    (project / name).unlink()
    os.mkfifo(project / name)
    with pytest.raises(BuildContextError, match=f"{name} is not a file"):
        check_build_context(build_of(project))


def test_a_bad_pattern_is_found_before_anything_is_sent(project: Path) -> None:
    check_build_context(build_of(project))
    write(project, {".dockerignore": "a\n!\n"})
    with pytest.raises(BuildContextError, match="without a pattern"):
        check_build_context(build_of(project))
