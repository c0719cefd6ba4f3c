"""One operation on a host in a process of its own, with at most one fault: see --help.

Prints the points that it met as JSON. Ends with 0 if the operation succeeded, 1 if it failed, 130 if it was
interrupted, and UNMET if it never came to its point.
"""

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from loguru import logger

from imbue.mngr.api.data_types import GcResourceTypes
from imbue.mngr.api.gc import gc
from imbue.mngr.errors import MngrError
from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import AgentId, ErrorBehavior, HostName, SnapshotName
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.cloud_resources import UploadedKey
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.ssh.command_log import operation
from imbue.mngr_vps_docker.ssh.process import run_process
from imbue.mngr_vps_docker.testing.faulty_client import Fault
from support.fault_points import FaultError, FaultKind, FaultPointClient, FaultPointRunner, FaultPoints
from support.local_provider import LocalProvider, local_provider, settings_of_os

SNAPSHOT = SnapshotName("s1")
# Of another host, in the same account.
SEED = SnapshotName("seed")
UNMET = 4
# What the cloud refuses while a host is made that is to be taken back.
REFUSAL = Fault("wait_for_instance_active", VpsApiError(503, "overload"))
MACHINES = GcResourceTypes(**dict.fromkeys(GcResourceTypes.model_fields, False) | {"is_machines": True})


def make_agent(provider: LocalProvider, host: Host) -> None:
    """The first agent, as far as it is a provider's matter: until there is one, mngr takes nothing back."""
    with operation("Making the first agent"):
        host.write_text_file(host.host_dir / "env", "A=b\n")
        provider.persist_agent_data(host.id, {"id": AgentId.generate(), "name": "a1"})


def create(provider: LocalProvider, name: HostName) -> None:
    make_agent(provider, provider.create_host(name))


def create_with_build(provider: LocalProvider, name: HostName) -> None:
    context = provider.mngr_ctx.profile_dir / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM mngr-agent:bookworm\nRUN touch /built\n")
    make_agent(provider, provider.create_host(name, build_args=[str(context)]))


def create_from_snapshot(provider: LocalProvider, name: HostName) -> None:
    make_agent(provider, provider.create_host(name, snapshot=SEED))


def take_back(provider: LocalProvider, name: HostName) -> None:
    """A create that fails half-way, and so is taken back."""
    with suppress(VpsProvisioningError):
        provider.create_host(name)


def collect_from_elsewhere(provider: LocalProvider, _name: HostName) -> None:
    """`mngr gc` of another machine, once no create that it has not made itself can be going on."""
    UploadedKey.may_be_in_use = property(lambda _key: False)  # type: ignore[assignment,method-assign]
    gc(provider.mngr_ctx, [provider], MACHINES, dry_run=False, error_behavior=ErrorBehavior.ABORT)


def destroy(provider: LocalProvider, name: HostName) -> None:
    provider.destroy_host(provider.get_host(name).id)


def stop(provider: LocalProvider, name: HostName) -> None:
    provider.stop_host(provider.get_host(name).id, create_snapshot=False, timeout_seconds=5)


def start(provider: LocalProvider, name: HostName) -> None:
    provider.start_host(provider.get_host(name).id)


def start_from_snapshot(provider: LocalProvider, name: HostName) -> None:
    host_id = provider.get_host(name).id
    provider.start_host(host_id, provider.list_snapshots(host_id)[0].id)


def start_without_container(provider: LocalProvider, name: HostName) -> None:
    provider.start_host(provider.get_host(name).id)


def snapshot(provider: LocalProvider, name: HostName) -> None:
    provider.create_snapshot(provider.get_host(name).id, SNAPSHOT)


def delete_snapshot(provider: LocalProvider, name: HostName) -> None:
    host_id = provider.get_host(name).id
    provider.delete_snapshot(host_id, provider.list_snapshots(host_id)[0].id)


OPERATIONS = {
    operation.__name__.replace("_", "-"): operation
    for operation in (
        *(create, create_with_build, create_from_snapshot, take_back, collect_from_elsewhere, destroy),
        *(stop, start, start_from_snapshot, start_without_container, snapshot, delete_snapshot),
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("host", type=HostName, help="its name")
    parser.add_argument("folder", type=Path, help="the profile of mngr")
    parser.add_argument("account", help="the account of the local cloud")
    parser.add_argument("os", help="the operating system of new VPSes")
    parser.add_argument("--point", help="where the fault is")
    parser.add_argument("--kind", type=FaultKind, default=FaultKind.ERROR, help="what it is")
    options = parser.parse_args()
    # As mngr shows it: the traceback of a failed create is for its log file.
    logger.remove()
    logger.add(sys.stderr, level="INFO")
    points = FaultPoints(options.point, options.kind)

    class FaultPointProvider(LocalProvider):
        @cached_property
        def _context(self) -> ProviderContext:
            return replace(super()._context, runner=FaultPointRunner(run_process, points))

    client = FaultPointClient(
        real=LocalVpsClient(account=options.account),
        points=points,
        faults=(REFUSAL,) if OPERATIONS[options.operation] is take_back else (),
    )
    provider = local_provider(
        options.folder,
        options.account,
        client,
        provider_class=FaultPointProvider,
        **settings_of_os(options.os),
    )
    exit_code = 0
    with provider.mngr_ctx.concurrency_group:
        try:
            OPERATIONS[options.operation](provider, options.host)
        except KeyboardInterrupt:
            exit_code = 130
        except (MngrError, FaultError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            exit_code = 1
    sys.stdout.write(json.dumps(points.met))
    return exit_code if options.point is None or points.is_met else UNMET


if __name__ == "__main__":
    sys.exit(main())
