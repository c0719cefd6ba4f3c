"""A host is not lost if anything fails before its first agent is created."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from support.mngr_cli import MngrCli
from support.provider import freeze
from support.remote import wait_for

pytestmark = pytest.mark.usefixtures("nothing_left")

CREATE = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")
CREATE_SECONDS = 300.0


@pytest.fixture(scope="module")
def provider_settings() -> str:
    return "ssh_connect_timeout = 10.0"


def is_handed_over(mngr: MngrCli) -> bool:
    """Whether mngr has just been handed the host."""
    notes = [json.loads(path.read_text()) for path in mngr.profile.glob("providers/*/*/hosts/*/host.json")]
    return any(note["awaits_agent"] for note in notes)


def cut_short(mngr: MngrCli, act: Callable[["subprocess.Popen[str]"], object]) -> str:
    """Create a host, act as soon as mngr is handed it, and return what mngr said then."""
    with subprocess.Popen(
        [Path(sys.executable).with_name("mngr"), *CREATE, *AGENT],
        cwd=mngr.project,
        env=mngr.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: is_handed_over(mngr) or process.poll() is not None, CREATE_SECONDS, every_seconds=0.01)
            act(process)
            _, said = process.communicate(timeout=CREATE_SECONDS)
        finally:
            process.kill()
    assert process.returncode != 0, said
    return said


def the_vps(mngr: MngrCli) -> str:
    (instance,) = mngr.cloud.find_instances({})
    return instance.id


def listed(mngr: MngrCli) -> dict[str, str]:
    """The state of each row, by the host's name; and why, where it failed."""
    rows = json.loads(mngr("list", "--format", "json"))["agents"]
    return {row["host"]["name"]: f"{row['host']['state']}: {row['host'].get('failure_reason')}" for row in rows}


def test_after_mngr_is_killed_gc_removes_it_at_once(mngr: MngrCli) -> None:
    cut_short(mngr, lambda process: process.kill())
    assert listed(mngr)["h1"].startswith("FAILED")
    mngr("gc", "--all-providers")
    assert listed(mngr) == {}


def test_after_its_container_is_killed_it_can_be_destroyed(mngr: MngrCli) -> None:
    kill = "docker kill $(docker ps --quiet --filter label=com.imbue.mngr.host-id)"
    cut_short(mngr, lambda _: run_docker("exec", the_vps(mngr), "sh", "-c", kill))
    assert listed(mngr)["h1"].startswith("FAILED")
    mngr("destroy", "h1", "--force")
    assert listed(mngr) == {}


def test_after_its_vps_hangs_it_can_be_destroyed(mngr: MngrCli) -> None:
    cut_short(mngr, lambda _: freeze(the_vps(mngr)))
    state = listed(mngr)["h1"]
    assert state.startswith("FAILED")
    assert "What failed on it: container" in state
    mngr("destroy", "h1", "--force")
    assert listed(mngr) == {}


def test_after_mngr_s_own_part_of_create_fails_it_can_be_destroyed(mngr: MngrCli, tmp_path: Path) -> None:
    """Its push of the checkout, which needs that program in the container."""
    broken = "RUN receiver=$(command -v git-receive-pack) && ln -sf /bin/false $receiver"
    (tmp_path / "Dockerfile").write_text(f"FROM {agent_image_of_os(mngr.os_id)}\n{broken}\n")
    mngr(*CREATE, "-b", str(tmp_path), *AGENT, is_failure_expected=True)
    assert listed(mngr)["h1"].startswith("FAILED")
    mngr("destroy", "h1", "--force")
    assert listed(mngr) == {}
