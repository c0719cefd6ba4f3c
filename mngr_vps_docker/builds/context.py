"""Sending a build context to a VPS: the files that Docker would take, as one tar stream, removed after the build."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from imbue.mngr_vps_docker.builds.dockerignore import DOCKERIGNORE, IgnorePatterns, MatchState, ignore_file_for
from imbue.mngr_vps_docker.builds.git_copy import check_checkout, needs_own_git_dir, self_contained_git_dir
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs
from imbue.mngr_vps_docker.builds.tar_stream import ContextSize, entry, file_entry, folder_entry, tar, with_progress
from imbue.mngr_vps_docker.errors import BuildContextError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import Effect
from imbue.mngr_vps_docker.ssh.shell import quote
from imbue.mngr_vps_docker.ssh.transfer import upload
from imbue.mngr_vps_docker.text import logger

REMOVAL_TIMEOUT_SECONDS: Final = 120.0

# The folders of the archive: the context itself, and what Docker reads but does not lie in it.
_CONTEXT: Final = "context"
_OUTSIDE: Final = "dockerfile"

_NAME_PREFIX: Final = "mngr-build-"
_NAME_BYTES: Final = 16
_FIFOS: Final = "-fifos"
_DISK: Final = PurePosixPath("/var/tmp")
# A tmpfs of half the memory, on every Linux: https://docs.kernel.org/filesystems/tmpfs.html
_MEMORY: Final = PurePosixPath("/dev/shm")
# The build, and what else runs there, is to have most of the memory.
_MEMORY_SHARE: Final = 8
# What is written to between the two looks at it may have grown.
_GROWTH: Final = 2

# Linux's PATH_MAX, without the null byte that it counts; and what of it the folder on the VPS leaves.
_LONGEST_PATH_BYTES: Final = 4095
_LONGEST_NAME_BYTES: Final = _LONGEST_PATH_BYTES - len(f"{_DISK}/{_NAME_PREFIX}{'0' * 2 * _NAME_BYTES}/{_CONTEXT}/")
_LONGEST_SHOWN: Final = 100


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
    name = f"{_NAME_PREFIX}{secrets.token_hex(_NAME_BYTES)}"
    folder = _DISK / name
    try:
        with _prepared(build) as source:
            size = _size_with_git_dir(source, build.context_size)
            upload(
                connection,
                _unpack_command(name, size.memory_bytes),
                with_progress(_tar(source), size),
                fifos=f"{folder}{_FIFOS}",
                purpose="upload the build context",
                timeout_seconds=timeout_seconds,
            ).checked()
        place = _dockerfile_in_archive(*_paths(build))
        yield RemoteContext(context_dir=str(folder / _CONTEXT), dockerfile=str(folder / place))
    finally:
        _remove(connection, name)


def check_build_context(build: ParsedBuildArgs) -> ParsedBuildArgs:
    """Raise the BuildContextError that ``uploaded_build_context`` would raise, if it shows without a VPS.

    Tells the user the size of the context, and returns ``build`` with it.
    """
    if not build.is_build:
        return build
    source = _plan(build)
    if source.is_git_dir_replaced:
        check_checkout(source.context_dir, build.git_depth)
    size = _size(_checked(_walk_context(source)))
    advice = f"; name what the image does not need in {DOCKERIGNORE}" if size.is_large else ""
    logger.info("The build context has {}{}", size, advice)
    return replace(build, context_size=size)


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
    ``outside`` ones are not in the context. Where ``.git`` is replaced, ``git_dir`` is what is sent instead, once it
    is there.
    """

    context_dir: Path
    patterns: IgnorePatterns
    forced: frozenset[str]
    replaced: Mapping[str, Path]
    outside: Mapping[str, Path]
    is_git_dir_replaced: bool = False
    git_dir: Path | None = None

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
        if source.is_git_dir_replaced:
            git_dir = stack.enter_context(self_contained_git_dir(source.context_dir, build.git_depth))
            source = replace(source, git_dir=git_dir)
        yield source


def _paths(build: ParsedBuildArgs) -> tuple[Path, Path]:
    if build.context_dir is None or build.dockerfile is None:
        raise BuildContextError("There is no build context to send; name its directory last, for example: -b .")
    return build.context_dir, build.dockerfile


