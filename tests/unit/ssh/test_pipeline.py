import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbue.mngr_vps_docker.docker.exec import exec_with_secret_stdin
from imbue.mngr_vps_docker.errors import RemoteCommandError, RemoteOutputError
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline, UnreadableAnswerError, parse_answer, pipeline_script
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript
from support.local_machine import LocalMachine


class End(NamedTuple):
    exit_code: int
    stdout: bytes
    stderr: bytes


_ENDS = st.lists(st.builds(End, st.integers(0, 255), st.binary(), st.binary()))


def _answer(ends: list[End]) -> bytes:
    framed = [b"%d %d %d\n" % (e.exit_code, len(e.stdout), len(e.stderr)) + e.stdout + e.stderr for e in ends]
    return b"mngr-batch-1\n" + b"".join(framed) + b"mngr-batch-end\n"


def _run(*commands: str, shell: str = "sh", limit_bytes: int = 1 << 20) -> list[End]:
    script = pipeline_script(commands, stops_at_failure=False, limit_bytes=limit_bytes)
    # Should a limit not hold, what prints without end is ended here, and not by the end of this machine's memory.
    script = f"ulimit -f 40000\n{script}"
    done = subprocess.run([shell, "-s"], input=script.encode(), capture_output=True, timeout=30, check=True)
    return [End(*end) for end in parse_answer(done.stdout)]


def _text(script: str, purpose: str = "test", effect: Effect = Effect.NON_IDEMPOTENT) -> RemoteCommand[str]:
    """A command whose value is what it printed."""
    return RemoteCommand(script, purpose, lambda outcome: outcome.checked().text, 30, effect)


@given(_ENDS)
def test_any_content_comes_back_as_it_was(ends: list[End]) -> None:
    assert [End(*end) for end in parse_answer(_answer(ends))] == ends


@given(_ENDS, st.data())
def test_an_answer_that_is_cut_off_anywhere_is_an_error(ends: list[End], data: st.DataObject) -> None:
    answer = _answer(ends)
    with pytest.raises(UnreadableAnswerError):
        list(parse_answer(answer[: data.draw(st.integers(0, len(answer) - 1))]))


@given(_ENDS, st.binary(min_size=1))
def test_an_answer_that_goes_on_is_an_error(ends: list[End], more: bytes) -> None:
    with pytest.raises(UnreadableAnswerError):
        list(parse_answer(_answer(ends) + more))


@settings(max_examples=15)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), max_size=4))
def test_any_text_passes_through_a_real_shell(texts: list[str]) -> None:
    results = _run(*(f"printf %s {shlex.quote(text)}" for text in texts))
    assert [result.stdout.decode() for result in results] == texts


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_commands_run_each_on_its_own(shell: str) -> None:
    results = _run(
        "echo one; echo problem >&2",
        "exit 3",
        "if then",
        "cd /tmp; x=1; exec false",
        'echo "${x:-unset}"; cat',
        "sh -c 'kill -9 $$'",
        "printf 'mngr-batch-end\\n'",
        shell=shell,
    )
    assert (results[0].exit_code, results[0].stdout, results[0].stderr) == (0, b"one\n", b"problem\n")
    assert results[1].exit_code == 3
    assert results[2].exit_code and results[2].stderr
    assert results[3].exit_code == 1
    assert results[4].stdout == b"unset\n"
    assert results[5].exit_code == 137
    assert results[6].stdout == b"mngr-batch-end\n"


def test_a_command_begins_when_the_one_before_it_has_ended(tmp_path: Path) -> None:
    ended = shlex.quote(str(tmp_path / "ended"))
    assert [result.exit_code for result in _run(f"head -c 9999999 /dev/zero; touch {ended}", f"[ -e {ended} ]")] == [
        0,
        0,
    ]


def test_what_a_login_shell_prints_first_is_skipped() -> None:
    assert list(parse_answer(b"Welcome!\n" + _answer([]))) == []


def test_a_pipeline_leaves_nothing_behind() -> None:
    (result,) = _run('echo "$held"; [ -d "$held" ]')
    assert result.exit_code == 0
    assert subprocess.run(["test", "-e", result.stdout.strip()]).returncode == 1


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_of_an_output_without_end_no_more_than_its_limit_is_held(shell: str) -> None:
    endless, complaining, whole = _run("yes", "echo x; yes >&2", "echo whole; exit 3", shell=shell, limit_bytes=1000)
    assert (len(endless.stdout), endless.exit_code == 0) == (1000, False)
    assert (complaining.stdout, len(complaining.stderr), complaining.exit_code == 0) == (b"x\n", 1000, False)
    assert (whole.exit_code, whole.stdout, whole.stderr) == (3, b"whole\n", b"")


