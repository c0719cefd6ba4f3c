"""A host that is being made: what was asked for, and how far it has come."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imbue.mngr.interfaces.data_types import ActivityConfig
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.hosts.host_access import HostAccess, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.background import BackgroundWork, Milestone
from imbue.mngr_vps_docker.lifecycle.image import SnapshotSource
from imbue.mngr_vps_docker.state.local_store import LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A host that was asked for, everything about it already checked but that none of ``others`` has its name."""

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
    is_docker_ready: Milestone = field(default_factory=Milestone)
    image_work: BackgroundWork[str] | None = None
    vps_public_key: str = ""
    image: str = ""
    container: ContainerInfo | None = None
    record: VpsDockerHostRecord | None = None
    failed_step: str = ""
    leftovers: list[str] = field(default_factory=list)

    @property
    def host(self) -> HostAccess:
        """The ways to the host's machines, as far as it is made."""
        return HostAccess(self.context, ObservedHost(self.entry))

    @property
    def address(self) -> str:
        """The address of the VPS; raises VpsDockerError if it is not known yet."""
        return self.host.address

    @property
    def host_id(self) -> HostId:
        """The host's id."""
        return self.request.host_id

    def save(self, entry: LocalHostRecord) -> None:
        """Put what is now known of the host on disk, before anything else is done."""
        self.entry = self.context.local_store.write(entry)

    def begin_image_work(self, title: str, work: Callable[[], str]) -> None:
        """Have the image prepared in the background from now on, until ``stop_image_work``."""
        # It is known before it begins: whoever is interrupted at its very beginning ends it, too.
        self.image_work = BackgroundWork(title, work)
        self.image_work.start()

    def stop_image_work(self) -> None:
        """End what is still being done in the background, on the VPS too."""
        if self.image_work is not None and not self.image_work.is_over:
            self.is_docker_ready.abandon()
            self.context.abandon_vps(self.address, self.host_id)
            self.image_work.wait_until_over()
