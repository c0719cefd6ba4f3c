"""What commands cost in logins and remote commands, counted by the servers and the command log."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.replay import main
from imbue.mngr_vps_docker.ssh.command_log import LoggedCommand, read_log
from support.local_provider import LocalProvider
from support.mngr_cli import MngrCli
from support.remote import processes_with, wait_for


@dataclass(frozen=True)
class Cost:
    """What one command line took: logins to the VPS, logins to the container, and the remote commands it ran."""

    vps_logins: int
    container_logins: int
    commands: list[LoggedCommand]


@dataclass(frozen=True)
class Meter:
    """Counts what command lines cost on one host."""

    mngr: MngrCli
    instance: str

    def commands(self) -> list[LoggedCommand]:
        (log,) = self.mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
        return list(read_log(log))

    def vps_logins(self) -> int:
        return run_docker("exec", self.instance, "journalctl", "-u", "ssh", "--no-pager").count("Accepted publickey")

    def container_logins(self) -> int:
        script = (
            "cat $(docker volume inspect --format {{.Mountpoint}} $(docker volume ls -q | grep host-vol))/.sshd/log"
        )
        return run_docker("exec", self.instance, "sh", "-c", script).count("Accepted publickey")

    def provider(self) -> LocalProvider:
        return self.mngr.provider()

    def sockets(self) -> list[str]:
        """Where the shared connections to the host's two machines are, if they are open."""
        context = self.provider().context
        (entry,) = context.local_store.read_all()
        assert entry.vps_ip is not None
        return [str(way(entry.vps_ip, entry.host_id)._master.control_path) for way in (context.vps, context.container)]

    def cost(self, *arguments: str) -> Cost:
        before = self.vps_logins(), self.container_logins(), len(self.commands())
        self.mngr(*arguments)
        return Cost(self.vps_logins() - before[0], self.container_logins() - before[1], self.commands()[before[2] :])


