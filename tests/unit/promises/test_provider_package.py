"""A provider package that was written against version 0.1.0 runs on this one as it is."""

import inspect
import json
from abc import ABC
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any

import pytest

from imbue.mngr.config.data_types import ProviderInstanceConfig
from imbue.mngr.errors import HostConnectionError, HostNotFoundError, MngrError, ProviderUnavailableError
from imbue.mngr.interfaces.data_types import HostConfig
from imbue.mngr.interfaces.host import OuterHostInterface
from imbue.mngr.primitives import AgentId, HostId, HostName, HostState
from imbue.mngr.providers.base_provider import BaseProviderInstance
from imbue.mngr_vps_docker import cloud_init, docker_over_ssh, errors, primitives
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.host_store import VpsDockerHostRecord, VpsDockerHostStore, VpsHostConfig
from imbue.mngr_vps_docker.instance import VpsDockerProvider
from imbue.mngr_vps_docker.vps_client import VpsClientInterface, VpsSnapshotInfo, VpsSshKeyInfo
from support.builders import LONG_AGO, container_of, record_of
from support.memory_provider import SILENT, MemoryProvider
from support.provider import states
from support.world import ADDRESS, World, agent_names, discovered

Found = tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]

# What a client implements, argument by argument: no more, or older ones could not be constructed.
ABSTRACT_METHODS = {
    "create_instance": ("label", "region", "plan", "os_id", "user_data", "ssh_key_ids", "tags"),
    "destroy_instance": ("instance_id",),
    "get_instance_status": ("instance_id",),
    "get_instance_ip": ("instance_id",),
    "wait_for_instance_active": ("instance_id", "timeout_seconds"),
    "create_snapshot": ("instance_id", "description"),
    "delete_snapshot": ("snapshot_id",),
    "list_snapshots": (),
    "upload_ssh_key": ("name", "public_key"),
    "delete_ssh_key": ("key_id",),
    "list_ssh_keys": (),
}
FIELDS = {
    VpsSnapshotInfo: "id description created_at",
    VpsSshKeyInfo: "id name",
    VpsHostConfig: "vps_instance_id region plan os_id start_args image container_name volume_name vps_ssh_key_id",
    VpsDockerHostRecord: "certified_host_data vps_ip ssh_host_public_key container_ssh_host_public_key config"
    " container_id",
    VpsDockerProvider: "config vps_client",
    VpsDockerProviderConfig: "host_dir default_image default_idle_timeout default_idle_mode default_activity_sources"
    " ssh_connect_timeout vps_boot_timeout docker_install_timeout container_ssh_port default_region default_plan"
    " default_os_id default_start_args builder",
}
STORE_METHODS = (
    "read_host_record write_host_record delete_host_record list_all_host_records list_all_host_records_with_agents"
    " persist_agent_data list_persisted_agent_data_for_host remove_persisted_agent_data clear_cache"
)
HOOKS = (
    "reset_caches _discover_host_records _discover_host_records_with_agents _find_host_record _make_outer_for_vps_ip"
    " _get_existing_host_store _parse_build_args _get_vps_ssh_keypair _vps_known_hosts_path"
)


class PackageProvider(MemoryProvider):
    """Finds its hosts itself: by addresses that its cloud lists, and what it then reads on each VPS."""

    def _addresses(self) -> list[str]:
        return [str(info.address) for info in self.vps_client.instances.values()]  # type: ignore[attr-defined]

    def _read(self, address: str) -> Found:
        with suppress(HostConnectionError, MngrError), self._make_outer_for_vps_ip(address) as outer:
            store = self._get_existing_host_store(outer)
            if store is not None:
                return store.list_all_host_records_with_agents()
        return [], {}

    def _discover_host_records(self) -> list[VpsDockerHostRecord]:
        return self._discover_host_records_with_agents()[0]

    def _discover_host_records_with_agents(self) -> Found:
        records: list[VpsDockerHostRecord] = []
        agents: dict[HostId, list[dict[str, Any]]] = {}
        with ThreadPoolExecutor(32) as pool:
            for found, agents_of_found in pool.map(self._read, self._addresses()):
                records += found
                agents |= agents_of_found
        for record in records:
            self._host_record_cache[record.host_id] = record
        return records, agents


def record_at(address: str, host_id: HostId) -> VpsDockerHostRecord:
    """The record of a stopped host, as its VPS has it."""
    return record_of(host_id, vps_ip=address, config={"vps_instance_id": address}, stop_reason="STOPPED")


@pytest.fixture
def host_id(world: World) -> HostId:
    """A host that the client cannot list, with its agent; this machine knows nothing of it."""
    host_id = HostId.generate()
    world.cloud.is_listing = False
    world.cloud.add_vps(host_id, ADDRESS, LONG_AGO)
    vps = world.boot(host_id)
    world.add_agent(host_id)
    world.write_record(record_at(ADDRESS, host_id))
    world.context.keys.create_vps_host_key(host_id)
    state_container = [container_of(HostId.generate(), "exited")]
    (vps.volumes / f".container-{world.state_volume}").write_text(json.dumps(state_container))
    return host_id


