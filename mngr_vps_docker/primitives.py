"""Small values that every other module may use."""

from enum import auto

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.imbue_common.primitives import NonEmptyStr


class VpsInstanceId(NonEmptyStr):
    """A cloud's own identifier of one VPS."""


class VpsSnapshotId(NonEmptyStr):
    """A cloud's own identifier of one whole-machine snapshot (not of a host's Docker image snapshot)."""


class VpsInstanceStatus(UpperCaseStrEnum):
    """What the cloud says of one VPS."""

    PENDING = auto()
    ACTIVE = auto()
    HALTED = auto()
    DESTROYING = auto()
    UNKNOWN = auto()
