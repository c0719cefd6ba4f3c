"""What takes a striped stream on the machine ends when it is told to, whatever it is just doing."""

import os
import signal
import subprocess
import time
from pathlib import Path

from imbue.mngr_vps_docker.ssh.striped import _merging
from support.remote import processes_with, wait_for

# One in twenty met the shell just as it forked; all of them are part of `make test-faults`.
_TIMES = 300 if os.environ.get("MNGR_FAULTS") == "all" else 20
_SECONDS = 0.0015


def test_nothing_goes_on_waiting_that_is_told_to_end_as_it_begins(tmp_path: Path) -> None:
    for number in range(_TIMES):
        folder = tmp_path / str(number)
        shell = subprocess.Popen(
            ["sh", "-c", _merging(str(folder), "cat")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with shell:
            wait_for((folder / "5").exists, every_seconds=0)
            begun = time.monotonic()
            while time.monotonic() - begun < _SECONDS * number / _TIMES:
                pass
            os.killpg(shell.pid, signal.SIGTERM)
    wait_for(lambda: not processes_with(str(tmp_path)))
