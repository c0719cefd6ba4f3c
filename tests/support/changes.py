"""Many changes to one host, one after the other, in a process of its own; prints what must be there afterwards."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import AgentId, HostId, HostName, SnapshotName
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.errors import VpsConnectionError
from support.local_provider import LocalProvider, local_provider

_MOST_ATTEMPTS = 30


class Changes:
    """One process's own tags, agents, plugin data, work folders and snapshots of a host that others change, too.

    Of its name and its idle time-out, which all of them change, ``names`` and ``limits`` are what this one has set.
    """

    def __init__(self, provider: LocalProvider, host_id: HostId, worker: str) -> None:
        self.provider = provider
        self.host_id = host_id
        self.worker = worker
        self.tags: dict[str, str] = {}
        self.agents: list[dict[str, Any]] = []
        self.plugins: dict[str, dict[str, int]] = {}
        self.work_dirs: list[str] = []
        self.snapshots: list[str] = []
        self.names: list[str] = []
        self.limits: list[int] = []

    def set_tag(self, number: int) -> None:
        self.tags[f"{self.worker}-{number}"] = "é' \\"
        self.provider.add_tags_to_host(self.host_id, {f"{self.worker}-{number}": "é' \\"})

    def remove_tag(self, number: int) -> None:
        key = self.tags.popitem()[0]
        self.provider.remove_tags_from_host(self.host_id, [key])

    def keep_agent(self, number: int) -> None:
        data = {"id": AgentId.generate(), "name": f"{self.worker}-{number}", "type": "command", "work_dir": "/"}
        self.agents.append(data)
        self.provider.persist_agent_data(self.host_id, data)

    def forget_agent(self, number: int) -> None:
        self.provider.remove_persisted_agent_data(self.host_id, self.agents.pop()["id"])

    def set_plugin_data(self, number: int) -> None:
        self.plugins[f"{self.worker}-{number}"] = {"number": number}

        def with_plugin(data: CertifiedHostData) -> CertifiedHostData:
            return data.model_copy(update={"plugin": {**data.plugin, f"{self.worker}-{number}": {"number": number}}})

        self._change(with_plugin)

    def add_work_dir(self, number: int) -> None:
        folder = f"/{self.worker}/{number}"
        self.work_dirs.append(folder)
        self._change(lambda data: data.model_copy(update={"generated_work_dirs": (*data.generated_work_dirs, folder)}))

    def rename(self, number: int) -> None:
        self.names.append(f"{self.worker}-{number}")
        self.provider.rename_host(self.host_id, HostName(self.names[-1]))

    def limit(self, number: int) -> None:
        self.limits.append(1_000_000 + 1_000 * int(self.worker.removeprefix("w")) + number)
        self._change(lambda data: data.model_copy(update={"idle_timeout_seconds": self.limits[-1]}))

    def take_snapshot(self, number: int) -> None:
        self.snapshots.append(f"{self.worker}-{number}")
        self.provider.create_snapshot(self.host_id, SnapshotName(f"{self.worker}-{number}"))

    def stop_and_start(self, number: int) -> None:
        self.provider.stop_host(self.host_id, create_snapshot=False)
        self.provider.start_host(self.host_id)

    def _change(self, change: Callable[[CertifiedHostData], CertifiedHostData]) -> None:
        """As mngr does it: on the host, which is started if it does not run."""
        for _ in range(_MOST_ATTEMPTS):
            host = self.provider.get_host(self.host_id)
            try:
                return host.set_certified_data(change(host.get_certified_data()))
            except VpsConnectionError:
                self.provider.start_host(self.host_id)
        raise AssertionError("the host was stopped each time before it could be changed")


KINDS = (
    Changes.set_tag,
    *([Changes.keep_agent] * 3),
    Changes.set_tag,
    Changes.remove_tag,
    Changes.forget_agent,
    Changes.set_plugin_data,
    Changes.keep_agent,
    Changes.add_work_dir,
    Changes.rename,
    Changes.limit,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the profile of mngr")
    parser.add_argument("account", help="the account of the local cloud")
    parser.add_argument("host", type=HostId)
    parser.add_argument("worker", help="the name of this process")
    parser.add_argument("count", type=int, help="how many changes to make")
    options = parser.parse_args()
    provider: LocalProvider = local_provider(options.folder, options.account, LocalVpsClient(account=options.account))
    with provider.mngr_ctx.concurrency_group:
        changes = Changes(provider, options.host, options.worker)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for number in range(options.count):
            change = KINDS[number % len(KINDS)]
            if number == options.count // 3:
                change = Changes.take_snapshot
            elif number == options.count // 2:
                change = Changes.stop_and_start
            change(changes, number)
    result = {name: value for name, value in vars(changes).items() if isinstance(value, list | dict)}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