def test_a_client_has_to_have_what_it_had_to_have() -> None:
    assert issubclass(VpsClientInterface, ABC)
    assert VpsClientInterface.__abstractmethods__ == ABSTRACT_METHODS.keys()
    for name, arguments in ABSTRACT_METHODS.items():
        assert tuple(inspect.signature(getattr(VpsClientInterface, name)).parameters)[1:] == arguments
    waiting = inspect.signature(VpsClientInterface.wait_for_instance_active)
    assert waiting.parameters["timeout_seconds"].default == 300.0
    assert not hasattr(VpsClientInterface, "list_instances")


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_a_model_has_its_fields(model: type[VpsHostConfig]) -> None:
    assert set(FIELDS[model].split()) <= model.model_fields.keys()


def test_values_errors_and_functions_are_where_they_were() -> None:
    statuses = [status.value for status in primitives.VpsInstanceStatus]
    assert statuses == ["PENDING", "ACTIVE", "HALTED", "DESTROYING", "UNKNOWN"]
    assert issubclass(primitives.VpsInstanceId, str)
    assert issubclass(primitives.VpsSnapshotId, str)
    assert issubclass(errors.VpsDockerError, MngrError)
    assert issubclass(errors.VpsProvisioningError, errors.VpsDockerError)
    assert issubclass(errors.VpsConnectionError, HostConnectionError)
    assert (errors.VpsApiError(404, "gone").status_code, errors.VpsApiError(status_code=1, message="m").args) == (
        404,
        ("The VPS API answered 1: m",),
    )
    assert issubclass(VpsDockerProviderConfig, ProviderInstanceConfig)
    assert issubclass(VpsHostConfig, HostConfig)
    assert issubclass(VpsDockerProvider, BaseProviderInstance)
    assert [*inspect.signature(cloud_init.generate_cloud_init_user_data).parameters][:2] == [
        "host_private_key",
        "host_public_key",
    ]
    assert inspect.isclass(docker_over_ssh.DockerOverSsh)
    assert [name for name in STORE_METHODS.split() if not hasattr(VpsDockerHostStore, name)] == []
    assert [name for name in HOOKS.split() if not hasattr(VpsDockerProvider, name)] == []


def test_it_lists_what_only_it_finds(world: World, host_id: HostId) -> None:
    process = world.process(provider_class=PackageProvider)
    assert agent_names(discovered(process)) == {host_id: ["a1"]}
    assert process._host_record_cache.keys() == {host_id}
    record = process._find_host_record(HostName("h1"))
    assert record is not None
    assert record.host_id == host_id


def test_32_threads_may_ask_for_a_vps_at_once(world: World, host_id: HostId) -> None:
    process, together = world.process(), Barrier(32, timeout=60)

    def read(_number: int) -> int:
        with process._make_outer_for_vps_ip(ADDRESS) as outer:
            together.wait()
            store = process._get_existing_host_store(outer)
            assert store is not None
            return len(store.list_all_host_records())

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(read, range(32))) == [1] * 32


def test_there_is_no_store_before_there_is_a_state_container(world: World, host_id: HostId) -> None:
    process = world.process()
    (world.vps(host_id).volumes / f".container-{world.state_volume}").unlink()
    with process._make_outer_for_vps_ip(ADDRESS) as outer:
        assert process._get_existing_host_store(outer) is None


def test_a_foreign_outer_host_is_refused_by_an_expected_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OuterHostInterface, "__abstractmethods__", frozenset())
    with pytest.raises(MngrError, match="_make_outer_for_vps_ip"):
        world.process()._get_existing_host_store(OuterHostInterface.model_construct())


def test_the_agents_it_found_are_listed_though_the_host_is_unreachable(world: World) -> None:
    host_id, agent = HostId.generate(), {"id": AgentId.generate(), "name": "a1"}
    world.network.refusals[ADDRESS] = SILENT

    class Mirror(MemoryProvider):
        def _discover_host_records_with_agents(self) -> Found:
            return [record_at(ADDRESS, host_id)], {host_id: [agent]}

    world.cloud.is_listing = False
    assert agent_names(discovered(world.process(provider_class=Mirror))) == {host_id: ["a1"]}


