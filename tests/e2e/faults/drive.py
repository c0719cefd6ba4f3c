"""One operation on a host in a process of its own, with at most one fault: see --help.

Prints the points that it met as JSON. Ends with 0 if the operation succeeded, 1 if it failed, 130 if it was
interrupted, and UNMET if it never came to its point.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from loguru import logger
from support.local_provider import local_provider

from imbue.mngr.errors import MngrError
from imbue.mngr.primitives import HostName
from imbue.mngr.primitives import SnapshotName
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.local_vps.client import LocalVpsClient
from imbue.mngr_vps_docker.local_vps.provider import LocalVpsProvider
from imbue.mngr_vps_docker.ssh.process import run_process
from imbue.mngr_vps_docker.testing.fault_points import FaultError
from imbue.mngr_vps_docker.testing.fault_points import FaultKind
from imbue.mngr_vps_docker.testing.fault_points import FaultPointClient
from imbue.mngr_vps_docker.testing.fault_points import FaultPointRunner
from imbue.mngr_vps_docker.testing.fault_points import FaultPoints

SNAPSHOT = SnapshotName("s1")
UNMET = 4


def create(provider: LocalVpsProvider, name: HostName) -> None:
    provider.create_host(name)


def destroy(provider: LocalVpsProvider, name: HostName) -> None:
    provider.destroy_host(provider.get_host(name).id)


def stop(provider: LocalVpsProvider, name: HostName) -> None:
    provider.stop_host(provider.get_host(name).id, create_snapshot=False, timeout_seconds=5)


def start(provider: LocalVpsProvider, name: HostName) -> None:
    provider.start_host(provider.get_host(name).id)


def snapshot(provider: LocalVpsProvider, name: HostName) -> None:
    provider.create_snapshot(provider.get_host(name).id, SNAPSHOT)


def delete_snapshot(provider: LocalVpsProvider, name: HostName) -> None:
    host_id = provider.get_host(name).id
    provider.delete_snapshot(host_id, provider.list_snapshots(host_id)[0].id)


OPERATIONS = {
    operation.__name__.replace("_", "-"): operation
    for operation in (create, destroy, stop, start, snapshot, delete_snapshot)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("host", type=HostName, help="its name")
    parser.add_argument("folder", type=Path, help="the profile of mngr")
    parser.add_argument("account", help="the account of the local cloud")
    parser.add_argument("--point", help="where the fault is")
    parser.add_argument("--kind", type=FaultKind, default=FaultKind.ERROR, help="what it is")
    options = parser.parse_args()
    # As mngr shows it: the traceback of a failed create is for its log file.
    logger.remove()
    logger.add(sys.stderr, level="INFO")
    points = FaultPoints(options.point, options.kind)

    class FaultPointProvider(LocalVpsProvider):
        @cached_property
        def _context(self) -> ProviderContext:
            return replace(super()._context, runner=FaultPointRunner(run_process, points))

    client = FaultPointClient(real=LocalVpsClient(account=options.account), points=points)
    provider = local_provider(options.folder, options.account, client, provider_class=FaultPointProvider)
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
