"""Text of a user's: what of it can travel to a VPS and into its records, and how a message shows it."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.text import printable

# One argument of a program holds 128 KiB, and tags are one in which a character may take six bytes.
MAX_TEXT_BYTES: Final = 64 * 1024

_LONGEST_SHOWN: Final = 200
_LINES: Final = "\n\t"
# A word of a name: GITHUB_TOKEN, but not MONKEY.
_SECRET_NAME: Final = re.compile(
    r"(?:^|_|-)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API)?KEY)S?(?:$|_|-)", re.IGNORECASE
)


def check_texts(kind: str, texts: Iterable[str], *, may_have_lines: bool = False) -> None:
    """Raise BuildArgumentError if one of ``texts`` cannot travel, or if they are too long together.

    Each must be valid UTF-8 without control characters; with ``may_have_lines``, line feeds and tabs are none.
    ``kind`` is what the message calls them ("Start argument").
    """
    size_bytes = 0
    for text in texts:
        try:
            size_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            raise BuildArgumentError(f"{kind} '{excerpt(text)}' cannot be used: it is not valid UTF-8") from error
        allowed = _LINES if may_have_lines else ""
        if any(unicodedata.category(character) == "Cc" and character not in allowed for character in text):
            raise BuildArgumentError(f"{kind} '{excerpt(text)}' cannot be used: it holds a control character")
        if size_bytes > MAX_TEXT_BYTES:
            raise BuildArgumentError(f"{kind}s are too long: together they can have {MAX_TEXT_BYTES} bytes")


def excerpt(text: str) -> str:
    """``text`` as a part of one line of a message: printable, and cut where it is long."""
    cut = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
    return printable(cut)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name probably holds a secret: one of its words is TOKEN, SECRET, PASSWORD, KEY, …"""
    return _SECRET_NAME.search(name) is not None
