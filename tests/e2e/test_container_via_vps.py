"""With ``container_ssh_via_vps`` nothing of a container is public, and all that mngr does with it works."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imbue.mngr.api.connect import build_ssh_base_args
from imbue.mngr.primitives import HostId, SnapshotId
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.hosts.outer_host import VpsDockerHost
from support.mngr_cli import MngrCli
from support.remote import wait_for

SETTING = "providers.local-vps.container_ssh_via_vps"


@dataclass(frozen=True)
class HiddenHost:
    """A host with an agent ``a1``, made by the command line with the setting."""

    mngr: MngrCli
    instance: str
    address: str
    host_id: HostId

    def is_public(self) -> bool:
        """Whether the container can be connected to from outside of its VPS."""
        try:
            with socket.create_connection((self.address, 2222), timeout=10):
                return True
        except ConnectionRefusedError:
            return False

    def replace_container(self, snapshot: SnapshotId, *, via_vps: bool) -> None:
        """Start the host from a snapshot, with the setting as given."""
        provider = self.mngr.provider(container_ssh_via_vps=via_vps)
        with provider.mngr_ctx.concurrency_group:
            provider.stop_host(self.host_id, create_snapshot=False)
            provider.start_host(self.host_id, snapshot)

    def on_vps(self, command: str) -> str:
        return run_docker("exec", self.instance, "sh", "-c", command)

    def logins(self) -> tuple[int, int]:
        """How often the VPS and the container were logged in to."""
        log = "$(docker volume inspect --format {{.Mountpoint}} $(docker volume ls -q | grep host-vol))/.sshd/log"
        logs = (self.on_vps("journalctl -u ssh --no-pager"), self.on_vps(f"cat {log}"))
        return logs[0].count("Accepted publickey"), logs[1].count("Accepted publickey")


@pytest.fixture(scope="module")
def hidden(mngr: MngrCli) -> Iterator[HiddenHost]:
    mngr("config", "set", "--scope", "user", SETTING, "true")
    mngr("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
    (instance,) = mngr.cloud.find_instances({})
    assert instance.address is not None
    yield HiddenHost(mngr, instance.id, instance.address, HostId(instance.tags["mngr-host-id"]))


def test_create_pushes_the_project_by_as_many_logins_as_ever(hidden: HiddenHost) -> None:
    assert hidden.logins() == (1, 2)
    assert hidden.mngr("exec", "a1", "cat notes.txt").startswith("first line\n")
    assert not hidden.is_public()


def test_push_and_pull_of_files_and_of_commits(hidden: HiddenHost) -> None:
    mngr = hidden.mngr
    (mngr.project / "pushed.txt").write_text("pushed\n")
    mngr.commit("Change")
    mngr("push", "a1", "--sync-mode", "git")
    assert "Change\n" in mngr("exec", "a1", "git log --all --format=%s")
    mngr("push", "a1")
    assert mngr("exec", "a1", "cat pushed.txt; echo pulled >pulled.txt").startswith("pushed\n")
    mngr("pull", "a1")
    assert (mngr.project / "pulled.txt").read_text() == "pulled\n"
    assert not hidden.is_public()


def test_what_list_shows_as_ssh_command_can_be_pasted(hidden: HiddenHost) -> None:
    (agent,) = hidden.mngr.agents()
    done = subprocess.run(
        ["sh", "-c", f"{agent['host']['ssh']['command']} 'readlink /mngr'"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("/mngr-vol\n", 0), done.stderr


def test_a_listing_neither_forwards_a_port_nor_reads_the_users_configuration(
    hidden: HiddenHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, program = tmp_path / "log", tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {shutil.which("ssh")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hidden.mngr("list")
    assert not re.search("^-(G|O forward) ", log.read_text(), re.MULTILINE)
    hidden.mngr("push", "a1", "--dry-run", "--uncommitted-changes=clobber")
    assert re.search("^-G ", log.read_text(), re.MULTILINE)
    assert re.search("^-O forward ", log.read_text(), re.MULTILINE)


def test_connect_finds_the_way_after_the_shared_login_has_ended(hidden: HiddenHost) -> None:
    """By the command line that mngr's connect makes."""
    provider = hidden.mngr.provider(container_ssh_via_vps=True)
    with provider.mngr_ctx.concurrency_group:
        host = provider.get_host(hidden.host_id)
        assert isinstance(host, VpsDockerHost)
        for _ in range(2):
            argv = [*build_ssh_base_args(host), "readlink /mngr"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            assert (done.stdout, done.returncode) == ("/mngr-vol\n", 0), done.stderr
            provider.context.vps(hidden.address, hidden.host_id).close()


def test_it_stops_and_starts_and_outlives_a_reboot_of_the_vps(hidden: HiddenHost) -> None:
    hidden.mngr("stop", "a1")
    hidden.mngr("start", "a1")
    run_docker("restart", hidden.instance)
    answers = "docker info >/dev/null 2>&1 && systemctl is-active --quiet ssh && echo up || :"
    wait_for(lambda: hidden.on_vps(answers) == "up\n", 60)
    hidden.mngr("start", "a1")
    assert "back" in hidden.mngr("exec", "a1", "echo back")
    assert not hidden.is_public()


def test_the_setting_counts_when_a_container_is_made_and_every_host_is_reached(hidden: HiddenHost) -> None:
    mngr = hidden.mngr
    provider = mngr.provider(container_ssh_via_vps=True)
    with provider.mngr_ctx.concurrency_group:
        snapshot = provider.create_snapshot(hidden.host_id)
    mngr("config", "set", "--scope", "user", SETTING, "false")
    assert "hidden" in mngr("exec", "a1", "echo hidden")
    hidden.replace_container(snapshot, via_vps=False)
    assert "public" in mngr("exec", "a1", "echo public") and hidden.is_public()
    mngr("config", "set", "--scope", "user", SETTING, "true")
    assert "public" in mngr("exec", "a1", "echo public") and hidden.is_public()
    hidden.replace_container(snapshot, via_vps=True)
    mngr("start", "a1")
    mngr("push", "a1", "--uncommitted-changes", "clobber")
    assert not hidden.is_public()


def test_destroy_leaves_nothing(hidden: HiddenHost) -> None:
    provider = hidden.mngr.provider(container_ssh_via_vps=True)
    provider.destroy_host(hidden.host_id)
    assert hidden.mngr.leftovers() == []
