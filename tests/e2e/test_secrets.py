"""No secret of a create, a build or a failure can be seen on the way."""

import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imbue.mngr_local_vps.engine import run_docker
from support.mngr_cli import MngrCli


@contextmanager
def command_lines_seen() -> Iterator[set[bytes]]:
    """The command lines of all processes of this machine while the block runs, as every user of it can read them.

    Those of its containers are left out: a VPS is another machine.
    """
    seen: set[bytes] = set()
    is_over = threading.Event()
    depth = len(_pids_by_namespace(Path("/proc/self")))

    def watch() -> None:
        while not is_over.wait(0.01):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if len(_pids_by_namespace(process)) == depth:
                        seen.add((process / "cmdline").read_bytes())
                except (FileNotFoundError, ProcessLookupError):
                    continue

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            is_over.set()
            watching.result()


def _pids_by_namespace(process: Path) -> list[str]:
    """A process's pid in each of the namespaces that see it, from this machine's inwards."""
    status = (process / "status").read_text()
    return next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))


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


def test_secrets_are_only_where_docker_and_the_agent_keep_them(mngr: MngrCli, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, typed, started, built = (f"canary-{secrets.token_hex(8)}" for _ in range(4))
    canaries = [remote, typed, started, built]
    monkeypatch.setenv("MNGR_VPS_TRACE", "1")
    mngr("config", "set", "--scope", "user", "providers.local-vps.builder", "DOCKER")
    mngr.git("remote", "add", "origin", f"https://user:{remote}@localhost/x.git")
    with command_lines_seen() as seen:
        made = mngr.run(
            *("create", "b1@g1.local-vps", "--type", "command", "--no-connect", "--new-host"),
            *("-s", f"-eTOKEN={started}", "-b", f"--build-arg=TOKEN={built}", "-b", ".", "--", "sleep", "100000"),
        )
        assert made.returncode == 0, made.stderr
        done = mngr.run("exec", "b1", f"git remote -v; git ls-remote https://user:{typed}@localhost/x.git")
        mngr.run("exec", "b1", "--outer", f"curl -s https://{typed}@localhost/")
        snapshot = mngr.run("snapshot", "create", "b1")
    assert snapshot.returncode == 0, snapshot.stderr
    # The agent has its remote as it was, and git's own words are the agent's.
    assert remote in done.stdout
    # Each is warned of.
    assert "TOKEN=***" in made.stderr
    for said in (made.stdout, made.stderr, done.stderr, snapshot.stdout, snapshot.stderr):
        assert [canary for canary in canaries if canary in said] == []
    # What the user typed is the user's own doing, and so is what git says to itself on this machine.
    foreign = [line for line in seen if not line.startswith((b"git\0", b"/usr/lib/git-core/"))]
    foreign = [line for line in foreign if not re.search(rb"mngr[ \0](create|exec)", line)]
    assert [line for line in foreign if any(canary.encode() in line for canary in canaries)] == []
    # mngr's own logs hold its command line, and the remote's URL, which it makes a label of the agent.
    assert files_with(mngr.profile / "providers", canaries) == []
    # Docker keeps what it was told: SECURITY.md says so.
    (vps,) = (instance.id for instance in mngr.cloud.find_instances({"mngr-host-name": "g1"}))
    kept = run_docker("exec", vps, "sh", "-c", "docker inspect $(docker ps -aq) $(docker image ls -q)")
    assert started in kept
    assert remote not in kept and typed not in kept
