"""mngr's own activity watcher, on a machine whose clock is set while it runs."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from imbue.mngr.providers.ssh_host_setup import load_resource_script
from imbue.mngr_vps_docker.setup import container_setup

CLOCK = Path(container_setup.__file__).with_name("steady_clock.sh")
DAY_SECONDS = 86_400


class Host:
    """A folder as the set-up leaves it, whose watcher looks at it ``looks`` times, each 15 s of uptime after the last.

    It counts as idle after 60 s.
    """

    def __init__(self, folder: Path, *, looks: int) -> None:
        self.folder = folder
        for name in ("commands", "activity", "bin"):
            (folder / name).mkdir()
        (folder / "data.json").touch()
        (folder / "uptime").write_text("1000.00 0\n")
        (folder / "step").write_text("0\n")
        (folder / "at-each-look").touch()
        for name in ("activity_watcher.sh", "mngr_log.sh"):
            (folder / "commands" / name).write_text(load_resource_script(name))
        clock = CLOCK.read_text().replace("/proc/uptime", f"{folder}/uptime")
        (folder / "commands/steady_clock.sh").write_text(clock)
        self.put("commands/shutdown.sh", f"echo >{folder}/stopped")
        self.put("bin/jq", "case $* in *sources*) echo boot; echo user ;; *idle*) echo 60 ;; esac")
        # The clock of the machine: the real one, what has passed by its uptime, and what it was set to.
        now = f"$(/bin/date +%s) + ${{up%.*}} - 1000 + $(cat {folder}/step)"
        self.put("bin/date", f"read up _ <{folder}/uptime; echo $(({now}))")
        self.put(
            "bin/sleep",
            f"echo >>{folder}/looks; looks=$(wc -l <{folder}/looks); [ $looks -lt {looks} ] || kill $PPID\n"
            f"echo $((1000 + 15 * looks)).00 0 >{folder}/uptime; . {folder}/at-each-look",
        )
        (folder / "activity/boot").touch()

    def put(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def is_stopped_by_watcher(self) -> bool:
        """Run the watcher to its end."""
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "BASH_ENV": f"{self.folder}/commands/steady_clock.sh",
        }
        argv = ("bash", f"{self.folder}/commands/activity_watcher.sh", str(self.folder))
        subprocess.run(argv, env=environment, capture_output=True, timeout=60, check=False)
        return (self.folder / "stopped").exists()


@pytest.mark.parametrize("step_seconds", [DAY_SECONDS, -DAY_SECONDS], ids=["forward", "back"])
def test_a_host_is_not_idle_at_once_when_the_clock_is_set(tmp_path: Path, step_seconds: int) -> None:
    host = Host(tmp_path, looks=4)
    (tmp_path / "at-each-look").write_text(f"echo {step_seconds} >{tmp_path}/step\n")
    assert not host.is_stopped_by_watcher()


@pytest.mark.parametrize("changed_after_seconds", [DAY_SECONDS, 0, -DAY_SECONDS], ids=["ahead", "now", "behind"])
def test_a_host_is_not_awake_for_ever_by_files_of_another_time(tmp_path: Path, changed_after_seconds: int) -> None:
    host = Host(tmp_path, looks=6)
    changed_at = time.time() + changed_after_seconds
    (tmp_path / "activity/user").touch()
    os.utime(tmp_path / "activity/user", (changed_at, changed_at))
    assert host.is_stopped_by_watcher()


def test_activity_keeps_a_host_awake_while_the_clock_is_set_back(tmp_path: Path) -> None:
    host = Host(tmp_path, looks=12)
    (tmp_path / "at-each-look").write_text(f"touch -d @$((1700000000 - 60 * looks)) {tmp_path}/activity/user\n")
    assert not host.is_stopped_by_watcher()


def test_on_a_full_disk_the_clock_of_the_machine_counts(tmp_path: Path) -> None:
    host = Host(tmp_path, looks=6)
    # In the place of its notes: no file can be made there.
    clock = tmp_path / "commands/steady_clock.sh"
    clock.write_text(clock.read_text().replace("/.activity_seen", "/data.json/notes"))
    assert host.is_stopped_by_watcher()
