"""Atomic writes of files on the user's machine, and the locks that guard them."""

import fcntl
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_FOLDER_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
# The kernel cannot wait for a lock with a time-out.
_POLL_SECONDS = 0.02


def make_private_folder(path: Path) -> Path:
    """Create ``path`` (0700) and its parents where they are missing, on disk, and return it."""
    while not path.is_dir():
        try:
            path.mkdir(mode=PRIVATE_FOLDER_MODE)
        except FileNotFoundError:
            make_private_folder(path.parent)
        except FileExistsError:
            # Another process may have made it, and removed it since.
            if os.path.lexists(path) and not path.is_dir():
                raise
        else:
            _sync_folder(path.parent)
    return path


def remove_folder(path: Path) -> None:
    """Remove a folder and its content; other processes see it disappear at once. A missing folder is not an error."""
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f".{path.name}.{secrets.token_hex(8)}.gone"))
    # Including those of a process that was killed here.
    for gone in path.parent.glob(".*.gone"):
        shutil.rmtree(gone, onexc=_raise_unless_missing)


def _raise_unless_missing(_act: Callable[..., object], _path: str, error: BaseException) -> None:
    """Another process may remove the same files."""
    if not isinstance(error, FileNotFoundError):
        raise error


def write_atomically(path: Path, content: bytes, mode: int = PRIVATE_FILE_MODE) -> None:
    """Replace ``path`` so that readers see the old file or the new one, also after a crash or a power cut."""
    make_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def locked(
    path: Path, *, timeout_seconds: float = math.inf, is_folder_made: bool = True, is_shared: bool = False
) -> Iterator[None]:
    """Hold the lock file ``path``, exclusively unless ``is_shared``; the kernel frees it when this process ends.

    The exclusive holder may delete the lock file and its folder. Raises BlockingIOError if the lock is held elsewhere
    for longer than ``timeout_seconds``, and with ``is_folder_made=False`` FileNotFoundError if the folder is missing.
    """
    operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    descriptor = _acquire(path, time.monotonic() + timeout_seconds, is_folder_made, operation)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file ``path``; two that ask at the same time do not see each other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path, deadline: float, is_folder_made: bool, operation: int) -> int:
    """Lock the file at ``path``, and not one that the holder before has deleted."""
    while True:
        if is_folder_made:
            make_private_folder(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE_MODE)
        except FileNotFoundError:
            if is_folder_made:
                continue
            raise
        try:
            _flock(descriptor, deadline, operation)
            if is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, deadline: float, operation: int) -> None:
    if math.isinf(deadline):
        fcntl.flock(descriptor, operation)
        return
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(path: Path) -> None:
    """Make a rename in ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
