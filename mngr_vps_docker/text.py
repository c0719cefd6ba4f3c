"""Text that is safe to show: on one line, without control characters and without passwords.

All that this package logs goes through ``logger``, and all that it raises through ``VpsDockerError``.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import loguru

if TYPE_CHECKING:
    from loguru import Record

MASK: Final = "***"
"""Stands in the place of a secret."""

# https://user:token@host and https://token@host; in other schemes, text without a colon is the name of a user.
_URL_PASSWORD: Final = re.compile(r'(https?://|[a-z][a-z0-9+.-]{0,20}://[^\s/:@"]*:)[^\s/"]+@', re.IGNORECASE)
# One word of a name: GITHUB_TOKEN, but not MONKEY.
_SECRET_NAME: Final = re.compile(
    r"(?:^|_|-)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API)?KEY)S?(?:$|_|-)", re.IGNORECASE
)
# The end of a failed build's output fits.
_MAX_MESSAGE: Final = 16 << 10
_MAX_EXCERPT: Final = 200


def printable(text: str, *, kept: str = "") -> str:
    """``text`` with every character escaped that a terminal does not print, except for those in ``kept``."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else character.encode("unicode_escape").decode()
        for character in text
    )


def excerpt(text: str) -> str:
    """``text`` as a part of one line of a message: printable, and cut where it is long."""
    return printable(text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT]}…")


def shortened(text: str) -> str:
    """``text``, without its middle where it is longer than a message may be."""
    half = _MAX_MESSAGE // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]} [… {left_out} characters …] {text[-half:]}"


def without_passwords(text: str) -> str:
    """``text`` with MASK in the place of the password or token of each URL."""
    return _URL_PASSWORD.sub(rf"\g<1>{MASK}@", text)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name probably holds a secret: one of its words is TOKEN, SECRET, PASSWORD, KEY, …"""
    return _SECRET_NAME.search(name) is not None


def printable_data(data: Any) -> Any:
    """JSON ``data`` with all text in it ``printable``, names of fields too."""
    return _with_texts(data, printable)


def data_without_passwords(data: Any) -> Any:
    """JSON ``data`` with all text in it ``without_passwords``."""
    return _with_texts(data, without_passwords)


def _with_texts(data: Any, change: Callable[[str], str]) -> Any:
    match data:
        case str():
            return change(data)
        case dict():
            return {change(str(name)): _with_texts(value, change) for name, value in data.items()}
        case list() | tuple():
            return [_with_texts(value, change) for value in data]
        case _:
            return data


def _make_printable(record: "Record") -> None:
    record["message"] = printable(shortened(without_passwords(record["message"])))


logger: Final = loguru.logger.patch(_make_printable)
"""loguru's logger, with each message one line of printable text."""
