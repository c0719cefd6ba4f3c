"""The provider's methods keep their promises on real VPSes of the local cloud."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr.errors import (
    AgentNotFoundOnHostError,
    HostNameConflictError,
    HostNotFoundError,
    MngrError,
    ProviderUnavailableError,
    SnapshotNotFoundError,
)
from imbue.mngr.hosts.host import Host
from imbue.mngr.hosts.offline_host import OfflineHost
from imbue.mngr.interfaces.data_types import ActivityConfig, HostDetails
from imbue.mngr.interfaces.host import HostInterface
from imbue.mngr.primitives import ActivitySource, AgentId, HostId, HostName, HostState, SnapshotId, SnapshotName
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.errors import VpsApiError, VpsAuthenticationError, VpsConnectionError
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo
from support.local_provider import LocalProvider
from support.provider import ProviderLab, copy_keys_of_vps, freeze, states
from support.remote import wait_for

NOTES = Path("/mngr/notes.txt")
# A hung machine is noticed sooner than by the default, which gives it a minute.
IMPATIENT = {"ssh_connect_timeout": 3.0}


@pytest.fixture(scope="module")
def first(lab: ProviderLab) -> HostId:
    """The host that most tests share; the last of them destroys it."""
    host = lab.process().create_host(HostName("first"), tags={"made": "by a test"})
    host.write_file(NOTES, b"kept on the volume\n")
    return host.id


@pytest.fixture(scope="module")
def second(lab: ProviderLab) -> HostId:
    """Another host on another VPS."""
    return lab.process().create_host(HostName("second"), start_args=("--cpus=1", "--memory=512m")).id


@pytest.fixture
def provider(lab: ProviderLab) -> LocalProvider:
    """The provider as a new process has it."""
    return lab.process()


@pytest.fixture
def running(lab: ProviderLab, provider: LocalProvider, first: HostId) -> Host:
    """The shared host, running."""
    host = provider.get_host(first)
    return host if isinstance(host, Host) else provider.start_host(host)


@pytest.fixture
def agent(running: Host) -> Iterator[dict[str, Any]]:
    """An agent as far as its files go."""
    agent_id = AgentId.generate()
    data = {
        "id": agent_id,
        "name": "a1",
        "type": "command",
        "command": "sleep 1",
        "work_dir": "/",
        "labels": {"a": "b"},
    }
    folder = Path("/mngr/agents") / agent_id
    running.write_file(folder / "data.json", json.dumps(data).encode())
    yield data
    host = running.provider_instance.start_host(running)
    host.execute_idempotent_command(f"rm -r {folder}")


@contextmanager
def paused(lab: ProviderLab, host_id: HostId) -> Iterator[None]:
    """The VPS of a host hangs."""
    instance = lab.instance_of(host_id)
    freeze(instance)
    try:
        yield
    finally:
        # The test may have destroyed it.
        subprocess.run(("docker", "unpause", instance), check=False, capture_output=True, timeout=60)


def data_json(host: Host) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(host.read_text_file(Path("/mngr/data.json")))
    return content


def age_record(provider: LocalProvider, host_id: HostId) -> None:
    """Set the record's last change to years ago."""

    def aged(record: VpsDockerHostRecord) -> VpsDockerHostRecord:
        data = record.certified_host_data.model_copy(update={"updated_at": datetime(2020, 1, 1, tzinfo=UTC)})
        return record.model_copy(update={"certified_host_data": data})

    address = (provider.outer_host_id_for(host_id) or "").removeprefix(f"outer:{provider.name}:")
    with provider._make_outer_for_vps_ip(address) as outer:
        store = provider._get_existing_host_store(outer)
        assert store is not None
        store.update_host_record(host_id, aged)


def image_in_record(lab: ProviderLab, host_id: HostId) -> str | None:
    record = lab.process()._find_host_record(host_id)
    assert record is not None and record.config is not None
    return record.config.image


def ids(provider: LocalProvider, host: HostInterface | HostId) -> list[SnapshotId]:
    return [snapshot.id for snapshot in provider.list_snapshots(host)]


