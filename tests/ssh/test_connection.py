"""Commands over a real sshd end as they really ended, and share one login."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import SshdDownError
from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from imbue.mngr_vps_docker.keys import load_or_create_key_pair
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.pipe import pipe
from imbue.mngr_vps_docker.testing.loopback_sshd import LoopbackSshd


def run(connection: SshConnection, command: str, *, timeout_seconds: float = 30, **options: object) -> CommandOutcome:
    return connection.run(command, purpose="test", timeout_seconds=timeout_seconds, **options)  # type: ignore[arg-type]


def processes_with(text: str) -> list[str]:
    listing = subprocess.run(["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if text in line and "ssh " not in line]


def wait_for(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def master_pid(connection: SshConnection) -> int:
    path = connection._master.control_path
    return int(path.with_name(f"{path.name}.pid").read_text())


def test_both_streams_and_the_exit_code_are_the_commands_own(connection: SshConnection) -> None:
    outcome = run(connection, "echo out; echo err >&2; exit 3")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 3)
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("code", [0, 1, 124, 137, 255])
def test_exit_codes_that_ssh_uses_itself_are_told_from_its_own(connection: SshConnection, code: int) -> None:
    outcome = run(connection, f"exit {code}")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, code)


def test_a_command_that_kills_itself_has_ended(connection: SshConnection) -> None:
    outcome = run(connection, "kill -9 $$")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 137)


def test_output_without_a_last_newline_is_exact(connection: SshConnection) -> None:
    outcome = run(connection, r"printf 'a\000b'; printf 'no end' >&2")
    assert (outcome.stdout, outcome.stderr) == (b"a\0b", b"no end")


def test_every_byte_survives_both_ways(connection: SshConnection) -> None:
    data = bytes(range(256)) * 20_000
    outcome = run(connection, "cat; cat /dev/null", stdin=data)
    assert outcome.stdout == data


def test_stdin_may_come_piece_by_piece_or_from_a_file(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"from a file")
    assert run(connection, "cat", stdin=(part for part in (b"piece ", b"by piece"))).stdout == b"piece by piece"
    assert run(connection, "cat", stdin=tmp_path / "data").stdout == b"from a file"


def test_a_command_without_stdin_finds_it_empty(connection: SshConnection) -> None:
    assert run(connection, "cat | wc -c").text.strip() == "0"


def test_a_command_longer_than_an_argument_runs(connection: SshConnection) -> None:
    outcome = run(connection, f"printf %s {'x' * 300_000} | wc -c")
    assert outcome.text.strip() == "300000"


def test_much_output_on_both_streams_does_not_block(connection: SshConnection) -> None:
    outcome = run(connection, "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2")
    assert (len(outcome.stdout), len(outcome.stderr)) == (20_000_000, 20_000_000)


def test_lines_arrive_as_they_are_printed(connection: SshConnection, tmp_path: Path) -> None:
    lines: list[tuple[str, bool]] = []

    def on_line(line: str, is_stdout: bool) -> None:
        lines.append((line, is_stdout))
        if line == "first":
            (tmp_path / "go").touch()

    outcome = connection.stream(
        f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo second >&2; printf third",
        on_line=on_line,
        purpose="test",
        timeout_seconds=20,
    )
    assert outcome.is_success
    assert lines == [("first", True), ("second", False), ("third", True)]


def test_twenty_threads_share_one_login(connection: SshConnection, sshd: LoopbackSshd) -> None:
    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(lambda number: run(connection, f"echo {number}"), range(40)))
    assert [outcome.text for outcome in outcomes] == [f"{number}\n" for number in range(40)]
    assert all(outcome.stderr == b"" for outcome in outcomes)
    assert sshd.login_count == 1


def test_another_process_uses_the_login_that_is_there(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    assert run(SshConnection(sshd.target()), "echo again").text == "again\n"
    assert sshd.login_count == 1


def test_a_closed_connection_is_opened_again_when_it_is_needed(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    connection.close()
    assert run(connection, "echo back").text == "back\n"
    assert sshd.login_count == 2


def test_a_killed_master_is_replaced(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    os.kill(master_pid(connection), signal.SIGKILL)
    assert run(connection, "echo alive").text == "alive\n"
    assert sshd.login_count == 2


def test_a_frozen_master_is_found_and_replaced(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    os.kill(master_pid(connection), signal.SIGSTOP)
    assert run(connection, "echo alive").text == "alive\n"
    assert sshd.login_count == 2


def test_a_master_killed_during_a_command_means_lost(connection: SshConnection, tmp_path: Path) -> None:
    run(connection, "true")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, connection, f"touch {tmp_path}/begun; sleep 8")
        wait_for((tmp_path / "begun").exists)
        os.kill(master_pid(connection), signal.SIGKILL)
        assert future.result(15).status is OutcomeStatus.LOST


def test_a_timeout_ends_the_command_on_the_machine_too(connection: SshConnection) -> None:
    outcome = run(connection, "sleep 61.25", timeout_seconds=1)
    assert outcome.status is OutcomeStatus.TIMED_OUT
    assert outcome.exit_code is None
    wait_for(lambda: not processes_with("sleep 61.25"))


def test_a_timeout_holds_while_output_flows(connection: SshConnection) -> None:
    outcome = connection.stream(
        "while :; do echo x; sleep 0.01; done", on_line=lambda *_: None, purpose="test", timeout_seconds=1
    )
    assert outcome.status is OutcomeStatus.TIMED_OUT


def test_an_interruption_ends_the_local_ssh(connection: SshConnection) -> None:
    def interrupt(_line: str, _is_stdout: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connection.stream("echo x; sleep 62.25", on_line=interrupt, purpose="test", timeout_seconds=3)
    assert run(connection, "echo usable").text == "usable\n"
    wait_for(lambda: not processes_with("sleep 62.25"))


def test_a_refused_port_is_said_to_be_one(sshd: LoopbackSshd) -> None:
    sshd.stop()
    outcome = run(SshConnection(sshd.target()), "true")
    assert (outcome.status, outcome.reason) == (OutcomeStatus.NEVER_STARTED, NotStartedReason.REFUSED)
    assert isinstance(outcome.error(), SshdDownError)


def test_a_refused_key_is_an_authentication_failure(sshd: LoopbackSshd, tmp_path: Path) -> None:
    other = load_or_create_key_pair(tmp_path / "other_key")
    outcome = run(SshConnection(sshd.target(identity_file=other.private_key_path)), "true")
    assert outcome.reason is NotStartedReason.AUTHENTICATION
    assert isinstance(outcome.error(), VpsAuthenticationError)


def test_a_changed_host_key_is_refused(sshd: LoopbackSshd, tmp_path: Path) -> None:
    sshd.stop()
    sshd.change_host_key(is_pinned=False)
    sshd.start()
    outcome = run(SshConnection(sshd.target()), f"touch {tmp_path}/ran")
    assert outcome.reason is NotStartedReason.HOST_KEY_CHANGED
    assert not (tmp_path / "ran").exists()
    assert isinstance(outcome.error(), VpsAuthenticationError)


def test_an_unknown_host_key_is_refused(sshd: LoopbackSshd) -> None:
    outcome = run(SshConnection(sshd.target(host_key_alias="stranger")), "true")
    assert outcome.reason is NotStartedReason.HOST_KEY_UNKNOWN


def test_an_unknown_name_is_said_to_be_one(sshd: LoopbackSshd) -> None:
    outcome = run(SshConnection(sshd.target(host="no-such-host.invalid")), "true")
    assert outcome.reason is NotStartedReason.UNKNOWN_NAME


def test_a_hostile_configuration_of_the_user_changes_nothing(
    sshd: LoopbackSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("deep/" * 40)
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/config").write_text("Host *\n  ProxyCommand false\n  ControlPath /nowhere/x\n  User nobody\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
    connection = SshConnection(sshd.target(host_key_alias="loopback", label="hostile"))
    assert run(connection, "echo through").text == "through\n"
    connection.close()


def test_waiting_ends_when_the_machine_comes_up(sshd: LoopbackSshd) -> None:
    sshd.stop()
    connection = SshConnection(sshd.target())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connection.wait_until_ready, 20)
        sshd.start()
        waiting.result(20)
    connection.close()


def test_files_are_written_and_read_whole(connection: SshConnection, tmp_path: Path) -> None:
    path, content = tmp_path / "new folder" / "it's a file", os.urandom(5 << 20)
    connection.write_file(str(path), content, mode=0o640, is_atomic=True)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    assert connection.read_file(str(path)) == content
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_missing_file_is_a_file_not_found_error(connection: SshConnection, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connection.read_file(str(tmp_path / "none"))


def test_one_machine_feeds_another(connection: SshConnection, tmp_path: Path) -> None:
    pipe(
        connection,
        "head -c 5000000 /dev/urandom | tee " + str(tmp_path / "sent"),
        connection,
        f"cat >{tmp_path}/received",
        purpose="test",
        timeout_seconds=30,
    )
    assert (tmp_path / "received").read_bytes() == (tmp_path / "sent").read_bytes()


@pytest.mark.parametrize(("source", "sink"), [("echo x; echo broken >&2; exit 7", "cat"), ("yes", "exit 7")])
def test_a_broken_end_of_a_pipe_is_an_error(connection: SshConnection, source: str, sink: str) -> None:
    with pytest.raises(Exception, match="exit code 7"):
        pipe(connection, source, connection, sink, purpose="test", timeout_seconds=10)


def test_the_shown_command_line_can_be_pasted(connection: SshConnection) -> None:
    line = connection.ssh_command("echo pasted; exit 4")
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=20)
    assert (done.stdout, done.returncode) == (b"pasted\n", 4)
