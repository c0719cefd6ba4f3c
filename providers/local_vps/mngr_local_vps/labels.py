"""Names and labels of everything that this provider makes on the engine.

The provider keeps no other state: objects with these labels are the cloud's inventory, and others are never touched.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

KIND_LABEL: Final = "com.imbue.mngr.local-vps"
ACCOUNT_LABEL: Final = f"{KIND_LABEL}.account"

NAME_PREFIX: Final = "mngr-local-vps"
SNAPSHOT_REPOSITORY: Final = f"{NAME_PREFIX}-snapshot"


class Kind(StrEnum):
    """The kind of a labelled object of the engine."""

    INSTANCE = "instance"
    INSTANCE_DISK = "instance-disk"
    SSH_KEY = "ssh-key"
    NETWORK = "network"
    SNAPSHOT = "snapshot"


def own_labels(kind: Kind, account: str) -> dict[str, str]:
    """The labels of every object of one kind and account."""
    return {KIND_LABEL: kind, ACCOUNT_LABEL: account}


def label_arguments(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Docker's ``--label`` options for these labels."""
    return tuple(argument for name, value in labels.items() for argument in ("--label", f"{name}={value}"))


def label_filters(kind: Kind, account: str | None) -> tuple[str, ...]:
    """Docker's ``--filter`` options for objects of one kind, of one account or of all (None)."""
    filters = ("--filter", f"label={KIND_LABEL}={kind}")
    return filters if account is None else (*filters, "--filter", f"label={ACCOUNT_LABEL}={account}")
