"""What several unit tests share."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.local_machine import LocalMachine


@pytest.fixture
def machine(tmp_path: Path) -> LocalMachine:
    return LocalMachine(tmp_path)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with ExitStack() as groups:
        monkeypatch.setenv("XDG_RUNTIME_DIR", groups.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        yield Fleet(tmp_path, groups)
        # What still asks a VPS in the background writes where this test's files are.
        for thread in threading.enumerate():
            if thread.name in ("ask-vps", "ask-ahead"):
                thread.join(60)
