"""A machine is ready once a command gives its exact output, and not as soon as it lets us in."""

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsConnectionError
from imbue.mngr_vps_docker.ssh import readiness
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.master import LoginFailure
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from support.loopback_sshd import LoopbackSshd
from support.remote import run, wait_for

PATIENCE_SECONDS = 30.0
# What stands for other login shells: they get the command line as one word of the variable.
CSH = (
    'case "$SSH_ORIGINAL_COMMAND" in *"!"*) echo "!: Event not found." >&2; exit 1 ;; esac;'
    ' eval "$SSH_ORIGINAL_COMMAND"'
)
FISH = r'sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed "s/\\\\\\\\/\\\\/g")"'


class Clock(SimpleNamespace):
    """A clock that only waiting moves, and what was waited for."""

    def __init__(self) -> None:
        self.now, self.waits = 0.0, list[float]()
        super().__init__(monotonic=lambda: self.now, sleep=self.wait)

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(readiness, "time", clock)
    return clock


@pytest.mark.usefixtures("both_homes")
def test_a_ready_machine_costs_one_login(connection: SshConnection, sshd: LoopbackSshd) -> None:
    assert connection.wait_until_ready(PATIENCE_SECONDS) == ""
    assert run(connection, "echo there").text == "there\n"
    assert sshd.login_count == 1


def test_the_greeting_of_a_login_shell_is_returned(tmp_path: Path) -> None:
    options = ('ForceCommand echo hello; echo a warning >&2; eval "$SSH_ORIGINAL_COMMAND"',)
    with LoopbackSshd(tmp_path, options=options) as sshd, closing(SshConnection(sshd.target())) as connection:
        assert connection.wait_until_ready(PATIENCE_SECONDS) == "hello"


@pytest.mark.parametrize(
    ("start_up", "words"),
    [
        ("exit 0", "ended with exit code 0 and ran nothing"),
        ("echo This account is not available >&2; exit 1", "This account is not available"),
    ],
    ids=["exit 0", "nologin"],
)
def test_a_shell_that_runs_no_commands_is_reported_at_once(tmp_path: Path, start_up: str, words: str) -> None:
    (tmp_path / "shell").write_text(f"{start_up}\n")
    options = (f"ForceCommand . {tmp_path}/shell",)
    with LoopbackSshd(tmp_path, options=options) as sshd, closing(SshConnection(sshd.target())) as connection:
        with pytest.raises(VpsAuthenticationError, match=f"^Logged in to .*{words}"):
            connection.wait_until_ready(PATIENCE_SECONDS)
        assert sshd.login_count == 1
        with pytest.raises(VpsAuthenticationError, match=f"^Logged in to .*{words}"):
            run(connection, "true").checked()


@pytest.mark.parametrize("start_up", [CSH, FISH], ids=["csh", "fish"])
def test_a_command_runs_unchanged_under_any_login_shell(tmp_path: Path, start_up: str) -> None:
    (tmp_path / "shell").write_text(f"{start_up}\n")
    options = (f"ForceCommand . {tmp_path}/shell",)
    with LoopbackSshd(tmp_path, options=options) as sshd, closing(SshConnection(sshd.target())) as connection:
        connection.wait_until_ready(PATIENCE_SECONDS)
        assert run(connection, "printf '%s' 'a\\\\b !x\n'").stdout == b"a\\\\b !x\n"


def test_an_account_that_opens_later_is_logged_in_to_again(tmp_path: Path) -> None:
    """As cloud-init opens it. What refused the first command is of the login, not of the command."""
    answers = tmp_path / "answers"
    options = (
        f'ForceCommand if [ -e {answers} ]; then eval "$SSH_ORIGINAL_COMMAND"; else touch {answers}; exit 1; fi',
    )
    with LoopbackSshd(tmp_path, options=options) as sshd, closing(SshConnection(sshd.target())) as connection:
        connection.wait_until_ready(PATIENCE_SECONDS, account_grace_seconds=PATIENCE_SECONDS)
        assert sshd.login_count == 2


def test_failed_logins_become_rarer_without_other_connections(sshd: LoopbackSshd, clock: Clock) -> None:
    """sshd counts each of either kind, and locks out an address that has too many."""
    refusal = LoginFailure(NotStartedReason.AUTHENTICATION, "Permission denied (publickey).")
    with pytest.raises(VpsAuthenticationError, match="Permission denied"):
        readiness.wait_until_ready(sshd.target(), lambda: refusal, 300, 0)
    assert clock.waits[:5] == [1, 2, 5, 5, 5]
    wait_for(lambda: sshd.log.count("Connection from") == 1)


def test_a_port_that_refuses_is_asked_often(sshd: LoopbackSshd, clock: Clock) -> None:
    sshd.stop()
    with pytest.raises(VpsConnectionError, match="nothing listens there yet"):
        readiness.wait_until_ready(sshd.target(), lambda: "", 3, 0)
    assert len(clock.waits) == 15