def _plan(build: ParsedBuildArgs) -> _Source:
    context_dir, dockerfile = _paths(build)
    _check_link(context_dir, dockerfile, "if you want to build that file, name it with --file={}")
    ignore_file = ignore_file_for(context_dir, dockerfile)
    if ignore_file is not None:
        _check_link(context_dir, ignore_file, "replace the link by a copy of {}")
    place = _dockerfile_in_archive(context_dir, dockerfile)
    read_by_docker = {str(place): dockerfile, f"{_CONTEXT}/{DOCKERIGNORE}": context_dir / DOCKERIGNORE}
    if ignore_file is not None and ignore_file != context_dir / DOCKERIGNORE:
        read_by_docker[f"{place}{DOCKERIGNORE}"] = ignore_file
    in_context = f"{_CONTEXT}/"
    source = _Source(
        context_dir=context_dir,
        patterns=IgnorePatterns() if ignore_file is None else IgnorePatterns.read(ignore_file),
        forced=frozenset(name.removeprefix(in_context) for name in read_by_docker if name.startswith(in_context)),
        # The legacy builder knows this name only: it, too, is to follow the file that counts. And what a link there
        # leads to may be ignored.
        replaced={} if ignore_file is None else {DOCKERIGNORE: ignore_file.resolve()},
        outside={name: path for name, path in read_by_docker.items() if not name.startswith(in_context)},
    )
    is_git_dir_replaced = build.git_depth is not None or needs_own_git_dir(context_dir)
    return replace(source, is_git_dir_replaced=is_git_dir_replaced and _is_git_dir_taken(source))


def _check_link(context_dir: Path, path: Path, advice: str) -> None:
    """Refuse a file of the context that is outside of it: its author may name any file of this machine by a link."""
    real_path = path.resolve()
    if _is_in(context_dir, path) and not real_path.is_relative_to(context_dir.resolve()):
        raise BuildContextError(
            f"{path} leads out of the build context, to {real_path}, which is not sent; {advice.format(real_path)}"
        )


