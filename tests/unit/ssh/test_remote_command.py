import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbue.mngr_vps_docker.docker.exec import exec_step
from imbue.mngr_vps_docker.errors import RemoteOutputError
from imbue.mngr_vps_docker.ssh.remote_command import (
    BatchFormatError,
    BatchResult,
    ChainStep,
    batch_script,
    parse_batch,
    run_batch,
    run_chain,
)
from imbue.mngr_vps_docker.ssh.shell import Secret
from support.local_machine import LocalMachine

_RESULTS = st.lists(st.builds(BatchResult, st.integers(0, 255), st.binary(), st.binary()))


def _answer(results: list[BatchResult]) -> bytes:
    framed = [b"%d %d %d\n" % (r.exit_code, len(r.stdout), len(r.stderr)) + r.stdout + r.stderr for r in results]
    return b"mngr-batch-1\n" + b"".join(framed) + b"mngr-batch-end\n"


def _run(*commands: str, shell: str = "sh", limit_bytes: int = 1 << 20) -> tuple[BatchResult, ...]:
    # Should a limit not hold, what prints without end is ended here, and not by the end of this machine's memory.
    script = f"ulimit -f 40000\n{batch_script(commands, limit_bytes=limit_bytes)}".encode()
    done = subprocess.run([shell, "-s"], input=script, capture_output=True, timeout=30, check=True)
    return parse_batch(done.stdout)


@given(_RESULTS)
def test_any_content_comes_back_as_it_was(results: list[BatchResult]) -> None:
    assert list(parse_batch(_answer(results))) == results


@given(_RESULTS, st.data())
def test_an_answer_that_is_cut_off_anywhere_is_an_error(results: list[BatchResult], data: st.DataObject) -> None:
    answer = _answer(results)
    with pytest.raises(BatchFormatError):
        parse_batch(answer[: data.draw(st.integers(0, len(answer) - 1))])


@given(_RESULTS, st.binary(min_size=1))
def test_an_answer_that_goes_on_is_an_error(results: list[BatchResult], more: bytes) -> None:
    with pytest.raises(BatchFormatError):
        parse_batch(_answer(results) + more)


@settings(max_examples=15)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30), max_size=4))
def test_any_text_passes_through_a_real_shell(texts: list[str]) -> None:
    results = _run(*(f"printf %s {shlex.quote(text)}" for text in texts))
    assert [result.text for result in results] == texts


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
    assert not results[2].is_success and results[2].stderr
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
    assert parse_batch(b"Welcome!\n" + _answer([])) == ()


def test_a_batch_leaves_nothing_behind() -> None:
    (result,) = _run('echo "$held"; [ -d "$held" ]')
    assert result.is_success
    assert subprocess.run(["test", "-e", result.text.strip()]).returncode == 1


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_of_an_output_without_end_no_more_than_its_limit_is_held(shell: str) -> None:
    endless, complaining, whole = _run("yes", "echo x; yes >&2", "echo whole; exit 3", shell=shell, limit_bytes=1000)
    assert (len(endless.stdout), endless.is_success) == (1000, False)
    assert (complaining.stdout, len(complaining.stderr), complaining.is_success) == (b"x\n", 1000, False)
    assert (whole.exit_code, whole.stdout, whole.stderr) == (3, b"whole\n", b"")


def test_more_than_is_wanted_is_never_taken_for_the_whole(machine: LocalMachine) -> None:
    # This one does not end because nobody reads what it prints.
    command = "trap '' PIPE; head -c 2000 /dev/zero; exit 0"
    with pytest.raises(RemoteOutputError, match="more than 1000 bytes"):
        run_batch(machine, [command], purpose="test", timeout_seconds=30, limit_bytes=1000)


def test_commands_longer_than_an_argument_may_be_are_run() -> None:
    (result,) = _run(f"x='{'a' * 300_000}'; echo ${{#x}}")
    assert result.stdout == b"300000\n"


def test_a_chain_ends_with_the_first_step_that_fails_and_is_one_round_trip(machine: LocalMachine) -> None:
    steps = [
        ChainStep("echo one", "begin"),
        ChainStep("echo two; echo why >&2; exit 7", "go on"),
        ChainStep("touch reached", "end"),
    ]
    outcomes = run_chain(machine, steps, purpose="do it all", timeout_seconds=30)
    assert [(end.purpose, end.exit_code, end.stdout, end.stderr) for end in outcomes] == [
        ("begin", 0, b"one\n", b""),
        ("go on", 7, b"two\n", b"why\n"),
    ]
    assert len(run_chain(machine, steps[:1] * 3, purpose="do it all", timeout_seconds=30)) == 3
    assert len(machine.commands) == 2


def test_what_a_chain_holds_is_in_no_argument(machine: LocalMachine) -> None:
    run_chain(machine, [ChainStep("printf %s secret >/dev/null", "use it")], purpose="use it", timeout_seconds=30)
    assert "secret" not in machine.commands[0]


def test_a_secret_of_a_chain_has_one_value(machine: LocalMachine) -> None:
    steps = [ChainStep("true", "use it", {"key": Secret(value)}) for value in ("one", "two")]
    with pytest.raises(ValueError, match="key has two values"):
        run_chain(machine, steps, purpose="use it", timeout_seconds=30)
    assert not machine.commands


def test_a_step_without_its_input_fails_instead_of_doing_nothing(machine: LocalMachine) -> None:
    step = exec_step("c", "sh -s", stdin=Secret("true"), purpose="set up", timeout_seconds=30)
    (outcome,) = run_chain(machine, [replace(step, secrets={})], purpose="set up", timeout_seconds=30)
    assert not outcome.is_success
    assert "mngr_step_stdin" in outcome.error_text
