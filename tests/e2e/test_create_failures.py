"""A create that fails leaves nothing, or names what is left, remembers it and can remove it."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from imbue.mngr.primitives import HostId, HostName, HostState
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.cloud_resources import UploadedKey, key_name
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.ssh.command_log import read_log
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultMoment, FaultyClient
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from support.local_provider import LocalProvider, local_provider
from support.mngr_cli import MngrCli
from support.provider import collect_garbage, freeze, states
from support.remote import heed_signals

CREATE = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")
HOST = HostName("h1")


# Clouds that lag do so for less than a second here.
BRIEF = Timings(gone_seconds=0.5, listing_lag_seconds=0.5, appearing_seconds=0.5)


@pytest.fixture(autouse=True)
def nothing_left(mngr: MngrCli) -> Iterator[None]:
    """Each test leaves the account as empty as it found it."""
    yield
    leftovers = mngr.leftovers()
    mngr.tear_down()
    assert leftovers == []


def provider_of(mngr: MngrCli, client: VpsClientInterface, **settings: Any) -> LocalProvider:
    return mngr.provider(client, timings=BRIEF, **settings)


def faulty(mngr: MngrCli, *faults: Fault) -> FaultyClient:
    return FaultyClient(real=mngr.cloud, faults=faults)


def state_and_reason(mngr: MngrCli) -> tuple[HostState | None, str]:
    """What a new process knows of the only host."""
    provider = provider_of(mngr, mngr.cloud)
    (host,) = provider.discover_hosts(provider.mngr_ctx.concurrency_group)
    return host.host_state, provider.to_offline_host(host.host_id).get_failure_reason() or ""


def destroy_what_is_known(mngr: MngrCli, client: VpsClientInterface | None = None) -> None:
    provider = provider_of(mngr, client or mngr.cloud)
    for host in provider.discover_hosts(provider.mngr_ctx.concurrency_group, include_destroyed=True):
        provider.destroy_host(host.host_id)


# --- the cloud's API fails


# The whole table is in unit/lifecycle/test_destroy.py.
@pytest.mark.parametrize(
    ("call", "error", "moment"),
    [
        ("create_instance", ConnectionError("connection reset by peer"), FaultMoment.ANSWER_LOST),
        ("wait_for_instance_active", VpsApiError(500, "out of stock"), FaultMoment.BEFORE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failing_call_of_the_cloud_is_explained_and_leaves_nothing(
    mngr: MngrCli, call: str, error: Exception, moment: FaultMoment
) -> None:
    client = faulty(mngr, Fault(call, error, moment))
    with pytest.raises(VpsProvisioningError, match=f"failed.*{error.args[-1]}"):
        provider_of(mngr, client).create_host(HOST)
    client.check_that_all_happened()


def test_a_key_that_the_cloud_does_not_take_back_costs_no_host(mngr: MngrCli) -> None:
    client = faulty(mngr, Fault("delete_ssh_key", VpsApiError(503, "busy")))
    host = provider_of(mngr, client).create_host(HOST)
    client.check_that_all_happened()
    assert host.execute_idempotent_command("true").success
    assert len(mngr.cloud.list_ssh_keys()) == 1
    assert states(provider_of(mngr, client)) == {host.id: HostState.RUNNING}
    # Every command tries again: to other machines it says that the host was never finished.
    assert states(provider_of(mngr, mngr.cloud)) == {host.id: HostState.RUNNING}
    assert mngr.cloud.list_ssh_keys() == []
    destroy_what_is_known(mngr)


# --- the machine itself fails


class NoDockerClient(LocalVpsClient):
    """A cloud whose image has no Docker, and no way to get one."""

    def create_instance(self, *arguments: Any, **order: Any) -> VpsInstanceId:
        removal = "systemctl mask --now docker docker.socket; rm -f /usr/bin/apt-get /usr/sbin/dockerd"
        config = yaml.safe_load(order["user_data"]) | {"bootcmd": [["sh", "-c", removal]]}
        order["user_data"] = f"#cloud-config\n{yaml.safe_dump(config)}"
        return super().create_instance(*arguments, **order)


def test_a_vps_without_docker_is_explained_by_its_log_and_removed(mngr: MngrCli) -> None:
    with pytest.raises(VpsProvisioningError) as raised:
        provider_of(mngr, NoDockerClient(account=mngr.account)).create_host(HOST)
    message = str(raised.value)
    assert message.startswith("Waiting for cloud-init and Docker failed")
    assert "no apt-get here: choose a Debian or Ubuntu image" in message
    assert "\n" not in message


def test_a_vps_that_never_boots_is_given_up_at_its_time_out_and_removed(mngr: MngrCli) -> None:
    class SilentClient(LocalVpsClient):
        def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
            address = super().wait_for_instance_active(instance_id, timeout_seconds)
            freeze(instance_id)
            return address

    with pytest.raises(VpsProvisioningError, match=r"Waiting for its ssh failed: .*within 3 s"):
        provider_of(mngr, SilentClient(account=mngr.account), vps_boot_timeout=3.0).create_host(HOST)


LATE_FAILURES = {
    "an image that does not exist": (
        ("-S", "providers.local-vps.default_image=mngr-no-such-image:1"),
        None,
        "mngr-no-such-image:1",
    ),
    "a build that fails": (("-b", "."), "FROM mngr-agent:bookworm\nRUN exit 7\n", "RUN exit 7: "),
    "a start argument that no container starts with": (
        ("-s", "--runtime=no-such-runtime"),
        None,
        "no-such-runtime",
    ),
    "an image without what mngr needs": (
        ("-b", "."),
        "FROM mngr-agent:bookworm\nRUN rm /usr/bin/apt-get /usr/sbin/sshd\n",
        "Starting the container and setting it up",
    ),
}


@pytest.mark.parametrize("case", LATE_FAILURES)
def test_what_only_the_vps_can_tell_is_one_clear_line_and_leaves_nothing(mngr: MngrCli, case: str) -> None:
    arguments, dockerfile, named = LATE_FAILURES[case]
    if dockerfile is not None:
        (mngr.project / "Dockerfile").write_text(dockerfile)
        mngr.commit(case)
    done = mngr.run(*CREATE, *arguments, *AGENT)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert named in error


# --- the process ends


def create_until(mngr: MngrCli, line: str, **environment: str) -> subprocess.Popen[str]:
    """A real `mngr create` that has just said ``line``."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("mngr"), *CREATE, *AGENT],
        cwd=mngr.project,
        env=mngr.environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=heed_signals,
    )
    assert process.stdout is not None
    said = []
    for said_line in process.stdout:
        said.append(said_line)
        if line in said_line:
            return process
    raise AssertionError(f"mngr create ended without saying '{line}': {said}")


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("Ordering the VPS", signal.SIGTERM),
        ("Waiting for cloud-init", signal.SIGINT),
        ("Waiting for its ssh", signal.SIGHUP),
    ],
)
def test_a_create_that_is_told_to_end_cleans_up(mngr: MngrCli, line: str, number: signal.Signals) -> None:
    with create_until(mngr, line) as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, -number), output
    assert "Traceback" not in output
    if "may still appear" in output:
        # It ended during the order, so it is unknown whether the order arrived.
        assert state_and_reason(mngr)[0] is HostState.FAILED
        destroy_what_is_known(mngr)


