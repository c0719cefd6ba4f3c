"""A program for the VPS: prints files of the volume that it runs in, for ``volume_scripts.parse_files``.

A container may change the volume at any moment, and this runs as root. So each part of a path is opened relative to
the part before, no link is followed, and nothing but a regular file or a directory is opened.

Its arguments are the largest size of a file, that of all files together, the largest number of files, and patterns of
paths. A part of a pattern is a name, or ``*`` and how a name ends. It prints ``<path>:<content>`` of each file, or
``<path>`` of what is not a regular file or is too large, all in base64, and ``end`` at the end; or fails.
"""

# Runs on whatever Python cloud-init runs on, 3.8 or newer. It imports only what every Python has loaded as it starts.
from __future__ import annotations

import binascii
import errno
import os
import stat
import sys

# What is not a directory, or a link to one, leads nowhere.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Reader:
    """Prints files, until there is more than its limits allow: then the program fails."""

    def __init__(self, file_limit_bytes: int, total_limit_bytes: int, count_limit: int) -> None:
        self._file_limit_bytes = file_limit_bytes
        self._bytes_left = total_limit_bytes
        self._files_left = count_limit

    def read(self, folder: int, parts: list[str], path: str = "") -> None:
        """Print what the pattern of these ``parts`` stands for below the open ``folder``, whose path is given."""
        part, *rest = parts
        if not part.startswith("*"):
            self._read_one(folder, part, rest, path)
            return
        # One after the other, since there may be any number.
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(part[1:]):
                    self._read_one(folder, entry.name, rest, path)

    def _read_one(self, folder: int, name: str, rest: list[str], path: str) -> None:
        # O_PATH: what is opened is its place, and not yet the file, pipe or device that is there.
        kind = os.O_RDONLY | os.O_DIRECTORY if rest else os.O_PATH
        try:
            found = os.open(name, kind | os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return
        try:
            if rest:
                self.read(found, rest, f"{path}{name}/")
            else:
                self._print(found, path + name)
        finally:
            os.close(found)

    def _print(self, found: int, path: str) -> None:
        status = os.fstat(found)
        if stat.S_ISDIR(status.st_mode):
            return
        said = [path.encode(errors="surrogateescape")]
        if stat.S_ISREG(status.st_mode) and status.st_size <= self._file_limit_bytes:
            said += _contents(found, status.st_size)
        self._bytes_left -= sum(map(len, said[1:]))
        self._files_left -= 1
        if self._files_left < 0 or self._bytes_left < 0:
            sys.exit("there is more than can be read")
        sys.stdout.buffer.write(b":".join(binascii.b2a_base64(part, newline=False) for part in said) + b" ")


def _contents(found: int, size: int) -> list[bytes]:
    """The content of a regular file; nothing, if the disk cannot read it."""
    try:
        # This very file, whatever has its name by now.
        with open(f"/proc/self/fd/{found}", "rb") as file:  # noqa: PTH123
            return [file.read(size)]
    except OSError:
        return []


if __name__ == "__main__":
    reader = Reader(*map(int, sys.argv[1:4]))
    for pattern in sys.argv[4:]:
        reader.read(os.open(".", os.O_RDONLY | os.O_DIRECTORY), pattern.split("/"))
    sys.stdout.buffer.write(b"end")
