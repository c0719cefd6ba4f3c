"""What lets root run commands on a new machine, whatever its image says of root's account: see root_account.sh."""

import re
from pathlib import Path
from typing import Final

# Beside this module, so that it can be read, linted and run by itself.
_SCRIPT: Final = Path(__file__).with_name("root_account.sh")
_COMMENT: Final = re.compile(r"^[ \t]*#(?!!).*\n|^\n", re.MULTILINE)


def without_comments(script: str) -> str:
    """A script without what only its readers need: comments, and empty lines."""
    return _COMMENT.sub("", script)


def root_account_script() -> str:
    """Shell text, for root, that takes expiry away and gives root a POSIX login shell; it says what it changed."""
    return without_comments(_SCRIPT.read_text())
