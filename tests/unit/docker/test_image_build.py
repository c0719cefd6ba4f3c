"""How builds are asked for, and what is made of what their builders say."""

from pathlib import Path

import pytest

from imbue.mngr.primitives import DockerBuilder
from imbue.mngr_vps_docker.docker.errors import DiskFullError, DockerError, NoSuchImageError
from imbue.mngr_vps_docker.docker.image_build import BuildSpec, build_image
from support.local_machine import LocalMachine

SPEC = BuildSpec("t:1", "/c", build_args=("--build-arg=WORD=hunter2\n\nrest", "--build-arg=N=1"))
# The ends of what Docker 20.10 and buildx 0.13 printed for the same Dockerfile.
DOCKER_20_10 = """\
#5 [2/3] RUN echo 1 hunter2

rest; test 1 = 2
#5 sha256:c9ff5a9d7aac2f4ec86325186456b267b186bfa82c88a52b66a0e7c88c0e385f
#5 0.530 a step may say no such container: 1
#5 ERROR: executor failed running [/bin/sh -c echo $N $WORD; test $N = 2]: exit code: 1
------
 > [2/3] RUN echo 1 hunter2

rest; test 1 = 2:
------
executor failed running [/bin/sh -c echo $N $WORD; test $N = 2]: exit code: 1
"""
BUILDX = """\
#0 building with "default" instance using docker driver
#8 [2/3] RUN echo 1 hunter2

rest; test 1 = 2
#8 0.181 a step may say no such container: 1
#8 ERROR: process "/bin/sh -c echo $N $WORD; test $N = 2" did not complete successfully: exit code: 1
------
 > [2/3] RUN echo 1 hunter2

rest; test 1 = 2:
0.181 a step may say no such container: 1
------
D6:3
--------------------
   3 | >>> RUN echo $N $WORD; test $N = 2
--------------------
ERROR: failed to solve: process "/bin/sh -c echo $N $WORD; test $N = 2" did not complete successfully: exit code: 1
"""
OLD_BUILDER = """\
a step may say no such container: 1
The command '/bin/sh -c echo $N $WORD; test $N = 2' returned a non-zero code: 1
"""


class Builder:
    """A machine whose docker says what it is told to."""

    def __init__(self, root: Path) -> None:
        self.machine = LocalMachine(root)
        self._docker = root / "bin" / "docker"
        self.lines: list[str] = []

    def build(self, script: str, spec: BuildSpec = SPEC) -> None:
        """Build where docker is ``script``."""
        self._docker.write_text(f"#!/bin/sh\n{script}\n")
        build_image(
            self.machine,
            spec,
            depot_token=None,
            on_line=lambda line, _stream: self.lines.append(line.rstrip("\n")),
            timeout_seconds=10,
        )

    def error(self, printed: str, exit_code: int = 1) -> DockerError:
        """The error of a build that prints this to stderr."""
        with pytest.raises(DockerError) as caught:
            self.build(f"[ \"$*\" = 'build --help' ] || {{ cat >&2 <<'END'\n{printed}END\nexit {exit_code}; }}")
        return caught.value


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


@pytest.mark.parametrize(("help_code", "asked"), [(0, "1"), (1, "unset")])
def test_buildkit_builds_wherever_docker_has_it(builder: Builder, help_code: int, asked: str) -> None:
    builder.build(
        f'[ "$*" != \'build --help\' ] || exit {help_code}\necho "${{DOCKER_BUILDKIT-unset}} $BUILDX_BUILDER $1 $2"'
    )
    assert builder.lines == [f"{asked} default build --force-rm"]


def test_depot_chooses_its_builder_itself(builder: Builder) -> None:
    (builder.machine.volumes.parent / "bin" / "depot").symlink_to("docker")
    builder._docker.chmod(0o755)
    builder.build('echo "${0##*/} ${DOCKER_BUILDKIT-unset} $1 $2"', BuildSpec("t", "/c", builder=DockerBuilder.DEPOT))
    assert builder.lines == ["depot unset build --load"]


