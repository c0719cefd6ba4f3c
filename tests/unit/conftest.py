"""Fixtures that several unit tests share."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imbue.mngr.agents.base_agent import BaseAgent
from imbue.mngr.config.agent_class_registry import reset_agent_class_registry, set_default_agent_class
from imbue.mngr.primitives import HostId
from support.local_machine import LocalMachine
from support.world import World


@pytest.fixture
def machine(tmp_path: Path) -> LocalMachine:
    return LocalMachine(tmp_path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with ExitStack() as groups:
        monkeypatch.setenv("XDG_RUNTIME_DIR", groups.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        yield World(tmp_path, groups)
        # Threads that still ask a VPS write to the test's files.
        for thread in threading.enumerate():
            if thread.name in ("ask-vps", "ask-ahead"):
                thread.join(60)


@pytest.fixture
def corrupted(world: World) -> HostId:
    """A stopped host with one agent, some of whose data a test corrupts."""
    return world.add_host("bad")


@pytest.fixture
def healthy(world: World) -> HostId:
    """Another one, which must be shown whatever is wrong with the first."""
    return world.add_host("good", "192.0.2.2")


@pytest.fixture
def agent_types() -> Iterator[None]:
    """mngr knows agents of every type, as it does once its plugins are loaded."""
    set_default_agent_class(BaseAgent)
    yield
    reset_agent_class_registry()
