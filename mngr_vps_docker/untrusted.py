"""Data that others wrote, JSON and times, of which nothing surprises whoever goes on with it."""

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

# pydantic writes no more than 255 levels, and what is read here ends up some levels deep in something else.
_DEEPEST: Final = 64
_LARGEST_INTEGER: Final = 2**63
# Read, an empty list or object takes hundreds of bytes of memory, and any other value some tens.
_MOST_COLLECTIONS: Final = 200_000
_MOST_VALUES: Final = 1_000_000
# One without an end goes on to the end of all.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# Beyond these, one cannot count on with times, or say them in another zone.
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 9998


class UnusableDataError(ValueError):
    """It is not what it should be, or cannot be passed on; says why in one line."""


def check_count(*contents: bytes) -> None:
    """Raise UnusableDataError for JSON that, all together, takes many times its size in memory once it is read."""
    # What stands in text is looked at only where it may make the difference.
    if _are_many(contents) and _are_many([_STRING.sub(b"", content) for content in contents]):
        raise UnusableDataError("it holds more values than are taken")


def _are_many(contents: Sequence[bytes]) -> bool:
    collections = sum(content.count(b"[") + content.count(b"{") for content in contents)
    values = collections + sum(content.count(b",") for content in contents)
    return collections > _MOST_COLLECTIONS or values > _MOST_VALUES


def json_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object; raises UnusableDataError for anything else, and for what ``sanitize_json`` raises it."""
    try:
        # Not bytes: of those the parser guesses the encoding, and ``check_count`` does not.
        data = json.loads(content.decode("utf-8-sig", "surrogatepass"), parse_constant=_refuse)
    # Deep nesting exhausts the parser's stack.
    except (ValueError, RecursionError) as error:
        raise UnusableDataError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UnusableDataError("not a JSON object")
    return {sanitize_json(name): sanitize_json(value) for name, value in data.items()}


def sanitize_json(data: Any, depth: int = 1) -> Any:
    """What Python read as JSON, so that it can be written again: halves of surrogate pairs in its text are replaced.

    Raises UnusableDataError for what others cannot write or count with: deep nesting, and numbers beyond 64 bits.
    """
    if depth > _DEEPEST:
        raise UnusableDataError(f"nested more than {_DEEPEST} deep")
    match data:
        case str() if not data.isascii():
            return data.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case int() if not -_LARGEST_INTEGER <= data < _LARGEST_INTEGER:
            raise UnusableDataError("it holds a number of more than 64 bits")
        case float() if not math.isfinite(data):
            raise UnusableDataError("it holds a number of more than 64 bits")
        case list():
            return [sanitize_json(value, depth + 1) for value in data]
        case dict():
            return {sanitize_json(name, depth): sanitize_json(value, depth + 1) for name, value in data.items()}
        case _:
            return data


def parse_utc(time: datetime | str) -> datetime:
    """A time, also in the form of ISO 8601, as one of UTC where it says no zone.

    Raises UnusableDataError for what is no time, or none of this age.
    """
    try:
        moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    except ValueError as error:
        raise UnusableDataError(f"{str(time)[:40]!r} is no time") from error
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise UnusableDataError(f"{moment.isoformat()} is not of this age")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _refuse(constant: str) -> NoReturn:
    raise UnusableDataError(f"{constant} is no number")
