"""Each failure between this machine and a command has a name of its own."""

import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.errors import BinaryNotInstalledError
from imbue.mngr_vps_docker.errors import (
    RemoteCommandError,
    SshBusyError,
    SshdDownError,
    VpsAuthenticationError,
    VpsConnectionError,
    VpsDockerError,
)
from imbue.mngr_vps_docker.ssh.command_log import CommandLog
from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessResult, run_process
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from support.loopback_sshd import LoopbackSshd
from support.remote import run, socket_of, wait_for


def test_a_refused_port_is_reported(sshd: LoopbackSshd) -> None:
    sshd.stop()
    outcome = run(SshConnection(sshd.target()), "true")
    assert (outcome.status, outcome.reason) == (OutcomeStatus.NEVER_STARTED, NotStartedReason.REFUSED)
    assert isinstance(outcome.error(), SshdDownError)


@pytest.mark.usefixtures("both_homes")
def test_a_refused_key_is_an_authentication_failure(sshd: LoopbackSshd, tmp_path: Path) -> None:
    other = load_or_create_key_pair(tmp_path / "other_key")
    outcome = run(SshConnection(sshd.target(identity_file=other.private_key_path)), "true")
    assert outcome.reason is NotStartedReason.AUTHENTICATION
    assert isinstance(outcome.error(), VpsAuthenticationError)


@pytest.mark.usefixtures("both_homes")
def test_a_changed_host_key_is_refused(sshd: LoopbackSshd, tmp_path: Path) -> None:
    sshd.stop()
    sshd.change_host_key(is_pinned=False)
    sshd.start()
    outcome = run(SshConnection(sshd.target()), f"touch {tmp_path}/ran")
    assert outcome.reason is NotStartedReason.HOST_KEY_CHANGED
    assert not (tmp_path / "ran").exists()
    assert isinstance(outcome.error(), VpsAuthenticationError)
    assert "another host key than the pinned one" in str(outcome.error())


@pytest.mark.usefixtures("both_homes")
def test_an_unknown_host_key_is_refused(sshd: LoopbackSshd) -> None:
    outcome = run(SshConnection(sshd.target(host_key_alias="stranger")), "true")
    assert outcome.reason is NotStartedReason.HOST_KEY_UNKNOWN
    assert "not pinned on this machine" in str(outcome.error())


def test_an_unknown_name_is_reported(sshd: LoopbackSshd) -> None:
    outcome = run(SshConnection(sshd.target(host="no-such-host.invalid")), "true")
    assert outcome.reason is NotStartedReason.UNKNOWN_NAME


@contextmanager
def silent_port(*, backlog: int) -> Iterator[int]:
    """A port that accepts connections and stays silent; with a full backlog it does not accept them."""
    with socket.socket() as listener, ThreadPoolExecutor(4) as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4 if backlog == 0 else 0)]
        for filler in fillers:
            filler.settimeout(0.3)
        list(pool.map(lambda filler: filler.connect_ex(address), fillers))
        try:
            yield address[1]
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.usefixtures("both_homes")
@pytest.mark.parametrize("backlog", [0, 5], ids=["no answer to a connection", "no greeting after it"])
def test_a_black_hole_is_given_up_after_the_connect_timeout(sshd: LoopbackSshd, backlog: int) -> None:
    meter = LoginMeter()
    with silent_port(backlog=backlog) as port:
        target = sshd.target(port=port, connect_timeout_seconds=1)
        outcome = run(SshConnection(target, runner=meter), "true", timeout_seconds=60)
    assert outcome.reason is NotStartedReason.CONNECT_TIMEOUT
    assert isinstance(outcome.error(), VpsConnectionError)
    assert meter.connect_timeouts == [1]


def test_connections_that_wait_for_one_login_share_its_failure(sshd: LoopbackSshd) -> None:
    """The shared failure is on disk, so threads with connections of their own stand for processes."""
    meter = LoginMeter()
    with silent_port(backlog=5) as port:
        target = sshd.target(port=port, connect_timeout_seconds=1)
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(lambda _: run(SshConnection(target, runner=meter), "true"), range(8)))
    assert {outcome.reason for outcome in outcomes} == {NotStartedReason.CONNECT_TIMEOUT}
    assert len(meter.connect_timeouts) < 8


def test_a_machine_that_stops_answering_is_unreachable(sshd: LoopbackSshd) -> None:
    connection = SshConnection(sshd.target(connect_timeout_seconds=1))
    run(connection, "true")
    with sshd.frozen():
        outcomes = [run(connection, "true", timeout_seconds=60, effect=Effect.READ_ONLY) for _ in range(2)]
    assert [outcome.status for outcome in outcomes] == [OutcomeStatus.NEVER_STARTED] * 2
    assert [outcome.reason for outcome in outcomes] == [NotStartedReason.CONNECT_TIMEOUT] * 2
    assert isinstance(outcomes[0].error(), VpsConnectionError)
    assert run(connection, "echo back").text == "back\n"
    connection.close()


