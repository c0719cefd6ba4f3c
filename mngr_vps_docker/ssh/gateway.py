"""Reaching a machine through another one, the gateway, over the shared connection to that."""

from collections.abc import Iterable

from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.ssh.master import SshMaster
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessRunner
from imbue.mngr_vps_docker.ssh.target import SshTarget, through


def by_way_of(gateway: SshTarget, target: SshTarget, host: str, runner: ProcessRunner) -> SshTarget:
    """``target`` as it is reached through ``gateway``, which knows it as ``host``; see ``through``."""
    return through(target, gateway, SshMaster(gateway, runner).control_path, host)


def forward(
    gateway: SshTarget,
    local_host: str,
    local_ports: Iterable[int],
    remote: tuple[str, int],
    runner: ProcessRunner,
) -> int:
    """Forward the first free one of ``local_ports`` here to an address and port that ``gateway`` sees; return it.

    The shared connection holds the port, and ends ``persist_seconds`` after the last command or connection over it:
    ask for the port right before each use, which is cheap. Raises VpsConnectionError if every port is taken, and the
    errors of a login.
    """
    master = SshMaster(gateway, runner)
    failure = master.open()
    if failure is not None:
        raise CommandOutcome(
            status=OutcomeStatus.NEVER_STARTED,
            argv=(),
            host=gateway.name,
            purpose="forward a port",
            elapsed_seconds=0.0,
            reason=failure.reason,
            detail=failure.detail,
        ).error()
    tried = list(local_ports)
    for port in tried:
        if master.forward((local_host, port), remote):
            return port
    raise VpsConnectionError(
        f"No port of this machine can be forwarded to {gateway.name}: all are taken ({', '.join(map(str, tried))});"
        " end the program that uses one of them"
    )
