"""Settings of all tests: no deadlines, and in continuous integration a skip is a failure."""

import gc
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from support.operating_system import CORE_SYSTEMS

# No test depends on how fast a machine is. `make test-fast` tries fewer examples of each property than `make test`.
settings.register_profile("unhurried", deadline=None)
settings.register_profile("quick", settings.get_profile("unhurried"), max_examples=30)
settings.load_profile("unhurried")

# Four times what the fast tests write.
MEMORY_BYTES = 1 << 30

IS_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the files of the fast tests in memory where possible: on a disk they take a tenth longer."""
    is_quick = config.getoption("hypothesis_profile", None) == "quick"
    memory = Path("/dev/shm")
    if is_quick and config.option.basetemp is None and _can_hold_files(memory):
        config.option.basetemp = tempfile.mkdtemp(prefix="mngr-test-", dir=memory)
        config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


def _can_hold_files(folder: Path) -> bool:
    """Whether a folder has room and may hold programs."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    place = os.statvfs(folder)
    return place.f_bavail * place.f_frsize > MEMORY_BYTES and not place.f_flag & os.ST_NOEXEC


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the tests that wait for an sshd evenly among those that compute, so that they run in parallel."""
    tiers = [[item for item in items if item.nodeid.startswith(f"tests/{tier}/")] for tier in ("ssh", "unit")]
    places = {item: number / len(tier) for tier in tiers for number, item in enumerate(tier)}
    # All others stay first, in their order.
    items.sort(key=lambda item: places.get(item, -1.0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Let two processes run the tests of one module with VPSes of two operating systems."""
    return _ByModuleAndSystem(config, log) if config.getoption("dist") == "loadscope" else None


class _ByModuleAndSystem(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        system = next((os_id for os_id in CORE_SYSTEMS if f"[{os_id}" in test), "")
        return f"{module} {system}"


def pytest_collection_finish() -> None:
    """Exclude modules and tests, which stay to the end, from garbage collection."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``CI=true`` turn a skip into a failure that gives the reason of the skip."""
    report = yield
    if IS_CI and report.skipped and not hasattr(report, "wasxfail"):
        _fail_for_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself while it is collected."""
    report = yield
    if IS_CI and report.skipped:
        _fail_for_skipping(report)
    return report


def _fail_for_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longreprtext,)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, and under CI=true a skip is a failure. {reason}"
