"""Text made fit to be shown: nothing in it does anything to a terminal, looks like more lines, or holds a password.

Whatever this package logs goes through ``logger``, and whatever it raises through ``VpsDockerError``; both make it so.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import loguru

if TYPE_CHECKING:
    from loguru import Record

__all__ = ["MASK", "data_without_passwords", "logger", "printable", "printable_data", "shortened", "without_passwords"]

# What stands in the place of a secret.
MASK: Final = "***"
# https://user:token@host and https://token@host; with other schemes, what has no colon is the name of a user.
_URL_PASSWORD: Final = re.compile(r'(https?://|[a-z][a-z0-9+.-]{0,20}://[^\s/:@"]*:)[^\s/"]+@', re.IGNORECASE)

# The end of a failed build's output, and more than anybody reads of anything else.
_LONGEST_MESSAGE: Final = 16 << 10


def printable(text: str, *, kept: str = "") -> str:
    """``text`` with everything that a terminal would act upon written out, ends of lines too, except for ``kept``."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in kept else character.encode("unicode_escape").decode()
        for character in text
    )


def without_passwords(text: str) -> str:
    """``text`` with MASK in the place of the password or token of each URL."""
    return _URL_PASSWORD.sub(rf"\g<1>{MASK}@", text)


def shortened(text: str) -> str:
    """``text``, without its middle where it is longer than a message may be."""
    half = _LONGEST_MESSAGE // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]} [… {left_out} characters …] {text[-half:]}"


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


# loguru's logger, of which each message is one line of plain text.
logger: Final = loguru.logger.patch(_make_printable)
