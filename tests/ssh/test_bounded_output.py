"""However much a machine prints, it costs this one little memory, and ends."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import RemoteOutputError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from support.loopback_sshd import LoopbackSshd
from support.remote import processes_with, run, wait_for

MIB = 1 << 20


@contextmanager
def cheap(memory_bytes: int) -> Iterator[None]:
    """What happens inside takes no more memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stream", ["", " >&2"], ids=["stdout", "stderr"])
def test_a_command_that_prints_without_end_is_ended_on_the_machine_too(
    connection: SshConnection, sshd: LoopbackSshd, stream: str
) -> None:
    with cheap(32 * MIB):
        outcome = run(connection, f"yes {sshd.port}{stream}", timeout_seconds=60)
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.TOO_MUCH_OUTPUT, None)
    with pytest.raises(RemoteOutputError, match="printed more than 8388608 bytes"):
        outcome.checked()
    wait_for(lambda: not processes_with(f"yes {sshd.port}"), 5)
    assert run(connection, "echo usable").text == "usable\n"


def test_output_up_to_the_limit_is_kept(connection: SshConnection) -> None:
    assert len(run(connection, "head -c 20000000 /dev/zero", limit_bytes=20_000_000).stdout) == 20_000_000
    assert run(connection, "head -c 20000001 /dev/zero", limit_bytes=20_000_000).exit_code is None


def test_a_machine_that_never_begins_is_given_up(tmp_path: Path) -> None:
    with LoopbackSshd(tmp_path, options=("ForceCommand yes",)) as sshd:
        connection = SshConnection(sshd.target())
        with cheap(8 * MIB):
            outcome = run(connection, "true", timeout_seconds=60)
        connection.close()
    assert outcome.status is OutcomeStatus.TOO_MUCH_OUTPUT
    with pytest.raises(RemoteOutputError, match="came before it started"):
        outcome.checked()


def test_a_line_without_end_arrives_in_pieces(connection: SshConnection) -> None:
    lengths: list[int] = []
    with cheap(16 * MIB):
        outcome = connection.stream(
            "head -c 50000000 /dev/zero | tr '\\0' x",
            on_line=lambda line, _stream: lengths.append(len(line)),
            purpose="test",
            timeout_seconds=60,
        )
    assert outcome.is_success
    assert sum(lengths) == 50_000_000
    assert max(lengths) < 2 * MIB


@pytest.mark.parametrize("kind", ["device", "sparse"])
def test_a_file_without_end_is_not_read(connection: SshConnection, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.json"
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(3 << 30)
    with cheap(8 * MIB), pytest.raises(RemoteOutputError, match=r"read .*data\.json"):
        connection.read_file(str(path), limit_bytes=MIB)


def test_background_processes_may_print_after_the_end(connection: SshConnection) -> None:
    noisy = "while :; do echo late >&2; done"
    outcome = run(connection, f"({noisy}) & sleep 0.2; (sleep 0.3; kill $!) & exit 3", timeout_seconds=20)
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.COMPLETED, 3)
