"""Ids, names, labels and patterns that several modules share, each defined once."""

import dataclasses
import re
from datetime import UTC, datetime
from enum import auto
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator

from imbue.imbue_common.enums import UpperCaseStrEnum
from imbue.imbue_common.primitives import NonEmptyStr

if TYPE_CHECKING:
    # Type checkers know the fields of models as they know those of dataclasses: a wrong name or value is an error.
    from dataclasses import replace as replace
else:

    def replace(value, /, **changes):
        """The same frozen dataclass or model with other values of some fields; `copy.replace` of Python 3.13."""
        return (
            dataclasses.replace(value, **changes)
            if dataclasses.is_dataclass(value)
            else value.model_copy(update=changes)
        )


class VpsInstanceId(NonEmptyStr):
    """A cloud's own identifier of one VPS."""


class VpsSnapshotId(NonEmptyStr):
    """A cloud's own identifier of one whole-machine snapshot (not of a host's Docker image snapshot)."""


class VpsInstanceStatus(UpperCaseStrEnum):
    """The status of one VPS, as the cloud says."""

    PENDING = auto()
    ACTIVE = auto()
    HALTED = auto()
    DESTROYING = auto()
    UNKNOWN = auto()


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_in_utc)]
"""A time in UTC; one without a zone is taken for UTC, since many clouds omit it."""


HOST_ID_LABEL: Final = "com.imbue.mngr.host-id"
"""The label that names the host of a container; published provider packages look for it."""

HOST_VOLUME_PREFIX: Final = "mngr-host-vol-"
"""The name of a host's volume is this and the hex digits of the host's id."""

HOST_ID_PATTERN: Final = "host-[0-9a-f]{32}"
"""A host id as mngr writes it. HostId also accepts blanks and underscores, which a file name must not have."""

VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of an environment variable that a POSIX shell can assign."""


# The grammar of https://github.com/distribution/reference, by which Docker reads names of images.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:[_.]|__|-+)[a-z0-9]+)*"
_DOMAIN_PART: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN: Final = rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST: Final = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE: Final = re.compile(rf"(?P<name>(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*)(?::{_TAG})?(?:@{_DIGEST})?")
_LONGEST_NAME: Final = 255


def is_image_reference(text: str) -> bool:
    """Whether ``text`` names an image: ``[registry[:port]/]name[:tag][@digest]``, or by its id."""
    found = _REFERENCE.fullmatch(text)
    return found is not None and len(found["name"]) <= _LONGEST_NAME
