"""The names and labels by which the engine itself remembers everything that this provider made.

There is no other memory: what carries these labels is the cloud's inventory, and what does not is never touched.
"""

from enum import StrEnum
from typing import Final

_PREFIX: Final = "com.imbue.mngr.local-vps"

KIND_LABEL: Final = _PREFIX
ACCOUNT_LABEL: Final = f"{_PREFIX}.account"
LABEL_LABEL: Final = f"{_PREFIX}.label"
TAGS_LABEL: Final = f"{_PREFIX}.tags"
REGION_LABEL: Final = f"{_PREFIX}.region"
PLAN_LABEL: Final = f"{_PREFIX}.plan"
OS_LABEL: Final = f"{_PREFIX}.os"
KEY_NAME_LABEL: Final = f"{_PREFIX}.key-name"
PUBLIC_KEY_LABEL: Final = f"{_PREFIX}.public-key"
DESCRIPTION_LABEL: Final = f"{_PREFIX}.description"

NAME_PREFIX: Final = "mngr-local-vps"
SNAPSHOT_REPOSITORY: Final = f"{NAME_PREFIX}-snapshot"


class Kind(StrEnum):
    """What one labelled object of the engine is."""

    INSTANCE = "instance"
    INSTANCE_DISK = "instance-disk"
    SSH_KEY = "ssh-key"
    NETWORK = "network"
    SNAPSHOT = "snapshot"


def label_arguments(labels: dict[str, str]) -> tuple[str, ...]:
    """Docker's ``--label`` options for these labels."""
    return tuple(argument for name, value in labels.items() for argument in ("--label", f"{name}={value}"))


def label_filters(kind: Kind, account: str | None) -> tuple[str, ...]:
    """Docker's ``--filter`` options for objects of one kind, of one account or (None) of all."""
    filters = ("--filter", f"label={KIND_LABEL}={kind}")
    return filters if account is None else (*filters, "--filter", f"label={ACCOUNT_LABEL}={account}")
