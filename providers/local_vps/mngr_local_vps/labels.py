"""Names and labels of everything that this provider makes on the engine.

The provider keeps no other state: objects with these labels are the cloud's inventory, and others are never touched.
"""

from enum import StrEnum
from typing import Final

_PREFIX: Final = "com.imbue.mngr.local-vps"

KIND_LABEL: Final = _PREFIX
ACCOUNT_LABEL: Final = f"{_PREFIX}.account"
TAGS_LABEL: Final = f"{_PREFIX}.tags"
KEY_NAME_LABEL: Final = f"{_PREFIX}.key-name"
PUBLIC_KEY_LABEL: Final = f"{_PREFIX}.public-key"
DESCRIPTION_LABEL: Final = f"{_PREFIX}.description"

NAME_PREFIX: Final = "mngr-local-vps"
SNAPSHOT_REPOSITORY: Final = f"{NAME_PREFIX}-snapshot"


class Kind(StrEnum):
    """The kind of a labelled object of the engine."""

    INSTANCE = "instance"
    INSTANCE_DISK = "instance-disk"
    SSH_KEY = "ssh-key"
    NETWORK = "network"
    SNAPSHOT = "snapshot"


def label_arguments(labels: dict[str, str]) -> tuple[str, ...]:
    """Docker's ``--label`` options for these labels."""
    return tuple(argument for name, value in labels.items() for argument in ("--label", f"{name}={value}"))


def label_filters(kind: Kind, account: str | None) -> tuple[str, ...]:
    """Docker's ``--filter`` options for objects of one kind, of one account or of all (None)."""
    filters = ("--filter", f"label={KIND_LABEL}={kind}")
    return filters if account is None else (*filters, "--filter", f"label={ACCOUNT_LABEL}={account}")
