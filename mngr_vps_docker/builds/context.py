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

_REMOVAL_TIMEOUT_SECONDS: Final = 120.0

# The folders of the archive: the context itself, and files outside of it that Docker reads.
_CONTEXT: Final = "context"
_OUTSIDE: Final = "dockerfile"

_NAME_PREFIX: Final = "mngr-build-"
_NAME_BYTES: Final = 16
_FIFOS: Final = "-fifos"
_DISK: Final = PurePosixPath("/var/tmp")
# A tmpfs of half the memory, on every Linux: https://docs.kernel.org/filesystems/tmpfs.html
_MEMORY: Final = PurePosixPath("/dev/shm")
# Most of the memory is for the build and what else runs there.
_MEMORY_SHARE: Final = 8
# Files may have grown between the check and the upload.
_GROWTH: Final = 2

# Linux's PATH_MAX without the null byte that it counts, and what remains of it below the folder on the VPS.
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
    """Keep a build context on a VPS for the ``with`` block, and remove it afterwards; ``archive`` says what is sent.

    Raises BuildContextError for what is wrong on this machine, and what the connection raises.
    """
    # Named here and not there, so that it can be removed even if the answer is lost.
    name = f"{_NAME_PREFIX}{secrets.token_hex(_NAME_BYTES)}"
    folder = _DISK / name
    try:
        with _prepared(build) as context:
            size = _size(context.walk()) if build.context_size is None else build.context_size
            if build.context_size is not None and context.git_dir is not None:
                # It was not there yet when the context was checked.
                size += _size(context.walk_git_dir())
            upload(
                connection,
                _unpack_command(name, size.memory_bytes),
                with_progress(tar(context.tar_entries()), size),
                fifos=f"{folder}{_FIFOS}",
                purpose="upload the build context",
                timeout_seconds=timeout_seconds,
            ).checked()
        yield RemoteContext(str(folder / _CONTEXT), str(folder / context.dockerfile))
    finally:
        _remove(connection, name)


def check_build_context(build: ParsedBuildArgs) -> ParsedBuildArgs:
    """Raise the BuildContextError that ``uploaded_build_context`` would raise, if it shows without a VPS.

    Logs the size of the context, and returns ``build`` with it.
    """
    if not build.is_build:
        return build
    context = _plan(build)
    if context.is_git_dir_replaced:
        check_checkout(context.folder, build.git_depth)
    size = _size(_checked(context.walk()))
    advice = f"; name what the image does not need in {DOCKERIGNORE}" if size.is_large else ""
    logger.info("The build context has {}{}", size, advice)
    return replace(build, context_size=size)


@contextmanager
def archive(build: ParsedBuildArgs) -> Iterator[Iterator[bytes]]:
    """Give the tar stream of a build context; memory use does not depend on its size.

    In it, ``context/`` holds what Docker would take by its ignore file. The Dockerfile and the ignore files are always
    there, since Docker reads them; a Dockerfile outside of the context is in ``dockerfile/``. Files are as on disk,
    ignored by git or not. A ``.git`` that does not work in another place is replaced by a self-contained one, and so
    is any with ``git_depth``. All files belong to root, as in an image.
    """
    with _prepared(build) as context:
        yield tar(context.tar_entries())


class _Found(NamedTuple):
    """A path to send: its name in the context, where it is, and its status (that of a link itself)."""

    name: str
    path: str
    status: os.stat_result