@pytest.mark.parametrize("printed", [DOCKER_20_10, BUILDX, OLD_BUILDER], ids=["20.10", "buildx", "old builder"])
def test_the_first_line_of_an_error_names_the_step_and_no_value_is_anywhere(builder: Builder, printed: str) -> None:
    error = builder.error(printed)
    assert type(error) is DockerError
    first, *rest = str(error).splitlines()
    assert "test $N = 2" in first and first.endswith("1 [exit code 1]")
    assert "no such container" not in first and "no such container: 1" in "\n".join(rest)
    for text in (str(error), *builder.lines):
        assert "sha256:" not in text
        assert "hunter2" not in text and "rest;" not in text
    if printed != OLD_BUILDER:
        assert "[2/3] RUN echo *** ***" in "\n".join(builder.lines)


def test_a_url_with_a_value_is_masked_in_the_reason_too(builder: Builder) -> None:
    error = builder.error('ERROR: failed to solve: Get "https://x/hunter2/file": dial tcp: no such host\n')
    assert "https://x/***/file" in str(error) and "hunter2" not in str(error)


def test_a_value_is_masked_as_go_quotes_it_too(builder: Builder) -> None:
    spec = BuildSpec("t", "/c", build_args=('--build-arg=P=a"b\\c', "--build-arg=L=first\nlast"))
    printed = r'ERROR: failed to compute cache key: "/a\"b\\c": not found, "/first\nlast": not found'
    builder.build(f"cat >&2 <<'END'\n{printed}\nEND", spec)
    assert builder.lines == ['ERROR: failed to compute cache key: "/***": not found, "/***": not found']


def test_what_only_docker_says_of_a_build_is_told_from_what_steps_print(builder: Builder) -> None:
    step = "#9 0.5 fatal: repository 'https://x/y' not found\n"
    assert type(builder.error(step + "executor failed running [x]: exit code: 128\n")) is DockerError
    full = builder.error(
        "#9 0.5 tar: write error: No space left on device\nexecutor failed running [x]: exit code: 2\n"
    )
    assert type(full) is DiskFullError
    refused = builder.error("failed to solve: pull access denied, repository does not exist\n")
    assert type(refused) is NoSuchImageError


def test_a_builder_that_is_too_old_for_a_dockerfile_is_said_in_one_line(builder: Builder) -> None:
    for words in (
        "the --mount option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/",
        "Error response from daemon: dockerfile parse error line 3: unknown instruction: ECHO",
        "failed to solve with frontend dockerfile.v0: failed to create LLB definition: dockerfile parse error line 2:"
        " Unknown flag: link",
    ):
        assert "docker-buildx" in str(builder.error(f"{words}\n")).splitlines()[0]


@pytest.mark.parametrize("prefix", ["", "docker-image://"], ids=["20.10", "buildx"])
def test_a_syntax_that_cannot_be_fetched_is_done_without(builder: Builder, tmp_path: Path, prefix: str) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("# Syntax = docker/dockerfile:1\nFROM x\nRUN echo '# syntax=kept'\n")
    script = f"""
case "$*" in
  *--help) ;;
  *"--file - "*) cat; exit 0 ;;
  *) printf '%s\\n' ' > resolve image config for {prefix}docker.io/docker/dockerfile:1:' ------ 'ERROR: no' >&2; exit 1
esac
"""
    builder.build(script, BuildSpec("t", str(tmp_path), str(dockerfile)))
    assert builder.lines[-3:] == [
        "docker/dockerfile:1 cannot be fetched: building without it",
        "FROM x",
        "RUN echo '# syntax=kept'",
    ]
    with pytest.raises(DockerError, match="docker/dockerfile:1 cannot be fetched, and without it: unknown"):
        builder.build(script.replace("cat; exit 0", "echo unknown >&2; exit 1"), BuildSpec("t", str(tmp_path)))
    assert dockerfile.read_text().startswith("# Syntax")