def test_more_than_is_wanted_is_never_taken_for_the_whole(machine: LocalMachine) -> None:
    # This one does not end because nobody reads what it prints.
    command = "trap '' PIPE; head -c 2000 /dev/zero; exit 0"
    pipeline = Pipeline(machine, "test")
    pipeline.add(RemoteCommand(command, "print", lambda outcome: outcome.text, 30, limit_bytes=1000))
    with pytest.raises(RemoteOutputError, match="more than 1000 bytes"):
        pipeline.run()


def test_commands_longer_than_an_argument_may_be_are_run() -> None:
    (result,) = _run(f"x='{'a' * 300_000}'; echo ${{#x}}")
    assert result.stdout == b"300000\n"


def test_a_pipeline_stops_at_the_first_failure_and_is_one_round_trip(machine: LocalMachine) -> None:
    pipeline = Pipeline(machine, "do it all")
    begun = pipeline.add(_text("echo one", "begin"))
    failed = pipeline.add(_text("echo two; echo why >&2; exit 7", "continue"))
    never = pipeline.add(_text("touch reached", "end"))
    pipeline.run()
    assert begun.value == "one\n"
    for pending in (failed, never):
        with pytest.raises(RemoteCommandError, match="continue on the VPS failed with exit code 7: why"):
            _ = pending.value
    assert len(machine.commands) == 1


def test_what_an_expected_failure_keeps_from_running_has_no_value(machine: LocalMachine) -> None:
    pipeline = Pipeline(machine, "do it all")
    expected = pipeline.add(RemoteCommand("exit 7", "look", lambda outcome: outcome.exit_code, 30))
    never = pipeline.add(_text("true", "use it"))
    pipeline.run()
    assert expected.value == 7
    with pytest.raises(RemoteCommandError, match="Did not use it"):
        _ = never.value


def test_a_pipeline_that_does_not_stop_runs_every_command(machine: LocalMachine) -> None:
    pipeline = Pipeline(machine, "look", stops_at_failure=False)
    _failed, second = pipeline.add(_text("exit 1")), pipeline.add(_text("echo two"))
    pipeline.run()
    assert second.value == "two\n"


@pytest.mark.parametrize(
    ("effects", "whole"),
    [
        ([Effect.READ_ONLY, Effect.IDEMPOTENT], Effect.IDEMPOTENT),
        ([Effect.NON_IDEMPOTENT, Effect.READ_ONLY], Effect.NON_IDEMPOTENT),
        ([Effect.READ_ONLY], Effect.READ_ONLY),
    ],
)
def test_a_pipeline_may_be_repeated_if_each_command_may(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch, effects: list[Effect], whole: Effect
) -> None:
    asked: list[object] = []
    run = machine.run

    def noting_effect(*arguments: object, **options: object) -> CommandOutcome:
        asked.append(options["effect"])
        return run(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "run", noting_effect)
    pipeline = Pipeline(machine, "test")
    for effect in effects:
        pipeline.add(_text("true", effect=effect))
    pipeline.run()
    assert asked == [whole]


def test_what_a_pipeline_holds_is_in_no_argument(machine: LocalMachine) -> None:
    pipeline = Pipeline(machine, "use it")
    pipeline.add(RemoteCommand(ShellScript('echo "$key"', {"key": Secret("secret")}), "use it", lambda o: o.text, 30))
    pipeline.run()
    assert "secret" not in machine.commands[0]


def test_a_secret_of_a_pipeline_has_one_value(machine: LocalMachine) -> None:
    pipeline = Pipeline(machine, "use it")
    for value in ("one", "two"):
        pipeline.add(_text(ShellScript("true", {"key": Secret(value)})))
    with pytest.raises(ValueError, match="key has two values"):
        pipeline.run()
    assert not machine.commands


def test_a_command_without_its_input_fails_instead_of_doing_nothing(machine: LocalMachine) -> None:
    command = exec_with_secret_stdin("c", "sh -s", stdin=Secret("true"), purpose="set up", timeout_seconds=30)
    outcome = machine.run(str(command.script), purpose="set up", timeout_seconds=30)
    assert not outcome.is_success
    assert "mngr_step_stdin" in outcome.error_text
