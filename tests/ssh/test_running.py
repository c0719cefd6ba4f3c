"""A command over a real sshd gives its exact output and exit code, and ends when it must."""

import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection, Stream
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessResult, run_process
from support.loopback_sshd import LoopbackSshd
from support.remote import processes_with, run, socket_of, wait_for


@pytest.mark.usefixtures("both_homes")
def test_both_streams_and_the_exit_code_are_the_commands_own(connection: SshConnection) -> None:
    outcome = run(connection, "echo out; echo err >&2; exit 3")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 3)
    assert (outcome.stdout, outcome.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("code", [0, 1, 124, 137, 255])
def test_exit_codes_that_ssh_uses_too_are_the_commands_own(connection: SshConnection, code: int) -> None:
    outcome = run(connection, f"exit {code}")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, code)


def test_a_command_that_kills_itself_has_ended(connection: SshConnection) -> None:
    outcome = run(connection, "kill -9 $$")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 137)


def test_output_without_a_last_newline_is_exact(connection: SshConnection) -> None:
    outcome = run(connection, r"printf 'a\000b'; printf 'no end' >&2")
    assert (outcome.stdout, outcome.stderr) == (b"a\0b", b"no end")


@pytest.mark.usefixtures("both_homes")
def test_every_byte_survives_both_ways(connection: SshConnection) -> None:
    data = bytes(range(256)) * 20_000
    outcome = run(connection, "cat; cat /dev/null", stdin=data)
    assert outcome.stdout == data


def test_stdin_may_come_piece_by_piece_or_from_a_file(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"from a file")
    assert run(connection, "cat", stdin=(part for part in (b"piece ", b"by piece"))).stdout == b"piece by piece"
    assert run(connection, "cat", stdin=tmp_path / "data").stdout == b"from a file"


def slowly(seconds: float, error: type[Exception] | None = None) -> Iterator[bytes]:
    yield b"begun"
    time.sleep(seconds)
    if error is not None:
        raise error("the input broke")


def test_an_input_that_waits_delays_nothing(connection: SshConnection) -> None:
    is_over = threading.Event()

    def waiting() -> Iterator[bytes]:
        yield b"begun"
        is_over.wait()

    assert run(connection, "cat; sleep 60", timeout_seconds=0.5, stdin=waiting()).status is OutcomeStatus.TIMED_OUT
    assert run(connection, "exit 3", stdin=waiting()).exit_code == 3
    is_over.set()


def test_an_input_may_be_silent_for_longer_than_the_connect_timeout(sshd: LoopbackSshd) -> None:
    connection = SshConnection(sshd.target(connect_timeout_seconds=1))
    assert run(connection, "cat", stdin=slowly(1.5)).stdout == b"begun"
    connection.close()


@pytest.mark.parametrize("error", [LookupError, BrokenPipeError])
def test_an_input_that_breaks_is_never_taken_for_whole(
    sshd: LoopbackSshd, tmp_path: Path, error: type[Exception]
) -> None:
    def patient(argv: Sequence[str], *, timeout_seconds: float, **options: Any) -> ProcessResult:
        # A busy machine may take long to tell the other one to end the command.
        return run_process(argv, timeout_seconds=timeout_seconds + 20, **options)

    connection = SshConnection(sshd.target(), runner=patient)
    with pytest.raises(error, match="the input broke"):
        run(connection, f"cat >/dev/null; touch {tmp_path}/whole", stdin=slowly(0.2, error))
    run(connection, "true")
    connection.close()
    assert not (tmp_path / "whole").exists()


# As on a machine that is too busy to let it pass a signal on at once.
SLOW_TIMEOUT = """\
#!/bin/bash
[ "$1" = slow ] || exec -a timeout bash "$0" slow "$@"
shift 4
trap 'sleep 0.5; kill -TERM $command' TERM
"$@" <&0 &
command=$!
until wait $command || ! kill -0 $command 2>/dev/null; do :; done
"""