class LoginMeter:
    """Runs ssh, and counts for how many seconds each login was to wait for the machine."""

    def __init__(self) -> None:
        self.connect_timeouts: list[int] = []
        self.has_begun = threading.Event()

    def __call__(self, argv: Sequence[str], **options: Any) -> ProcessResult:
        if "-M" in argv:
            (timeout,) = (word.partition("=")[2] for word in argv if word.startswith("ConnectTimeout="))
            self.connect_timeouts.append(int(timeout))
            self.has_begun.set()
        return run_process(argv, **options)


def test_the_failure_of_a_hasty_login_is_not_shared_with_a_patient_one(sshd: LoopbackSshd) -> None:
    with silent_port(backlog=5) as port, ThreadPoolExecutor(1) as pool:
        hasty, patient = LoginMeter(), LoginMeter()
        target = sshd.target(port=port, connect_timeout_seconds=5)
        brief = SshConnection(replace(target, connect_timeout_seconds=2), runner=hasty)
        first = pool.submit(run, brief, "true")
        assert hasty.has_begun.wait(30)
        outcome = run(SshConnection(target, runner=patient), "true")
        assert first.result(30).reason is outcome.reason is NotStartedReason.CONNECT_TIMEOUT
    # What it has waited for the other's attempt counts.
    (timeout,) = patient.connect_timeouts
    assert timeout <= 4


def test_a_machine_that_is_gone_ends_its_commands_and_is_waited_for_once(sshd: LoopbackSshd, tmp_path: Path) -> None:
    meter = LoginMeter()
    connection = SshConnection(sshd.target(connect_timeout_seconds=12), runner=meter)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, connection, f"touch {tmp_path}/begun; sleep 300", timeout_seconds=300)
        wait_for((tmp_path / "begun").exists)
        meter.connect_timeouts.clear()
        with sshd.frozen():
            outcome = run(connection, "true", timeout_seconds=300)
            assert running.result(60).status is OutcomeStatus.LOST
    assert outcome.reason is NotStartedReason.CONNECT_TIMEOUT
    (rest,) = meter.connect_timeouts
    assert rest <= 6
    connection.close()


def test_a_command_that_may_have_begun_is_not_repeated(
    connection: SshConnection, sshd: LoopbackSshd, tmp_path: Path
) -> None:
    """If a shell dies before it prints the start, whether the command ran is unknown."""
    noise = f"ForceCommand echo x >>{tmp_path}/runs; kill -9 $PPID"
    (tmp_path / "other").mkdir()
    with LoopbackSshd(tmp_path / "other", options=(noise,)) as dying:
        outcome = run(SshConnection(dying.target()), "true")
    assert outcome.status is OutcomeStatus.LOST
    assert (tmp_path / "runs").read_text() == "x\n"


def test_a_command_that_is_lost_each_time_is_given_up(tmp_path: Path) -> None:
    dying = f"ForceCommand echo x >>{tmp_path}/runs; kill -9 $PPID"
    with LoopbackSshd(tmp_path, options=(dying,)) as sshd, closing(SshConnection(sshd.target())) as connection:
        assert run(connection, "true", effect=Effect.READ_ONLY).status is OutcomeStatus.LOST
    assert (tmp_path / "runs").read_text() == 4 * "x\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_machine_that_refuses_to_run_commands_is_quoted(tmp_path: Path, stream: int) -> None:
    runs, words = tmp_path / "runs", "Please login as the user 'ubuntu'."
    refusing = f'ForceCommand echo x >>{runs}; echo "{words}" >&{stream}; exit 142'
    with LoopbackSshd(tmp_path, options=(refusing,)) as sshd, closing(SshConnection(sshd.target())) as connection:
        outcome = run(connection, "true", effect=Effect.READ_ONLY)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.NEVER_STARTED, NotStartedReason.ACCOUNT_REFUSED)
    assert isinstance(outcome.error(), VpsAuthenticationError)
    assert words in str(outcome.error())
    assert runs.read_text() == "x\n"


def test_lines_of_a_lost_attempt_do_not_run_into_those_of_the_next(connection: SshConnection, tmp_path: Path) -> None:
    runs, lines = tmp_path / "runs", list[str]()
    command = f'printf first; echo x >>{runs}; sleep 0.3; [ "$(wc -l <{runs})" -gt 1 ] || '
    command += "kill -9 $(ps -o ppid= -p $(ps -o ppid= -p $PPID)); echo; echo second"
    outcome = connection.stream(
        command,
        on_line=lambda line, _stream: lines.append(line),
        purpose="test",
        timeout_seconds=20,
        effect=Effect.IDEMPOTENT,
    )
    assert outcome.is_success
    assert lines == ["first", "first", "second"]


