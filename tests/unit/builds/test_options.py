from collections.abc import Sequence
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs, parse_build_args
from imbue.mngr_vps_docker.errors import BuildArgumentError

CACHES = ("--cache-from=a/b:1,c", "--cache-to=type=inline")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a Dockerfile, and another context in ``sub``."""
    (tmp_path / "sub").mkdir()
    for name in ("Dockerfile", "other", "sub/dockerfile"):
        (tmp_path / name).write_text("FROM scratch\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(*args: str, default_os_id: int | str = 2136, allowed: Sequence[str] = ()) -> ParsedBuildArgs:
    return parse_build_args(
        args, default_region="ewr", default_plan="small", default_os_id=default_os_id, allowed=allowed
    )


def test_no_arguments_mean_the_defaults_and_no_build() -> None:
    assert parse() == ParsedBuildArgs(region="ewr", plan="small", os_id=2136)
    assert not parse().is_build


@pytest.mark.parametrize(
    "args",
    [
        ("--vps-region=lhr", "--vps-plan=vc2-2c-4gb", "--vps-os=5"),
        ("--vps-region", "lhr", "--vps-plan", "vc2-2c-4gb", "--vps-os", "5"),
        ("--vps-os=4", "--vps-region lhr", "--vps-plan=vc2-2c-4gb", "--vps-os 5"),
    ],
)
def test_the_vps_is_chosen_in_one_word_or_two(args: tuple[str, ...]) -> None:
    assert parse(*args) == ParsedBuildArgs(region="lhr", plan="vc2-2c-4gb", os_id=5)


def test_the_operating_system_is_a_name_where_the_client_has_names() -> None:
    assert parse("--vps-os=debian-12", default_os_id="ubuntu-24.04").os_id == "debian-12"


@pytest.mark.parametrize(
    ("args", "docker_args", "dockerfile"),
    [
        (("--file=other", "."), (), "other"),
        (("--file", "other", "."), (), "other"),
        (("-f", "other", "."), (), "other"),
        (("-fother", "."), (), "other"),
        (("-f=other", "."), (), "other"),
        (("-f other", "."), (), "other"),
        ((".",), (), "Dockerfile"),
        ((".", "--target", "x"), ("--target=x",), "Dockerfile"),
        (("--target", "x", "."), ("--target=x",), "Dockerfile"),
        (("--build-arg", "k=v w", "."), ("--build-arg=k=v w",), "Dockerfile"),
        (("--build-arg=k=v", "."), ("--build-arg=k=v",), "Dockerfile"),
        (("--label=a b", "."), ("--label=a b",), "Dockerfile"),
        (("--no-cache", "."), ("--no-cache",), "Dockerfile"),
        (("-q", "-m", "1g", "."), ("--quiet", "--memory=1g"), "Dockerfile"),
        (("-qm1g", ".", "-c=2"), ("--quiet", "--memory=1g", "--cpu-shares=2"), "Dockerfile"),
        (("-qfother", "."), ("--quiet",), "other"),
        (("--target=true", "."), ("--target=true",), "Dockerfile"),
        (("--network=none", "--network", "default", "."), ("--network=none", "--network=default"), "Dockerfile"),
        (("--cache-from=a/b:1,c", "--cache-to", "type=inline", "."), CACHES, "Dockerfile"),
        (("--build-context=a=docker-image://alpine", "."), ("--build-context=a=docker-image://alpine",), "Dockerfile"),
        (("--build-context", "a=HTTPS://x/y.git", "."), ("--build-context=a=HTTPS://x/y.git",), "Dockerfile"),
        (("--pull=false", "--", "."), ("--pull=false",), "Dockerfile"),
    ],
)
def test_the_rest_goes_to_docker_build(
    project: Path, args: tuple[str, ...], docker_args: tuple[str, ...], dockerfile: str
) -> None:
    parsed = parse(*args)
    assert parsed.docker_build_args == docker_args
    assert parsed.context_dir == project
    assert parsed.dockerfile == project / dockerfile
    assert parsed.is_build


@pytest.mark.parametrize(
    "args",
    [
        ("--network=host",),
        ("--network", "container:mngr-docker-state-x"),
        ("--network=name=host",),
        ("--allow=network.host",),
        ("--allow", "security.insecure"),
        ("--security-opt=seccomp=unconfined",),
        ("--cgroup-parent=/",),
        ("--cache-to=type=local,dest=/root",),
        ("--cache-to", "dest=/root,type=LOCAL"),
        ("--cache-to=mode=max",),
        ("--cache-from=type=local,src=/root",),
        ("--cache-from", "type=gha"),
        ("--cache-from=type=registry,ref=x,type=local",),
        ("--build-context=a=oci-layout:///var/lib/x",),
        ("--build-context", "a=/etc"),
        ("--build-context=a=file:///etc",),
        ("--new-option=value",),
        ("--new-switch",),
        ("--new-switch", "value"),
    ],
    ids=" ".join,
)
def test_what_harms_the_vps_is_refused_with_the_way_to_allow_it(args: tuple[str, ...]) -> None:
    with pytest.raises(BuildArgumentError, match=r"is refused: .* add '(--[^']*)' to allowed_build_args") as raised:
        parse(*args, ".")
    assert str(raised.value).isprintable()
    allowed = str(raised.value).split("add '")[1].split("'")[0]
    word = args[0] if len(args) == 1 else "=".join(args)
    word = word if "=" in word else f"{word}=true"
    for name in (allowed, allowed.partition("=")[0]):
        assert parse(word, ".", allowed=[name]).docker_build_args == (word,)


@pytest.mark.parametrize(
    "args",
    [
        ("-qt", "evil:latest"),
        ("-qtevil",),
        ("-qotype=local,dest=/root",),
        ("-Do", "out"),
        ("-qz",),
        ("-f=", "other"),
        ("--build-arg", "DEPOT_TOKEN"),
        ("--token=s3cret",),
        ("--help",),
        ("---tag=x",),
        ("--pull=perhaps",),
        ("--label=a\x1b[0m",),
        ("--label=\ud800",),
        ("--label=" + "x" * 70_000,),
        ("y" * 300,),
        ("--file=" + "y" * 300,),
        ("no\nthing",),
    ],
    ids=repr,
)
def test_nothing_else_gets_past_by_the_way_it_is_written(args: tuple[str, ...]) -> None:
    with pytest.raises(BuildArgumentError) as raised:
        parse(*args, ".", allowed=["--tag", "--output", "--build-arg", "--token", "--help", "--pull", "--label"])
    assert str(raised.value).isprintable()
    assert "s3cret" not in str(raised.value)


def test_the_dockerfile_may_be_outside_the_context(project: Path) -> None:
    parsed = parse("--file=other", "sub")
    assert (parsed.context_dir, parsed.dockerfile) == (project / "sub", project / "other")


def test_docker_s_second_default_name_is_found(project: Path) -> None:
    assert parse("sub").dockerfile == project / "sub/dockerfile"


def test_a_depth_needs_a_checkout(project: Path) -> None:
    with pytest.raises(BuildArgumentError, match="top of a git checkout"):
        parse("--git-depth=3", ".")
    (project / ".git").mkdir()
    assert parse("--git-depth=3", ".").git_depth == 3
    assert parse("--git-depth", "1", ".").git_depth == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--vps-size=1",), r"'--vps-size'.*--vps-region=, --vps-plan=, --vps-os="),
        (("--vps-=1",), "Unknown"),
        (("--vps-region",), "needs a value"),
        (("--vps-region=",), "needs a value"),
        (("--vps-region", "--vps-plan=x"), "needs a value before '--vps-plan=x'"),
        (("--vps-region=a b",), "one plain word"),
        (("--vps-plan=a\nb",), "one plain word"),
        (("--vps-os=abc",), "must be a number like 2136, not 'abc'"),
        (("--vps-os=-5",), "one plain word"),
        (("--vps-os=" + "9" * 5000,), "must be a number"),
        (("--git-depth=0", "."), "1 or more"),
        (("--git-depth=-1", "."), "1 or more"),
        (("--git-depth=x", "."), "1 or more"),
        (("--git-depth=2",), "needs a context directory"),
        (("--file=Dockerfile",), "add it last, for example: -b ."),
        (("--target", "x"), "add it last"),
        (("--file=", "."), "needs a value"),
        (("--file=missing", "."), "missing does not exist"),
        (("--file=sub", "."), "is not a file"),
        (("--file=-", "."), "standard input"),
        (("missing",), "'missing' does not exist"),
        (("other",), "is not a directory"),
        (("https://example.com/x.git",), "directory on this machine"),
        (("-",), "directory on this machine"),
        ((".", "sub"), "one context directory only, not . and sub"),
        (("",), "is empty"),
        (("a\0b",), "control character"),
        (("-t", "x", "."), "'--tag' cannot be used here: mngr names the image"),
        (("--tag=x", "."), "'--tag' cannot be used here"),
        (("-o", "out", "."), "'--output' cannot be used here"),
        (("--push", "."), "'--push' cannot be used here"),
        (("--secret=id=a,src=b", "."), "of the VPS"),
        (("--ssh=default", "."), "'--ssh' cannot be used here"),
        (("--iidfile=/root/x", "."), "'--iidfile' cannot be used here"),
        (("--metadata-file=/root/x", "."), "'--metadata-file' cannot be used here"),
        (("--call=outline", "."), "'--call' cannot be used here"),
        (("--check", "."), "'--check' cannot be used here"),
        (("--build-context=a=sub", "."), "use a URL"),
        (("--label 'a", "."), "cannot be split"),
    ],
)
def test_what_cannot_work_is_refused(args: tuple[str, ...], says: str) -> None:
    with pytest.raises(BuildArgumentError, match=says) as caught:
        parse(*args)
    assert len(str(caught.value).splitlines()) == 1


def test_a_deleted_current_directory_is_named_as_the_reason(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(BuildArgumentError, match="current directory has been deleted"):
        parse(".")
    assert parse("--vps-region=lhr").region == "lhr"
