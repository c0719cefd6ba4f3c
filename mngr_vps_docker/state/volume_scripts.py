"""Shell scripts that read and write the files of a Docker volume where the machine keeps them.

Root on the VPS reaches a volume's files at its mountpoint: one `docker volume inspect` instead of one `docker exec`
per file (73 ms against 1 ms), and it works while every container is stopped.
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.docker.commands import volume_mountpoint_script
from imbue.mngr_vps_docker.ssh.file_scripts import CUT_OFF
from imbue.mngr_vps_docker.ssh.shell import join
from imbue.mngr_vps_docker.untrusted import check_count

# Exit codes of our own scripts, apart from those of the tools that they run and from CUT_OFF (83).
CHANGED: Final = 81
LOCK_BUSY: Final = 82
ABSENT: Final = 84
ESCAPES: Final = 85
WRONG_TYPE: Final = 86
TOO_LARGE: Final = 88

LOCK_TIMEOUT_SECONDS: Final = 30

# Beside this module, so that it can be read, checked and run by itself.
_READER: Final = Path(__file__).with_name("volume_reader.py").read_text()
_READ_TIMEOUT_SECONDS: Final = 10
# Of one volume: more than a host has, and few enough for what an agent or a VPS makes up.
_MOST_FILES: Final = 2_000
_FILE_LIMIT_BYTES: Final = 8 << 20
_TOTAL_LIMIT_BYTES: Final = 16 << 20
# What the reader prints last. It is not base64 of whole bytes.
_END_OF_FILES: Final = b"end"


def enter_volume(volume: str) -> str:
    """Go to a volume's directory and set ``$root`` to it; ends the script with Docker's words if there is none."""
    find = volume_mountpoint_script(volume)
    return f'export LC_ALL=C\nroot=$({find}) || exit 1\ncd -P "$root" && root=$(pwd -P) || exit 1\n'


def receive(content_bytes: int, sha256: str, path: str) -> str:
    """Write stdin to the new file ``path`` (shell text), and go on only if all of it arrived.

    A connection that is lost looks like the end of the data, so what arrived is compared with its digest.
    """
    return (
        f"cat >{path} || exit 1\n"
        f'[ "$(sha256sum <{path})" = "{sha256}  -" ] || '
        f'{{ echo "not all {content_bytes} bytes arrived" >&2; exit {CUT_OFF}; }}\n'
    )


def given(variable: str, path: str) -> str:
    """Write the value of ``variable``, a secret of the script, to the new file ``path`` (shell text).

    So it is in no log: the values of ``--env`` are in a record, for one.
    """
    return f'printf %s "${{{variable}?}}" >{path} || exit 1\n'


def lock(directory: str) -> str:
    """Hold the lock of ``directory`` (shell text) until the script ends, however it ends."""
    return (
        f"exec 9>>{directory}/.lock || exit 1\n"
        f'flock -w {LOCK_TIMEOUT_SECONDS} 9 || {{ echo "the lock is busy" >&2; exit {LOCK_BUSY}; }}\n'
    )


def archive_small_files(
    patterns: Iterable[str],
    *,
    file_limit_bytes: int = _FILE_LIMIT_BYTES,
    total_limit_bytes: int = _TOTAL_LIMIT_BYTES,
    count_limit: int = _MOST_FILES,
) -> str:
    """Shell text that prints one line with the files that ``patterns`` stand for; see ``volume_reader``.

    Bounded in every direction, in time too, since a container may have written what is there. Symbolic links are not
    followed, even if a file is replaced by one while it is read.
    """
    limits = (str(file_limit_bytes), str(total_limit_bytes), str(count_limit))
    # -I: no module is taken from the volume, where this runs. -S: nothing but the standard library is needed.
    read = join(["timeout", str(_READ_TIMEOUT_SECONDS), "python3", "-IS", "-c", _READER, *limits, *patterns])
    return f"""\
command -v python3 >/dev/null || {{ echo 'python3 is missing on the VPS: install it' >&2; exit 1; }}
{read} 2>/dev/null
echo
"""


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """Contents of files by path below the searched folder; ``unread`` are those that are too large or not regular."""

    contents: Mapping[str, bytes]
    unread: frozenset[str]


def parse_files(line: bytes) -> SmallFiles:
    """Read what ``archive_small_files`` printed.

    Raises ValueError if it is damaged or cut off, or more JSON than can be held in memory.
    """
    if line.count(b" ") > _MOST_FILES:
        raise ValueError("there are more files than can be read")
    *files, end = line.rstrip(b"\n").split(b" ")
    if end != _END_OF_FILES:
        raise ValueError("there is more than can be read, or it takes too long")
    contents: dict[str, bytes] = {}
    unread: set[str] = set()
    for file in files:
        # binascii.Error is a ValueError.
        path, *content = (base64.b64decode(part, validate=True) for part in file.split(b":", 1))
        name = path.decode("utf-8", "replace")
        if content:
            contents[name] = content[0]
        else:
            unread.add(name)
    check_count(*contents.values())
    return SmallFiles(contents, frozenset(unread - contents.keys()))