def test_the_greeting_of_a_login_shell_is_not_the_commands_output(tmp_path: Path) -> None:
    noise = 'ForceCommand echo "Welcome!"; echo "Last login" >&2; eval "$SSH_ORIGINAL_COMMAND"'
    with LoopbackSshd(tmp_path, options=(noise,)) as sshd:
        connection = SshConnection(sshd.target())
        outcome = run(connection, "echo out; echo err >&2; exit 7")
        connection.close()
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (7, b"out\n", b"err\n")


def test_a_killed_session_is_lost_and_an_idempotent_command_runs_again(
    connection: SshConnection, sshd: LoopbackSshd, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    # On the machine, the shell's parent is sshd's process for this login.
    command = f'echo x >>{runs}; [ "$(wc -l <{runs})" -gt 1 ] || kill -9 $(ps -o ppid= -p $(ps -o ppid= -p $PPID))'
    assert run(connection, command).status is OutcomeStatus.LOST
    assert runs.read_text() == "x\n"
    runs.unlink()
    outcome = run(connection, f"{command}; echo done", effect=Effect.IDEMPOTENT)
    assert (outcome.status, outcome.stdout) == (OutcomeStatus.COMPLETED, b"done\n")
    assert runs.read_text() == "x\nx\n"


def test_refused_sessions_are_waited_for_without_another_login(tmp_path: Path) -> None:
    def echoed(number: int) -> CommandOutcome:
        # What can be sent once only is sent once a session is there.
        return run(connection, "sleep 0.3; cat", stdin=iter([b"%d\n" % number]))

    with LoopbackSshd(tmp_path, options=("MaxSessions 2",)) as sshd:
        connection = SshConnection(sshd.target(connect_timeout_seconds=30))
        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(echoed, range(9)))
        logins = sshd.login_count
        connection.close()
    assert [outcome.text for outcome in outcomes] == [f"{number}\n" for number in range(9)]
    assert all(outcome.stderr == b"" for outcome in outcomes)
    assert logins == 1


def test_sessions_that_are_refused_for_too_long_raise_busy(tmp_path: Path) -> None:
    begun, over = tmp_path / "begun", tmp_path / "over"
    with LoopbackSshd(tmp_path, options=("MaxSessions 1",)) as sshd, ThreadPoolExecutor(1) as pool:
        connection = SshConnection(sshd.target(connect_timeout_seconds=2))
        holding = pool.submit(run, connection, f"touch {begun}; until [ -e {over} ]; do sleep 0.1; done")
        wait_for(begun.exists, 30)
        outcome = run(connection, "true")
        over.touch()
        assert outcome.reason is NotStartedReason.SESSION_REFUSED
        assert isinstance(outcome.error(), SshBusyError)
        assert holding.result(20).is_success
        connection.close()


@pytest.mark.usefixtures("both_homes")
def test_a_server_that_restarts_is_logged_in_to_again(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    sshd.stop()
    assert run(connection, "true").status is OutcomeStatus.NEVER_STARTED
    sshd.start()
    assert run(connection, "echo back").text == "back\n"


def test_a_full_disk_is_named(connection: SshConnection) -> None:
    with pytest.raises(RemoteCommandError, match="No space left on device"):
        connection.write_file("/dev/full", b"x")


def test_a_plain_file_at_the_path_of_the_socket_is_refused_and_kept(sshd: LoopbackSshd) -> None:
    connection = SshConnection(sshd.target(label="another socket", host_key_alias="loopback", user="nobody"))
    place = socket_of(connection)
    place.write_text("mine")
    try:
        with pytest.raises(VpsDockerError, match="not a socket"):
            run(connection, "true")
        assert place.read_text() == "mine"
    finally:
        place.unlink()


def test_without_ssh_the_error_says_what_to_install(
    sshd: LoopbackSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryNotInstalledError, match="ssh is required") as raised:
        run(SshConnection(sshd.target()), "true")
    assert "OpenSSH" in str(raised.value.user_help_text)


def test_a_log_that_cannot_be_written_changes_nothing(sshd: LoopbackSshd, tmp_path: Path) -> None:
    def interrupt(_line: str, _stream: Stream) -> None:
        raise KeyboardInterrupt

    with closing(SshConnection(sshd.target(), log=CommandLog(tmp_path))) as connection:
        assert run(connection, "echo done").text == "done\n"
        with pytest.raises(KeyboardInterrupt):
            connection.stream("echo x; sleep 20", on_line=interrupt, purpose="test", timeout_seconds=20)
