"""Sending a build context to a VPS: the files that Docker would take, as one tar stream, removed after the build."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path
from pathlib import PurePosixPath
from tarfile import BLOCKSIZE
from tarfile import DIRTYPE
from tarfile import FIFOTYPE
from tarfile import GNU_FORMAT
from tarfile import RECORDSIZE
from tarfile import REGTYPE
from tarfile import SYMTYPE
from tarfile import TarInfo
from typing import Final
from typing import NamedTuple

from imbue.mngr_vps_docker.build_args import ParsedBuildArgs
from imbue.mngr_vps_docker.dockerignore import DOCKERIGNORE
from imbue.mngr_vps_docker.dockerignore import IgnorePatterns
from imbue.mngr_vps_docker.dockerignore import MatchState
from imbue.mngr_vps_docker.dockerignore import ignore_file_for
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.git_context import check_checkout
from imbue.mngr_vps_docker.git_context import needs_own_git_dir
from imbue.mngr_vps_docker.git_context import self_contained_git_dir
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import Effect
from imbue.mngr_vps_docker.ssh.shell import quoted
from imbue.mngr_vps_docker.ssh.striped import run_with_stream
from imbue.mngr_vps_docker.terminal import logger

REMOVAL_TIMEOUT_SECONDS: Final = 120.0

_CHUNK_BYTES: Final = 256 * 1024
# The folders of the archive: the context itself, and what Docker reads but does not lie in it.
_CONTEXT: Final = "context"
_OUTSIDE: Final = "dockerfile"

_DISK: Final = PurePosixPath("/var/tmp")
# A tmpfs of half the memory, on every Linux: https://docs.kernel.org/filesystems/tmpfs.html
_MEMORY: Final = PurePosixPath("/dev/shm")
_PAGE_BYTES: Final = 4096
# The build, and what else runs there, is to have most of the memory.
_MEMORY_SHARE: Final = 8
# What is written to between the two looks at it may have grown.
_GROWTH: Final = 2


@dataclass(frozen=True, slots=True)
class RemoteContext:
    """A build context on a VPS: absolute paths there."""

    context_dir: str
    dockerfile: str


@contextmanager
def uploaded_build_context(
    connection: SshConnection, build: ParsedBuildArgs, *, timeout_seconds: float
) -> Iterator[RemoteContext]:
    """Have a build context on a VPS for as long as the ``with`` block lasts; nothing of it stays on either side.

    What of it is sent, ``archive`` says. Raises BuildContextError for what is wrong here, and what the connection
    raises for what goes wrong there.
    """
    # Named here and not there, so that it can be removed even if the answer is lost.
    name = f"mngr-build-{secrets.token_hex(16)}"
    folder = _DISK / name
    try:
        with _prepared(build) as source:
            run_with_stream(
                connection,
                _unpack_command(name, _size_in_memory_bytes(source)),
                _tar(source),
                purpose="upload the build context",
                timeout_seconds=timeout_seconds,
            ).checked()
        place = _dockerfile_in_archive(*_paths(build))
        yield RemoteContext(context_dir=str(folder / _CONTEXT), dockerfile=str(folder / place))
    finally:
        _remove(connection, name)


def check_build_context(build: ParsedBuildArgs) -> None:
    """Raise the BuildContextError that ``uploaded_build_context`` would raise, if it shows without a VPS."""
    if not build.is_build:
        return
    source = _plan(build)
    if _is_git_dir_replaced(source, build.git_depth):
        check_checkout(source.context_dir, build.git_depth)
    for found in _walk_context(source):
        if stat.S_ISREG(found.status.st_mode) and not os.access(found.path, os.R_OK):
            raise _unreadable(found.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


@contextmanager
def archive(build: ParsedBuildArgs) -> Iterator[Iterator[bytes]]:
    """Give the tar stream of a build context; memory use does not depend on its size.

    In it, ``context/`` holds what Docker would take by the ignore file that counts. The Dockerfile and the ignore
    files are there in any case, since Docker reads them; a Dockerfile outside the context lies in ``dockerfile/``.
    Files are as on disk, ignored by git or not. Where ``.git`` is of no use elsewhere, or ``git_depth`` is given,
    a self-contained one is sent in its place. All belongs to root, as in an image.
    """
    with _prepared(build) as source:
        yield _tar(source)


@dataclass(frozen=True, slots=True)
class _Source:
    """What to send of which directory.

    ``forced`` files are sent though they may be ignored, ``replaced`` ones have their content from elsewhere, and
    ``outside`` ones are not in the context.
    """

    context_dir: Path
    patterns: IgnorePatterns
    forced: frozenset[str]
    replaced: Mapping[str, Path]
    outside: Mapping[str, Path]
    git_dir: Path | None = field(default=None)

    def is_above_forced(self, name: str) -> bool:
        """Whether a forced file lies below ``name``."""
        return any(forced.startswith(f"{name}/") for forced in self.forced)


class _Found(NamedTuple):
    """A path to send: its name in the context, where it is, and its status (that of a link itself)."""

    name: str
    path: str
    status: os.stat_result


@contextmanager
def _prepared(build: ParsedBuildArgs) -> Iterator[_Source]:
    source = _plan(build)
    with ExitStack() as stack:
        if _is_git_dir_replaced(source, build.git_depth):
            git_dir = stack.enter_context(self_contained_git_dir(source.context_dir, build.git_depth))
            source = replace(source, git_dir=git_dir)
        yield source


def _paths(build: ParsedBuildArgs) -> tuple[Path, Path]:
    if build.context_dir is None or build.dockerfile is None:
        raise BuildContextError("There is no build context to send; name its directory last, for example: -b .")
    return build.context_dir, build.dockerfile


def _plan(build: ParsedBuildArgs) -> _Source:
    context_dir, dockerfile = _paths(build)
    ignore_file = ignore_file_for(context_dir, dockerfile)
    place = _dockerfile_in_archive(context_dir, dockerfile)
    own_ignore_file = ignore_file if ignore_file != context_dir / DOCKERIGNORE else None
    read_by_docker = {str(place): dockerfile, f"{_CONTEXT}/{DOCKERIGNORE}": context_dir / DOCKERIGNORE}
    if own_ignore_file is not None:
        read_by_docker[f"{place}{DOCKERIGNORE}"] = own_ignore_file
    in_context = f"{_CONTEXT}/"
    return _Source(
        context_dir=context_dir,
        patterns=IgnorePatterns() if ignore_file is None else IgnorePatterns.read(ignore_file),
        forced=frozenset(name.removeprefix(in_context) for name in read_by_docker if name.startswith(in_context)),
        # The legacy builder knows this name only: it, too, is to follow the file that counts.
        replaced={} if own_ignore_file is None else {DOCKERIGNORE: own_ignore_file},
        outside={name: path for name, path in read_by_docker.items() if not name.startswith(in_context)},
    )


def _dockerfile_in_archive(context_dir: Path, dockerfile: Path) -> PurePosixPath:
    """Where the archive has the Dockerfile: in the context, unless it is outside.

    Raises BuildContextError if a link in the context leads to one outside.
    """
    real_context, real_dockerfile = context_dir.resolve(), dockerfile.resolve()
    if not real_dockerfile.is_relative_to(real_context):
        # The author of a context may name any file of this machine by a link; its user may name one by --file.
        if Path(os.path.normpath(dockerfile)).is_relative_to(context_dir):
            raise BuildContextError(
                f"The Dockerfile {dockerfile} leads out of the build context, to {real_dockerfile}, which is not sent;"
                f" if you want to build that file, name it with --file={real_dockerfile}"
            )
        return PurePosixPath(_OUTSIDE, dockerfile.name)
    # By its own name where it has one in the context, since its own ignore file is named after that.
    name = dockerfile if dockerfile.is_relative_to(context_dir) else real_dockerfile
    base = context_dir if dockerfile.is_relative_to(context_dir) else real_context
    return PurePosixPath(_CONTEXT, name.relative_to(base))


def _is_git_dir_replaced(source: _Source, git_depth: int | None) -> bool:
    if source.patterns.ignores_all_of(".git"):
        return False
    return git_depth is not None or needs_own_git_dir(source.context_dir)


def _size_in_memory_bytes(source: _Source) -> int:
    """What a context takes of a tmpfs, which holds whole pages: one, too, for what it keeps of each path."""
    return sum(_PAGE_BYTES - (-found.status.st_size // _PAGE_BYTES * _PAGE_BYTES) for found in _walk_context(source))


def _unpack_command(name: str, size_bytes: int) -> str:
    """Shell text that unpacks the archive into a folder on disk, or behind a link of that name in memory.

    In memory ten thousand files are there in a tenth of a second, and nothing is written to a rented disk.
    """
    size_kib = -(-size_bytes // 1024)
    memory, disk = quoted(_MEMORY / name), quoted(_DISK / name)
    return f"""set -eu