class _OpenFolder(NamedTuple):
    """A directory that is being walked; ``found`` is None for the context itself."""

    found: _Found | None
    state: MatchState
    children: Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Context:
    """What to send of which directory.

    ``forced`` files are sent though they may be ignored, ``replaced`` ones have their content from elsewhere, and
    ``outside`` ones are not in the context. ``dockerfile`` is a path in the archive. Where ``.git`` is replaced,
    ``git_dir`` is sent instead, once it exists.
    """

    folder: Path
    dockerfile: PurePosixPath
    patterns: IgnorePatterns
    forced: frozenset[str]
    replaced: Mapping[str, Path]
    outside: Mapping[str, Path]
    is_git_dir_replaced: bool = False
    git_dir: Path | None = None

    def tar_entries(self) -> Iterator[bytes]:
        yield folder_entry(_CONTEXT)
        for found in self.walk():
            try:
                yield from entry(f"{_CONTEXT}/{found.name}", found.path, found.status)
            except FileNotFoundError:
                # Deleted since.
                continue
            except OSError as error:
                raise _unreadable(found.path, error) from error
        if self.outside:
            yield folder_entry(_OUTSIDE)
        for name, path in self.outside.items():
            try:
                yield from file_entry(name, str(path))
            except OSError as error:
                raise _unreadable(str(path), error) from error

    def walk(self) -> Iterator[_Found]:
        """Every path to send, a directory before its content."""
        return self._walk(self._open(None, self.patterns.root))

    def walk_git_dir(self) -> Iterator[_Found]:
        """Every path to send in ``.git``, if that is a directory."""
        git = str(self.git_dir or self.folder / ".git")
        state = self.patterns.match(".git", self.patterns.root)
        status = _status(git)
        if status is not None and stat.S_ISDIR(status.st_mode) and (not state.is_ignored or state.may_have_exceptions):
            yield from self._walk(self._open(_Found(".git", git, status), state))

    def _walk(self, folder: _OpenFolder) -> Iterator[_Found]:
        # There may be very many paths: they are plain strings, each looked at once. They may be nested more deeply
        # than Python functions can call each other: no recursion.
        open_folders = [folder]
        # Ignored directories on the way to the current one. They are sent as soon as something in them is.
        not_sent: list[_Found] = []
        while open_folders:
            folder = open_folders[-1]
            child = next(folder.children, None)
            if child is None:
                open_folders.pop()
                if not_sent and not_sent[-1] is folder.found:
                    not_sent.pop()
                continue
            own_name, path = child
            name = own_name if folder.found is None else f"{folder.found.name}/{own_name}"
            state = self.patterns.match(own_name, folder.state)
            is_sent = not state.is_ignored or name in self.forced
            if len(os.fsencode(name)) > _LONGEST_NAME_BYTES or len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
                if is_sent:
                    raise self._too_long(name)
                continue
            status = _status(path)
            if status is None:
                continue
            found = _Found(name, path, status)
            if is_sent and not stat.S_ISSOCK(status.st_mode):
                if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    raise BuildContextError(f"{path} is a device, which cannot be sent; name it in {DOCKERIGNORE}")
                yield from not_sent
                not_sent.clear()
                yield found
            if not stat.S_ISDIR(status.st_mode):
                continue
            if not is_sent:
                if not (state.may_have_exceptions or any(forced.startswith(f"{name}/") for forced in self.forced)):
                    continue
                not_sent.append(found)
            open_folders.append(self._open(found, state))

    def _open(self, found: _Found | None, state: MatchState) -> _OpenFolder:
        """List a folder, with what is replaced in it."""
        path = str(self.folder) if found is None else found.path
        try:
            children = {name: f"{path}/{name}" for name in os.listdir(path)}  # noqa: PTH208 - names only
        except OSError as error:
            # A folder that was deleted since has no children, and an ignored one need not be readable.
            if not (isinstance(error, FileNotFoundError) or (state.is_ignored and isinstance(error, PermissionError))):
                raise _unreadable(path, error) from error
            children = {}
        if found is None:
            children |= {name: str(file) for name, file in self.replaced.items() if name in children}
        if self.is_git_dir_replaced:
            git = children.get(".git")
            if found is None and self.git_dir is not None:
                children[".git"] = str(self.git_dir)
            elif git is not None and (found is None or Path(git).is_file()):
                # A submodule or worktree whose git directory is not sent: git fails at a link that leads nowhere.
                del children[".git"]
        return _OpenFolder(found, state, iter(sorted(children.items())))

    def _too_long(self, name: str) -> BuildContextError:
        return BuildContextError(
            f"{self.folder}/{name[:_LONGEST_SHOWN]}… is a path of {len(name)} characters, which is more than a VPS"
            f" takes; name its folder in {DOCKERIGNORE}"
        )