def test_a_command_that_is_ended_ends_before_its_input(tmp_path: Path) -> None:
    timeout = tmp_path / "bin" / "timeout"
    timeout.parent.mkdir()
    timeout.write_text(SLOW_TIMEOUT)
    timeout.chmod(0o755)
    with LoopbackSshd(tmp_path, (f"SetEnv HOME={tmp_path} PATH={timeout.parent}:/usr/bin:/bin",)) as sshd:
        connection = SshConnection(sshd.target())
        with pytest.raises(LookupError):
            run(connection, f"cat >/dev/null; touch {tmp_path}/whole", stdin=slowly(0.2, LookupError))
        wait_for(lambda: not processes_with(f"{tmp_path}/whole"))
        connection.close()
    assert not (tmp_path / "whole").exists()


def test_a_command_without_stdin_finds_it_empty(connection: SshConnection) -> None:
    assert run(connection, "cat | wc -c").text.strip() == "0"


def test_a_command_of_five_megabytes_runs(connection: SshConnection) -> None:
    outcome = run(connection, f"printf %s {'x' * 5_000_000} | wc -c")
    assert outcome.text.strip() == "5000000"


def test_lines_arrive_as_they_are_printed(connection: SshConnection, tmp_path: Path) -> None:
    lines: list[tuple[str, Stream]] = []

    def on_line(line: str, stream: Stream) -> None:
        lines.append((line, stream))
        if line == "first":
            (tmp_path / "go").touch()

    outcome = connection.stream(
        f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo second >&2; printf third",
        on_line=on_line,
        purpose="test",
        timeout_seconds=20,
    )
    assert outcome.is_success
    assert lines == [("first", Stream.STDOUT), ("second", Stream.STDERR), ("third", Stream.STDOUT)]


def test_a_timeout_ends_the_command_on_the_machine_too(connection: SshConnection) -> None:
    outcome = run(connection, "sleep 61.25", timeout_seconds=0.5)
    assert outcome.status is OutcomeStatus.TIMED_OUT
    assert outcome.exit_code is None
    wait_for(lambda: not processes_with("sleep 61.25"))


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_deadline_in_the_past_sends_nothing(connection: SshConnection, seconds: float) -> None:
    assert run(connection, "true", timeout_seconds=seconds).status is OutcomeStatus.TIMED_OUT
    assert not socket_of(connection).exists()


def test_a_deadline_may_be_a_fraction_or_infinite(connection: SshConnection) -> None:
    assert run(connection, "echo x", timeout_seconds=math.inf).text == "x\n"
    assert run(connection, "sleep 8", timeout_seconds=0.25).status is OutcomeStatus.TIMED_OUT


@pytest.mark.parametrize("code", [0, 124])
def test_background_processes_of_a_command_neither_delay_nor_change_it(
    connection: SshConnection, sshd: LoopbackSshd, code: int
) -> None:
    left = f"sleep 66.{sshd.port}"
    outcome = run(connection, f"echo own; {left} & (echo late >&2) & exit {code}", timeout_seconds=3)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == (OutcomeStatus.COMPLETED, code, b"own\n")
    assert processes_with(left)
    run(connection, f"pkill -x -f '{left}'")


def test_output_after_the_end_changes_nothing(connection: SshConnection) -> None:
    outcome = run(connection, "timeout 0.3 sh -c 'while :; do echo late; done' >&2 & exit 3", timeout_seconds=9)
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 3)


def test_a_timeout_holds_while_output_flows(connection: SshConnection) -> None:
    outcome = connection.stream(
        "while :; do echo x; sleep 0.01; done", on_line=lambda *_: None, purpose="test", timeout_seconds=0.5
    )
    assert outcome.status is OutcomeStatus.TIMED_OUT


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_first_command_is_bounded_like_any_other(
    connection: SshConnection, sshd: LoopbackSshd, is_streamed: bool
) -> None:
    command = f"sleep 60.{sshd.port}"
    if is_streamed:
        outcome = connection.stream(command, on_line=None, purpose="test", timeout_seconds=0.5)
    else:
        outcome = run(connection, command, timeout_seconds=0.5)
    assert outcome.status is OutcomeStatus.TIMED_OUT
    wait_for(lambda: not processes_with(command), 5)