def _is_in(context_dir: Path, path: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(context_dir)


def _dockerfile_in_archive(context_dir: Path, dockerfile: Path) -> PurePosixPath:
    """Where the archive has the Dockerfile: in the context, unless it is outside, or a link leads to it.

    What the link leads to may be ignored, and Docker reads it all the same.
    """
    if _is_in(context_dir, dockerfile):
        name = Path(os.path.normpath(dockerfile)).relative_to(context_dir)
        if dockerfile.resolve() == context_dir.resolve() / name:
            return PurePosixPath(_CONTEXT, name)
    return PurePosixPath(_OUTSIDE, dockerfile.name)


def _is_git_dir_taken(source: _Source) -> bool:
    """Whether ``.git`` of the context, or anything in it, is to be sent."""
    state = source.patterns.match(".git", source.patterns.root)
    return not state.is_ignored or any(True for _ in _walk_git_dir(source))


def _checked(found_paths: Iterable[_Found]) -> Iterator[_Found]:
    for found in found_paths:
        if stat.S_ISREG(found.status.st_mode) and not os.access(found.path, os.R_OK):
            raise _unreadable(found.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        yield found


def _size(found_paths: Iterable[_Found]) -> ContextSize:
    paths = content_bytes = 0
    for found in found_paths:
        paths += 1
        content_bytes += found.status.st_size if stat.S_ISREG(found.status.st_mode) else 0
    return ContextSize(paths, content_bytes)


def _size_with_git_dir(source: _Source, checked: ContextSize | None) -> ContextSize:
    """The size of what is sent, which was ``checked`` before ``git_dir`` was there."""
    if checked is None:
        return _size(_walk_context(source))
    return checked if source.git_dir is None else checked + _size(_walk_git_dir(source))


def _unpack_command(name: str, size_bytes: int) -> str:
    """Shell text that unpacks the archive into a folder on disk, or behind a link of that name in memory.

    In memory ten thousand files are there in a tenth of a second, and nothing is written to a rented disk.
    """
    size_kib = -(-size_bytes // 1024)
    memory, disk = quote(_MEMORY / name), quote(_DISK / name)
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
        f"rm -rf -- {quote(_MEMORY / name)} {quote(_DISK / name)} {quote(_DISK / (name + _FIFOS))}",
        purpose="remove the uploaded build context",
        timeout_seconds=REMOVAL_TIMEOUT_SECONDS,
        effect=Effect.IDEMPOTENT,
    )
    if not outcome.is_success:
        logger.warning("{} and {} may stay behind on the VPS: {}", _DISK / name, _MEMORY / name, outcome.error())


def _tar(source: _Source) -> Iterator[bytes]:
    return tar(_tar_entries(source))


def _tar_entries(source: _Source) -> Iterator[bytes]:
    yield folder_entry(_CONTEXT)
    for found in _walk_context(source):
        try:
            yield from entry(f"{_CONTEXT}/{found.name}", found.path, found.status)
        except FileNotFoundError:
            # It has vanished since.
            continue
        except OSError as error:
            raise _unreadable(found.path, error) from error
    if source.outside:
        yield folder_entry(_OUTSIDE)
    for name, path in source.outside.items():
        try:
            yield from file_entry(name, str(path))
        except OSError as error:
            raise _unreadable(str(path), error) from error


def _walk_context(source: _Source) -> Iterator[_Found]:
    """Every path to send, a directory before what is in it."""
    return _walk(source, _open_folder(source, None, source.patterns.root))


def _walk_git_dir(source: _Source) -> Iterator[_Found]:
    """Every path to send in ``.git``, if that is a directory."""
    git = str(source.git_dir or source.context_dir / ".git")
    state = source.patterns.match(".git", source.patterns.root)
    status = _status(git)
    if status is not None and stat.S_ISDIR(status.st_mode) and (not state.is_ignored or state.may_have_exceptions):
        yield from _walk(source, _open_folder(source, _Found(".git", git, status), state))


class _OpenFolder(NamedTuple):
    """A directory that is being walked; ``found`` is None for the context itself."""

    found: _Found | None
    prefix: str
    state: MatchState
    entries: Iterator[tuple[str, str]]


def _walk(source: _Source, folder: _OpenFolder) -> Iterator[_Found]:
    # Of plain strings, each looked at once: there may be very many. Without recursion: they may be nested more deeply
    # than Python functions can call each other.
    open_folders = [folder]
    # Ignored directories on the way to the current one. They come along as soon as something in them does.
    not_sent: list[_Found] = []
    while open_folders:
        folder = open_folders[-1]
        child = next(folder.entries, None)
        if child is None:
            open_folders.pop()
            if not_sent and not_sent[-1] is folder.found:
                not_sent.pop()
            continue
        name, path = child
        found_name = f"{folder.prefix}{name}"
        state = source.patterns.match(name, folder.state)
        is_sent = not state.is_ignored or found_name in source.forced
        if _is_too_long(found_name, path):
            if is_sent:
                raise _too_long(source, found_name)
            continue
        status = _status(path)
        if status is None:
            continue
        found = _Found(found_name, path, status)
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_sent and not stat.S_ISSOCK(status.st_mode):
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                raise BuildContextError(f"{path} is a device, which cannot be sent; name it in {DOCKERIGNORE}")
            yield from not_sent
            not_sent.clear()
            yield found
        if is_folder and not is_sent:
            if not (state.may_have_exceptions or source.is_above_forced(found_name)):
                continue
            not_sent.append(found)
        if is_folder:
            open_folders.append(_open_folder(source, found, state))


def _open_folder(source: _Source, found: _Found | None, state: MatchState) -> _OpenFolder:
    prefix = "" if found is None else f"{found.name}/"
    path = str(source.context_dir) if found is None else found.path
    children = _children(source, path, prefix, is_ignored=state.is_ignored)
    return _OpenFolder(found, prefix, state, iter(sorted(children.items())))


def _children(source: _Source, directory: str, prefix: str, *, is_ignored: bool) -> dict[str, str]:
    try:
        children = {name: f"{directory}/{name}" for name in os.listdir(directory)}  # noqa: PTH208 - names only
    except OSError as error:
        # What has vanished since has nothing in it, and of what is ignored nothing need be there.
        if isinstance(error, FileNotFoundError) or (is_ignored and isinstance(error, PermissionError)):
            return {}
        raise _unreadable(directory, error) from error
    if not prefix:
        children |= {name: str(path) for name, path in source.replaced.items() if name in children}
    if source.is_git_dir_replaced:
        git = children.get(".git")
        if not prefix and source.git_dir is not None:
            children[".git"] = str(source.git_dir)
        elif git is not None and (not prefix or Path(git).is_file()):
            # A submodule or worktree whose git directory is not sent: git stumbles over a link that leads nowhere.
            del children[".git"]
    return children


def _status(path: str) -> os.stat_result | None:
    """What is at a path; None where something was a moment ago."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_too_long(name: str, path: str) -> bool:
    return len(os.fsencode(name)) > _LONGEST_NAME_BYTES or len(os.fsencode(path)) > _LONGEST_PATH_BYTES


def _too_long(source: _Source, name: str) -> BuildContextError:
    return BuildContextError(
        f"{source.context_dir}/{name[:_LONGEST_SHOWN]}… is a path of {len(name)} characters, which is more than a VPS"
        f" takes; name its folder in {DOCKERIGNORE}"
    )


def _unreadable(path: str, error: OSError) -> BuildContextError:
    return BuildContextError(
        f"{path} of the build context cannot be read: {error.strerror}; mend that, or name it in {DOCKERIGNORE}"
    )
