"""An image either works, or create says in one line why not and leaves nothing."""

import shlex
import shutil
from pathlib import Path

import pytest

from support.mngr_cli import MngrCli

pytestmark = pytest.mark.usefixtures("nothing_left")

CREATE = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")
# In the quotes of every shell but sh, one of these is something else.
WORDS = "\\\\ !x ' \" `id` *"


def context(folder: Path, *lines: str) -> str:
    """A build context of the agents' image and further lines of a Dockerfile."""
    shutil.rmtree(folder / "context", ignore_errors=True)
    (folder / "context").mkdir()
    (folder / "context" / "Dockerfile").write_text("\n".join(("FROM mngr-agent:bookworm", *lines, "")))
    return str(folder / "context")


def test_an_image_whose_root_cannot_run_commands_is_mended(mngr: MngrCli, tmp_path: Path) -> None:
    account = "RUN echo root:x | chpasswd && chage -d 0 root && usermod -s /usr/sbin/nologin -e 1 root"
    mngr(*CREATE, "-b", context(tmp_path, account, "RUN rm -rf /root /tmp"), *AGENT)
    assert mngr("exec", "a1", f"printf '%s\n' {shlex.quote(WORDS)}").splitlines()[0] == WORDS
    mngr.tear_down()


def test_in_fish_a_command_is_what_it_is_in_sh(mngr: MngrCli, tmp_path: Path) -> None:
    fish = "apt-get update -q && apt-get install -q -y --no-install-recommends fish && usermod -s /usr/bin/fish root"
    # Each command by a login of its own: sshd looks at the account once.
    settings = ("-S", "providers.local-vps.ssh_control_persist_seconds=0")
    mngr(*CREATE, *settings, "-b", context(tmp_path, f"RUN {fish}"), *AGENT)
    # The set-up gave root bash, but whose host it is likes fish better, on the VPS too.
    shell = mngr("exec", *settings, "a1", "grep ^root: /etc/passwd; usermod -s /usr/bin/fish root").splitlines()[0]
    assert shell.endswith(":/bin/bash")
    mngr("exec", *settings, "a1", "--outer", fish)
    for where in ((), ("--outer",)):
        command = f"printf '%s\\n' a\\\\b {shlex.quote(WORDS)}; cat /proc/[0-9]*/comm"
        lines = mngr("exec", *settings, "a1", *where, command).splitlines()
        assert lines[:2] == ["a\\b", WORDS]
        assert "fish" in lines
    mngr.tear_down()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("RUN echo 'exit 0' >/root/.bashrc", "its login shell ended with exit code 0 and ran nothing"),
        ("RUN echo 'echo hello' >/root/.bashrc", "prints 'hello' before the output of every command"),
    ],
    ids=["exits", "greets"],
)
def test_an_image_on_which_mngr_cannot_work_is_refused(mngr: MngrCli, tmp_path: Path, line: str, reason: str) -> None:
    done = mngr.run(*CREATE, "-b", context(tmp_path, line), *AGENT)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert reason in error
    assert mngr.leftovers() == []
