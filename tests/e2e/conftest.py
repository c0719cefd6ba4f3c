"""What end-to-end tests share: a Docker engine, the image of local VPSes, and mngr's command line."""

import subprocess
from collections.abc import Iterator

import pytest
from support.mngr_cli import MngrCli
from support.provider import ProviderLab

from imbue.mngr_vps_docker.local_vps.images import ensure_images


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


@pytest.fixture(scope="session")
def vps_image(engine: None) -> None:
    """The image that local VPSes boot from; building it takes minutes where it is not there yet."""
    ensure_images(lambda _: None)


@pytest.fixture(scope="module")
def mngr(vps_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MngrCli]:
    """mngr with an account of this test module's own, of which nothing is left afterwards."""
    cli = MngrCli(tmp_path_factory.mktemp("mngr"))
    try:
        cli.set_up()
        yield cli
    finally:
        cli.tear_down()


@pytest.fixture(scope="module")
def lab(vps_image: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderLab]:
    """An account of the local cloud of this test module's own, of which nothing is left afterwards."""
    lab = ProviderLab(tmp_path_factory.mktemp("lab"))
    try:
        yield lab
    finally:
        lab.tear_down()
    assert lab.leftovers() == []
