"""However many threads and processes there are, a machine is logged in to once."""

import os
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr_vps_docker.errors import SshBusyError
from imbue.mngr_vps_docker.files import locked
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import NotStartedReason, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessResult, run_process
from imbue.mngr_vps_docker.ssh.target import standalone_argv
from support.loopback_sshd import LoopbackSshd
from support.remote import master_pid, run, socket_of, wait_for

pytestmark = pytest.mark.usefixtures("both_homes")

_EIGHT_PROCESSES = """\
import os, pickle, sys
from concurrent.futures import ThreadPoolExecutor
from imbue.mngr_vps_docker.ssh.connection import SshConnection

connection = SshConnection(pickle.load(sys.stdin.buffer))

def run(number):
    return connection.run(f"echo {number}", purpose="test", timeout_seconds=60)

processes = []
for _ in range(8):
    processes.append(os.fork())
    if processes[-1] == 0:
        with ThreadPoolExecutor(5) as pool:
            outcomes = list(pool.map(run, range(5)))
        assert [outcome.stdout for outcome in outcomes] == [b"%d\\n" % n for n in range(5)], outcomes
        assert all(outcome.stderr == b"" for outcome in outcomes), outcomes
        sys.exit()
ends = [os.waitpid(process, 0)[1] for process in processes]
sys.exit(f"they ended with {ends}" if any(ends) else 0)
"""


def test_forty_threads_in_eight_processes_share_one_login(connection: SshConnection, sshd: LoopbackSshd) -> None:
    target = pickle.dumps(sshd.target(connect_timeout_seconds=60))
    done = subprocess.run([sys.executable, "-c", _EIGHT_PROCESSES], input=target, timeout=120, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sshd.login_count == 1


def test_forty_threads_share_one_login(sshd: LoopbackSshd) -> None:
    running: list[Sequence[str]] = []
    most = 0

    def counting(argv: Sequence[str], **options: Any) -> ProcessResult:
        nonlocal most
        running.append(argv)
        most = max(most, len(running))
        try:
            return run_process(argv, **options)
        finally:
            running.remove(argv)

    # A busy machine may take seconds to start so many clients, which is not the server's silence.
    connection = SshConnection(sshd.target(connect_timeout_seconds=60), runner=counting)
    with closing(connection), ThreadPoolExecutor(40) as pool:
        outcomes = list(pool.map(lambda number: run(connection, f"echo {number}").checked(), range(40)))
    assert [outcome.text for outcome in outcomes] == [f"{number}\n" for number in range(40)]
    assert all(outcome.stderr == b"" for outcome in outcomes)
    assert sshd.login_count == 1
    # Fewer than sshd allows: others use the machine too.
    assert most == 8


def test_another_process_sees_and_uses_the_login_that_is_there(connection: SshConnection, sshd: LoopbackSshd) -> None:
    another = SshConnection(sshd.target())
    assert not another.is_open
    run(connection, "true")
    assert another.is_open
    assert run(another, "echo again").text == "again\n"
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


def test_a_frozen_master_is_replaced(connection: SshConnection, sshd: LoopbackSshd) -> None:
    run(connection, "true")
    frozen = master_pid(connection)
    os.kill(frozen, signal.SIGSTOP)
    assert run(connection, "echo alive").text == "alive\n"
    assert sshd.login_count == 2
    wait_for(lambda: not Path(f"/proc/{frozen}").exists())


def test_a_command_that_gets_no_session_raises_busy(connection: SshConnection, tmp_path: Path) -> None:
    over = tmp_path / "over"
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(run, connection, f"touch {tmp_path}/{number}; until [ -e {over} ]; do sleep 0.1; done")
        wait_for(lambda: len(list(tmp_path.glob("[0-7]"))) == 8, 60)
        outcome = run(connection, "true", timeout_seconds=0.2)
        over.touch()
    assert (outcome.status, outcome.reason) == (OutcomeStatus.NEVER_STARTED, NotStartedReason.BUSY)
    assert isinstance(outcome.error(), SshBusyError)
    assert "8 other commands are running there" in str(outcome.error())


def test_waiting_for_another_login_ends_at_the_deadline_of_the_command(connection: SshConnection) -> None:
    with locked(socket_of(connection).with_suffix(".lock")):
        assert isinstance(run(connection, "true", timeout_seconds=0.2).error(), SshBusyError)


def test_a_login_removes_the_files_of_killed_processes(connection: SshConnection) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    folder = socket_of(connection).parent
    left, used = (folder / f"client-{process_id}-x" for process_id in (ended.pid, os.getpid()))
    left.touch()
    used.touch()
    run(connection, "true")
    assert (left.exists(), used.exists()) == (False, True)
    used.unlink()


def test_a_master_killed_during_a_command_means_lost(connection: SshConnection, tmp_path: Path) -> None:
    run(connection, "true")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, connection, f"touch {tmp_path}/begun; sleep 8")
        wait_for((tmp_path / "begun").exists)
        os.kill(master_pid(connection), signal.SIGKILL)
        assert future.result(15).status is OutcomeStatus.LOST


def test_waiting_ends_when_the_machine_comes_up(sshd: LoopbackSshd) -> None:
    sshd.stop()
    connection = SshConnection(sshd.target())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connection.wait_until_ready, 20)
        sshd.start()
        waiting.result(20)
    connection.close()


def test_a_machine_behind_another_is_reached_through_it(
    sshd: LoopbackSshd, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with LoopbackSshd(tmp_path_factory.mktemp("jump")) as jump:
        through = standalone_argv(jump.target(), None)
        proxy = shlex.join(("ssh", "-W", "[%h]:%p", *through[1:]))
        connection = SshConnection(sshd.target(options=(f"ProxyCommand={proxy}",)))
        connection.wait_until_ready(20)
        assert run(connection, "echo there").text == "there\n"
        connection.close()
        assert (jump.login_count, sshd.login_count) == (1, 1)
