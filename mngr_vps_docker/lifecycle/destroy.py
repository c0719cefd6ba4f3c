"""Destroying a host and all that was made for it, in an order that keeps it findable while anything is billed."""

from imbue.mngr.errors import MngrError
from imbue.mngr_vps_docker.errors import VpsDockerError, describe_error
from imbue.mngr_vps_docker.hosts.cloud_resources import delete_instance_of, delete_key_of
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.steps import Step, run_steps
from imbue.mngr_vps_docker.primitives import replace
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.text import logger


def destroy_host(context: ProviderContext, entry: LocalHostRecord) -> None:
    """Remove the VPS of a host and everything else that was made for it. Works without ssh; idempotent.

    ``entry`` is what was known of the host. Raises VpsDockerError, naming what remains, when something that costs
    money remains; the host then stays known.
    """
    was_known = context.local_store.read(entry.host_id) is not None
    context.local_store.wait_until_unused(entry.host_id, context.timings.use_seconds)
    with context.local_store.ownership(entry.host_id):
        # The previous owner may have saved more, or have removed the host.
        newer = context.local_store.read(entry.host_id)
        if newer is None and was_known:
            context.local_store.forget(entry.host_id)
            return
        try:
            host = HostAccess(context, ObservedHost(newer or entry))
            run_steps(DESTROY_STEPS, host, on_failure=lambda *_: False)
        # A provider package's client may raise anything, and the user gets one clear line of it.
        except Exception as error:
            raise VpsDockerError(
                f"Host {entry.host_name} is not fully destroyed, try again: {describe_error(error)}"
            ) from error


def delete_host(context: ProviderContext, observed: ObservedHost) -> None:
    """Destroy a host that holds no data (gone, unfinished, or stopped without agents); raises MngrError for others."""
    if not observed.may_be_deleted:
        found = f"it is {observed.state.value.lower()} and has {len(observed.known_agents)} agents"
        raise MngrError(f"Host {observed.name} is not deleted: {observed.problem or found}")
    destroy_host(context, observed.entry)


def forget_host(context: ProviderContext, entry: LocalHostRecord) -> None:
    """Remove what this machine keeps of a host: keys, pinned host keys, shared connections and records."""
    try:
        context.close_connections(entry.host_id, entry.vps_ip)
    except (VpsDockerError, OSError) as error:
        # They end by themselves some time after their machine.
        logger.debug("Connections to {} stay open: {}", entry.host_name, error)
    context.unpin(entry.host_id, entry.vps_ip, entry.record)
    context.local_store.forget(entry.host_id)


def _mark(host: HostAccess) -> None:
    entry = host.observed.entry
    try:
        host.context.local_store.write(replace(entry, phase=HostPhase.DESTROYING))
    except OSError as error:
        # Such as a full disk. What is billed is removed all the same, and the file as it was still names it.
        logger.warning("It cannot be saved that {} is being destroyed: {}", entry.host_name, error)


# The key goes after the VPS: as long as it is there, it tells other machines that the host was never finished.
DESTROY_STEPS: tuple[Step[HostAccess], ...] = (
    Step("Noting that the host is to go", _mark),
    Step("Destroying the VPS", lambda host: delete_instance_of(host.context, host.observed.entry)),
    Step("Taking its public key from the cloud", lambda host: delete_key_of(host.context, host.observed.entry)),
    Step("Forgetting its keys and notes", lambda host: forget_host(host.context, host.observed.entry)),
)
