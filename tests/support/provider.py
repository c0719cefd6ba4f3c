"""Hosts created and used through the provider's methods, by several processes and machines."""

import secrets
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imbue.mngr.api.data_types import GcResourceTypes
from imbue.mngr.api.gc import gc
from imbue.mngr.primitives import ErrorBehavior, HostId, HostState
from imbue.mngr_local_vps.clean import clean
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.engine import lines_of, run_docker
from imbue.mngr_local_vps.labels import ACCOUNT_LABEL
from imbue.mngr_vps_docker.hosts.timings import Timings
from imbue.mngr_vps_docker.vps_client import VpsClientInterface
from support.local_provider import LocalProvider, local_provider, settings_of_os
from support.remote import wait_for

BOOT_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class ProviderLab:
    """An account of the local cloud of its own, with VPSes of one operating system, and machines that use it: folders
    below ``folder``.
    """

    folder: Path
    os_id: str
    account: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    timings: Timings = field(default_factory=Timings)
    _groups: ExitStack = field(default_factory=ExitStack)

    def process(
        self,
        client: VpsClientInterface | None = None,
        *,
        machine: str = "here",
        provider_class: type[LocalProvider] = LocalProvider,
        timings: Timings | None = None,
        **settings: Any,
    ) -> LocalProvider:
        """The provider as a new process on ``machine`` has it, with nothing in memory."""
        folder, cloud = self.folder / machine, client or self.cloud
        settings = settings_of_os(self.os_id) | settings
        process = local_provider(
            folder, self.account, cloud, provider_class=provider_class, timings=timings or self.timings, **settings
        )
        self._groups.enter_context(process.mngr_ctx.concurrency_group)
        self._groups.callback(lambda: [connection.close() for connection in process.context._connections.values()])
        return process

    @property
    def cloud(self) -> LocalVpsClient:
        """This account of the local cloud."""
        return LocalVpsClient(account=self.account)

    def instance_of(self, host_id: HostId) -> str:
        """The engine's name of the container that is the VPS of a host."""
        (instance,) = self.cloud.find_instances({"mngr-host-id": host_id})
        return instance.id

    def on_vps(self, host_id: HostId, command: str) -> str:
        """Run a command on the VPS of a host by the engine, without ssh."""
        return run_docker("exec", self.instance_of(host_id), "sh", "-c", command)

    def in_container(self, host_id: HostId, command: str) -> str:
        """Run a command in the container of a host, without ssh."""
        listing = f"docker ps --quiet --filter label=com.imbue.mngr.host-id={host_id}"
        return self.on_vps(host_id, f"docker exec $({listing}) sh -c '{command}'")

    def state_of(self, host_id: HostId) -> HostState | None:
        """The state in which a new process sees a host; None if it is not listed."""
        return states(self.process()).get(host_id)

    def wait_for_vps(self, host_id: HostId) -> None:
        """Wait until sshd and Docker of a VPS that was rebooted answer again."""
        answers = "docker info >/dev/null 2>&1 && systemctl is-active --quiet ssh"

        def is_up() -> bool:
            argv = ("docker", "exec", self.instance_of(host_id), "sh", "-c", answers)
            return subprocess.run(argv, capture_output=True, timeout=BOOT_TIMEOUT_SECONDS).returncode == 0

        wait_for(is_up, BOOT_TIMEOUT_SECONDS)

    def leftovers(self) -> list[str]:
        """What is left of hosts: on the engine, and in the folder of the machine that made them."""
        account = f"--filter=label={ACCOUNT_LABEL}={self.account}"
        engine = [
            name
            for listing in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
            for name in lines_of(run_docker(*listing, "--quiet", account))
        ]
        pinned = [
            line for path in (self.folder / "here").rglob("*known_hosts") for line in path.read_text().splitlines()
        ]
        return [*engine, *pinned, *(str(path) for path in (self.folder / "here").rglob("hosts/host-*"))]

    def tear_down(self) -> None:
        """Remove everything that the account has on the engine, and end what the processes have open."""
        try:
            for host_id in states(self.process()):
                self.process().destroy_host(host_id)
        finally:
            for _ in clean(self.account):
                pass
            self._groups.close()


def freeze(instance: str) -> None:
    """Freeze a VPS. The kernel may need several tries on a busy machine."""

    def is_frozen() -> bool:
        return subprocess.run(("docker", "pause", instance), capture_output=True, timeout=60).returncode == 0

    wait_for(is_frozen, 60)


def collect_garbage(provider: LocalProvider) -> None:
    """`mngr gc`, which ends at the first error."""
    everything = GcResourceTypes(**dict.fromkeys(GcResourceTypes.model_fields, True))
    gc(provider.mngr_ctx, [provider], everything, dry_run=False, error_behavior=ErrorBehavior.ABORT)


def states(provider: LocalProvider, *, include_destroyed: bool = False) -> dict[HostId, HostState | None]:
    """What a provider lists, by host id."""
    hosts = provider.discover_hosts(provider.mngr_ctx.concurrency_group, include_destroyed)
    return {host.host_id: host.host_state for host in hosts}


def copy_machine(lab: ProviderLab, machine: str) -> None:
    """Give another machine all that the first one knows by now."""
    shutil.copytree(lab.folder / "here", lab.folder / machine)


def copy_keys_of_vps(lab: ProviderLab, machine: str, *others: str) -> None:
    """Give another machine what logs in to the VPSes, but no host's own keys and no notes."""
    here = lab.folder / "here"
    for path in (*here.glob("providers/*/*/keys/*"), *(here / other for other in others)):
        copy = lab.folder / machine / path.relative_to(here)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
