"""A secret that goes through create, build and failure is seen by nobody on the way."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.mngr_cli import MngrCli

from imbue.mngr_vps_docker.local_vps.engine import run_docker


@contextmanager
def command_lines_seen() -> Iterator[set[bytes]]:
    """The command lines of all processes of this machine while the block runs, those in its containers included."""
    seen: set[bytes] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(process.read_bytes())
                except (FileNotFoundError, ProcessLookupError):
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()


def files_with(folder: Path, texts: list[str]) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(text.encode() in path.read_bytes() for text in texts)
    ]


def test_a_secret_is_in_no_log_argument_or_message(mngr: MngrCli, monkeypatch: pytest.MonkeyPatch) -> None:
    host, agent, token = (f"canary-{secrets.token_hex(8)}" for _ in range(3))
    env = ("--host-env", f"HOST_SECRET={host}", "--env", f"AGENT_SECRET={agent}")
    command = ("--type", "command", "--no-connect", "--new-host", *env)
    work = ("--", "sleep", "100000")
    with command_lines_seen() as seen:
        made = mngr.run("create", "a1@h1.local-vps", *command, "-b", ".", *work)
        known = mngr.run("exec", "a1", "env")
        vps = mngr.cloud.find_instances({})[0].id
        mngr("config", "set", "--scope", "user", "providers.local-vps.builder", "DEPOT")
        monkeypatch.setenv("DEPOT_TOKEN", token)
        failed = mngr.run("create", "a2@h2.local-vps", *command, "-b", ".", *work)
    said = made.stdout + made.stderr + failed.stdout + failed.stderr
    assert made.returncode == 0, said
    # The agent has what it was given, and the build failed for want of the depot command, not of its token.
    assert agent in known.stdout and host in known.stdout
    assert failed.returncode != 0 and "depot" in failed.stderr
    # A key's first line is there where the key is.
    patterns = " ".join(f"-e {text}" for text in (host, agent, token, "'PRIVATE KEY'"))
    volume = "$(docker volume inspect --format {{.Mountpoint}} $(docker volume ls -q | grep host-vol))"
    search = (
        f"grep -rlF {patterns} /var/log {volume}/.sshd/log; journalctl --no-pager -o verbose | grep -F {patterns}; :"
    )
    assert run_docker("exec", vps, "sh", "-c", search) == ""
    described = run_docker("exec", vps, "sh", "-c", "docker inspect $(docker ps -aq) $(docker image ls -q)")
    for secret in (host, agent, token):
        assert secret not in said
        assert secret not in described
        # What the user typed is the user's own doing.
        foreign = [line for line in seen if b"mngr create" not in line.replace(b"\0", b" ")]
        assert [line for line in foreign if secret.encode() in line] == []
    assert files_with(mngr.host_dir, [host, agent, token]) == []
    logs = [path for path in mngr.host_dir.rglob("*") if path.is_file() and path.suffix in {".jsonl", ".log", ".json"}]
    assert [path for path in logs if b"PRIVATE KEY" in path.read_bytes()] == []
    assert [line for line in seen if b"PRIVATE KEY" in line] == []
