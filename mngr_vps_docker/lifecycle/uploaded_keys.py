"""The public keys that the cloud holds for us: each from the beginning of a create until just before its end.

So a key that is there says, to any machine that has only the cloud's credentials, that its host was never finished;
and its name says whose it is, since when, and for how long at most, which a cloud need not tell.
"""

import math
import re
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Final

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.journal import HostPhase
from imbue.mngr_vps_docker.journal import JournalEntry
from imbue.mngr_vps_docker.lifecycle.context import ProviderContext
from imbue.mngr_vps_docker.lifecycle.destroy import delete_key_of
from imbue.mngr_vps_docker.lifecycle.steps import describe_error
from imbue.mngr_vps_docker.terminal import logger

# Earlier keys do not say how long; then as long as this machine's own would take.
_NAME: Final = re.compile(r"mngr-(host-[0-9a-f]{32})-(\d{10,11})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class UploadedKey:
    """One of our public keys at the cloud."""

    id: str
    name: str
    created_at: datetime
    longest_create_seconds: float

    @property
    def may_be_in_use(self) -> bool:
        """Whether the create that it is for, of which only the cloud tells, can still be going on."""
        return datetime.now(UTC) - self.created_at < timedelta(seconds=self.longest_create_seconds)


def key_name(host_id: HostId, created_at: datetime, longest_create_seconds: float) -> str:
    """Under which name the cloud gets the public key for a host.

    Its creation began at ``created_at`` and takes ``longest_create_seconds`` at most: machines may differ in that.
    """
    return f"mngr-{host_id}-{int(created_at.timestamp())}-{math.ceil(longest_create_seconds)}"


def uploaded_keys(context: ProviderContext) -> Mapping[HostId, UploadedKey]:
    """The keys of hosts that are being made, or were never finished, by host.

    A cloud that does not tell leaves every host the benefit of the doubt: it counts as finished.
    """
    try:
        listed = context.client.list_ssh_keys()
    # A provider package's client may raise anything, and what exists can be shown all the same.
    except Exception as error:  # noqa: BLE001
        logger.warning("Whether hosts were left unfinished by other machines is unknown: {}", describe_error(error))
        return {}
    named = ((key, _NAME.fullmatch(key.name)) for key in listed)
    return {
        HostId(name.group(1)): UploadedKey(
            id=key.id,
            name=key.name,
            created_at=datetime.fromtimestamp(int(name.group(2)), UTC),
            longest_create_seconds=float(name.group(3) or context.config.longest_create_seconds),
        )
        for key, name in named
        if name is not None
    }


def take_key_back(context: ProviderContext, entry: JournalEntry) -> None:
    """Remove the uploaded key of a host that is finished, and note it; raises VpsDockerError if it may still be there.

    It stays noted then. As long as it is there, other machines take the host for one that was never finished.
    """
    delete_key_of(context, entry)
    context.journal.update(entry.host_id, ssh_key_id=None, ssh_key_name=None)


def take_left_keys_back(context: ProviderContext, entries: Iterable[JournalEntry]) -> None:
    """Try again what the creates of finished hosts could not."""
    for entry in entries:
        if entry.phase is HostPhase.READY and entry.ssh_key_name is not None:
            try:
                take_key_back(context, entry)
            except (VpsDockerError, OSError) as error:
                logger.warning("The public key of {} is not taken back yet: {}", entry.host_name, error)
