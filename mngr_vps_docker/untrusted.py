"""Check data from outside: JSON and times that others wrote, and text that a user gave."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.text import excerpt

MAX_TEXT_BYTES: Final = 64 * 1024
"""One argument of a program holds 128 KiB, and tags are one argument, in which a character can take six bytes."""

# pydantic writes at most 255 levels, and the data becomes part of something else.
_MAX_DEPTH: Final = 64
_LARGEST_INTEGER: Final = 2**63
# After parsing, an empty list or object takes hundreds of bytes of memory, any other value some tens.
_MAX_COLLECTIONS: Final = 200_000
_MAX_VALUES: Final = 1_000_000
# A string without a closing quote extends to the end of the data.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# Outside of these, arithmetic and conversion to another zone overflow.
_FIRST_YEAR: Final = 1970
_LAST_YEAR: Final = 9998


class UnusableDataError(ValueError):
    """The data is invalid, or other programs cannot read it; the message is one line."""


def describe_invalid(error: ValidationError) -> str:
    """The first error that pydantic found, in one line: what is wrong, and in which field."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the beginning"
    return f"{excerpt(first['msg'])} at {excerpt(where)}"


def check_count(*contents: bytes) -> None:
    """Raise UnusableDataError for JSON that, all together, takes many times its size in memory once it is read."""
    # Brackets and commas inside strings are discounted only where that can change the answer.
    if _has_too_many(contents) and _has_too_many([_STRING.sub(b"", content) for content in contents]):
        raise UnusableDataError("it holds too many values")


def _has_too_many(contents: Sequence[bytes]) -> bool:
    collections = sum(content.count(b"[") + content.count(b"{") for content in contents)
    values = collections + sum(content.count(b",") for content in contents)
    return collections > _MAX_COLLECTIONS or values > _MAX_VALUES


def json_object(content: bytes) -> dict[str, Any]:
    """Read a JSON object; raise UnusableDataError for anything else, or as ``sanitize_json`` does."""
    try:
        # Decoded here: the parser would guess the encoding of bytes, and ``check_count`` assumes UTF-8.
        data = json.loads(content.decode("utf-8-sig", "surrogatepass"), parse_constant=_refuse)
    # Deep nesting exhausts the parser's stack.
    except (ValueError, RecursionError) as error:
        raise UnusableDataError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UnusableDataError("not a JSON object")
    return {sanitize_json(name): sanitize_json(value) for name, value in data.items()}


def sanitize_json(data: Any, depth: int = 1) -> Any:
    """Return parsed JSON in a form that can be written again: halves of surrogate pairs are replaced.

    Raises UnusableDataError for deep nesting and for numbers beyond 64 bits, which other programs cannot read.
    """
    if depth > _MAX_DEPTH:
        raise UnusableDataError(f"nested more than {_MAX_DEPTH} deep")
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
    """Return a time, also one in ISO 8601; without a zone it is taken for UTC.

    Raises UnusableDataError for text that is not a timestamp, and outside the years 1970 to 9998.
    """
    try:
        moment = datetime.fromisoformat(time) if isinstance(time, str) else time
    except ValueError as error:
        raise UnusableDataError(f"{str(time)[:40]!r} is not a timestamp") from error
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise UnusableDataError(f"{moment.isoformat()} is outside {_FIRST_YEAR}-{_LAST_YEAR}")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _refuse(constant: str) -> NoReturn:
    raise UnusableDataError(f"{constant} is not a number")


def check_texts(kind: str, texts: Iterable[str], *, may_have_lines: bool = False) -> None:
    """Raise BuildArgumentError if one of ``texts`` is not valid UTF-8 or has control characters, or for their length.

    ``may_have_lines`` allows line feeds and tabs. ``kind`` is their name in messages ("Start argument").
    """
    allowed = "\n\t" if may_have_lines else ""
    size_bytes = 0
    for text in texts:
        try:
            size_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise BuildArgumentError(f"{kind} '{excerpt(text)}' cannot be used: it is not valid UTF-8") from error
        if any(unicodedata.category(character) == "Cc" and character not in allowed for character in text):
            raise BuildArgumentError(f"{kind} '{excerpt(text)}' cannot be used: it holds a control character")
        if size_bytes > MAX_TEXT_BYTES:
            raise BuildArgumentError(f"{kind}s are too long: together they can have {MAX_TEXT_BYTES} bytes")
