"""Text from other machines, made fit to be shown: nothing in it does anything to a terminal, or looks like more lines.

Whatever this package logs goes through ``logger``, and whatever it raises through ``VpsDockerError``; both make it so.
"""

from typing import TYPE_CHECKING
from typing import Any
from typing import Final

import loguru

if TYPE_CHECKING:
    from loguru import Record

__all__ = ["logger", "printable", "printable_data", "shortened"]

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


def shortened(text: str) -> str:
    """``text``, without its middle where it is longer than a message may be."""
    half = _LONGEST_MESSAGE // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]} [… {left_out} characters …] {text[-half:]}"


def printable_data(data: Any) -> Any:
    """JSON ``data`` with all text in it ``printable``, names of fields too."""
    match data:
        case str():
            return printable(data)
        case dict():
            return {printable(str(name)): printable_data(value) for name, value in data.items()}
        case list() | tuple():
            return [printable_data(value) for value in data]
        case _:
            return data


def _make_printable(record: "Record") -> None:
    record["message"] = printable(shortened(record["message"]))


# loguru's logger, of which each message is one line of plain text.
logger: Final = loguru.logger.patch(_make_printable)
