"""The records of hosts and agents on a VPS's state volume.

A record is ``host_state/<host id>.json``, an agent's data ``host_state/<host id>/<agent id>.json``: files at the
volume's mountpoint, each operation one round trip. They are never torn: new content arrives in a temporary file, is
compared with its digest, synced, and renamed over the old one under a lock that ends with its holder.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from imbue.mngr.errors import HostNotFoundError
from imbue.mngr.primitives import AgentId, HostId
from imbue.mngr_vps_docker.docker.errors import DaemonNotRunningError, DiskFullError, NoSuchVolumeError, refusal
from imbue.mngr_vps_docker.errors import HostRecordError, VpsDockerError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript
from imbue.mngr_vps_docker.state.record import (
    STATE_OUTPUT_BYTES,
    KeptAgentsByHost,
    NewerRecordError,
    Records,
    VpsDockerHostRecord,
    VpsHostConfig,
    agent_path,
    agents_path,
    decode_record,
    encode_agent_data,
    encode_record,
    parse_state,
    record_path,
)
from imbue.mngr_vps_docker.state.volume_scripts import (
    ABSENT,
    CHANGED,
    archive_small_files,
    enter_volume,
    given,
    lock,
    receive,
)
from imbue.mngr_vps_docker.text import logger

__all__ = ["VpsDockerHostRecord", "VpsDockerHostStore", "VpsHostConfig"]

_TIMEOUT_SECONDS: Final = 120.0
_MAX_UPDATE_ATTEMPTS: Final = 100
# The variable of a step that holds the content to write.
_NEW_RECORD: Final = "mngr_record"
# What a writer that was killed has left; no writer takes as long.
_REMOVE_ABANDONED: Final = "find host_state -maxdepth 1 -name '.new.*' -mmin +60 -exec rm -f {} +\n"


class _UnreadableRecordError(HostRecordError):
    """A record is there and cannot be read; ``sha256`` is that of its content."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


