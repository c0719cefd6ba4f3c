"""Helpers of tests of commands over ssh."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.master import SshMaster, master_process_id
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.process import run_process


def run(connection: SshConnection, command: str, *, timeout_seconds: float = 30, **options: Any) -> CommandOutcome:
    """Run a command for a test."""
    return connection.run(command, purpose="test", timeout_seconds=timeout_seconds, **options)


def processes_with(text: str) -> list[str]:
    """The processes of this machine whose command line contains ``text``, except ssh clients."""
    listing = subprocess.run(
        ["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    return [line for line in listing.splitlines() if text in line and "ssh -v" not in line]


def heed_signals() -> None:
    """For ``preexec_fn``: let a program be interrupted even where the tests run in the background.

    A shell starts what runs there with SIGINT ignored, nohup with SIGHUP, and all that is started by it inherits that.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_for(condition: Callable[[], object], seconds: float = 10, *, every_seconds: float = 0.05) -> None:
    """Wait until ``condition`` holds; fail if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(every_seconds)


def socket_of(connection: SshConnection) -> Path:
    """The path of the shared login's socket."""
    return SshMaster(connection.target, run_process).control_path


def master_pid(connection: SshConnection) -> int:
    """The process that holds the shared login."""
    process_id = master_process_id(socket_of(connection), 10)
    assert process_id is not None
    return process_id