umask 022
available_kib=$(awk '$1 == "MemAvailable:" {{ print $2 }}' /proc/meminfo) || available_kib=
free_kib=$(df -k --output=avail {_MEMORY} | tail -n 1) || free_kib=
trap 'code=$?; [ "$code" -eq 0 ] || rm -rf {memory} {disk}' EXIT
trap 'exit 1' HUP INT TERM
if [ "$((available_kib))" -ge {size_kib * _MEMORY_SHARE} ] && [ "$((free_kib))" -ge {size_kib * _GROWTH} ] &&
  mkdir -m 700 {memory} 2>/dev/null; then
ln -s {memory} {disk}
else
mkdir -m 700 {disk}
fi
tar -x -p -f - -C {disk}
cat >/dev/null
"""


def _remove(connection: SshConnection, name: str) -> None:
    outcome = connection.run(
        f"rm -rf -- {quoted(_MEMORY / name)} {quoted(_DISK / name)}",
        purpose="remove the uploaded build context",
        timeout_seconds=REMOVAL_TIMEOUT_SECONDS,
        effect=Effect.REPEATABLE,
    )
    if not outcome.is_success:
        logger.warning("{} and {} may stay behind on the VPS: {}", _DISK / name, _MEMORY / name, outcome.error())


def _tar(source: _Source) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in _tar_entries(source):
        size_bytes += len(chunk)
        yield chunk
    # Two empty blocks end an archive, which is padded to whole records.
    end_bytes = 2 * BLOCKSIZE
    yield b"\0" * (end_bytes + -(size_bytes + end_bytes) % RECORDSIZE)


def _tar_entries(source: _Source) -> Iterator[bytes]:
    yield _header(_CONTEXT, DIRTYPE, mode=0o755)
    for found in _walk_context(source):
        yield from _entry(found)
    if source.outside:
        yield _header(_OUTSIDE, DIRTYPE, mode=0o755)
    for name, path in source.outside.items():
        yield from _file_entry(name, str(path))


def _walk_context(source: _Source) -> Iterator[_Found]:
    """Every path to send, a directory before what is in it."""
    # Of plain strings, each looked at once: there may be very many. Without recursion: they may be nested more deeply
    # than Python functions can call each other.
    open_folders = [_open_folder(source, None, source.patterns.root)]
    # Ignored directories on the way to the current one. They come along as soon as something in them does.
    not_sent: list[_Found] = []
    while open_folders:
        folder = open_folders[-1]
        entry = next(folder.entries, None)
        if entry is None:
            open_folders.pop()
            if not_sent and not_sent[-1] is folder.found:
                not_sent.pop()
            continue
        name, path = entry
        found_name = f"{folder.prefix}{name}"
        state = source.patterns.match(name, folder.state)
        is_sent = not state.is_ignored or found_name in source.forced
        status = _status(path, is_missing_ok=not is_sent)
        if status is None:
            continue
        found = _Found(found_name, path, status)
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_sent and not stat.S_ISSOCK(status.st_mode):
            yield from not_sent
            not_sent.clear()
            yield found
        if is_folder and not is_sent:
            if not (source.patterns.has_exceptions or source.is_above_forced(found_name)):
                continue
            not_sent.append(found)
        if is_folder:
            open_folders.append(_open_folder(source, found, state))


class _OpenFolder(NamedTuple):
    """A directory that is being walked; ``found`` is None for the context itself."""

    found: _Found | None
    prefix: str
    state: MatchState
    entries: Iterator[tuple[str, str]]


def _open_folder(source: _Source, found: _Found | None, state: MatchState) -> _OpenFolder:
    prefix = "" if found is None else f"{found.name}/"
    path = str(source.context_dir) if found is None else found.path
    children = _children(source, path, prefix, is_ignored=state.is_ignored)
    return _OpenFolder(found, prefix, state, iter(sorted(children.items())))


def _children(source: _Source, directory: str, prefix: str, *, is_ignored: bool) -> dict[str, str]:
    try:
        children = {name: f"{directory}/{name}" for name in os.listdir(directory)}  # noqa: PTH208 - names only
    except PermissionError as error:
        if is_ignored:
            return {}
        raise _unreadable(directory, error) from error
    except OSError as error:
        raise _unreadable(directory, error) from error
    if not prefix:
        children |= {name: str(path) for name, path in source.replaced.items() if name in children}
    if source.git_dir is not None:
        git = children.get(".git")
        if not prefix:
            children[".git"] = str(source.git_dir)
        elif git is not None and Path(git).is_file():
            # A submodule or worktree whose git directory is not sent: git stumbles over a link that leads nowhere.
            del children[".git"]
    return children


def _status(path: str, *, is_missing_ok: bool) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as error:
        if is_missing_ok and isinstance(error, FileNotFoundError):
            return None
        raise _unreadable(path, error) from error


def _entry(found: _Found) -> Iterator[bytes]:
    name, status = f"{_CONTEXT}/{found.name}", found.status
    mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        yield from _file_entry(name, found.path)
    elif stat.S_ISDIR(status.st_mode):
        yield _header(name, DIRTYPE, mode=mode, mtime=mtime)
    elif stat.S_ISLNK(status.st_mode):
        yield _header(name, SYMTYPE, mode=0o777, mtime=mtime, link=_link(found.path))
    elif stat.S_ISFIFO(status.st_mode):
        yield _header(name, FIFOTYPE, mode=mode, mtime=mtime)
    else:
        raise BuildContextError(f"{found.path} is a device, which cannot be sent; name it in {DOCKERIGNORE}")


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError as error:
        raise _unreadable(path, error) from error


def _file_entry(name: str, path: str) -> Iterator[bytes]:
    try:
        # Not blocking: what was a file a moment ago may be a FIFO by now.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            yield _header(name, mode=stat.S_IMODE(status.st_mode), mtime=int(status.st_mtime), size=status.st_size)
            left_bytes = status.st_size
            while left_bytes > 0:
                chunk = file.read(min(_CHUNK_BYTES, left_bytes))
                if not chunk:
                    raise BuildContextError(f"{path} became shorter while it was sent; try again")
                left_bytes -= len(chunk)
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error
    yield b"\0" * (-status.st_size % BLOCKSIZE)


def _header(name: str, kind: bytes = REGTYPE, *, mode: int, mtime: int = 0, size: int = 0, link: str = "") -> bytes:
    info = TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, mtime, size, link
    # The GNU form carries names of any length, and bytes as they are.
    return info.tobuf(format=GNU_FORMAT, encoding="utf-8", errors="surrogateescape")


def _unreadable(path: str, error: OSError) -> BuildContextError:
    return BuildContextError(
        f"{path} of the build context cannot be read: {error.strerror}; mend that, or name it in {DOCKERIGNORE}"
    )
