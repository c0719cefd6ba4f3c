"""A real sshd for each test that wants one, and a connection to it that is ended afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.testing.loopback_sshd import LoopbackSshd


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path) as sshd:
        yield sshd


@pytest.fixture
def connection(sshd: LoopbackSshd) -> Iterator[SshConnection]:
    connection = SshConnection(sshd.target())
    yield connection
    connection.close()