@contextmanager
def _prepared(build: ParsedBuildArgs) -> Iterator[_Context]:
    context = _plan(build)
    with ExitStack() as stack:
        if context.is_git_dir_replaced:
            git_dir = stack.enter_context(self_contained_git_dir(context.folder, build.git_depth))
            context = replace(context, git_dir=git_dir)
        yield context


def _plan(build: ParsedBuildArgs) -> _Context:
    if build.context_dir is None or build.dockerfile is None:
        raise BuildContextError("There is no build context to send; name its directory last, for example: -b .")
    folder, dockerfile = build.context_dir, build.dockerfile
    _check_link(folder, dockerfile, "if you want to build that file, name it with --file={}")
    ignore_file = ignore_file_for(folder, dockerfile)
    if ignore_file is not None:
        _check_link(folder, ignore_file, "replace the link by a copy of {}")
    place = _dockerfile_in_archive(folder, dockerfile)
    read_by_docker = {str(place): dockerfile, f"{_CONTEXT}/{DOCKERIGNORE}": folder / DOCKERIGNORE}
    if ignore_file is not None and ignore_file != folder / DOCKERIGNORE:
        read_by_docker[f"{place}{DOCKERIGNORE}"] = ignore_file
    in_context = f"{_CONTEXT}/"
    context = _Context(
        folder=folder,
        dockerfile=place,
        patterns=IgnorePatterns() if ignore_file is None else IgnorePatterns.read(ignore_file),
        forced=frozenset(name.removeprefix(in_context) for name in read_by_docker if name.startswith(in_context)),
        # The legacy builder reads only the file of this name. If that is a link, its target may be ignored.
        replaced={} if ignore_file is None else {DOCKERIGNORE: ignore_file.resolve()},
        outside={name: path for name, path in read_by_docker.items() if not name.startswith(in_context)},
    )
    if build.git_depth is None and not needs_own_git_dir(folder):
        return context
    # Where nothing of ``.git`` is sent, it need not be usable.
    state = context.patterns.match(".git", context.patterns.root)
    return replace(context, is_git_dir_replaced=not state.is_ignored or any(True for _ in context.walk_git_dir()))


def _check_link(folder: Path, path: Path, advice: str) -> None:
    """Refuse a file of the context that is outside of it: its author may name any file of this machine by a link."""
    real_path = path.resolve()
    if _is_in(folder, path) and not real_path.is_relative_to(folder.resolve()):
        raise BuildContextError(
            f"{path} leads out of the build context, to {real_path}, which is not sent; {advice.format(real_path)}"
        )


def _is_in(folder: Path, path: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(folder)


def _dockerfile_in_archive(folder: Path, dockerfile: Path) -> PurePosixPath:
    """The Dockerfile's path in the archive: in the context, unless it is outside or reached by a link.

    The target of the link may be ignored, and Docker reads it all the same.
    """
    if _is_in(folder, dockerfile):
        name = Path(os.path.normpath(dockerfile)).relative_to(folder)
        if dockerfile.resolve() == folder.resolve() / name:
            return PurePosixPath(_CONTEXT, name)
    return PurePosixPath(_OUTSIDE, dockerfile.name)


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


def _unpack_command(name: str, size_bytes: int) -> str:
    """Shell text that unpacks the archive into a folder on disk, or behind a link of that name in memory.

    In memory, ten thousand files take a tenth of a second, and a rented disk is not written to.
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
        timeout_seconds=_REMOVAL_TIMEOUT_SECONDS,
        effect=Effect.IDEMPOTENT,
    )
    if not outcome.is_success:
        logger.warning("{} and {} may stay behind on the VPS: {}", _DISK / name, _MEMORY / name, outcome.error())


def _status(path: str) -> os.stat_result | None:
    """The status of a path; None if it was deleted since."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> BuildContextError:
    return BuildContextError(
        f"{path} of the build context cannot be read: {error.strerror}; correct that, or name it in {DOCKERIGNORE}"
    )
