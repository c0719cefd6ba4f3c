"""A real sshd for each test that wants one, and a connection to it that is ended afterwards.

Tests that log in where a user's home could interfere use ``both_homes``. The second one is hostile: its path
is too long for any socket, and the user's own ssh configuration leads everything astray.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from support.loopback_sshd import LoopbackSshd

_HOSTILE_CONFIG = """\
Host *
  ProxyCommand false
  ControlPath /nowhere/%C
  ControlMaster yes
  IdentityAgent /nowhere/agent
  User nobody
  StrictHostKeyChecking no
  RemoteCommand false
  RequestTTY force
  ConnectTimeout 1
"""


@pytest.fixture(params=["plain", "hostile"])
def both_homes(request: pytest.FixtureRequest) -> Iterator[None]:
    environment: dict[str, str] = {}
    if request.param == "hostile":
        environment = request.getfixturevalue("hostile_environment")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def hostile_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("home")
    home = folder / ("deep/" * 40)
    config = home / ".ssh"
    config.mkdir(parents=True)
    keys = [load_or_create_key_pair(config / f"id_{number}").private_key_path for number in range(20)]
    identities = "".join(f"  IdentityFile {key}\n" for key in keys)
    (config / "config").write_text(_HOSTILE_CONFIG + identities)
    environment = {"HOME": str(home), "SSH_AUTH_SOCK": str(home / "agent")}
    if os.getuid() != 0:
        yield environment
        return
    # ssh ignores HOME: it finds the user's home in the password database. Root can mount another one over that, which
    # only processes in this mount namespace see; it ends with this process.
    viewer = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" ~root && echo ready && exec cat', "sh", home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with viewer:
        assert viewer.stdout is not None and viewer.stdout.readline() == b"ready\n"
        wrapper = folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec nsenter --mount=/proc/{viewer.pid}/ns/mnt {shutil.which("ssh")} "$@"\n')
        wrapper.chmod(0o755)
        yield environment | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path) as sshd:
        yield sshd


@pytest.fixture
def connection(sshd: LoopbackSshd) -> Iterator[SshConnection]:
    connection = SshConnection(sshd.target())
    yield connection
    connection.close()
