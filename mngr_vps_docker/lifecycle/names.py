"""Names of hosts: which are valid, and that no two hosts share one."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from imbue.mngr.errors import HostNameConflictError
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.files import locked
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.text import excerpt

# The instance's label is "mngr-<name>" and becomes its host name: 63 letters, digits and hyphens by RFC 1123.
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,56}[A-Za-z0-9])?", re.ASCII)


def check_host_name(name: HostName) -> None:
    """Raise BuildArgumentError for a name that Docker, a cloud or DNS does not accept."""
    if not _HOST_NAME.fullmatch(name):
        raise BuildArgumentError(
            f"'{excerpt(name)}' cannot be a host name: use 1 to 58 letters, digits and hyphens, with no"
            " hyphen first or last"
        )


def check_name_is_free(name: HostName, others: Iterable[ObservedHost]) -> None:
    """Raise HostNameConflictError for a name that one of ``others`` has."""
    if any(other.name == name and not other.is_gone for other in others):
        raise HostNameConflictError(name)


@contextmanager
def claiming_name(
    context: ProviderContext, name: HostName, host_id: HostId, others: Sequence[ObservedHost]
) -> Iterator[None]:
    """Hold this machine's lock of names; what is written while it is held gives a host its name.

    ``others`` are the hosts as last seen. Raises HostNameConflictError if one of them, or one that was saved since,
    has the name.
    """
    check_name_is_free(name, (other for other in others if other.host_id != host_id))
    skipped = {host_id, *(other.host_id for other in others if other.is_gone)}
    with locked(context.keys.hosts_folder / "names.lock"):
        saved = (ObservedHost(entry) for entry in context.local_store.read_all() if entry.host_id not in skipped)
        check_name_is_free(name, saved)
        yield
