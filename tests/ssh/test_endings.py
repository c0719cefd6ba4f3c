"""Commands that ignore signals, frozen masters and slow clients are ended, and only those."""

import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessResult, run_process
from support.loopback_sshd import LoopbackSshd
from support.remote import master_pid, processes_with, run, wait_for


def test_a_command_that_ignores_signals_is_killed(connection: SshConnection, sshd: LoopbackSshd) -> None:
    deaf = f"trap '' TERM; while :; do sleep 0.1; done # {sshd.port} deaf"
    assert run(connection, deaf, timeout_seconds=0.2).status is OutcomeStatus.TIMED_OUT
    wait_for(lambda: not processes_with(f"{sshd.port} deaf"), 20)


def test_a_machine_without_timeout_is_told_to_end_a_command_at_its_deadline(tmp_path: Path) -> None:
    for tool in ("sh", "sleep", "cat", "dd", "grep"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    plain = f'ForceCommand export PATH={tmp_path}; eval "$SSH_ORIGINAL_COMMAND"'
    with LoopbackSshd(tmp_path, options=(plain,)) as sshd:
        connection = SshConnection(sshd.target())
        assert run(connection, f"sleep 65.{sshd.port}", timeout_seconds=1).status is OutcomeStatus.TIMED_OUT
        wait_for(lambda: not processes_with(f"sleep 65.{sshd.port}"))
        connection.close()


def test_a_frozen_master_can_be_closed(connection: SshConnection) -> None:
    run(connection, "true")
    frozen = master_pid(connection)
    os.kill(frozen, signal.SIGSTOP)
    connection.close()
    wait_for(lambda: not Path(f"/proc/{frozen}").exists())


def test_a_master_that_freezes_during_a_command_means_lost(connection: SshConnection, tmp_path: Path) -> None:
    run(connection, "true")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, connection, f"touch {tmp_path}/begun; sleep 50", timeout_seconds=60)
        wait_for((tmp_path / "begun").exists)
        os.kill(master_pid(connection), signal.SIGSTOP)
        assert future.result(30).status is OutcomeStatus.LOST


def test_a_client_that_is_slow_to_start_leaves_the_shared_login_to_others(sshd: LoopbackSshd, tmp_path: Path) -> None:
    is_slow = False

    def sluggish(argv: Sequence[str], **options: Any) -> ProcessResult:
        return run_process(("sleep", "9") if is_slow else argv, **options)

    connection = SshConnection(sshd.target(), runner=sluggish)
    with closing(connection), ThreadPoolExecutor(1) as pool:
        other = pool.submit(run, connection, f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done")
        wait_for((tmp_path / "begun").exists)
        is_slow = True
        assert run(connection, "true", timeout_seconds=0.1).status is OutcomeStatus.TIMED_OUT
        (tmp_path / "go").touch()
        assert other.result(20).is_success
    assert sshd.login_count == 1