class VpsDockerHostStore:
    """The records on one VPS. Thread-safe.

    Every method that asks the VPS raises VpsConnectionError if that failed, DaemonNotRunningError without Docker, and
    HostRecordError if the state volume is absent or cannot be read or written (a full disk is named).
    """

    def __init__(self, connection: SshConnection, volume_name: str) -> None:
        self.connection = connection
        self.volume_name = volume_name
        # For provider packages that keep a store; the library makes one for each operation.
        self._cache: dict[HostId, VpsDockerHostRecord] = {}

    def read_host_record(self, host_id: HostId, use_cache: bool = True) -> VpsDockerHostRecord | None:
        """The record of a host, or None if there is none. Raises HostRecordError if it is there and unreadable."""
        cached = self._cache.get(host_id) if use_cache else None
        if cached is not None:
            return cached
        found = self._read(host_id)
        return None if found is None else found[0]

    def write_host_record(self, host_record: VpsDockerHostRecord) -> None:
        """Write a record, whatever was there. ``update_host_record`` changes one without losing another's change."""
        self._write(host_record.host_id, host_record, unless_changed_from=None)

    def update_host_record(
        self,
        host_id: HostId,
        change: Callable[[VpsDockerHostRecord], VpsDockerHostRecord],
        *,
        last_seen: VpsDockerHostRecord | None = None,
    ) -> VpsDockerHostRecord:
        """Read a record, change it and write it back as one step, and return what was written.

        ``change`` may be called again, with a newer record, when another process wrote in between. ``last_seen`` is
        what the record probably is, which then need not be read. It also replaces one that cannot be read, of which a
        copy is kept, ``.unreadable``. Raises HostNotFoundError if there is no record.
        """
        current = None if last_seen is None else (last_seen, _sha256(encode_record(last_seen)))
        for attempt in range(_MAX_UPDATE_ATTEMPTS):
            is_unreadable = False
            if current is None:
                try:
                    current = self._read(host_id)
                except _UnreadableRecordError as error:
                    if last_seen is None:
                        raise
                    logger.warning(
                        "{}; this machine's copy replaces it, and {} is kept", error, _beside(record_path(host_id))
                    )
                    current, is_unreadable = (last_seen, error.sha256), True
            if current is None:
                raise HostNotFoundError(host_id)
            changed = change(current[0])
            if changed.host_id != host_id:
                raise HostRecordError(f"The record of {host_id} cannot become that of {changed.host_id}")
            written = self._write(host_id, changed, unless_changed_from=current[1], is_old_kept=is_unreadable)
            if written is not None:
                return written
            current = None
            time.sleep(random.uniform(0, min(0.02 * attempt, 0.5)))
        raise HostRecordError(f"The record of {host_id} was changed by others {_MAX_UPDATE_ATTEMPTS} times in a row")

    def replace_record_command(self, seen: VpsDockerHostRecord, changed: VpsDockerHostRecord) -> RemoteCommand[bool]:
        """Put ``changed`` in the place of ``seen``, if that is still the host's record, and say whether it was.

        Where it is another one, nothing is written, and a pipeline stops.
        """

        def read(outcome: CommandOutcome) -> bool:
            if outcome.exit_code == CHANGED:
                return False
            self._checked(outcome)
            return True

        path, content = record_path(seen.host_id), encode_record(changed)
        condition = _unless_changed(path, _sha256(encode_record(seen)))
        if content == encode_record(seen):
            script = enter_volume(self.volume_name) + condition
        else:
            script = self._replace_script(path, given(_NEW_RECORD, '"$new"'), condition)
        return RemoteCommand(
            ShellScript(script, {_NEW_RECORD: Secret(content.decode())}),
            f"write the record of {seen.host_id}",
            read,
            _TIMEOUT_SECONDS,
            Effect.IDEMPOTENT,
        )

    def delete_host_record(self, host_id: HostId) -> None:
        """Delete a record and the data of its agents. Idempotent."""
        path = record_path(host_id)
        # The record goes last: as long as anything is left, the host can be found.
        script = (
            enter_volume(self.volume_name)
            + "[ -d host_state ] || exit 0\n"
            + lock("host_state")
            + f"rm -rf {path.removesuffix('.json')} && rm -f {path} {_beside(path)} && sync host_state"
        )
        self._checked(self._run(script, purpose=f"delete the record of {host_id}", effect=Effect.IDEMPOTENT))
        self._cache.pop(host_id, None)

    def list_all_host_records(self) -> list[VpsDockerHostRecord]:
        """Every record that can be read; the others are logged. For provider packages, which call it."""
        return self.list_all_host_records_with_agents()[0]

    def list_all_host_records_with_agents(
        self,
    ) -> tuple[list[VpsDockerHostRecord], dict[HostId, list[dict[str, Any]]]]:
        """Every record that can be read, and the kept data of every agent by host. For provider packages."""
        records, agents = self._read_state("list host records", ("host_state/*.json", "host_state/*/*.json"))
        return [record for record in records.values() if isinstance(record, VpsDockerHostRecord)], agents

    def persist_agent_data(self, host_id: HostId, agent_data: Mapping[str, object]) -> None:
        """Keep a copy of an agent's data (its ``id`` names it) for when the host is offline.

        A host without a record, such as one that was destroyed in between, is left alone.
        """
        try:
            agent_id = AgentId(str(agent_data.get("id")))
        except ValueError as error:
            logger.warning("Agent data of host {} is not kept, for want of a usable id: {}", host_id, error)
            return
        path = agent_path(host_id, agent_id)
        outcome = self._replace(
            path,
            encode_agent_data(agent_data),
            condition=f"[ -e {record_path(host_id)} ] || exit {ABSENT}\n",
            purpose=f"keep the data of agent {agent_id}",
            effect=Effect.IDEMPOTENT,
        )
        if outcome.exit_code == ABSENT:
            logger.debug("Data of agent {} is not kept: there is no record of host {}", agent_id, host_id)
            return
        self._checked(outcome)

    def list_persisted_agent_data_for_host(self, host_id: HostId) -> list[dict[str, Any]]:
        """The kept data of a host's agents; what cannot be read is logged and left out."""
        _, agents = self._read_state(f"read the agents of {host_id}", (f"{agents_path(host_id)}/*.json",))
        return agents.get(host_id, [])

    def remove_persisted_agent_data(self, host_id: HostId, agent_id: AgentId) -> None:
        """Forget the copy of an agent's data. Idempotent."""
        path = agent_path(host_id, agent_id)
        script = (
            enter_volume(self.volume_name)
            + f"[ -e {path} ] || exit 0\n"
            + lock("host_state")
            + f"rm -f {path} && sync {agents_path(host_id)}"
        )
        self._checked(self._run(script, purpose=f"forget the data of agent {agent_id}", effect=Effect.IDEMPOTENT))

    def clear_cache(self) -> None:
        """Forget what was read, so that the next question goes to the VPS."""
        self._cache.clear()

    def _read(self, host_id: HostId) -> tuple[VpsDockerHostRecord, str] | None:
        path = record_path(host_id)
        purpose = f"read the record of {host_id}"
        script = enter_volume(self.volume_name) + f"[ -e {path} ] || exit {ABSENT}\nexec cat {path}"
        result = self._ask(script, purpose=purpose)
        if result.exit_code == ABSENT:
            self._cache.pop(host_id, None)
            return None
        if not result.is_success:
            raise self._refused(result.error_text, purpose)
        try:
            record = decode_record(result.stdout, host_id)
        except NewerRecordError as error:
            raise HostRecordError(f"{path} on {self._where} cannot be read: {error}") from error
        except HostRecordError as error:
            message = f"{path} on {self._where} cannot be read: {error}"
            raise _UnreadableRecordError(message, _sha256(result.stdout)) from error
        self._cache[host_id] = record
        return record, _sha256(result.stdout)

    def _write(
        self,
        host_id: HostId,
        record: VpsDockerHostRecord,
        *,
        unless_changed_from: str | None,
        is_old_kept: bool = False,
    ) -> VpsDockerHostRecord | None:
        """Write a record and return it; None if a digest was given and the current file has another."""
        path = record_path(host_id)
        content = encode_record(record)
        condition = "" if unless_changed_from is None else _unless_changed(path, unless_changed_from)
        if is_old_kept:
            condition += f"ln -fT {path} {_beside(path)} || exit 1\n"
        outcome = self._replace(path, content, condition=condition, purpose=f"write the record of {host_id}")
        if unless_changed_from is not None and outcome.exit_code == CHANGED:
            return None
        self._checked(outcome)
        written = self._cache[host_id] = decode_record(content, host_id)
        return written

    def _replace(
        self, path: str, content: bytes, *, condition: str, purpose: str, effect: Effect = Effect.NON_IDEMPOTENT
    ) -> CommandOutcome:
        """Put ``content`` at ``path``, unless the script ``condition`` ends the whole; it runs under the lock."""
        arrive = receive(len(content), _sha256(content), '"$new"')
        return self._run(self._replace_script(path, arrive, condition), purpose=purpose, stdin=content, effect=effect)

    def _replace_script(self, path: str, arrive: str, condition: str) -> str:
        """Shell text that puts at ``path`` what ``arrive`` writes to ``$new``."""
        directory = path.rpartition("/")[0]
        return (
            enter_volume(self.volume_name)
            + "umask 077\nmkdir -p host_state && new=$(mktemp host_state/.new.XXXXXXXX) || exit 1\n"
            + "trap 'rm -f \"$new\"' EXIT\ntrap 'exit 143' HUP INT TERM\n"
            + arrive
            + 'sync "$new" || exit 1\n'
            + lock("host_state")
            + _REMOVE_ABANDONED
            + condition
            + f'mkdir -p {directory} && mv -T "$new" {path} && sync {directory} host_state .'
        )

    def _read_state(self, purpose: str, patterns: Iterable[str]) -> tuple[Records, KeptAgentsByHost]:
        script = enter_volume(self.volume_name) + archive_small_files(patterns)
        result = self._ask(script, purpose=purpose)
        if not result.is_success:
            raise self._refused(result.error_text, purpose)
        return parse_state(result.stdout, where=self._where)

    def _ask(self, script: str, *, purpose: str) -> CommandOutcome:
        outcome = self.connection.run(
            script,
            purpose=purpose,
            timeout_seconds=_TIMEOUT_SECONDS,
            effect=Effect.READ_ONLY,
            limit_bytes=STATE_OUTPUT_BYTES,
        )
        if outcome.status is not OutcomeStatus.COMPLETED:
            raise outcome.error()
        return outcome

    def _run(
        self, script: str, *, purpose: str, stdin: bytes | None = None, effect: Effect = Effect.NON_IDEMPOTENT
    ) -> CommandOutcome:
        return self.connection.run(
            script, purpose=purpose, timeout_seconds=_TIMEOUT_SECONDS, stdin=stdin, effect=effect
        )

    def _checked(self, outcome: CommandOutcome) -> None:
        if outcome.status is not OutcomeStatus.COMPLETED:
            raise outcome.error()
        if not outcome.is_success:
            raise self._refused(outcome.error_text, outcome.purpose, outcome)

    def _refused(self, stderr: str, purpose: str, outcome: CommandOutcome | None = None) -> VpsDockerError:
        error = refusal(stderr, purpose=purpose, host=self.connection.target.name, outcome=outcome)
        if isinstance(error, DaemonNotRunningError):
            return error
        if isinstance(error, NoSuchVolumeError):
            return HostRecordError(f"{error}; the volume holds the host's record")
        if isinstance(error, DiskFullError):
            return HostRecordError(f"The disk is full, and the old record is kept. {error}")
        return HostRecordError(str(error))

    @property
    def _where(self) -> str:
        return f"{self.connection.target.name} (volume {self.volume_name})"


def _unless_changed(path: str, sha256: str) -> str:
    """Shell text that ends the script if the file does not have this digest."""
    return f'[ "$(sha256sum <{path})" = "{sha256}  -" ] || exit {CHANGED}\n'


def _beside(path: str) -> str:
    """Where a copy of a record that cannot be read is kept."""
    return f"{path}.unreadable"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