def test_silence_for_too_long_ends_the_command_on_the_machine_too(
    connection: SshConnection, sshd: LoopbackSshd
) -> None:
    silent = f"sleep 63.{sshd.port}"
    command = f"for i in 1 2 3 4 5; do echo $i; sleep 0.3; done; {silent}"
    outcome = run(connection, command, timeout_seconds=60, idle_timeout_seconds=2)
    assert outcome.status is OutcomeStatus.TIMED_OUT
    assert outcome.stdout == b"1\n2\n3\n4\n5\n"
    assert "nothing was heard for 2 s" in str(outcome.error())
    wait_for(lambda: not processes_with(silent), 5)


def test_an_interruption_ends_the_command_on_the_machine_too(connection: SshConnection, sshd: LoopbackSshd) -> None:
    def interrupt(_line: str, _stream: Stream) -> None:
        raise KeyboardInterrupt

    command = f"sleep 62.{sshd.port}"
    with pytest.raises(KeyboardInterrupt):
        connection.stream(f"echo x; {command}", on_line=interrupt, purpose="test", timeout_seconds=60)
    wait_for(lambda: not processes_with(command), 5)
    assert run(connection, "echo usable").text == "usable\n"


_CLIENT = """\
import pickle, sys
from imbue.mngr_vps_docker.ssh.connection import SshConnection

SshConnection(pickle.load(sys.stdin.buffer)).run(sys.argv[1], purpose="test", timeout_seconds=3600)
"""


def test_a_killed_client_ends_its_command(connection: SshConnection, sshd: LoopbackSshd, tmp_path: Path) -> None:
    command = f"touch {tmp_path}/begun; sleep 67.{sshd.port}"
    with subprocess.Popen([sys.executable, "-c", _CLIENT, command], stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        client.stdin.write(pickle.dumps(sshd.target()))
        client.stdin.close()
        wait_for((tmp_path / "begun").exists)
        client.kill()
    # Neither what runs there nor the ssh that asked for it is left.
    listing = ["ps", "-eww", "-oargs="]
    left = f"sleep 67.{sshd.port}"
    wait_for(lambda: left not in subprocess.run(listing, capture_output=True, text=True, check=True).stdout)


def test_two_hundred_megabytes_flow_through_and_only_their_end_is_kept(connection: SshConnection) -> None:
    size_bytes = 0

    def count(chunk: bytes, _stream: Stream) -> None:
        nonlocal size_bytes
        size_bytes += len(chunk)

    outcome = connection.stream_bytes("head -c 200000000 /dev/zero", count, purpose="test", timeout_seconds=60)
    assert (outcome.exit_code, size_bytes) == (0, 200_000_000)
    assert len(outcome.stdout) < 1_000_000


def test_a_hundred_thousand_lines_on_both_streams_arrive_in_order(connection: SshConnection) -> None:
    lines: dict[Stream, list[str]] = {stream: [] for stream in Stream}
    outcome = connection.stream(
        "seq 100000 & seq 100000 >&2; wait",
        on_line=lambda line, stream: lines[stream].append(line),
        purpose="test",
        timeout_seconds=60,
    )
    expected = [str(number) for number in range(1, 100_001)]
    assert outcome.is_success
    assert list(lines.values()) == [expected, expected]


@pytest.mark.usefixtures("both_homes")
def test_the_shown_command_line_can_be_pasted(connection: SshConnection) -> None:
    line = connection.ssh_command("echo pasted; exit 4")
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False, timeout=20)
    assert (done.stdout, done.returncode) == (b"pasted\n", 4)
