"""Whatever image a host is made from: mngr can work on it, or create says in one line why not and leaves nothing."""

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mngr_cli import MngrCli

CREATE = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")
# In the quotes of every shell but sh, one of these is something else.
WORDS = "\\\\ !x ' \" `id` *"


@pytest.fixture(autouse=True)
def nothing_left(mngr: MngrCli) -> Iterator[None]:
    """Each test leaves the account as empty as it found it."""
    yield
    leftovers = mngr.leftovers()
    mngr.tear_down()
    assert leftovers == []


def context(folder: Path, *lines: str) -> str:
    """A build context of the agents' image and further lines of a Dockerfile."""
    shutil.rmtree(folder / "context", ignore_errors=True)
    (folder / "context").mkdir()
    (folder / "context" / "Dockerfile").write_text("\n".join(("FROM mngr-agent:bookworm", *lines, "")))
    return str(folder / "context")


@pytest.mark.parametrize(
    "lines",
    [
        ("RUN echo root:x | chpasswd && chage -d 0 root", "RUN usermod -s /usr/sbin/nologin root"),
        ("RUN usermod -e 1 root", "RUN rm -rf /root /tmp"),
        ("RUN apt-get update -q && apt-get install -q -y tcsh && usermod -s /bin/tcsh root",),
    ],
    ids=["password expired, nologin", "account ended, no home, no /tmp", "tcsh"],
)
def test_an_image_whose_root_cannot_run_commands_is_mended(
    mngr: MngrCli, tmp_path: Path, lines: tuple[str, ...]
) -> None:
    mngr(*CREATE, "-b", context(tmp_path, *lines), *AGENT)
    assert mngr("exec", "a1", f"printf '%s\n' {shlex.quote(WORDS)}").splitlines()[0] == WORDS
    mngr.tear_down()


@pytest.mark.parametrize(
    ("lines", "options", "reason"),
    [
        (("RUN echo 'exit 0' >/root/.bashrc",), (), "its login shell ended with exit code 0 and ran nothing"),
        (("RUN echo 'echo hello' >/root/.bashrc",), (), "prints 'hello' before the output of every command"),
        ((), ("-s", "--pids-limit=3"), "failed"),
    ],
    ids=["exits", "greets", "no processes"],
)
def test_an_image_on_which_mngr_cannot_work_is_refused(
    mngr: MngrCli, tmp_path: Path, lines: tuple[str, ...], options: tuple[str, ...], reason: str
) -> None:
    done = mngr.run(*CREATE, "-b", context(tmp_path, *lines), *options, *AGENT)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert reason in error
    assert mngr.leftovers() == []
