"""The names of hosts: which there can be, and that no two hosts have one."""

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
    """Refuse a name that Docker, a cloud or DNS cannot carry; raises BuildArgumentError."""
    if not _HOST_NAME.fullmatch(name):
        raise BuildArgumentError(
            f"'{excerpt(name)}' cannot be a host name: use 1 to 58 letters, digits and hyphens, with no"
            " hyphen first or last"
        )


def check_name_is_free(name: HostName, others: Iterable[ObservedHost]) -> None:
    """Refuse a name that one of ``others`` has; raises HostNameConflictError."""
    if any(other.name == name and not other.is_gone for other in others):
        raise HostNameConflictError(name)


@contextmanager
def claiming_name(
    context: ProviderContext, name: HostName, host_id: HostId, others: Sequence[ObservedHost]
) -> Iterator[None]:
    """Give a host a name, by what is noted of it meanwhile; no other process of this machine does so at the time.

    ``others`` are the hosts as they were last seen. Raises HostNameConflictError if one of them has the name, or one
    that was noted since.
    """
    check_name_is_free(name, (other for other in others if other.host_id != host_id))
    passed_over = {host_id, *(other.host_id for other in others if other.is_gone)}
    with locked(context.keys.hosts_folder / "names.lock"):
        noted = (ObservedHost(entry) for entry in context.local_store.read_all() if entry.host_id not in passed_over)
        check_name_is_free(name, noted)
        yield
