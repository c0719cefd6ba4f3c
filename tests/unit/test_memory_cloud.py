"""The cloud of the unit tests fulfils the contract of a real one."""

import pytest

from imbue.mngr_vps_docker.testing.client_conformance import VpsClientConformance
from imbue.mngr_vps_docker.testing.faulty_client import FaultyClient
from support.memory_provider import MemoryCloud


class TestMemoryCloud(VpsClientConformance):
    region, plan, os_id = "anywhere", "any", 1
    has_snapshots = False

    @pytest.fixture
    def client(self) -> MemoryCloud:
        return MemoryCloud()


class TestCloudWhoseListingsLag(VpsClientConformance):
    region, plan, os_id = "anywhere", "any", 1
    has_snapshots = False

    @pytest.fixture
    def client(self) -> FaultyClient:
        return FaultyClient(real=MemoryCloud(), listing_lag_calls=1)
