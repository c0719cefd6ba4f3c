"""A frozen VPS delays no other host, through mngr's command line.

Under this package's own listing, and under that of a provider package which lists by itself. What is counted is how
often the silent machine was waited for, and for how long each time, by the command log.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import support
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.ssh.command_log import read_log
from support.mngr_cli import MngrCli
from support.provider import freeze

CONNECT_TIMEOUT_SECONDS = 15


@dataclass(frozen=True)
class Pair:
    """Two hosts, each with an agent: ``well`` keeps answering, the VPS of ``silent`` freezes."""

    mngr: MngrCli
    provider: str

    def row(self, agent: str) -> dict[str, Any]:
        """What `mngr list` shows of an agent."""
        rows: dict[str, dict[str, Any]] = {row["name"]: row for row in self.mngr.agents()}
        return rows[agent]

    def vps(self, host: str) -> str:
        (instance,) = (one.id for one in self.mngr.cloud.find_instances({}) if one.tags["mngr-host-name"] == host)
        return instance

    def waits(self, *arguments: str, is_failure_expected: bool = False) -> list[int]:
        """How many seconds a command may wait for the silent VPS, for each time that it got no answer."""
        (log,) = self.mngr.profile.glob("providers/*/*/logs/ssh.jsonl")
        before = len(list(read_log(log)))
        silent = self.vps("silent")
        address = next(vps.address for vps in self.mngr.cloud.find_instances({}) if vps.id == silent)
        self.mngr(*arguments, is_failure_expected=is_failure_expected)
        return [
            int(word.partition("=")[2])
            for logged in list(read_log(log))[before:]
            if str(address) in logged.machine and logged.outcome != "COMPLETED"
            for word in logged.argv
            if word.startswith("ConnectTimeout=")
        ]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        vps = self.vps("silent")
        freeze(vps)
        try:
            yield
        finally:
            subprocess.run(("docker", "unpause", vps), check=False, capture_output=True, timeout=60)


def with_listing_of(*backends: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", backends, indirect=True, scope="module")


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, vps_image: None, os_id: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    package = Path(support.__path__[0]) / "listing_package"
    mngr = MngrCli(tmp_path_factory.mktemp("mngr"), os_id, backend=request.param, packages=package)
    try:
        mngr.set_up(f"ssh_connect_timeout = {CONNECT_TIMEOUT_SECONDS}")
        for name in ("well", "silent"):
            agent = ("--type", "command", "--no-connect", "--", "sleep", "100000")
            mngr("create", f"{name}@{name}.{request.param}", "--new-host", *agent)
        yield Pair(mngr, request.param)
    finally:
        mngr.tear_down()


@with_listing_of("local-vps", "listing-vps")
def test_a_frozen_vps_is_waited_for_briefly_and_shown_as_it_was_last_seen(pair: Pair) -> None:
    with pair.frozen():
        first, second = pair.waits("list"), pair.waits("list")
        assert first[:1] == [3]
        assert set(first[1:] + second) <= {2}
        row = pair.row("silent")
        assert row["host"]["state"] == "RUNNING"
        assert re.match(r"unreachable since 2\d{3}-", row["host"]["failure_reason"])
        assert pair.row("well")["state"] == "WAITING"

        assert pair.mngr("exec", "well", "echo fine") == "fine\nCommand succeeded on agent well\n"
        waits = pair.waits("exec", "silent", "true", is_failure_expected=True)
        # The one long wait is the command's own.
        (long,) = (wait for wait in waits if wait != 2)
        assert long <= CONNECT_TIMEOUT_SECONDS
    # The first list that follows sees it again.
    assert pair.row("silent")["host"]["failure_reason"] is None
    assert pair.mngr("exec", "silent", "echo back") == "back\nCommand succeeded on agent silent\n"


@with_listing_of("local-vps")
def test_a_command_on_a_vps_that_freezes_just_now_waits_once(pair: Pair) -> None:
    pair.mngr("list")
    with pair.frozen():
        waits = pair.waits("start", "silent", is_failure_expected=True)
        # Those of 2 s are in the background.
        assert sum(wait for wait in waits if wait != 2) <= CONNECT_TIMEOUT_SECONDS
    pair.mngr("list")


@with_listing_of("local-vps")
def test_a_vps_that_talks_without_end_is_waited_for_briefly(pair: Pair) -> None:
    docker = "/usr/bin/docker"
    run_docker("exec", pair.vps("silent"), "sh", "-c", f"mv {docker} {docker}.real; ln -s /usr/bin/yes {docker}")
    try:
        assert set(pair.waits("list")) <= {3, 2}
        assert set(pair.waits("list")) <= {2}
        assert "unreachable since" in pair.row("silent")["host"]["failure_reason"]
        assert pair.row("well")["state"] == "WAITING"
    finally:
        run_docker("exec", pair.vps("silent"), "mv", f"{docker}.real", docker)
    pair.mngr("list")


@with_listing_of("local-vps", "listing-vps")
def test_destroy_does_not_wait_for_a_vps_that_does_not_answer(pair: Pair) -> None:
    with pair.frozen():
        pair.mngr("list")
        # It is asked in the background of a listing, which is cut short, and for nothing else.
        assert set(pair.waits("destroy", "silent", "--force")) <= {2}
    assert [row["name"] for row in pair.mngr.agents()] == ["well"]
