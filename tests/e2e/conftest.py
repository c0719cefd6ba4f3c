"""Fixtures of the end-to-end tests: a Docker engine, the operating system of VPSes, mngr's command line."""

import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from imbue.mngr_local_vps.clean import clean
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.images import ensure_images
from imbue.mngr_local_vps.operating_systems import without_docker
from support.booted_vps import Vps
from support.mngr_cli import MngrCli
from support.operating_system import CHOSEN_OS, CORE_SYSTEMS
from support.provider import ProviderLab


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests, and fixtures, that ask for ``os_id`` the operating system of VPSes."""
    if "os_id" in metafunc.fixturenames:
        is_core = metafunc.definition.get_closest_marker("core") is not None
        metafunc.parametrize("os_id", CORE_SYSTEMS if is_core else (CHOSEN_OS,), scope="module")


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine that answers on this machine; without one the test is skipped, saying why."""
    try:
        subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        pytest.skip("there is no docker command: run scripts/ensure-engine as root")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no Docker engine answers, run scripts/ensure-engine as root: {error.stderr.strip()}")
    except subprocess.TimeoutExpired:
        pytest.skip("the Docker engine has not answered `docker info` for 30 s")


@pytest.fixture(scope="module")
def vps_image(engine: None, os_id: str) -> None:
    """The image that local VPSes boot from; building it takes minutes where it is not there yet."""
    ensure_images(lambda _: None, [os_id])


@pytest.fixture(scope="module")
def os_without_docker(engine: None, os_id: str) -> str:
    """The operating system of the same release that has no Docker, with its image."""
    ensure_images(lambda _: None, [without_docker(os_id)])
    return without_docker(os_id)


@pytest.fixture(scope="module")
def client(vps_image: None) -> Iterator[LocalVpsClient]:
    """An account of the local cloud, which is emptied afterwards."""
    account = f"test-{secrets.token_hex(4)}"
    try:
        yield LocalVpsClient(account=account)
    finally:
        list(clean(account))


@pytest.fixture(scope="module")
def vps_settings() -> dict[str, Any]:
    """Settings of the provider that go into the user data; a module that needs others overrides this."""
    return {}


@pytest.fixture(scope="module")
def vps(
    client: LocalVpsClient, os_id: str, vps_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Vps]:
    """A VPS that is ready and has no host."""
    machine = Vps(client, tmp_path_factory.mktemp("vps"), os_id, **vps_settings)
    waited = machine.wait()
    assert (waited.exit_code, waited.text) == (0, "ready\n"), waited.error_text
    yield machine
    machine.connection.close()


@pytest.fixture(scope="module")
def provider_settings() -> str:
    """TOML lines of the provider's settings; a module that needs others overrides this."""
    return ""


@pytest.fixture(scope="module")
def mngr(
    vps_image: None, os_id: str, provider_settings: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MngrCli]:
    """mngr with an account of this test module, of which nothing is left afterwards."""
    cli = MngrCli(tmp_path_factory.mktemp("mngr"), os_id)
    try:
        cli.set_up(provider_settings)
        yield cli
    finally:
        cli.tear_down()


@pytest.fixture
def nothing_left(mngr: MngrCli) -> Iterator[None]:
    """Fail if a test leaves anything in the account or on this machine; in any case, it does not stay."""
    yield
    leftovers = mngr.leftovers()
    mngr.tear_down()
    assert leftovers == []


@pytest.fixture(scope="module")
def lab(vps_image: None, os_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderLab]:
    """An account of the local cloud for this test module, of which nothing is left afterwards."""
    lab = ProviderLab(tmp_path_factory.mktemp("lab"), os_id)
    try:
        yield lab
    finally:
        lab.tear_down()
    assert lab.leftovers() == []