def test_a_second_ctrl_c_leaves_a_host_that_is_known_and_removed_later(mngr: MngrCli) -> None:
    with create_until(mngr, "Waiting for cloud-init") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert any("removing what was made of it" in said for said in process.stdout)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Traceback" not in output
    destroy_what_is_known(mngr)


def test_a_create_that_was_killed_is_found_as_failed_and_removed_by_gc(mngr: MngrCli) -> None:
    try:
        with create_until(mngr, "Starting the container and setting it up") as process:
            process.kill()
        state, reason = state_and_reason(mngr)
        assert state is HostState.FAILED
        assert "never finished" in reason
        mngr("gc", "--all-providers")
        assert mngr.leftovers() == []
    finally:
        mngr.tear_down()


# --- seen from another machine, which has only the cloud's credentials


def test_another_machine_leaves_a_create_alone_until_it_must_have_ended(
    mngr: MngrCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_until(mngr, "Starting the container and setting it up") as process:
        process.kill()
    provider = local_provider(tmp_path, mngr.account, mngr.cloud, timings=BRIEF)
    with provider.mngr_ctx.concurrency_group:
        assert list(states(provider).values()) == [HostState.BUILDING]
        collect_garbage(provider)
        assert len(mngr.cloud.find_instances({})) == 1
        monkeypatch.setattr(UploadedKey, "may_be_in_use", False)
        assert list(states(provider).values()) == [HostState.FAILED]
        collect_garbage(provider)
        assert (states(provider), mngr.cloud.find_instances({}), mngr.cloud.list_ssh_keys()) == ({}, [], [])
    destroy_what_is_known(mngr)


def test_a_key_without_a_machine_is_found_and_removed_from_anywhere(mngr: MngrCli, tmp_path: Path) -> None:
    public_key = provider_of(mngr, mngr.cloud).context.keys.vps_client_key().public_key
    now, long_ago = datetime.now(UTC), datetime(2020, 1, 1, tzinfo=UTC)
    lone, fresh = HostId.generate(), HostId.generate()
    for name in (key_name(lone, long_ago, 60.0), key_name(fresh, now, 60.0), "somebody-else", f"mngr-{lone}"):
        mngr.cloud.upload_ssh_key(name, public_key)
    provider = local_provider(tmp_path, mngr.account, mngr.cloud, timings=BRIEF)
    with provider.mngr_ctx.concurrency_group:
        assert states(provider) == {lone: HostState.FAILED}
        collect_garbage(provider)
        assert states(provider) == {}
    left = mngr.cloud.list_ssh_keys()
    assert {key.name for key in left} == {key_name(fresh, now, 60.0), "somebody-else", f"mngr-{lone}"}
    for key in left:
        mngr.cloud.delete_ssh_key(key.id)


def test_a_failed_host_is_kept_on_demand_and_says_how_to_log_in(mngr: MngrCli) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("mngr"), *CREATE, "-s", "--memory=nonsense", *AGENT],
        cwd=mngr.project,
        env=mngr.environment() | {"MNGR_KEEP_FAILED_HOSTS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    (get_in,) = (line.partition("Get in: ")[2] for line in done.stderr.splitlines() if "Get in: " in line)
    inside = subprocess.run(
        [*shlex.split(get_in), "docker", "info", "--format", "{{.ServerVersion}}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert inside.stdout.strip()
    state, reason = state_and_reason(mngr)
    assert state is HostState.FAILED
    assert "nonsense" in reason
    assert "Remove it: mngr gc" in done.stderr
    follow_the_readme_on_replay(mngr, done.stderr)
    destroy_what_is_known(mngr)


def follow_the_readme_on_replay(mngr: MngrCli, said: str) -> None:
    """The section "Debugging: replay what ran", step by step, with the log of a failed create."""

    def replay(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "imbue.mngr_vps_docker.replay", *arguments],
            env=mngr.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    error_id = said.partition("[command ")[2].partition("]")[0]
    table = replay().stdout
    assert [row for row in table.splitlines() if row.startswith(error_id)]
    shown = replay("show", error_id)
    assert shown.returncode == 0
    # The step that sets the container up, which comes later, is given a private key.
    assert "needs secrets, which are not in the log" in shown.stderr
    pasted = subprocess.run(["bash"], input=shown.stdout, capture_output=True, text=True, timeout=120, check=False)
    assert "nonsense" in pasted.stdout + pasted.stderr
    (log,) = mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
    *_, looked = (command for command in read_log(log) if command.is_read_only and command.exit_code == 0)
    again = replay("run", looked.id)
    assert (again.returncode, "the same: COMPLETED 0 then" in again.stdout) == (0, True), again