def test_a_record_names_the_vps_only_where_the_cloud_cannot_list(world: World) -> None:
    host_id = HostId.generate()
    world.cloud.add_vps(HostId.generate(), ADDRESS, LONG_AGO, provider="another")

    class Misled(MemoryProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            return [record_at(ADDRESS, host_id)]

    process = world.process(provider_class=Misled)
    assert states(process) == {host_id: HostState.STOPPED}
    process.destroy_host(host_id)
    assert world.cloud.instances.keys() == {ADDRESS}
    assert world.network.logins == []


def test_a_vps_that_both_find_is_read_once(world: World, host_id: HostId) -> None:
    world.cloud.is_listing = True

    class Own(MemoryProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            return [record_at(ADDRESS, host_id)]

    vps = world.vps(host_id)
    vps.commands.clear()
    assert agent_names(discovered(world.process(provider_class=Own))) == {host_id: ["a1"]}
    assert len(vps.commands) == 1


def test_it_may_add_to_what_is_found_without_it(world: World, host_id: HostId) -> None:
    world.cloud.is_listing = True

    class Adding(MemoryProvider):
        def _discover_host_records_with_agents(self) -> Found:
            assert super()._discover_host_records() == super()._discover_host_records_with_agents()[0]
            return super()._discover_host_records_with_agents()

    vps = world.vps(host_id)
    vps.commands.clear()
    process = world.process(provider_class=Adding)
    assert agent_names(discovered(process)) == {host_id: ["a1"]}
    assert [record.host_id for record in process._discover_host_records()] == [host_id]
    assert len(vps.commands) == 1


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_host_that_no_listing_has_is_found_by_its_own_way(world: World, host_id: HostId, is_cached: bool) -> None:
    record = record_at(ADDRESS, host_id)

    class Finding(MemoryProvider):
        def _find_host_record(self, host: HostId | HostName) -> VpsDockerHostRecord | None:
            return super()._find_host_record(host) or (record if host in (host_id, "h1") else None)

    process = world.process(provider_class=MemoryProvider if is_cached else Finding)
    if is_cached:
        process._host_record_cache[host_id] = record
    assert process.get_host(HostName("h1")).id == host_id
    assert process.get_host(host_id).get_state() is HostState.STOPPED
    with pytest.raises(HostNotFoundError):
        process.get_host(HostId.generate())


def test_it_may_begin_a_new_cache(world: World, host_id: HostId) -> None:
    class Renewing(PackageProvider):
        def reset_caches(self) -> None:
            self._host_record_cache = {}

    process = world.process(provider_class=Renewing)
    states(process)
    process.reset_caches()
    world.network.machines.clear()
    assert process.get_host(host_id).get_state() is HostState.STOPPED
    assert world.network.logins == [ADDRESS]
    assert process._host_record_cache.keys() == {host_id}


@pytest.mark.parametrize("error", [ConnectionError("no route to the API"), errors.VpsApiError(500, "oops")])
def test_what_its_cloud_does_not_tell_is_no_empty_list(world: World, error: Exception) -> None:
    class Failing(MemoryProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            raise error

    with pytest.raises(ProviderUnavailableError, match=str(error)):
        states(world.process(provider_class=Failing))


def test_one_vps_that_it_cannot_read_hides_no_other(world: World, host_id: HostId) -> None:
    world.cloud.is_listing = True

    class Failing(MemoryProvider):
        def _discover_host_records(self) -> list[VpsDockerHostRecord]:
            raise HostConnectionError("one VPS is down")

    assert states(world.process(provider_class=Failing)) == {host_id: HostState.STOPPED}


def test_a_host_that_was_pinned_by_its_address_is_reached(world: World) -> None:
    host_id = world.add_silent_host()
    process = world.process()
    keys = process.context.keys
    keys.vps_client_key()
    keys.vps_known_hosts_path.write_text(f"{ADDRESS} ssh-ed25519 VPS\n")
    keys.container_known_hosts_path.write_text(f"[{ADDRESS}]:2222 ssh-ed25519 CONTAINER\n")
    states(process)
    assert f"{host_id} ssh-ed25519 VPS" in keys.vps_known_hosts_path.read_text().splitlines()
    assert f"{host_id} ssh-ed25519 CONTAINER" in keys.container_known_hosts_path.read_text().splitlines()


def test_build_arguments_are_read_as_before(world: World) -> None:
    process = world.process()
    assert process._parse_build_args(None) == process._parse_build_args(())
    assert process._parse_build_args(["--vps-region=r"]).region == "r"
    path, public_key = process._get_vps_ssh_keypair()
    assert (path.name, public_key.split()[0]) == ("vps_ssh_key", "ssh-ed25519")
    assert process._vps_known_hosts_path() == path.with_name("vps_known_hosts")


def test_build_arguments_in_another_form_are_refused(world: World) -> None:
    class Own(MemoryProvider):
        def _parse_build_args(self, build_args: Any) -> Any:
            return "ewr", "plan", 7

    with pytest.raises(MngrError, match=r"Own\._parse_build_args must return what its super\(\) returns"):
        world.process(provider_class=Own).create_host(HostName("h1"))
