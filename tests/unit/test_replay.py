"""The command log is read, shown and run again by a command of ours."""

import os
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.replay import main, newest_log
from imbue.mngr_vps_docker.ssh.command_log import CommandLog, LoggedCommand
from support.remote import heed_signals

LOOKED = LoggedCommand(
    id="aa11",
    parent="p",
    operation="mngr list",
    time="2026-01-02T03:04:05.678+00:00",
    machine="VPS 192.0.2.7",
    host_id="host-1",
    purpose="list containers",
    is_read_only=True,
    argv=("sh", "-c", "echo 'it is' >&2; exit 3"),
    outcome="COMPLETED",
    milliseconds=250,
    stdout_bytes=1500,
    stderr_bytes=2,
    exit_code=3,
)
CHANGED = replace(LOOKED, id="aa22", is_read_only=False, exit_code=0, argv=("sh", "-c", "touch changed"))
FED = replace(LOOKED, id="bb33", stdin_bytes=7, machine="VPS 192.0.2.8", purpose="say \x1b[31mred", host_id="host-2")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MNGR_HOST_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "profiles/p/providers/vultr/vultr/logs/ssh.jsonl"
    for command in (LOOKED, CHANGED, FED):
        CommandLog(path).write(command)
    return path


def test_the_table_has_a_line_for_each_command_without_escape_sequences(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    header, first, second, third = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["ID", "BEGAN"]
    assert "aa11" in first and "COMPLETED 3" in first and "list containers (mngr list)" in first and "2 kB" in first
    assert "aa22" in second
    assert r"\x1b[31mred" in third and "\x1b" not in third


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--failed"], ["aa11", "bb33"]),
        (["--host", "192.0.2.8"], ["bb33"]),
        (["--host", "host-1"], ["aa11", "aa22"]),
        (["--last", "1"], ["bb33"]),
    ],
)
def test_the_table_can_be_narrowed(
    log: Path, capsys: pytest.CaptureFixture[str], options: list[str], ids: list[str]
) -> None:
    assert main(["list", *options]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ids


def test_a_command_is_shown_as_the_line_to_paste(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "aa1"]) == 0
    assert shlex.split(capsys.readouterr().out) == list(LOOKED.argv)


def test_a_read_only_command_is_run_again_and_compared(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "aa11"]) == 0
    said = capsys.readouterr()
    assert "the same: COMPLETED 3 then, COMPLETED 3 now" in said.out
    assert "it is" in said.err


def test_output_of_a_repeated_command_has_no_escape_sequences(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CommandLog(log).write(replace(LOOKED, id="cc44", argv=("sh", "-c", "printf '\\033[31mred\\n' >&2; exit 3")))
    assert main(["run", "cc44"]) == 0
    assert r"\x1b[31mred" in capsys.readouterr().err


def test_a_different_end_is_reported_and_is_the_exit_code(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CommandLog(log).write(replace(LOOKED, id="cc44", exit_code=0))
    assert main(["run", "aa11", "cc44"]) == 1
    assert "now otherwise: COMPLETED 0 then, COMPLETED 3 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "aa11", "aa22"], "may change something"),
        (["run", "bb33"], "7 bytes on stdin"),
        (["show", "aa"], "2 logged commands"),
        (["show", "zz"], "no logged commands"),
        (["--log", "/nowhere/x", "show", "aa11"], "no logged commands"),
    ],
)
def test_an_impossible_request_is_refused_in_one_line(
    log: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1
    assert said.out == ""
    assert not Path("changed").exists()


def test_the_log_that_was_written_last_is_read(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "profiles/q/providers/hetzner/hetzner/logs/ssh.jsonl"
    CommandLog(other).write(LOOKED)
    os.utime(log, (1, 1))
    assert newest_log(tmp_path) == other


def test_ctrl_c_ends_following_silently(log: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "imbue.mngr_vps_docker.replay", "list", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        # Three commands and the header are there; what comes now was not when it started.
        for _ in range(4):
            process.stdout.readline()
        writer = threading.Thread(target=_write_until, args=(log, process), daemon=True)
        writer.start()
        assert "dd55" in process.stdout.readline()
        process.send_signal(2)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "")
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def _write_until(log: Path, process: subprocess.Popen[str]) -> None:
    """Add to the log until the follower has ended: when it begins to follow cannot be seen from outside."""
    while process.poll() is None:
        CommandLog(log).write(replace(LOOKED, id="dd55"))
        threading.Event().wait(0.2)
