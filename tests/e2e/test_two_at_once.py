"""Two commands that destroy the same host at once: neither fails, warns, or waits for what the other has destroyed."""

import subprocess
import sys
from pathlib import Path

import pytest

from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.ssh.command_log import read_log
from support.mngr_cli import COMMAND_TIMEOUT_SECONDS, MngrCli

CREATE = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
DESTROY = ("destroy", "a1", "--force")
GC = ("gc", "--all-providers")
LIST = ("list",)


@pytest.fixture(scope="module")
def provider_settings() -> str:
    """mngr's gc removes at once a host that has no agent."""
    return "min_online_host_age_seconds = 0.0"


def at_once(mngr: MngrCli, *commands: tuple[str, ...]) -> list[str]:
    """Run commands concurrently, all of which must succeed, and return their output."""
    program = Path(sys.executable).with_name("mngr")
    running = [
        subprocess.Popen(
            [program, *command],
            cwd=mngr.project,
            env=mngr.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=COMMAND_TIMEOUT_SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


@pytest.mark.parametrize(
    ("commands", "is_running"),
    [((DESTROY, DESTROY), True), ((DESTROY, GC, LIST), False)],
    ids=["two destroys of a running host", "destroy and gc of a stopped host"],
)
def test_a_host_destroyed_by_another_process_disturbs_no_other(
    mngr: MngrCli, commands: tuple[tuple[str, ...], ...], is_running: bool
) -> None:
    mngr(*CREATE)
    if not is_running:
        (instance,) = mngr.cloud.find_instances({})
        container = "docker kill $(docker ps --quiet --filter label=com.imbue.mngr.host-id)"
        run_docker("exec", instance.id, "sh", "-c", container)
    (log,) = mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
    before = len(list(read_log(log)))
    said = at_once(mngr, *commands)
    assert [text for text in said if "WARNING" in text or "ERROR" in text or "Error" in text] == []
    # Nothing waited for a machine that another process had destroyed.
    timed_out = [logged.purpose for logged in list(read_log(log))[before:] if logged.reason == "CONNECT_TIMEOUT"]
    assert timed_out == []
    mngr(*GC)
    assert mngr.leftovers() == []
