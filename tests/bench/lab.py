"""Where the bench measures: local VPSes behind proxies, mngr's command line, and the provider without it."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import distant_vps
from bench.distance import address_from, remove_proxies
from bench.report import Series
from imbue.mngr_local_vps.engine import lines_of, run_docker
from imbue.mngr_local_vps.operating_systems import DEFAULT_OS
from imbue.mngr_vps_docker.ssh.command_log import LoggedCommand, read_log
from support.local_provider import LocalProvider, local_provider
from support.mngr_cli import MngrCli

_NEVER_IDLE_SECONDS = 86_400
_COUNT_LOGINS = """\
journalctl --unit ssh --no-pager | grep -c 'Accepted publickey'
cat /var/lib/docker/volumes/mngr-host-vol-*/_data/.sshd/log 2>/dev/null | grep -c 'Accepted publickey'
true
"""


@dataclass(frozen=True)
class DistantMngr(MngrCli):
    """mngr whose VPSes are ``round_trip_ms`` away; ``lab`` says how far that is."""

    lab: "Lab" = field(kw_only=True)

    def environment(self) -> dict[str, str]:
        return super().environment() | self.lab.environment


@dataclass
class Lab:
    """An account of the local cloud; its VPSes are all ``round_trip_ms`` away."""

    folder: Path
    rounds: int
    round_trip_ms: int = 0
    _groups: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.inventory = self.folder / "inventory.json"
        self.mngr = DistantMngr(self.folder / "cli", DEFAULT_OS, lab=self)
        self.account = self.mngr.account

    @property
    def environment(self) -> dict[str, str]:
        """What tells mngr of the backend of the bench, and the backend of the proxies."""
        return {
            "PYTHONPATH": os.pathsep.join((str(self.folder / "plugin"), str(Path(__file__).parents[1]))),
            distant_vps.INVENTORY_VARIABLE: str(self.inventory),
            distant_vps.ROUND_TRIP_VARIABLE: str(self.round_trip_ms),
        }

    def __enter__(self) -> "Lab":
        remove_proxies()
        self._groups.callback(self._tear_down)
        # A distribution that is on PYTHONPATH rather than installed.
        metadata = self.folder / "plugin" / "mngr_bench-0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mngr-bench\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text(f"[mngr]\ndistant_vps = {distant_vps.__name__}\n")
        self.mngr.set_up()
        self.use(distant_vps.BACKEND)
        return self

    def __exit__(self, *_error: object) -> None:
        self._groups.close()

    def use(self, backend: str) -> None:
        """Configure mngr with one backend, in addition to its own for this machine."""
        provider = "" if backend == "local" else (
            f'[providers.local-vps]\nbackend = "{backend}"\naccount = "{self.account}"\n'
            f"default_idle_timeout = {_NEVER_IDLE_SECONDS}\nssh_control_persist_seconds = 3600\n"
        )  # fmt: skip
        backends = json.dumps(sorted({"local", backend}))
        (self.mngr.profile / "settings.toml").write_text(f"enabled_backends = {backends}\n{provider}")

    def go_away(self, round_trip_ms: int) -> None:
        """Put every VPS, and each that is created from now on, at this distance."""
        self.round_trip_ms = round_trip_ms
        there = self.mngr.cloud.find_instances({})
        addresses = [address_from(self.account, str(instance.address), round_trip_ms) for instance in there]
        distant_vps.write_inventory(
            self.inventory,
            [
                instance.model_copy(update={"address": address})
                for instance, address in zip(there, addresses, strict=True)
            ],
        )

    def provider(self, machine: str = "api") -> LocalProvider:
        """The provider as a new process has it, without mngr's command line around it."""
        client = distant_vps.DistantVpsClient(
            account=self.account, inventory=self.inventory, round_trip_ms=self.round_trip_ms
        )
        provider: LocalProvider = local_provider(
            self.folder / machine, self.account, client, default_idle_timeout=_NEVER_IDLE_SECONDS
        )
        self._groups.enter_context(provider.mngr_ctx.concurrency_group)
        return provider

    def measured(self, act: Callable[[], object], before: Callable[[], object] = lambda: None) -> Series:
        """Time ``act`` as often as is wanted, each time after ``before``."""
        return self.side_by_side(before, act)[1]

    def side_by_side(self, *acts: Callable[[], object]) -> tuple[Series, ...]:
        """Time each of ``acts`` as often as is wanted, in turn: what the disk has left to do hits none alone."""
        seconds: list[list[float]] = [[] for _ in acts]
        for _ in range(self.rounds):
            for act, taken in zip(acts, seconds, strict=True):
                began = time.monotonic()
                act()
                taken.append(time.monotonic() - began)
        return tuple(Series(tuple(taken)) for taken in seconds)

    def commands(self) -> list[LoggedCommand]:
        """The command log of the command line's provider."""
        logs = self.mngr.host_dir.glob("profiles/*/providers/*/*/logs/ssh.jsonl")
        return [logged for log in logs for logged in read_log(log)]

    def logins(self) -> int:
        """How often anybody logged in to a VPS or to a container, by the servers' own logs."""
        return sum(sum(self.logins_to(str(instance.id))) for instance in self.mngr.cloud.find_instances({}))

    @staticmethod
    def logins_to(instance_id: str) -> tuple[int, ...]:
        """How often anybody logged in to one VPS, and to its container."""
        counted = run_docker("exec", instance_id, "sh", "-c", _COUNT_LOGINS)
        return tuple(int(line) for line in lines_of(counted))

    def _tear_down(self) -> None:
        remove_proxies()
        self.mngr.tear_down()


def counted(lab: Lab, act: Callable[[], Series]) -> tuple[Series, str]:
    """Measure something of the command line, and say what each time of it took in commands and logins."""
    commands, logins = len(lab.commands()), lab.logins()
    series = act()
    each = (len(lab.commands()) - commands) / lab.rounds
    return series, f"{each:g} commands, {(lab.logins() - logins) / lab.rounds:g} logins"
