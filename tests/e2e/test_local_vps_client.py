"""The reference cloud keeps the promises of VpsClientInterface, on this machine's real engine."""

import json
import secrets
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from imbue.mngr_local_vps.clean import clean
from imbue.mngr_local_vps.client import DEFAULT_PLAN, DEFAULT_REGION, LocalVpsClient
from imbue.mngr_local_vps.engine import lines_of, run_docker
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus, VpsSnapshotId
from imbue.mngr_vps_docker.testing.client_conformance import VpsClientConformance
from support.operating_system import CHOSEN_OS
from support.provider import freeze

BOOT_TIMEOUT_SECONDS = 120.0


class Machine:
    """One booted VPS with the keys to get in."""

    def __init__(self, client: LocalVpsClient, folder: Path, name: str, os_id: str) -> None:
        self.client = client
        self.folder = folder / name
        self.folder.mkdir()
        for key in ("host", "login"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.folder / key)]
            subprocess.run(argv, check=True)
        host_keys = {
            "ed25519_private": (self.folder / "host").read_text(),
            "ed25519_public": (self.folder / "host.pub").read_text(),
        }
        self.user_data = "#cloud-config\n" + yaml.safe_dump({"ssh_deletekeys": True, "ssh_keys": host_keys})
        self.tags = {"mngr-host-id": f"host-{secrets.token_hex(4)}", "mngr-provider": "test"}
        key_id = client.upload_ssh_key(name, (self.folder / "login.pub").read_text())
        self.id = client.create_instance(
            f"mngr-{name}",
            DEFAULT_REGION,
            DEFAULT_PLAN,
            os_id,
            self.user_data,
            [key_id],
            [f"{key}={value}" for key, value in self.tags.items()],
        )
        self.address = client.wait_for_instance_active(self.id, BOOT_TIMEOUT_SECONDS)
        host_key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"{self.address} {host_key}\n")
        self.wait_until_booted()

    def ssh(self, command: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one command as root, under the host key that was injected and no other."""
        known_hosts = f"UserKnownHostsFile={self.folder / 'known_hosts'}"
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", known_hosts, "ConnectTimeout=3", "IdentitiesOnly=yes")
        arguments = [argument for option in options for argument in ("-o", option)]
        argv = ["ssh", "-F", "none", "-i", str(self.folder / "login"), *arguments, f"root@{self.address}", command]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds)

    def wait_until_booted(self) -> None:
        """Wait for ssh and then for cloud-init, within one bound."""
        deadline = time.monotonic() + BOOT_TIMEOUT_SECONDS
        while (result := self.ssh("cloud-init status --wait")).returncode == 255:
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.2)
        assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def machine(client: LocalVpsClient, os_id: str, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(client, tmp_path_factory.mktemp("machines"), "first", os_id)


@pytest.fixture(scope="module")
def machine_without_docker(
    client: LocalVpsClient, os_without_docker: str, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    return Machine(client, tmp_path_factory.mktemp("machines"), "second", os_without_docker)


def test_vps_boots_with_the_injected_host_key_and_exactly_the_given_user_data(machine: Machine) -> None:
    assert machine.ssh("cat /var/lib/cloud/seed/nocloud/user-data").stdout == machine.user_data
    assert machine.ssh("ls /etc/ssh/ssh_host_*_key").stdout.split() == ["/etc/ssh/ssh_host_ed25519_key"]
    assert machine.ssh("hostname").stdout.strip() == "mngr-first"
    assert machine.ssh("systemctl --failed --quiet").stdout == ""


def test_inner_engine_runs_its_images_without_a_registry(machine: Machine) -> None:
    assert machine.ssh("docker info --format '{{.Driver}}'").stdout.strip() == "overlay2"
    assert machine.ssh("docker run --rm debian:bookworm-slim true").returncode == 0
    needed = "sshd tmux curl rsync git jq xxd"
    found = machine.ssh(f"docker run --rm mngr-agent:bookworm sh -c 'PATH=$PATH:/usr/sbin which {needed}'")
    assert len(found.stdout.split()) == len(needed.split()), found.stderr


def test_a_published_port_is_reached_at_the_address_of_its_vps(machine: Machine) -> None:
    serve = "ssh-keygen -A >/dev/null && mkdir -p /run/sshd && exec /usr/sbin/sshd -D"
    started = machine.ssh(f"docker run --detach --name inner --publish 2222:22 mngr-agent:bookworm sh -c '{serve}'")
    assert started.returncode == 0, started.stderr
    try:
        deadline = time.monotonic() + 30
        argv = ["ssh-keyscan", "-T", "2", "-t", "ed25519", "-p", "2222", machine.address]
        while not (scan := subprocess.run(argv, capture_output=True, text=True)).stdout:
            assert time.monotonic() < deadline, scan.stderr
            time.sleep(0.2)
    finally:
        machine.ssh("docker rm --force inner")


def test_reboot_keeps_address_host_key_and_containers(machine: Machine) -> None:
    machine.ssh("docker run --detach --init --restart unless-stopped --name stays debian:bookworm-slim sleep 1000")
    try:
        run_docker("restart", "--time", "60", machine.id, timeout_seconds=90)
        machine.wait_until_booted()
        assert machine.client.get_instance_ip(machine.id) == machine.address
        assert machine.ssh("docker ps --format '{{.Names}}'").stdout.split() == ["stays"]
    finally:
        machine.ssh("docker rm --force stays")


def test_several_vpses_run_at_once_and_each_is_found_by_its_tags(
    machine: Machine, machine_without_docker: Machine, client: LocalVpsClient
) -> None:
    assert machine.address != machine_without_docker.address
    another_process_would_see = LocalVpsClient(account=client.account)
    (found,) = another_process_would_see.find_instances(machine.tags)
    assert (found.id, found.address, found.tags) == (machine.id, machine.address, machine.tags)
    assert found.created_at.tzinfo is not None
    assert {one.id for one in client.find_instances({"mngr-provider": "test"})} == {
        machine.id,
        machine_without_docker.id,
    }
    assert client.find_instances({"mngr-provider": "other"}) == []
    assert LocalVpsClient(account=f"{client.account}-not").find_instances({}) == []


def test_the_os_without_docker_lacks_it(machine_without_docker: Machine) -> None:
    assert machine_without_docker.ssh("command -v docker dockerd").stdout == ""


def test_frozen_vps_is_active_and_a_stopped_one_halted_at_the_same_address(
    machine_without_docker: Machine, client: LocalVpsClient
) -> None:
    vps = machine_without_docker
    freeze(vps.id)
    try:
        assert client.get_instance_status(vps.id) == VpsInstanceStatus.ACTIVE
    finally:
        run_docker("unpause", vps.id)
    run_docker("kill", vps.id)
    assert client.get_instance_status(vps.id) == VpsInstanceStatus.HALTED
    assert client.get_instance_ip(vps.id) == vps.address
    with pytest.raises(VpsProvisioningError, match="stopped instead of booting"):
        client.wait_for_instance_active(vps.id)
    run_docker("start", vps.id)
    vps.wait_until_booted()
    assert client.get_instance_status(vps.id) == VpsInstanceStatus.ACTIVE


def test_snapshot_is_listed_until_it_is_deleted(machine: Machine, client: LocalVpsClient) -> None:
    description = 'before the "upgrade": $HOME = 100 %'
    snapshot_id = client.create_snapshot(machine.id, description)
    (listed,) = client.list_snapshots()
    assert (listed.id, listed.description) == (snapshot_id, description)
    client.delete_snapshot(snapshot_id)
    assert client.list_snapshots() == []
    assert client.get_instance_status(machine.id) == VpsInstanceStatus.ACTIVE


def test_destroying_a_frozen_vps_leaves_nothing(client: LocalVpsClient, os_id: str, tmp_path: Path) -> None:
    vps = Machine(client, tmp_path, "third", os_id)
    vps.ssh("docker run --detach debian:bookworm-slim sleep 1000")
    freeze(vps.id)
    client.destroy_instance(vps.id)
    assert run_docker("ps", "--all", "--quiet", "--filter", f"name={vps.id}") == ""
    assert run_docker("volume", "ls", "--quiet", "--filter", f"name={vps.id}") == ""
    for question in (client.destroy_instance, client.get_instance_status, client.get_instance_ip):
        with pytest.raises(VpsApiError) as caught:
            question(vps.id)
        assert caught.value.is_gone


def test_vpses_ordered_at_once_get_addresses_of_their_own(
    os_without_docker: str,
) -> None:
    client = LocalVpsClient(account=f"test-{secrets.token_hex(4)}")

    def order(number: int) -> VpsInstanceId:
        return client.create_instance(
            f"mngr-{number}", DEFAULT_REGION, DEFAULT_PLAN, os_without_docker, "#cloud-config\n", [], []
        )

    try:
        with ThreadPoolExecutor(4) as pool:
            ids = list(pool.map(order, range(4)))
            assert len({client.get_instance_ip(vps_id) for vps_id in ids}) == len(ids)
            list(pool.map(client.destroy_instance, ids))
        assert run_docker("network", "ls", "--quiet", "--filter", f"name={client.account}") == ""
    finally:
        list(clean(client.account))


def test_destroy_finishes_what_an_interrupted_one_left(client: LocalVpsClient, os_id: str) -> None:
    vps_id = client.create_instance("mngr-x", DEFAULT_REGION, DEFAULT_PLAN, os_id, "#cloud-config\n", [], [])
    run_docker("rm", "--force", vps_id)
    client.destroy_instance(vps_id)
    assert run_docker("volume", "ls", "--quiet", "--filter", f"name={vps_id}") == ""


def test_ssh_keys_are_listed_until_they_are_deleted(client: LocalVpsClient) -> None:
    before = {key.id for key in client.list_ssh_keys()}
    key_id = client.upload_ssh_key("a key's name", "ssh-ed25519 AAAA comment, with = signs\n")
    assert {key.name for key in client.list_ssh_keys() if key.id not in before} == {"a key's name"}
    client.delete_ssh_key(key_id)
    assert {key.id for key in client.list_ssh_keys()} == before


class TestConformance(VpsClientConformance):
    region, plan, os_id = DEFAULT_REGION, DEFAULT_PLAN, CHOSEN_OS


def test_unknown_ids_are_answered_with_404(client: LocalVpsClient) -> None:
    foreign_volume = f"not-a-key-{secrets.token_hex(4)}"
    run_docker("volume", "create", foreign_volume)
    try:
        for ask in (
            lambda: client.get_instance_status(VpsInstanceId("mngr-local-vps-none")),
            lambda: client.create_snapshot(VpsInstanceId("mngr-local-vps-none"), "x"),
            lambda: client.delete_snapshot(VpsSnapshotId("none")),
            lambda: client.delete_ssh_key(foreign_volume),
        ):
            with pytest.raises(VpsApiError) as caught:
                ask()
            assert caught.value.status_code == 404
    finally:
        run_docker("volume", "rm", foreign_volume)


@pytest.mark.parametrize(
    ("wrong", "status", "says"),
    [
        ({"region": "ewr"}, 400, "unknown region 'ewr'; valid: local"),
        ({"plan": "huge"}, 400, "unknown plan 'huge'; valid: "),
        ({"os_id": 2136}, 400, "unknown operating system '2136'; valid: debian-12"),
        ({"ssh_key_ids": ["none"]}, 404, "there is no ssh key none"),
    ],
)
def test_order_that_cannot_be_met_is_refused_and_nothing_is_made(
    client: LocalVpsClient, os_id: str, wrong: dict[str, object], status: int, says: str
) -> None:
    order: dict[str, object] = {
        "label": "mngr-x",
        "region": DEFAULT_REGION,
        "plan": DEFAULT_PLAN,
        "os_id": os_id,
        "user_data": "#cloud-config\n",
        "ssh_key_ids": [],
        "tags": ["refused=yes"],
    }
    with pytest.raises(VpsApiError, match=says) as caught:
        client.create_instance(**{**order, **wrong})  # type: ignore[arg-type]
    assert caught.value.status_code == status
    assert client.find_instances({"refused": "yes"}) == []


def test_clean_removes_all_of_its_account_and_nothing_else(vps_image: None, os_id: str) -> None:
    mine, neighbour = (LocalVpsClient(account=f"test-{secrets.token_hex(4)}") for _ in range(2))
    foreign_volume = f"foreign-{secrets.token_hex(4)}"
    run_docker("volume", "create", "--label", "com.imbue.mngr.provider=other", foreign_volume)
    try:
        kept_key = neighbour.upload_ssh_key("kept", "ssh-ed25519 AAAA")
        mine.upload_ssh_key("gone", "ssh-ed25519 AAAA")
        vps_id = mine.create_instance("x", DEFAULT_REGION, "1c-1gb", os_id, "#cloud-config\n", [], [])
        mine.create_snapshot(vps_id, "gone")
        removed = [line.split()[0] for line in clean(mine.account)]
        assert sorted(removed) == ["VPS", "disk", "network", "snapshot", "ssh"]
        label = f"--filter=label=com.imbue.mngr.local-vps.account={mine.account}"
        for listing in (("ps", "-aq"), ("volume", "ls", "-q"), ("network", "ls", "-q"), ("image", "ls", "-aq")):
            assert run_docker(*listing, label) == ""
        assert [key.id for key in neighbour.list_ssh_keys()] == [kept_key]
        assert lines_of(run_docker("volume", "ls", "--quiet", "--filter", f"name={foreign_volume}")) == [
            foreign_volume
        ]
        assert list(clean(mine.account)) == []
    finally:
        run_docker("volume", "rm", foreign_volume)
        for account in (mine.account, neighbour.account):
            list(clean(account))


def test_without_a_docker_command_the_error_says_how_to_get_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VpsApiError, match="scripts/ensure-engine") as caught:
        LocalVpsClient().find_instances({})
    assert caught.value.status_code == 503


def test_without_an_engine_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(VpsApiError, match="no Docker engine answers") as caught:
        LocalVpsClient().list_ssh_keys()
    assert caught.value.status_code == 503
    assert json.dumps(str(caught.value)).count("\\n") == 0
