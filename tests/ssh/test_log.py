"""The log of a real command can be pasted and does the same, and holds no secret."""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.replay import main
from imbue.mngr_vps_docker.ssh.command_log import CommandLog, LoggedCommand, read_log
from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.outcome import Effect
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript
from support.loopback_sshd import LoopbackSshd
from support.remote import run


@pytest.fixture
def log(tmp_path: Path) -> CommandLog:
    return CommandLog(tmp_path / "logs" / "ssh.jsonl")


@pytest.fixture
def logged(sshd: LoopbackSshd, log: CommandLog) -> Iterator[SshConnection]:
    with closing(SshConnection(sshd.target(), log=log)) as connection:
        yield connection


def only_entry(log: CommandLog) -> LoggedCommand:
    (entry,) = read_log(log.path)
    return entry


def paste(entry: LoggedCommand) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash"], input=f"{entry.command_line}\n", capture_output=True, text=True, check=False, timeout=20
    )


@pytest.mark.parametrize(
    "command",
    [
        "echo {a,b}; exit 3",
        "echo $0",
        "printf '%s\\n' \"it's\"\nexit 4 # \x1b[31m",
        f"printf %s {'x' * 300_000} | wc -c",
    ],
    ids=["not of sh", "the shell", "several lines", "long"],
)
def test_a_pasted_command_does_the_same(logged: SshConnection, log: CommandLog, command: str) -> None:
    outcome = run(logged, command)
    entry = only_entry(log)
    assert entry.command_line.isprintable()
    pasted = paste(entry)
    assert (pasted.returncode, pasted.stdout) == (outcome.exit_code, outcome.text)


def test_a_long_command_finds_what_it_was_given_on_stdin(logged: SshConnection) -> None:
    command = f"printf %s {'x' * 300_000} | wc -c; cat"
    for stdin in (b"given", iter([b"gi", b"ven"])):
        assert run(logged, command, stdin=stdin).text == "300000\ngiven"


def test_a_command_of_quotes_alone_runs(logged: SshConnection) -> None:
    quotes = "'" * 20_000
    assert run(logged, f'printf %s "{quotes}" | wc -c').text.strip() == "20000"


def test_secrets_are_used_and_not_logged(
    logged: SshConnection, log: CommandLog, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ShellScript.with_environment("sh -c 'echo $TOKEN'", {"TOKEN": "canary 'x'\ny"})
    assert run(logged, script).text == "canary 'x' y\n"
    pipeline = Pipeline(logged, "use it")
    script = ShellScript('printf %s "$key" | wc -c', {"key": Secret("canary key")})
    size = pipeline.add(RemoteCommand(script, "use it", lambda outcome: outcome.text, 20))
    pipeline.run()
    assert size.value == "10\n"
    assert "canary" not in log.path.read_text()
    entry, chain = read_log(log.path)
    assert (entry.secrets, chain.secrets) == (("TOKEN",), ("key",))
    assert paste(entry).stdout == "***\n"
    assert main(["--log", str(log.path), "show", entry.id]) == 0
    assert "set TOKEN in it" in capsys.readouterr().err
    assert main(["--log", str(log.path), "run", entry.id]) == 2


def test_what_goes_to_stdin_is_logged_by_size_and_digest(
    logged: SshConnection, log: CommandLog, capsys: pytest.CaptureFixture[str]
) -> None:
    run(logged, "cat; echo x >&2", stdin=b"given")
    entry = only_entry(log)
    assert (entry.stdin_bytes, entry.stdin_sha256) == (5, hashlib.sha256(b"given").hexdigest())
    assert (entry.stdout_bytes, entry.stderr_bytes, entry.exit_code) == (5, 2, 0)
    assert main(["--log", str(log.path), "show", entry.id]) == 0
    assert "5 bytes on stdin" in capsys.readouterr().err


def test_an_interrupted_command_is_logged_as_one(logged: SshConnection, log: CommandLog) -> None:
    def interrupt(_line: str, _stream: Stream) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logged.stream("echo x; sleep 20", on_line=interrupt, purpose="test", timeout_seconds=20)
    assert only_entry(log).result == "INTERRUPTED"


def test_each_command_is_traced_as_it_runs(
    logged: SshConnection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNGR_VPS_TRACE", "1")
    run(logged, "exit 3")
    began, ended = capsys.readouterr().err.splitlines()
    assert began.startswith("+ ssh ") and "exit 3" in began
    assert ended.startswith("= COMPLETED 3 in ") and ended.endswith(" ms: test on loopback")


def test_a_repeated_command_is_compared_with_its_first_end(
    logged: SshConnection, log: CommandLog, sshd: LoopbackSshd, capsys: pytest.CaptureFixture[str]
) -> None:
    down = SshConnection(replace(logged.target, port=1), log=log)
    run(logged, "exit 255", effect=Effect.READ_ONLY)
    run(down, "true", effect=Effect.READ_ONLY)
    exited, refused = read_log(log.path)
    assert main(["--log", str(log.path), "run", exited.id, refused.id]) == 0
    said = capsys.readouterr().out
    assert "the same: COMPLETED 255 then" in said
    assert "the same: NEVER_STARTED REFUSED then" in said
    sshd.stop()
    assert main(["--log", str(log.path), "run", exited.id]) == 1
    assert "now otherwise: COMPLETED 255 then, NEVER_STARTED REFUSED now" in capsys.readouterr().out
