from pathlib import Path

import pytest

from imbue.mngr_vps_docker.testing.local_machine import LocalMachine


@pytest.fixture
def machine(tmp_path: Path) -> LocalMachine:
    return LocalMachine(tmp_path)
