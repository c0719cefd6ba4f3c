"""Every command is one line of JSON from which it can be run again; what went to stdin is not in it."""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from imbue.mngr_vps_docker.ssh.command_log import CommandLog
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus


def outcome(*argv: str) -> CommandOutcome:
    return CommandOutcome(
        status=OutcomeStatus.COMPLETED, argv=argv, host="VPS", purpose="test", elapsed_seconds=0.25, exit_code=3
    )


@given(
    argv=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=5)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_line_is_read_back_as_it_ran(tmp_path: Path, argv: list[str]) -> None:
    path = tmp_path / "ssh.jsonl"
    CommandLog(path).write(outcome(*argv), stdin=None)
    logged = json.loads(path.read_text().splitlines()[-1])["argv"]
    assert logged == argv
    assert shlex.split(shlex.join(logged)) == argv


def test_of_stdin_only_size_and_digest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "ssh.jsonl"
    CommandLog(path).write(outcome("ssh", "x"), stdin=b"top secret")
    text = path.read_text()
    assert "top secret" not in text
    entry = json.loads(text)
    assert (entry["stdin_bytes"], len(entry["stdin_sha256"])) == (10, 64)
    assert (entry["outcome"], entry["exit_code"], entry["milliseconds"]) == ("COMPLETED", 3, 250)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbue.mngr_vps_docker.ssh.command_log._ROTATE_AT_BYTES", 300)
    path = tmp_path / "ssh.jsonl"
    for number in range(3):
        CommandLog(path).write(outcome("ssh", str(number)), stdin=None)
    assert json.loads((tmp_path / "ssh.jsonl.1").read_text().splitlines()[-1])["argv"][1] in "012"


def test_tracing_shows_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNGR_VPS_TRACE", "1")
    CommandLog(tmp_path / "log").write(outcome("ssh", "a b"), stdin=None)
    assert capsys.readouterr().err == "+ ssh 'a b'\n"