def details_of(provider: LocalProvider, host_id: HostId) -> tuple[HostDetails, list[Any]]:
    found = provider.discover_hosts_and_agents(provider.mngr_ctx.concurrency_group)
    ((host, agents),) = ((host, agents) for host, agents in found.items() if host.host_id == host_id)
    return provider.get_host_and_agent_details(host, agents)


# --- stop and start


@pytest.mark.core
def test_a_stopped_host_keeps_its_agents_and_files(
    lab: ProviderLab, provider: LocalProvider, running: Host, agent: dict[str, Any]
) -> None:
    provider.stop_host(running, create_snapshot=False)
    provider.stop_host(running.id, create_snapshot=False)

    another = lab.process()
    offline = another.get_host(running.id)
    assert isinstance(offline, OfflineHost)
    assert offline.get_state() is HostState.STOPPED
    assert states(another)[running.id] is HostState.STOPPED
    assert another.list_persisted_agent_data_for_host(running.id) == [agent]
    assert [found.agent_name for found in offline.discover_agents()] == ["a1"]
    volume = another.get_volume_for_host(running.id)
    assert volume is not None
    assert volume.volume.read_file("notes.txt") == b"kept on the volume\n"

    lab.on_vps(running.id, "rm -f /var/lib/docker/volumes/mngr-host-vol-*/_data/activity/boot")
    host = another.start_host(offline)
    assert host.read_file(NOTES) == b"kept on the volume\n"
    assert host.get_reported_activity_time(ActivitySource.BOOT) is not None
    processes = host.execute_idempotent_command("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "/mngr/commands/activity_watcher.sh" in processes
    assert "sshd" in processes
    assert states(lab.process())[host.id] is HostState.RUNNING
    assert host.get_certified_data().stop_reason is None
    assert another.to_offline_host(host.id).get_certified_data().stop_reason is None


def test_concurrent_starts_leave_one_activity_watcher(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    provider.stop_host(running, create_snapshot=False)
    with ThreadPoolExecutor() as pool:
        hosts = list(pool.map(lambda process: process.start_host(running.id), [lab.process() for _ in range(3)]))
    assert [host.read_file(NOTES) for host in hosts] == [b"kept on the volume\n"] * 3
    # A shell that the watcher runs a pipe in looks like the watcher for a moment.
    count = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'bash /mngr/commands/activity_[w]atcher.sh' | wc -l"
    wait_for(lambda: hosts[0].execute_idempotent_command(count).stdout == "1")


def test_starting_a_running_host_leaves_it_as_it_is(provider: LocalProvider, running: Host) -> None:
    started = running.execute_idempotent_command("stat -c %Y /proc/1").stdout
    assert provider.start_host(running).execute_idempotent_command("stat -c %Y /proc/1").stdout == started


def test_a_snapshot_taken_at_the_stop_is_kept(lab: ProviderLab, provider: LocalProvider, running: Host) -> None:
    provider.stop_host(running)
    (snapshot_id,) = ids(lab.process(), running.id)
    offline = lab.process().get_host(running.id)
    assert [snapshot.id for snapshot in offline.get_snapshots()] == [snapshot_id]
    provider.delete_snapshot(running.id, snapshot_id)
    assert ids(lab.process(), running.id) == []


@pytest.mark.core
def test_keys_that_a_host_was_made_with_log_in_to_it_whenever_it_runs(lab: ProviderLab, tmp_path: Path) -> None:
    extra = load_or_create_key_pair(tmp_path / "extra")
    known = "git.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA"
    provider = lab.process()
    host = provider.create_host(HostName("visited"), authorized_keys=[f"{extra.public_key} x"], known_hosts=[known])
    assert known in host.read_text_file(Path("/root/.ssh/known_hosts"))
    target = replace(host.ssh.target, identity_file=extra.private_key_path)

    def check_that_it_logs_in() -> None:
        visitor = SshConnection(target)
        assert visitor.run("echo in", purpose="visit", timeout_seconds=20).checked().text == "in\n"
        visitor.close()

    check_that_it_logs_in()
    provider.stop_host(host, create_snapshot=False)
    lab.process().start_host(host.id)
    check_that_it_logs_in()
    lab.in_container(host.id, "kill -9 $(pidof sshd sshd-session)")
    repaired = lab.process().get_host(host.id)
    assert isinstance(repaired, Host)
    assert repaired.execute_idempotent_command("true").success
    check_that_it_logs_in()
    assert known in repaired.read_text_file(Path("/root/.ssh/known_hosts"))
    lab.process().destroy_host(host.id)


# --- snapshots


@pytest.mark.core
def test_a_snapshot_brings_back_the_container_while_the_volume_stays(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    running.execute_idempotent_command("echo before >/root/layer")
    old = provider.create_snapshot(running, SnapshotName("old"))
    running.execute_idempotent_command("echo after >/root/layer; echo after >>/mngr/notes.txt")
    new = provider.create_snapshot(running.id)
    listed = lab.process().list_snapshots(running.id)
    assert [(snapshot.id, snapshot.recency_idx) for snapshot in listed] == [(new, 0), (old, 1)]
    assert listed[1].name == "old"

    host = provider.start_host(running, old)
    assert host.read_text_file(Path("/root/layer")) == "before\n"
    assert host.read_file(NOTES) == b"kept on the volume\nafter\n"
    host.write_file(NOTES, b"kept on the volume\n")
    assert ids(lab.process(), host) == [new, old]

    provider.stop_host(host, create_snapshot=False)
    host = provider.start_host(host, new)
    assert host.read_text_file(Path("/root/layer")) == "after\n"

    provider.delete_snapshot(host, old)
    provider.stop_host(host, create_snapshot=False)
    on_top = provider.create_snapshot(host.id)
    assert lab.state_of(host.id) is HostState.STOPPED
    provider.delete_snapshot(host.id, new)
    host = provider.start_host(host.id, on_top)
    assert host.read_text_file(Path("/root/layer")) == "after\n"
    provider.delete_snapshot(host, on_top)
    assert ids(lab.process(), host.id) == []
    assert data_json(host)["snapshots"] == []
    left = lab.on_vps(host.id, "docker images --no-trunc --quiet")
    assert old not in left
    assert new not in left
    provider.stop_host(host, create_snapshot=False)
    assert provider.start_host(host.id).read_text_file(Path("/root/layer")) == "after\n"


@pytest.mark.core
def test_a_host_from_a_snapshot_has_its_files_and_keys_of_its_own(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    running.execute_idempotent_command("echo made here >/root/layer")
    snapshot_id = provider.create_snapshot(running, SnapshotName("seed"))
    # Its VPS is needed, its container is not.
    provider.stop_host(running, create_snapshot=False)
    host = lab.process().create_host(HostName("copy"), snapshot=SnapshotName("seed"))
    assert host.read_text_file(Path("/root/layer")) == "made here\n"
    assert not host.execute_idempotent_command(f"test -e {NOTES}").success
    assert ids(lab.process(), host.id) == []
    lab.process().stop_host(host.id, create_snapshot=False)
    host = lab.process().start_host(host.id)
    assert host.read_text_file(Path("/root/layer")) == "made here\n"
    identities = set()
    for host_id in (running.id, host.id):
        record = lab.process()._find_host_record(host_id)
        assert record is not None
        identities |= {record.ssh_host_public_key, record.container_ssh_host_public_key}
    assert len(identities) == 4
    lab.process().destroy_host(host.id)
    lab.process().delete_snapshot(running.id, snapshot_id)
    assert lab.process().start_host(running.id).read_text_file(Path("/root/layer")) == "made here\n"


@pytest.mark.parametrize("trouble", ["its image is gone", "its container does not start"])
def test_a_snapshot_that_cannot_be_started_costs_nothing(
    lab: ProviderLab, provider: LocalProvider, running: Host, trouble: str
) -> None:
    running.execute_idempotent_command("echo kept >/root/layer")
    snapshot_id = provider.create_snapshot(running)
    image = image_in_record(lab, running.id)
    lab.on_vps(running.id, f"docker image rm {snapshot_id}")
    if "start" in trouble:
        # An image in which there is no shell.
        lab.on_vps(running.id, f"tar -c -T /dev/null | docker import - {snapshot_id}")
    with pytest.raises(MngrError, match=r"not on its VPS any more|executable file not found"):
        provider.start_host(running, snapshot_id)
    process = lab.process()
    assert process.start_host(running.id).read_text_file(Path("/root/layer")) == "kept\n"
    assert image_in_record(lab, running.id) == image
    process.delete_snapshot(running.id, snapshot_id)


def test_a_missing_container_is_recreated(lab: ProviderLab, running: Host) -> None:
    lab.on_vps(running.id, "docker rm --force $(docker ps --quiet --filter label=com.imbue.mngr.host-id)")
    assert lab.process().start_host(running.id).read_file(NOTES) == b"kept on the volume\n"


def test_an_unknown_snapshot_is_refused_and_costs_nothing(provider: LocalProvider, running: Host) -> None:
    unknown = SnapshotId("sha256:" + "0" * 64)
    with pytest.raises(SnapshotNotFoundError):
        provider.start_host(running, unknown)
    with pytest.raises(SnapshotNotFoundError):
        provider.delete_snapshot(running, unknown)
    assert running.read_file(NOTES) == b"kept on the volume\n"


# --- the VPS goes down


@pytest.mark.core
@pytest.mark.parametrize("how", ["reboot", "power loss"])
def test_after_a_reboot_a_host_is_shown_as_not_running_and_starts(lab: ProviderLab, running: Host, how: str) -> None:
    instance = lab.instance_of(running.id)
    age_record(lab.process(), running.id)
    commands = {"reboot": ["restart -t 60"], "power loss": ["kill", "start"]}[how]
    for command in commands:
        subprocess.run(("docker", *command.split(), instance), check=True, capture_output=True, timeout=120)
    assert isinstance(lab.process().get_host(running.id), OfflineHost)
    lab.wait_for_vps(running.id)
    assert lab.state_of(running.id) is (HostState.STOPPED if how == "reboot" else HostState.CRASHED)
    # What mngr's gc goes by: it deletes hosts that have been down for a week.
    assert lab.process().get_host(running.id).get_seconds_since_stopped() < 3600
    host = lab.process().start_host(running.id)
    assert host.read_file(NOTES) == b"kept on the volume\n"


def test_a_vps_that_hangs_keeps_its_host_listed_and_harms_no_other(
    lab: ProviderLab, provider: LocalProvider, running: Host, agent: dict[str, Any], second: HostId
) -> None:
    details_of(provider, running.id)
    with paused(lab, running.id):
        process = lab.process(**IMPATIENT)
        listed = process.discover_hosts_and_agents(process.mngr_ctx.concurrency_group)
        by_name = {
            host.host_name: (host.host_state, [agent.agent_name for agent in agents])
            for host, agents in listed.items()
        }
        assert by_name["second"] == (HostState.RUNNING, [])
        # As it was last seen.
        assert by_name["first"] == (HostState.RUNNING, ["a1"])

        shown, agents = details_of(process, running.id)
        assert shown.name == "first"
        assert "unreachable since" in (shown.failure_reason or "")
        assert [agent.name for agent in agents] == ["a1"]
        assert isinstance(process.get_host(running.id), OfflineHost)
        assert process.list_persisted_agent_data_for_host(running.id) == [agent]
        assert process.get_volume_for_host(running.id) is None
        with pytest.raises(MngrError, match="first"):
            process.list_volumes()
        for act in (process.start_host, process.stop_host, process.create_snapshot):
            with pytest.raises(VpsConnectionError) as raised:
                act(running.id)
            assert "\n" not in str(raised.value)
    assert lab.process().get_host(running.id).get_state() is HostState.RUNNING


def test_a_command_on_a_frozen_host_ends_in_one_clear_line(
    lab: ProviderLab, running: Host, agent: dict[str, Any]
) -> None:
    process = lab.process(**IMPATIENT)
    host = process.get_host(running.id)
    assert isinstance(host, Host)
    with paused(lab, running.id):
        with pytest.raises(VpsConnectionError, match="unreachable") as raised:
            host.execute_idempotent_command("true")
        assert "\n" not in str(raised.value)
        (log,) = lab.folder.glob("here/providers/*/*/logs/ssh.jsonl")
        logged = log.read_text()
        assert process.to_offline_host(host.id).get_name() == "first"
        assert process.list_persisted_agent_data_for_host(host.id) == [agent]
        assert log.read_text() == logged
    assert host.execute_idempotent_command("echo again").stdout == "again"


@pytest.mark.parametrize(
    "use",
    [
        lambda host: host.execute_idempotent_command("cat /mngr/notes.txt").stdout.encode() + b"\n",
        lambda host: host.read_file(NOTES),
    ],
    ids=["a command", "reading a file"],
)
def test_a_container_whose_sshd_was_killed_is_repaired(
    lab: ProviderLab, provider: LocalProvider, running: Host, use: Any
) -> None:
    lab.in_container(running.id, "kill -9 $(pidof sshd sshd-session)")
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(use, [running] * 3)) == [b"kept on the volume\n"] * 3


# --- metadata


def test_tags_are_in_the_record_and_on_the_host(lab: ProviderLab, provider: LocalProvider, running: Host) -> None:
    provider.set_host_tags(running, {"a": "1", "b": "2"})
    provider.add_tags_to_host(running, {"b": "3", "c": "4"})
    lab.process().remove_tags_from_host(running.id, ["a", "unknown"])
    assert lab.process().get_host_tags(running.id) == {"b": "3", "c": "4"}
    assert running.get_tags() == {"b": "3", "c": "4"}
    assert data_json(running)["user_tags"] == {"b": "3", "c": "4"}


def test_tags_of_a_stopped_host_are_there_when_it_starts(
    provider: LocalProvider, running: Host, lab: ProviderLab
) -> None:
    provider.stop_host(running, create_snapshot=False)
    provider.set_host_tags(running.id, {"set": "while stopped"})
    assert states(lab.process())[running.id] is HostState.STOPPED
    assert provider.start_host(running.id).get_tags() == {"set": "while stopped"}


def test_a_renamed_host_is_known_by_its_new_name_only(
    lab: ProviderLab, provider: LocalProvider, running: Host, second: HostId
) -> None:
    containers = lab.on_vps(running.id, "docker ps --format {{.Names}}")
    with pytest.raises(HostNameConflictError):
        provider.rename_host(running, HostName("second"))
    with pytest.raises(HostNameConflictError):
        provider.create_host(HostName("first"))
    renamed = provider.rename_host(running, HostName("other"))
    assert renamed.get_name() == "other"
    assert lab.process().get_host(HostName("other")).id == running.id
    assert data_json(running)["host_name"] == "other"
    with pytest.raises(HostNotFoundError):
        lab.process().get_host(HostName("first"))
    assert lab.on_vps(running.id, "docker ps --format {{.Names}}") == containers
    lab.process().rename_host(running.id, HostName("first"))
    assert lab.process().get_host(HostName("first")).id == running.id


def test_changes_made_at_once_are_all_kept(lab: ProviderLab, provider: LocalProvider, running: Host) -> None:
    provider.set_host_tags(running, {})
    idle = ActivityConfig(idle_timeout_seconds=4321, activity_sources=(ActivitySource.BOOT,))
    other = lab.process()
    with ThreadPoolExecutor() as pool:
        changes = [
            pool.submit(running.set_activity_config, idle),
            pool.submit(provider.create_snapshot, running.id, SnapshotName("meanwhile")),
            *(pool.submit(other.add_tags_to_host, running.id, {f"tag{index}": "x"}) for index in range(3)),
        ]
        for change in changes:
            change.result()
    fresh = lab.process()
    host = fresh.get_host(running.id)
    assert isinstance(host, Host)
    for data in (host.get_certified_data(), fresh.to_offline_host(host.id).get_certified_data()):
        assert data.idle_timeout_seconds == 4321
        assert data.user_tags == {"tag0": "x", "tag1": "x", "tag2": "x"}
        assert [snapshot.name for snapshot in data.snapshots] == ["meanwhile"]
    for snapshot_id in ids(fresh, host):
        fresh.delete_snapshot(host, snapshot_id)


def test_settings_of_a_copy_that_is_out_of_date_take_nothing_back(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    provider.set_host_tags(running, {})
    copy = running.get_certified_data()
    lab.process().add_tags_to_host(running.id, {"set": "meanwhile"})
    running.set_certified_data(copy.model_copy(update={"idle_timeout_seconds": 999}))
    for data in (running.get_certified_data(), lab.process().get_host(running.id).get_certified_data()):
        assert (data.idle_timeout_seconds, data.user_tags) == (999, {"set": "meanwhile"})
    assert lab.process().get_host_tags(running.id) == {"set": "meanwhile"}


def test_settings_of_a_stopped_host_are_there_when_it_starts(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    provider.stop_host(running, create_snapshot=False)
    offline = lab.process().get_host(running.id)
    assert isinstance(offline, OfflineHost)
    offline.set_certified_data(offline.get_certified_data().model_copy(update={"idle_timeout_seconds": 777}))
    assert states(lab.process())[running.id] is HostState.STOPPED
    assert lab.process().start_host(running.id).get_certified_data().idle_timeout_seconds == 777


# --- listing


def test_resources_are_those_of_the_vps_within_the_limits_of_the_container(
    provider: LocalProvider, running: Host, second: HostId
) -> None:
    limited = provider.get_host_resources(provider.get_host(second))
    assert (limited.cpu.count, limited.memory_gb) == (1, 0.5)
    resources = provider.get_host_resources(running)
    assert resources.cpu.count >= 1
    assert 0.1 < resources.memory_gb < 10_000
    assert resources.disk_gb is not None
    assert resources.disk_gb > 1


@pytest.mark.core
def test_details_of_a_running_and_of_a_stopped_host(
    lab: ProviderLab, provider: LocalProvider, running: Host, agent: dict[str, Any]
) -> None:
    shown, agents = details_of(provider, running.id)
    assert (shown.name, shown.state, shown.is_locked) == ("first", HostState.RUNNING, False)
    assert shown.resource is not None
    assert shown.ssh is not None
    assert shown.ssh.port == 2222
    assert shown.uptime_seconds is not None
    assert [(found.name, found.labels) for found in agents] == [("a1", {"a": "b"})]

    found = provider.discover_hosts_and_agents(provider.mngr_ctx.concurrency_group)
    ((host_ref, (agent_ref,)),) = ((host, refs) for host, refs in found.items() if host.host_id == running.id)
    running.execute_idempotent_command(f"mv /mngr/agents/{agent['id']}/data.json /mngr/away.json")
    missed: list[BaseException] = []
    _shown, agents = provider.get_host_and_agent_details(
        host_ref, [agent_ref], on_error=lambda _ref, error: missed.append(error)
    )
    assert (agents, [type(error) for error in missed]) == ([], [AgentNotFoundOnHostError])
    running.execute_idempotent_command(f"mv /mngr/away.json /mngr/agents/{agent['id']}/data.json")

    provider.stop_host(running, create_snapshot=False)
    shown, agents = details_of(lab.process(), running.id)
    assert (shown.name, shown.state, shown.ssh) == ("first", HostState.STOPPED, None)
    assert [found.name for found in agents] == ["a1"]


def test_agent_data_is_kept_with_all_its_keys(lab: ProviderLab, provider: LocalProvider, running: Host) -> None:
    data = {
        "id": AgentId.generate(),
        "name": "kept",
        "type": "command",
        "labels": {"x": "y"},
        "of a plugin": [1, None],
    }
    provider.persist_agent_data(running.id, data)
    assert provider.list_persisted_agent_data_for_host(running.id) == [data]
    assert lab.process().list_persisted_agent_data_for_host(running.id) == [data]
    provider.remove_persisted_agent_data(running.id, data["id"])
    assert provider.list_persisted_agent_data_for_host(running.id) == []
    assert lab.process().list_persisted_agent_data_for_host(running.id) == []


def test_what_is_asked_of_an_unknown_host_is_not_found_or_nothing(provider: LocalProvider, running: Host) -> None:
    unknown = HostId.generate()
    assert provider.list_persisted_agent_data_for_host(unknown) == []
    provider.persist_agent_data(unknown, {"id": AgentId.generate(), "name": "a"})
    provider.remove_persisted_agent_data(unknown, AgentId.generate())
    provider.destroy_host(unknown)
    for reference in (unknown, HostName("unknown")):
        with pytest.raises(HostNotFoundError):
            provider.get_host(reference)
    with pytest.raises(HostNotFoundError):
        provider.start_host(unknown)


def test_the_volume_of_every_host_is_listed(provider: LocalProvider, running: Host, second: HostId) -> None:
    assert {volume.host_id for volume in provider.list_volumes()} == {running.id, second}


# --- the VPS itself


def test_the_vps_is_at_hand_while_the_container_is_down(
    lab: ProviderLab, provider: LocalProvider, running: Host
) -> None:
    provider.stop_host(running, create_snapshot=False)
    process = lab.process()
    with process.outer_host_for(running.id) as outer:
        assert outer is not None
        assert "first" in outer.execute_stateful_command("docker ps --all --format '{{.Names}}'").stdout
        outer.write_file(Path("/root/here"), b"content")
        assert outer.read_file(Path("/root/here")) == b"content"


def test_the_vps_has_a_name_without_being_asked(lab: ProviderLab, running: Host, second: HostId) -> None:
    process = lab.process()
    with paused(lab, running.id):
        assert process.outer_host_id_for(running.id) == lab.process().outer_host_id_for(running.id)
        assert process.outer_host_id_for(running.id) != process.outer_host_id_for(second)


# --- provider packages that find their VPSes themselves


class SelfFindingProvider(LocalProvider):
    """Finds its hosts as published provider packages do: one thread per VPS, leaving out what does not answer."""

    def _discover_host_records_with_agents(
        self,
    ) -> tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]:
        records: list[VpsDockerHostRecord] = []
        agents: dict[HostId, list[dict[str, Any]]] = {}
        instances = self.vps_client.find_instances({"mngr-provider": self.name}) or ()
        addresses = [instance.address for instance in instances if instance.address]
        with ThreadPoolExecutor() as pool:
            for found_records, found_agents in pool.map(self._read_one_vps, addresses):
                records += found_records
                agents |= found_agents
        return records, agents

    def _read_one_vps(self, address: str) -> tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]:
        try:
            with self._make_outer_for_vps_ip(address) as outer:
                store = self._get_existing_host_store(outer)
                return ([], {}) if store is None else store.list_all_host_records_with_agents()
        except VpsConnectionError:
            return [], {}


class UnlistableClient(LocalVpsClient):
    """A cloud that the base class cannot list."""

    def find_instances(self, tags: object) -> None:  # type: ignore[override]
        return None


def test_a_provider_package_may_find_its_hosts_itself(lab: ProviderLab, running: Host, second: HostId) -> None:
    process = lab.process(provider_class=SelfFindingProvider)
    assert states(process) == {running.id: HostState.RUNNING, second: HostState.RUNNING}
    assert process._discover_host_records_with_agents()[0]
    with paused(lab, second):
        process = lab.process(provider_class=SelfFindingProvider, **IMPATIENT)
        listed = states(process)
        assert listed[running.id] is HostState.RUNNING
        assert second in listed


def test_hosts_are_found_where_the_cloud_cannot_list(lab: ProviderLab, running: Host, second: HostId) -> None:
    process = lab.process(UnlistableClient(account=lab.account))
    assert states(process) == {running.id: HostState.RUNNING, second: HostState.RUNNING}


def test_a_provider_package_may_build_on_the_base_class(lab: ProviderLab, running: Host, second: HostId) -> None:
    class Extending(LocalProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            return [*super()._discover_host_records()]

    assert states(lab.process(provider_class=Extending)).keys() == {running.id, second}


def test_a_provider_package_that_stumbles_over_one_vps_loses_no_host(
    lab: ProviderLab, running: Host, second: HostId
) -> None:
    class Stumbling(LocalProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            raise VpsConnectionError("one of them cannot be reached")

    assert states(lab.process(provider_class=Stumbling)).keys() == {running.id, second}


# --- the cloud


def test_a_cloud_that_cannot_be_asked_is_said_to_be_unavailable(lab: ProviderLab, running: Host) -> None:
    class DownClient(LocalVpsClient):
        def find_instances(self, tags: object) -> list[VpsInstanceInfo]:
            raise VpsApiError(500, "down for maintenance")

    process = lab.process(DownClient(account=lab.account))
    with pytest.raises(ProviderUnavailableError, match="down for maintenance"):
        states(process)
    assert isinstance(process.get_host(running.id), Host)


# --- the end of hosts, and so of this file


def test_a_machine_with_the_keys_of_the_vps_only_is_told_so(lab: ProviderLab, running: Host) -> None:
    copy_keys_of_vps(lab, "with-keys", "user_id")
    elsewhere = lab.process(machine="with-keys")
    assert isinstance(elsewhere.get_host(running.id), OfflineHost)
    shown, _agents = details_of(elsewhere, running.id)
    assert (shown.name, shown.state) == ("first", HostState.UNAUTHENTICATED)
    with pytest.raises(VpsAuthenticationError, match="container_ssh_key"):
        elsewhere.start_host(running)


@pytest.mark.parametrize("why", ["its record is unreadable", "its record is another profile's"])
def test_a_running_host_without_a_record_is_safe_from_gc(lab: ProviderLab, running: Host, why: str) -> None:
    machine = why.replace(" ", "-").replace("'", "")
    copy_keys_of_vps(lab, machine, *(["user_id"] if "unreadable" in why else []))
    record = f"/var/lib/docker/volumes/*docker-state*/_data/host_state/{running.id}.json"
    if "unreadable" in why:
        lab.on_vps(running.id, f"cp {record} /root/record && echo spoiled | tee {record}")
    try:
        elsewhere = lab.process(machine=machine)
        assert states(elsewhere)[running.id] is HostState.FAILED
        offline = elsewhere.get_host(running.id)
        assert isinstance(offline, OfflineHost)
        assert "record" in (offline.get_failure_reason() or "")
        assert offline.get_certified_data().updated_at > running.get_certified_data().created_at
        assert isinstance(lab.process().get_host(running.id), Host)
    finally:
        if "unreadable" in why:
            lab.on_vps(running.id, f"cat /root/record | tee {record}")


def test_another_machine_with_the_same_account_sees_a_host_and_destroys_it(lab: ProviderLab, first: HostId) -> None:
    elsewhere = lab.process(machine="elsewhere")
    assert states(elsewhere)[first] is HostState.UNAUTHENTICATED
    assert isinstance(elsewhere.get_host(HostName("first")), OfflineHost)
    elsewhere.destroy_host(first)
    assert first not in states(lab.process(machine="elsewhere"))

    here = lab.process()
    assert first not in states(here)
    assert states(here, include_destroyed=True)[first] is HostState.DESTROYED
    gone = here.get_host(first)
    assert gone.get_state() is HostState.DESTROYED
    here.delete_host(gone)
    assert first not in states(lab.process(), include_destroyed=True)


def test_a_host_whose_vps_hangs_is_destroyed_and_nothing_is_left(lab: ProviderLab, second: HostId) -> None:
    with paused(lab, second):
        lab.process(**IMPATIENT).destroy_host(second)
    lab.process().destroy_host(second)
    assert lab.process().list_persisted_agent_data_for_host(second) == []
    assert second not in states(lab.process(), include_destroyed=True)
    assert not any(second in left for left in lab.leftovers())
    assert lab.cloud.list_ssh_keys() == []
    assert lab.cloud.find_instances({}) == []
