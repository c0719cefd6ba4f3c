"""Files of a host's Docker volume, read and written where the VPS keeps them, whether its container runs or not.

Untrusted code in the container writes this volume, links included, and root on the VPS walks it. So every directory on
the way is entered one by one, and after each the script looks where it is: outside the volume, it stops. A last
component that is a link is never followed, and nothing but a regular file is opened: a pipe would be waited for, and
opening a device can do anything.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import ConfigDict, Field

from imbue.mngr.interfaces.data_types import VolumeFile, VolumeFileType
from imbue.mngr.interfaces.volume import BaseVolume
from imbue.mngr_vps_docker.docker.errors import refusal
from imbue.mngr_vps_docker.errors import RemoteCommandError, RemoteOutputError, VpsDockerError
from imbue.mngr_vps_docker.ssh.connection import LARGE_OUTPUT_BYTES, SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, join, quote
from imbue.mngr_vps_docker.state.volume_scripts import (
    ABSENT,
    CHANGED,
    ESCAPES,
    TOO_LARGE,
    WRONG_TYPE,
    enter_volume,
    given,
    lock,
    receive,
)

_TIMEOUT_SECONDS: Final = 600.0
_FILE_MODE: Final = 0o644
# The variable of a step that holds the content to write.
_NEW_CONTENT: Final = "mngr_content"
_LISTING_BYTES: Final = 16 << 20
# What is compared with what it was; no file of mngr's is as large.
COMPARED_BYTES: Final = 8 << 20

# As find(1) is asked to print a file: type, size, time of its last change in seconds, name.
_ENTRY: Final = re.compile(r"(\w) (\d{1,19}) (-?\d{1,19})(?:\.\d*)? (.+)", re.DOTALL)

# go <mode> <directory>...: enters one directory after the other; with mode "make", makes those that are missing.
_GO: Final = f"""\
go() {{
  mode=$1; shift
  for part in "$@"; do
    if [ "$mode" = make ] && [ ! -e "./$part" ] && [ ! -L "./$part" ]; then mkdir "./$part" || exit 1; fi
    [ -e "./$part" ] || exit {ABSENT}
    [ -d "./$part" ] || exit {WRONG_TYPE}
    cd -P "./$part" || exit 1
    case $(pwd -P)/ in "$root"/*) ;; *) exit {ESCAPES} ;; esac
  done
}}
"""


# hold <name> <limit>: gives a regular file here the name $held as well, which the container cannot reach. What it may
# put in its place is never opened.
_HOLD: Final = f"""\
held=$root/../.mngr-held.$$ stage=
trap 'rm -rf "$held" "$stage"' EXIT
trap 'exit 143' HUP INT TERM
hold() {{
  [ -e "./$1" ] || [ -L "./$1" ] || return {ABSENT}
  [ -L "./$1" ] || [ ! -d "./$1" ] || return {WRONG_TYPE}
  ln -PfT -- "./$1" "$held" || return 1
  [ ! -L "$held" ] || return {ESCAPES}
  [ -f "$held" ] || return {WRONG_TYPE}
  [ "$(stat -c %s "$held")" -le "$2" ] || return {TOO_LARGE}
}}
"""


class UnsafeVolumePathError(VpsDockerError, ValueError):
    """A path leaves its volume: it has ``..`` in it, or goes through a link that leads out."""


class WrongFileTypeError(RemoteCommandError):
    """Something else than a regular file is where one is needed, or the other way round."""


class _ChangedError(VpsDockerError):
    """A file is not what it was expected to be."""


class HostVolumeOverSsh(BaseVolume):
    """mngr's Volume on a named Docker volume of a VPS. A leading slash of a path is the volume's root.

    A missing file or directory raises FileNotFoundError; what is of another kind WrongFileTypeError; a path out of the
    volume UnsafeVolumePathError; a missing volume NoSuchVolumeError; a VPS that cannot be asked VpsConnectionError.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    connection: SshConnection = Field(frozen=True, description="Root on the VPS")
    volume_name: str = Field(frozen=True, description="Name of the Docker volume")

    def listdir(self, path: str) -> list[VolumeFile]:
        """The entries of a directory, their paths being below the volume's root; links count as files."""
        parts = _parts(path)
        script = _go("find", parts) + r"exec find . -mindepth 1 -maxdepth 1 -printf '%y %s %T@ %f\0'"
        outcome = self._run(script, f"list {path or '/'} of volume {self.volume_name}", path)
        entries = [_entry(parts, raw) for raw in outcome.stdout.split(b"\0") if raw]
        return sorted(entries, key=lambda entry: entry.path)

    def read_file(self, path: str, *, limit_bytes: int = LARGE_OUTPUT_BYTES) -> bytes:
        """The content of a regular file; a link that is not the last component may lead about inside.

        Raises RemoteOutputError for one of more than ``limit_bytes``.
        """
        *directories, name = _file_parts(path)
        script = (
            _go("find", directories)
            + _HOLD
            + f'hold {quote(name)} {limit_bytes} || exit\nhead -c {limit_bytes} <"$held"\n'
        )
        return self._run(script, f"read {path} of volume {self.volume_name}", path, limit_bytes).stdout

    def remove_file(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or with ``recursive`` a directory and all that is in it."""
        *directories, name = _file_parts(path)
        base = quote(f"./{name}")
        script = (
            _go("find", directories)
            + f"[ -e {base} ] || [ -L {base} ] || exit {ABSENT}\n"
            + ("" if recursive else f"[ -L {base} ] || [ ! -d {base} ] || exit {WRONG_TYPE}\n")
            + f"exec rm {'-rf' if recursive else '-f'} -- {base}"
        )
        self._run(script, f"remove {path} of volume {self.volume_name}", path)

    def remove_directory(self, path: str) -> None:
        """Remove a directory and all that is in it."""
        self.remove_file(path, recursive=True)

    def write_files(self, file_contents_by_path: Mapping[str, bytes]) -> None:
        """Write files, each of them whole or not at all, in one round trip; missing directories are made."""
        write_volume_files(self.connection, self.volume_name, file_contents_by_path)

    def replace_file(self, path: str, content: bytes, *, expected: bytes) -> bool:
        """Write a file if its content still is ``expected`` (empty: or there is none), and say whether it was."""
        condition = _unless_changed(path, hashlib.sha256(expected).hexdigest())
        try:
            write_volume_files(self.connection, self.volume_name, {path: content}, condition=condition)
        except _ChangedError:
            return False
        return True

    def replace_file_command(self, path: str, content: bytes, *, expected_sha256: str) -> RemoteCommand[bool]:
        """What ``replace_file`` does, with the digest of what is expected; a pipeline stops where it is not that."""

        def read(outcome: CommandOutcome) -> bool:
            try:
                _checked(outcome, path)
            except _ChangedError:
                return False
            return True

        arrive = given(_NEW_CONTENT, '"$stage/0"') + f'chmod {_FILE_MODE:o} "$stage/0" && sync "$stage/0" || exit 1\n'
        script = _write_script(self.volume_name, [path], arrive, _unless_changed(path, expected_sha256))
        return RemoteCommand(
            ShellScript(script, {_NEW_CONTENT: Secret(content.decode())}),
            f"write {path} of volume {self.volume_name}",
            read,
            _TIMEOUT_SECONDS,
            Effect.IDEMPOTENT,
        )

    def _run(self, script: str, purpose: str, path: str, limit_bytes: int = _LISTING_BYTES) -> CommandOutcome:
        outcome = self.connection.run(
            enter_volume(self.volume_name) + script,
            purpose=purpose,
            timeout_seconds=_TIMEOUT_SECONDS,
            limit_bytes=limit_bytes,
        )
        return _checked(outcome, path)


def write_volume_files(
    connection: SshConnection,
    volume: str,
    contents: Mapping[str, bytes],
    mode: int = _FILE_MODE,
    *,
    condition: str = "",
) -> None:
    """Write files of a Docker volume as files of the VPS, owned by root, in one round trip.

    All of them have arrived and are on the disk before the first is put in its place by a rename, so none is ever seen
    half-written; just before that, the shell text ``condition`` may end the whole. Raises what HostVolumeOverSsh
    raises, and DiskFullError.
    """
    if not contents:
        return
    data = _tar([(str(index), content) for index, content in enumerate(contents.values())], mode)
    arrive = (
        receive(len(data), hashlib.sha256(data).hexdigest(), '"$stage/tar"')
        # Names without directories, extracted where we are: nothing in the container can send them elsewhere.
        + '(cd -P "$stage" && tar -xpf ./tar --no-same-owner && rm ./tar && sync ./*) || exit 1\n'
    )
    outcome = connection.run(
        _write_script(volume, contents, arrive, condition),
        purpose=f"write {', '.join(contents)} of volume {volume}",
        timeout_seconds=_TIMEOUT_SECONDS,
        stdin=data,
    )
    _checked(outcome, ", ".join(contents))


def _write_script(volume: str, paths: Iterable[str], arrive: str, condition: str) -> str:
    """Shell text that puts at ``paths`` the files 0, 1, … that ``arrive`` makes in the directory ``$stage``."""
    put = _put_in_any_place if condition else _put
    moves = "".join(
        f"({_go_line('make', directories)}{put(index, quote(f'./{name}'))}sync .) || exit\n"
        for index, (*directories, name) in enumerate(map(_file_parts, paths))
    )
    return (
        enter_volume(volume)
        + _GO
        + _HOLD
        # Next to the volume's content, on the same file system: in it, the container could replace files by links.
        + 'stage=$(mktemp -d "$root/../.mngr-new.XXXXXXXX") || exit 1\n'
        + arrive
        + condition
        + moves
    )


def _put(index: int, base: str) -> str:
    """Shell text that moves a new file to ``base`` (shell text)."""
    return f'[ ! -d {base} ] || [ -L {base} ] || exit {WRONG_TYPE}\nmv -fT "$stage/{index}" {base} || exit 1\n'


def _put_in_any_place(index: int, base: str) -> str:
    """The same where a folder, too, has to make room; one that comes again and again is a change like any other."""
    return (
        f'[ ! -d {base} ] || [ -L {base} ] || mv -T {base} {base}."${{stage##*.}}"\n'
        f'mv -fT "$stage/{index}" {base} || {{ [ ! -d {base} ] || exit {CHANGED}; exit 1; }}\n'
    )


def _unless_changed(path: str, sha256: str) -> str:
    """Shell text that takes the volume's lock, and ends the script if the file does not have this digest.

    A large file, and anything but a regular file, counts as an empty file.
    """
    *directories, name = _file_parts(path)
    read = f'hold {quote(name)} {COMPARED_BYTES} && head -c {COMPARED_BYTES} <"$held"'
    return (
        # The lock is next to the volume's content, out of the container's reach.
        lock('"$root/.."')
        + f"old=$({{ {_go_line('make', directories)}{read}; }} 2>/dev/null | sha256sum)\n"
        + f'[ "$old" = "{sha256}  -" ] || exit {CHANGED}\n'
    )


def _checked(outcome: CommandOutcome, path: str) -> CommandOutcome:
    if outcome.is_success:
        return outcome
    if outcome.status is not OutcomeStatus.COMPLETED:
        raise outcome.error()
    match outcome.exit_code:
        case code if code == CHANGED:
            raise _ChangedError(f"{path} was changed by others (could not {outcome.purpose} on {outcome.host})")
        case code if code == ABSENT:
            raise FileNotFoundError(f"{path} is not there (could not {outcome.purpose} on {outcome.host})")
        case code if code == ESCAPES:
            raise UnsafeVolumePathError(f"{path} goes through a link that may lead out of the volume")
        case code if code == WRONG_TYPE:
            what = "a file is where a directory is needed, or the other way round"
            raise WrongFileTypeError(f"Could not {outcome.purpose} on {outcome.host}: {what}")
        case code if code == TOO_LARGE:
            raise RemoteOutputError(f"Could not {outcome.purpose} on {outcome.host}: it is too large")
    raise refusal(outcome.error_text, purpose=outcome.purpose, host=outcome.host, outcome=outcome)


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise UnsafeVolumePathError(f"{path!r} is not a path inside a volume: it must not contain '..'")
    return parts


def _file_parts(path: str) -> list[str]:
    parts = _parts(path)
    if not parts:
        raise UnsafeVolumePathError(f"{path!r} is the volume itself, not a file in it")
    return parts


def _go(mode: str, directories: list[str]) -> str:
    return _GO + _go_line(mode, directories)


def _go_line(mode: str, directories: list[str]) -> str:
    return f"go {mode} {join(directories)}\n"


def _entry(directories: list[str], raw: bytes) -> VolumeFile:
    found = _ENTRY.fullmatch(raw.decode("utf-8", "replace"))
    if found is None:
        raise RemoteCommandError(f"The VPS lists something that is not a file: {raw[:100]!r}")
    kind, size, mtime, name = found.groups()
    return VolumeFile(
        path="/".join([*directories, name]),
        file_type=VolumeFileType.DIRECTORY if kind == "d" else VolumeFileType.FILE,
        mtime=int(mtime),
        size=int(size),
    )


def _tar(files: list[tuple[str, bytes]], mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
