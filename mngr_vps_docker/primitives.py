"""Small values that every other module may use."""

from datetime import UTC
from datetime import datetime
from enum import auto
from typing import Annotated

from pydantic import AfterValidator

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


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment in UTC. One without a time zone, as many clouds' answers are read, is taken for UTC."""
