"""The shell scripts of this folder, which can be read, linted and run by themselves, and files that they share."""

import re
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH

SSHD_FOLDER: Final = HOST_VOLUME_PATH / ".sshd"

SOURCE_ENVIRONMENT: Final = f"[ -f {SSHD_FOLDER}/environment ] && . {SSHD_FOLDER}/environment || true"
"""Shell text that gives a shell the environment of its container, if that has one (container_environment.sh)."""

_COMMENT: Final = re.compile(r"^[ \t]*#(?!!).*\n|^\n", re.MULTILINE)


def script(name: str) -> str:
    """The text of a script, without its comments and empty lines."""
    return _COMMENT.sub("", Path(__file__).with_name(name).read_text())
