"""Every command is one line of JSON from which it can be run again; what went to stdin is not in it."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from imbue.mngr_vps_docker.ssh.command_log import (
    CommandLog,
    LoggedCommand,
    current_operation,
    follow_log,
    operation,
    read_log,
    trace,
)
from imbue.mngr_vps_docker.ssh.shell import one_line
from imbue.mngr_vps_docker.ssh.target import SshTarget, standalone_argv

COMMAND = LoggedCommand(
    id="0a1b2c3d",
    parent="p",
    operation="mngr list",
    time="2026-01-02T03:04:05+00:00",
    machine="VPS 192.0.2.7",
    host_id="host-1",
    purpose="list containers",
    is_read_only=True,
    argv=("ssh", "x"),
    outcome="COMPLETED",
    milliseconds=250,
    stdout_bytes=1,
    stderr_bytes=2,
    exit_code=3,
)
TARGET = SshTarget(
    host="192.0.2.7",
    identity_file=Path("/k"),
    known_hosts_file=Path("/h"),
    host_key_alias="host-1",
    label="VPS",
)


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_command_is_read_back_as_one_line_that_is_its_argv(tmp_path: Path, text: str) -> None:
    log = CommandLog(tmp_path / "ssh.jsonl")
    argv = standalone_argv(TARGET, one_line(text))
    log.write(replace(COMMAND, argv=argv))
    *_, logged = read_log(log.path)
    assert logged.argv == argv
    assert logged.command_line.isprintable()
    assert shlex.split(logged.command_line) == list(argv)


def _write_fifty(path: Path, first: int) -> None:
    for number in range(first, first + 50):
        CommandLog(path).write(replace(COMMAND, id=str(number)))


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "ssh.jsonl"
    context = get_context("spawn")
    writers = [context.Process(target=_write_fifty, args=(path, first)) for first in (0, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sorted(int(command.id) for command in read_log(path)) == list(range(100))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_full_log_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "ssh.jsonl"
    for number in range(7):
        CommandLog(path, rotate_at_bytes=1000).write(replace(COMMAND, id=str(number)))
    assert [command.id for command in read_log(path)] == ["3", "4", "5", "6"]
    assert path.with_name("ssh.jsonl.1").exists()


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "ssh.jsonl"
    CommandLog(path).write(COMMAND)
    with path.open("a") as file:
        file.write(COMMAND.to_json()[:40] + "\n" + json.dumps({"id": "other version"}) + "\n[]\n")
    CommandLog(path).write(COMMAND)
    assert list(read_log(path)) == [COMMAND, COMMAND]


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ssh.jsonl"
    path.write_text(COMMAND.to_json()[:40])
    CommandLog(path).write(COMMAND)
    assert list(read_log(path)) == [COMMAND]


def test_a_log_is_followed_past_its_rotation_and_a_line_while_it_is_written(tmp_path: Path) -> None:
    log = CommandLog(tmp_path / "ssh.jsonl", rotate_at_bytes=900)
    log.write(replace(COMMAND, id="0"))
    following = follow_log(log.path)
    for number in range(1, 9):
        assert next(following).id == str(number - 1)
        log.write(replace(COMMAND, id=str(number)))
    line = f"{replace(COMMAND, purpose='x' * 100_000).to_json()}\n"
    assert next(following).id == "8"
    with log.path.open("a") as file:
        file.write(line[:70_000])
        file.flush()
        file.write(line[70_000:])
    assert len(next(following).purpose) == 100_000
    following.close()


def test_a_log_that_cannot_be_written_is_warned_of_once(tmp_path: Path) -> None:
    said: list[str] = []
    handler = logger.add(said.append, level="WARNING", format="{message}")
    log = CommandLog(tmp_path)
    for _ in range(2):
        log.write(COMMAND)
    logger.remove(handler)
    assert len(said) == 1
    assert "Commands are not logged" in said[0]


def test_a_line_is_written_whole_by_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:7]))
    CommandLog(tmp_path / "ssh.jsonl").write(COMMAND)
    monkeypatch.undo()
    assert list(read_log(tmp_path / "ssh.jsonl")) == [COMMAND]


def test_an_operation_names_its_parts_from_outer_to_inner() -> None:
    outermost = current_operation()
    with operation("create h1") as create, operation("Waiting for its ssh") as step:
        assert current_operation() == step
        assert step.title == f"{outermost.title} > create h1 > Waiting for its ssh"
        assert step.id != create.id
    assert current_operation() == outermost


def test_tracing_is_off_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MNGR_VPS_TRACE", raising=False)
    trace(lambda: "unseen")
    monkeypatch.setenv("MNGR_VPS_TRACE", "1")
    trace(lambda: "seen")
    assert capsys.readouterr().err == "seen\n"


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=60)
def test_a_text_made_one_line_means_the_same_to_a_shell(text: str) -> None:
    script = f"printf %s {shlex.quote(text)}\n: a comment follows # {text.splitlines()[0] if text.strip() else ''}"
    shown = one_line(script)
    assert shown.isprintable()
    for shell in ("sh", "bash"):
        done = subprocess.run([shell, "-c", shown], capture_output=True, timeout=10, check=False)
        assert done.stdout == text.encode()
