"""What a distance between the machines does, and what a network can do to a connection."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import Effect, OutcomeStatus
from support.delaying_proxy import DelayingProxy, Route
from support.loopback_sshd import LoopbackSshd
from support.remote import run

ROUND_TRIP_SECONDS = 0.05


@pytest.fixture
def proxy(sshd: LoopbackSshd) -> Iterator[DelayingProxy]:
    with DelayingProxy([Route(0, "127.0.0.1", sshd.port)], ROUND_TRIP_SECONDS) as proxy:
        yield proxy


@contextmanager
def through(proxy: DelayingProxy, sshd: LoopbackSshd) -> Iterator[SshConnection]:
    connection = SshConnection(sshd.target(port=proxy.ports[0], connect_timeout_seconds=5.0))
    try:
        yield connection
    finally:
        connection.close()


def test_commands_share_one_connection_over_a_distance(proxy: DelayingProxy, sshd: LoopbackSshd) -> None:
    with through(proxy, sshd) as connection:
        data = bytes(range(256)) * 10_000
        assert run(connection, "cat", stdin=data).stdout == data
        assert run(connection, "exit 3").exit_code == 3
        assert (proxy.connection_count, sshd.login_count) == (1, 1)


def test_a_broken_connection_repeats_only_a_read_only_command(proxy: DelayingProxy, sshd: LoopbackSshd) -> None:
    with through(proxy, sshd) as connection:
        stream = connection.stream(
            "echo begun; sleep 30", on_line=lambda *_: proxy.reset(), purpose="test", timeout_seconds=20
        )
        assert stream.status is OutcomeStatus.LOST
        proxy.reset()
        assert run(connection, "echo again", effect=Effect.READ_ONLY).stdout == b"again\n"


def test_a_network_that_stalls_loses_nothing(proxy: DelayingProxy, sshd: LoopbackSshd) -> None:
    with through(proxy, sshd) as connection:
        assert run(connection, "true").is_success
        with proxy.stalled():
            stalled = run(connection, "echo never", timeout_seconds=1, effect=Effect.READ_ONLY)
            assert not stalled.is_success
        assert run(connection, "echo again").stdout == b"again\n"
