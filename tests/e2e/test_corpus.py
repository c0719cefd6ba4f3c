"""Images of the kinds that people use for agents, each in a folder of ``tests/images``, from create to snapshot.

A folder has a Dockerfile, what that needs, and ``image.toml``: ``build_args`` and ``start_args`` of create, if there
are any, a ``command`` and what it ``prints``, and the operating systems of VPSes, if there are any, on which it cannot
work (``not_on``). Nothing is fetched while an image is built: scripts stand for tools.
"""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import AgentId, HostName, HostState
from support.kept_vps import KeptVpsClient
from support.local_provider import LocalProvider
from support.operating_system import CHOSEN_OS
from support.provider import ProviderLab

# What `make test` runs; `make test-images` runs all.
FEW = {"buildkit", "devcontainer", "multi-stage", "odd-environment", "python-uv", "volumes"}


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "image.toml").read_text())


def is_chosen(folder: Path) -> bool:
    is_asked_for = folder.name in FEW or os.environ.get("MNGR_TEST_IMAGES") == "all"
    return is_asked_for and CHOSEN_OS not in read(folder).get("not_on", [])


CHOSEN = [folder for folder in sorted(Path(__file__).parents[1].joinpath("images").iterdir()) if is_chosen(folder)]
# What mngr asks of an agent when it runs a command for it.
AGENT: Any = SimpleNamespace(id=AgentId.generate())
# Not on the volume, so that it is in a snapshot.
MARK = Path("/srv/mark")


@pytest.fixture(scope="module")
def provider(lab: ProviderLab) -> Iterator[LocalProvider]:
    """A provider whose hosts are all on one VPS, one after the other."""
    client = KeptVpsClient(account=lab.account)
    yield lab.process(client)
    client.remove()


@pytest.mark.parametrize("folder", CHOSEN, ids=lambda folder: folder.name)
def test_an_image_works_from_create_to_a_start_from_its_snapshot(provider: LocalProvider, folder: Path) -> None:
    image = read(folder)

    def check(host: Host) -> None:
        # As `mngr exec` has it.
        prefix = host.build_source_env_prefix(AGENT)
        result = host.execute_stateful_command(f"{prefix}{image['command']}")
        assert result.stdout == image["prints"].strip("\n"), result.stderr

    host = provider.create_host(
        HostName(folder.name),
        build_args=[*image.get("build_args", []), str(folder)],
        start_args=image.get("start_args", []),
    )
    try:
        check(host)
        host.write_file(MARK, b"in the snapshot\n")
        snapshot = provider.create_snapshot(host)
        provider.stop_host(host, create_snapshot=False)
        (found,) = provider.discover_hosts(provider.mngr_ctx.concurrency_group)
        assert found.host_state is HostState.STOPPED
        host = provider.start_host(host)
        check(host)
        host.write_file(MARK, b"after it\n")
        provider.stop_host(host, create_snapshot=False)
        host = provider.start_host(host, snapshot)
        check(host)
        assert host.read_file(MARK) == b"in the snapshot\n"
    finally:
        provider.destroy_host(host)
