"""root can run commands after the script, whatever the image says of the account; and what is well stays as it is."""

import subprocess
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.setup.scripts import script

# On top of the machine's own chage, pwconv and usermod, which change the real account: these say what they were
# asked for.
STAND_IN = '#!/bin/sh\necho "${0##*/} $*" >>%s\n'
USUAL = "root:*:19000:0:99999:7:::"


class Account:
    """The script with /etc in a folder, and what it changes."""

    def __init__(self, folder: Path, shadow: str, shell: str) -> None:
        self.folder = folder
        self.calls_path = folder / "calls"
        (folder / "bin").mkdir()
        for name in ("chage", "pwconv", "usermod"):
            (folder / "bin" / name).write_text(STAND_IN % self.calls_path)
            (folder / "bin" / name).chmod(0o755)
        (folder / "shadow").write_text(f"daemon:*:0:0:1:7::1:\n{shadow}\n")
        (folder / "passwd").write_text(f"root:x:0:0:root:/root:{shell}\ndaemon:x:1:1::/:/usr/sbin/nologin\n")

    def run(self) -> str:
        """What the script says."""
        text = script("root_account.sh").replace("/etc/", f"{self.folder}/")
        environment = {"PATH": f"{self.folder}/bin:/usr/bin:/bin"}
        return subprocess.run(
            ["sh", "-eu", "-c", text], env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    @property
    def calls(self) -> list[str]:
        return self.calls_path.read_text().splitlines() if self.calls_path.exists() else []


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("shadow", [USUAL, "root:*::0:::::", "root::19000::::::"])
def test_an_account_that_does_not_expire_is_left_alone(tmp_path: Path, shadow: str, shell: str) -> None:
    account = Account(tmp_path, shadow, shell)
    assert account.run() == ""
    assert account.calls == []


def test_an_account_that_is_not_in_shadow_is_put_there_since_pam_refuses_it(tmp_path: Path) -> None:
    account = Account(tmp_path, "", "/bin/sh")
    assert account.run() == "root was not in /etc/shadow: it is now\n".replace("/etc", str(tmp_path))
    assert account.calls == ["pwconv "]


@pytest.mark.parametrize(
    "shadow",
    ["root:$y$x:0:0:99999:7:::", "root:$y$x:19000:0:90:7:::", "root:*:19000:0:99999:7::1:", "root:*:1:0:1:7:30::"],
    ids=["must be set", "ages", "account ended", "inactive"],
)
def test_expiry_is_taken_away(tmp_path: Path, shadow: str) -> None:
    account = Account(tmp_path, shadow, "/bin/sh")
    assert "does not any more" in account.run()
    assert account.calls == ["chage -d -1 -m 0 -M -1 -I -1 -E -1 root"]


@pytest.mark.parametrize(
    "shell",
    [
        "echo This account is currently not available.; exit 1",
        "exit 1",
        # As fish reads quotes.
        """exec sh -c "$(printf %s "$2" | sed 's/\\\\\\\\/\\\\/g')" """,
        # As csh does.
        """case "$2" in *"!"*) echo 'Event not found.' >&2; exit 1 ;; esac; exec sh -c "$2" """,
        'exec bash --restricted "$@"',
        None,
    ],
    ids=["nologin", "false", "fish", "csh", "restricted", "missing"],
)
def test_a_login_shell_that_runs_commands_otherwise_is_replaced(tmp_path: Path, shell: str | None) -> None:
    path = tmp_path / "shell"
    if shell is not None:
        path.write_text(f"#!/bin/sh\n{shell}\n")
        path.chmod(0o755)
    account = Account(tmp_path, USUAL, str(path))
    assert f"was '{path}'" in account.run()
    assert account.calls == ["usermod -s /bin/bash root"]


def test_an_image_without_these_tools_is_set_up_all_the_same(tmp_path: Path) -> None:
    account = Account(tmp_path, "root:$y$x:0:0:99999:7:::", "/nowhere")
    for name in ("chage", "pwconv", "usermod"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 127\n")
    assert account.run() == ""
