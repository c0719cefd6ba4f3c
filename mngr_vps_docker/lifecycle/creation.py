"""A host that is being created: the request, and how far it has come."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from imbue.mngr.interfaces.data_types import ActivityConfig
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.image import SnapshotSource
from imbue.mngr_vps_docker.ssh.command_log import operation
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A checked request for a host; only that none of ``others`` has its name is still to be checked."""

    host_id: HostId
    name: HostName
    build: ParsedBuildArgs
    image: str
    snapshot: SnapshotSource | None
    start_args: Sequence[str]
    tags: Mapping[str, str]
    activity: ActivityConfig
    others: Sequence[ObservedHost]
    authorized_keys: Sequence[str] = ()
    known_hosts: Sequence[str] = ()


@dataclass(slots=True)
class Creation:
    """How far the creation of a host has come."""

    context: ProviderContext
    request: CreateRequest
    entry: LocalHostRecord
    docker_ready: Future[None] = field(default_factory=Future)
    """Done once Docker is ready on the VPS; cancelled if the operation fails before."""
    image_pool: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))
    image_work: Future[str] | None = None
    vps_public_key: str = ""
    image: str = ""
    container: ContainerInfo | None = None
    record: VpsDockerHostRecord | None = None
    failed_step: str = ""
    leftovers: list[str] = field(default_factory=list)

    @property
    def host(self) -> HostAccess:
        """The ways to the host's machines, as far as they exist."""
        return HostAccess(self.context, ObservedHost(self.entry))

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.request.host_id

    def save(self, entry: LocalHostRecord) -> None:
        """Write what is now known of the host to disk, before anything else is done."""
        self.entry = self.context.local_store.write(entry)

    def begin_image_work(self, title: str, work: Callable[[], str]) -> None:
        """Prepare the image in the background, until ``stop_image_work``; its commands are logged as ``title``."""

        def run() -> str:
            with operation(title):
                return work()

        self.image_work = self.image_pool.submit(run)
        self.image_pool.shutdown(wait=False)

    def stop_image_work(self) -> None:
        """End the work in the background, on the VPS too; also if it was interrupted just as it began."""
        if self.image_work is not None and self.image_work.done():
            return
        self.docker_ready.cancel()
        if self.entry.vps_ip is not None:
            self.context.abandon_vps(self.entry.vps_ip, self.host_id)
        self.image_pool.shutdown()
