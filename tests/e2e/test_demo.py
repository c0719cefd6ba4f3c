"""`make demo` keeps its promises, even after an earlier one was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo"
DEMO_TIMEOUT_SECONDS = 600


@pytest.fixture
def killed_demo(vps_image: None, os_id: str) -> Iterator[None]:
    """A demo that was killed while its `mngr create` was running on a VPS."""
    with subprocess.Popen([sys.executable, DEMO, os_id], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Waiting for cloud-init" in line:
                break
        demo.send_signal(signal.SIGKILL)
    yield


def test_the_demo_goes_through_after_an_earlier_one_was_killed(killed_demo: None, os_id: str) -> None:
    done = subprocess.run(
        [sys.executable, DEMO, os_id],
        env=os.environ | {"NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Nothing is left.")
