"""mngr's own ssh (push, pull, connect) follows the user's ssh configuration; a container gets nothing by it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from support.mngr_cli import MngrCli

# What root in the container can do: sshd runs rc at every login, before anything else.
OPEN_SSHD = """\
sed -i 's/AllowAgentForwarding no/AllowAgentForwarding yes/' /mngr-vol/.sshd/sshd_config
kill -HUP $(cat /run/mngr-sshd.pid)
mkdir -p /root/.ssh
echo 'ssh-add -l >>/tmp/seen 2>&1' >/root/.ssh/rc
"""
# ssh finds the user's home in the password database, whatever HOME says: another one takes its place for its time.
SSH_IN_HOME = """\
#!/bin/sh
exec unshare --mount sh -c 'mount --bind {home} ~root && exec {ssh} "$@"' sh "$@"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's ssh configuration, for every ssh that the test starts."""
    if os.getuid() != 0:
        pytest.skip("only root can put another home in the place of its own")
    home, program = tmp_path / "home", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH_IN_HOME.format(home=home, ssh=shutil.which("ssh")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = home / ".ssh" / "config"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's ssh-agent, with one key."""
    path = tmp_path / "agent"
    key = load_or_create_key_pair(tmp_path / "key").private_key_path
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE, text=True) as agent:
        try:
            # It says where it listens once it does.
            assert agent.stdout is not None and "SSH_AUTH_SOCK" in agent.stdout.readline()
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
            subprocess.run(["ssh-add", "-q", key], check=True, timeout=30)
            yield
        finally:
            agent.terminate()


def test_a_push_does_not_lend_the_users_ssh_agent_to_the_container(
    mngr: MngrCli, config: Path, ssh_agent: None
) -> None:
    mngr("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
    mngr("exec", "a1", OPEN_SSHD)
    config.write_text("Host *\n  ForwardAgent yes\n")
    refused = mngr.run("push", "a1")
    assert "ED25519" not in mngr("exec", "a1", "cat /tmp/seen || :")
    assert refused.returncode != 0
    assert "ForwardAgent yes for root@" in refused.stderr
    assert "ForwardAgent yes for a new host" in mngr.run("create", "a2@h2.local-vps", "--new-host").stderr
    assert len(mngr.cloud.find_instances({})) == 1
    # As the message says.
    config.write_text("Match user root\n  ForwardAgent no\nHost *\n  ForwardAgent yes\n")
    mngr("push", "a1")
    assert "ED25519" not in mngr("exec", "a1", "cat /tmp/seen")