@pytest.fixture(scope="module")
def meter(mngr: MngrCli) -> Iterator[Meter]:
    mngr("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "--", "sleep", "100000")
    (instance,) = mngr.cloud.find_instances({})
    yield Meter(mngr, instance.id)


def test_create_logs_in_once_to_each_machine(meter: Meter) -> None:
    # And once more to the container: that is the git of mngr, which pushes the checkout by an ssh of its own.
    assert (meter.vps_logins(), meter.container_logins()) == (1, 2)


def test_create_prepares_the_image_while_it_waits_for_cloud_init(meter: Meter) -> None:
    began = {logged.purpose: datetime.fromisoformat(logged.time) for logged in meter.commands()}
    waited = next(logged for logged in meter.commands() if logged.purpose == "wait for cloud-init and Docker")
    assert began["wait for Docker"] < began[waited.purpose] + timedelta(milliseconds=waited.milliseconds)


# What creating a host takes beyond its logins, before mngr itself works on it: every one is two round trips.
CREATE = [
    "wait for Docker",
    "wait for cloud-init and Docker",
    "inspect image mngr-agent:",
    "make the VPS a host key of its own",
    "put the VPS's own host key in place",
    "start container",
    "write the record",
    # On the VPS and in the container.
    "check that commands give their exact output",
    "check that commands give their exact output",
]


def test_create_is_so_few_commands(meter: Meter) -> None:
    ours = [logged.purpose for logged in meter.commands() if " > " in logged.operation]
    assert len(ours) == len(CREATE)
    assert all(any(purpose.startswith(wanted) for purpose in ours) for wanted in CREATE), ours


@pytest.mark.parametrize(
    ("command", "count"), [(("exec", "a1", "true"), 2), (("list",), 2), (("exec", "a1", "--outer", "true"), 2)]
)
def test_a_command_logs_in_to_nothing_once_it_is_known(meter: Meter, command: tuple[str, ...], count: int) -> None:
    meter.mngr(*command)
    cost = meter.cost(*command)
    assert (cost.vps_logins, cost.container_logins) == (0, 0)
    assert [logged.outcome for logged in cost.commands] == ["COMPLETED"] * count


def test_snapshot_stop_and_start_are_one_command_each(meter: Meter) -> None:
    """And start is one more, in the container, which proves that commands work there."""
    provider = meter.provider()
    with provider.mngr_ctx.concurrency_group:
        (host,) = provider.discover_hosts(provider.mngr_ctx.concurrency_group)
        for act, count in (
            (lambda: provider.create_snapshot(host.host_id), 1),
            (lambda: provider.stop_host(host.host_id, create_snapshot=False), 1),
            (lambda: provider.start_host(host.host_id), 2),
        ):
            provider.discover_hosts(provider.mngr_ctx.concurrency_group)
            before = len(meter.commands()), meter.vps_logins()
            act()
            assert (len(meter.commands()) - before[0], meter.vps_logins() - before[1]) == (count, 0)


def test_what_list_shows_as_ssh_command_can_be_pasted(meter: Meter) -> None:
    (agent,) = meter.mngr.agents()
    command = agent["host"]["ssh"]["command"]
    assert "StrictHostKeyChecking=yes" in command
    done = subprocess.run(
        ["sh", "-c", f"{command} 'readlink /mngr'"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("/mngr-vol\n", 0), done.stderr


def test_every_command_of_the_log_can_be_read_and_belongs_to_an_operation(meter: Meter) -> None:
    (log,) = meter.mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
    assert len(log.read_text().splitlines()) == len(meter.commands())
    operations = {logged.operation for logged in meter.commands()}
    assert {"mngr create > Preparing the image", "mngr list"} <= operations
    assert all(json.loads(line)["parent"] for line in log.read_text().splitlines())


def test_a_failed_command_is_found_in_the_log_and_can_be_replayed(
    meter: Meter, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = meter.mngr.run("exec", "a1", "--outer", "docker inspect nothing-of-that-name")
    assert failed.returncode != 0
    (log,) = meter.mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
    assert main(["--log", str(log), "list", "--failed", "--last", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert "COMPLETED 1" in row and "docker inspect nothing" in row
    assert main(["--log", str(log), "show", row.split()[0]]) == 0
    done = subprocess.run(
        ["sh", "-c", capsys.readouterr().out], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "nothing-of-that-name" in done.stderr
    meter.mngr("list")
    looked = [logged.id for logged in meter.commands() if logged.is_read_only and not logged.stdin_bytes]
    assert main(["--log", str(log), "run", looked[-1]]) == 0
    assert "the same: COMPLETED 0 then, COMPLETED 0 now" in capsys.readouterr().out


def test_without_persistence_a_command_ends_the_shared_connections(meter: Meter) -> None:
    sockets = meter.sockets()
    meter.mngr("exec", "a1", "true")
    assert any(processes_with(socket) for socket in sockets)
    meter.mngr("config", "set", "--scope", "user", "providers.local-vps.ssh_control_persist_seconds", "0")
    meter.mngr("exec", "a1", "true")
    meter.mngr("config", "unset", "--scope", "user", "providers.local-vps.ssh_control_persist_seconds")
    wait_for(lambda: not any(processes_with(socket) for socket in sockets))
    meter.mngr("exec", "a1", "true")


def test_exec_brings_back_a_host_that_has_stopped_by_itself(meter: Meter) -> None:
    # Whoever asks from inside is ended with the container, and may not live to say that it was done.
    stop = "docker exec $(docker ps -q --filter label=com.imbue.mngr.host-id) /mngr/commands/shutdown.sh || :"
    run_docker("exec", meter.instance, "sh", "-c", stop)
    wait_for(lambda: [agent["host"]["state"] for agent in meter.mngr.agents()] == ["PAUSED"], 60)
    assert "back" in meter.mngr("exec", "a1", "echo back")
    assert [agent["host"]["state"] for agent in meter.mngr.agents()] == ["RUNNING"]


def test_destroy_ends_the_connections_that_other_processes_opened(meter: Meter) -> None:
    sockets = meter.sockets()
    assert [processes_with(socket) != [] for socket in sockets] == [True, True]
    provider = meter.provider()
    (entry,) = provider.context.local_store.read_all()
    provider.destroy_host(entry.host_id)
    wait_for(lambda: not any(processes_with(socket) for socket in sockets))
