"""mngr's views of the two machines of a host, spoken over OpenSSH: the VPS (outer host) and the container (host)."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr
from pyinfra.api.host import Host as PyinfraHost

from imbue.mngr.errors import MngrError
from imbue.mngr.hosts.host import Host
from imbue.mngr.interfaces.agent import AgentInterface
from imbue.mngr.interfaces.data_types import CertifiedHostData, CommandResult, PyinfraConnector
from imbue.mngr.interfaces.host import OuterHostInterface
from imbue.mngr.primitives import HostId, HostName
from imbue.mngr.providers.ssh_utils import create_pyinfra_host
from imbue.mngr_vps_docker.errors import (
    HostGoneError,
    RemoteCommandError,
    SshdDownError,
    VpsConnectionError,
    VpsDockerError,
)
from imbue.mngr_vps_docker.setup.scripts import SOURCE_ENVIRONMENT
from imbue.mngr_vps_docker.ssh.connection import LARGE_OUTPUT_BYTES, SshConnection
from imbue.mngr_vps_docker.ssh.file_scripts import NO_SUCH_FILE
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import ProcessRunner
from imbue.mngr_vps_docker.ssh.shell import ShellScript, quote
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.ssh.user_config import refuse_forwarding
from imbue.mngr_vps_docker.state.agent_data import SeenAgents, believed
from imbue.mngr_vps_docker.state.certified_changes import CertifiedDataChange, change_between
from imbue.mngr_vps_docker.state.local_store import LocalHostStore
from imbue.mngr_vps_docker.text import logger
from imbue.mngr_vps_docker.untrusted import UnusableDataError, json_object

# mngr gives no limit for most commands; a forgotten one must end all the same. No clone or install takes this long.
DEFAULT_COMMAND_TIMEOUT_SECONDS = 6 * 3600.0


class SshConnector(PyinfraConnector):
    """The connection data that mngr's own tools (git push, rsync, connect) read from a host; nothing is logged in to.

    Those tools know machines by address, so the known_hosts file of what ``reach`` returns must pin the address as
    well as the alias, and they run ssh with the user's configuration: see ``refuse_forwarding``.
    """

    def __init__(self, name: str, reach: Callable[[], SshTarget], runner: ProcessRunner) -> None:
        self._name = name
        self.reach = reach
        self._runner = runner
        self._made: tuple[SshTarget, PyinfraHost] | None = None

    @property
    def name(self) -> str:
        """The machine's address, by which it is called; it may be reached by another."""
        return self._name

    @property
    def connector_cls_name(self) -> str:
        """What pyinfra calls its connector."""
        return "SSHConnector"

    @property
    def host(self) -> PyinfraHost:
        """pyinfra's view of the machine as it is reached now.

        Made once somebody asks for it: pyinfra takes 8 ms for each host, and a listing needs none of it. Raises
        VpsDockerError if the user's ssh would give the machine more than the login.
        """
        target = self.reach()
        if self._made is None or self._made[0] != target:
            refuse_forwarding(target.user, target.host, target.port, self._runner)
            made = create_pyinfra_host(
                target.host, target.port, target.identity_file, target.known_hosts_file, target.user
            )
            self._made = target, made
        return self._made[1]


def shell_text(command: str, *, user: str | None = None, cwd: Path | None = None) -> str:
    """Wrap ``command`` so that it runs as ``user``, in ``cwd``."""
    text = command if cwd is None else f"cd {quote(cwd)} || exit 1\n{command}"
    return text if user is None else f"su {quote(user)} -s /bin/sh -c {quote(text)}"


def _with_environment(text: str, env: Mapping[str, str] | None) -> str:
    """``text`` with ``env`` added to its environment; raises VpsDockerError for an invalid name."""
    try:
        return ShellScript.with_environment(text, env) if env else text
    except ValueError as error:
        raise VpsDockerError(str(error)) from error


# mngr's own notes of a host and its agents, which it reads as JSON: that takes many times their size in memory.
_NOTE = "data.json"
_NOTE_BYTES = 8 << 20


type SshdRepair = Callable[[HostId], None]
type HostDataListener = Callable[[HostId, CertifiedDataChange], None]
type KeptAgentLookup = Callable[[HostId, str], Mapping[str, Any] | None]


class _OverOpenSsh(OuterHostInterface):
    """File and command operations over an ``SshConnection``; shared by the VPS and the container."""

    model_config = ConfigDict(arbitrary_types_allowed=True, defer_build=True)

    connector: SshConnector = Field(frozen=True, description="How mngr's own tools reach the machine")
    ssh: SshConnection = Field(frozen=True, exclude=True, repr=False, description="The connection to the machine")

    @property
    def is_local(self) -> bool:
        """Never local, even where the address is a loopback one."""
        return False

    def execute_idempotent_command(
        self,
        command: str,
        user: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> CommandResult:
        """Run shell text that may safely run twice; a connection lost half-way is tried again."""
        return self._execute(command, user, cwd, env, timeout_seconds, Effect.IDEMPOTENT)

    def execute_stateful_command(
        self,
        command: str,
        user: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> CommandResult:
        """Run shell text that must not run twice: it is tried again only if it never started."""
        return self._execute(command, user, cwd, env, timeout_seconds, Effect.NON_IDEMPOTENT)

    def execute_streaming_command(
        self,
        command: str,
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> CommandResult:
        """Run shell text and hand on each line of both its streams as it comes."""
        outcome = self.ssh.stream(
            _with_environment(command, env),
            on_line=lambda line, _stream: on_line(line),
            purpose=_purpose(command),
            timeout_seconds=DEFAULT_COMMAND_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds,
        )
        return self._command_result(outcome)

    def read_file(self, path: Path) -> bytes:
        """Return the content of a file; raises FileNotFoundError if it does not exist."""
        with self._notify_on_connection_error():
            return self.ssh.read_file(str(path), limit_bytes=self._limit_bytes(path))

    def _limit_bytes(self, path: Path) -> int:
        """How large a file may be that is read."""
        return LARGE_OUTPUT_BYTES

    def write_file(self, path: Path, content: bytes, mode: str | None = None, is_atomic: bool = False) -> None:
        """Write a file and its parent folders; ``mode`` is octal text ("755"), ``is_atomic`` replaces it at once."""
        with self._notify_on_connection_error():
            self.ssh.write_file(str(path), content, mode=None if mode is None else int(mode, 8), is_atomic=is_atomic)

    def read_text_file(self, path: Path, encoding: str = "utf-8") -> str:
        """Return the content of a text file."""
        return self.read_file(path).decode(encoding)

    def write_text_file(self, path: Path, content: str, encoding: str = "utf-8", mode: str | None = None) -> None:
        """Write a text file, with its parent folders."""
        self.write_file(path, content.encode(encoding), mode=mode)

    def get_file_mtime(self, path: Path) -> datetime | None:
        """Return when a file was last modified; None if it does not exist."""
        word = quote(path)
        outcome = self.ssh.run(
            f"[ -e {word} ] || exit {NO_SUCH_FILE}; exec stat -Lc %Y -- {word}",
            purpose=f"look at {path}",
            timeout_seconds=DEFAULT_COMMAND_TIMEOUT_SECONDS,
            effect=Effect.READ_ONLY,
        )
        if outcome.exit_code == NO_SUCH_FILE:
            return None
        with self._notify_on_connection_error():
            modified = outcome.checked().text
        try:
            return datetime.fromtimestamp(int(modified), tz=UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise RemoteCommandError(f"{self.ssh.target.name} says no time for {path}: {error}") from error

    def get_ssh_connection_info(self) -> tuple[str, str, int, Path] | None:
        """Return (user, host, port, private key path)."""
        target = self.connector.reach()
        return target.user, target.host, target.port, target.identity_file

    def disconnect(self) -> None:
        """Nothing to do: the shared connection is kept for the next command, also of the next process."""

    @contextmanager
    def _notify_on_connection_error(self) -> Iterator[None]:
        """Nothing to notify; the container's host tells its provider."""
        yield

    def _execute(
        self,
        command: str,
        user: str | None,
        cwd: Path | None,
        env: Mapping[str, str] | None,
        timeout_seconds: float | None,
        effect: Effect,
    ) -> CommandResult:
        outcome = self.ssh.run(
            _with_environment(shell_text(command, user=user, cwd=cwd), env),
            purpose=_purpose(command),
            timeout_seconds=DEFAULT_COMMAND_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds,
            effect=effect,
            limit_bytes=LARGE_OUTPUT_BYTES,
        )
        return self._command_result(outcome)

    def _command_result(self, outcome: CommandOutcome) -> CommandResult:
        if outcome.status is not OutcomeStatus.COMPLETED:
            with self._notify_on_connection_error():
                raise outcome.error()
        return CommandResult(
            stdout=outcome.text.removesuffix("\n"),
            stderr=outcome.error_text.removesuffix("\n"),
            success=outcome.is_success,
        )


class VpsOuterHost(_OverOpenSsh):
    """The VPS itself, as root: what ``mngr exec --outer`` talks to."""

    def get_name(self) -> HostName:
        """The address of the VPS."""
        return HostName(self.ssh.target.host)


class VpsDockerHost(_OverOpenSsh, Host):
    """The container: mngr's ``Host``, with its commands and files over OpenSSH instead of paramiko."""

    # pydantic takes the settings of the last base class, which is mngr's.
    model_config = ConfigDict(arbitrary_types_allowed=True, defer_build=True)

    on_host_data: HostDataListener = Field(
        frozen=True,
        exclude=True,
        repr=False,
        description="Lets the provider make a change to the host's certified data",
    )
    on_sshd_down: SshdRepair | None = Field(
        default=None, frozen=True, exclude=True, repr=False, description="Brings the container's sshd back"
    )
    kept_agent: KeptAgentLookup = Field(
        frozen=True, exclude=True, repr=False, description="Gives the copy that mngr kept of an agent's data"
    )
    local_store: LocalHostStore = Field(
        frozen=True, exclude=True, repr=False, description="What this machine keeps of hosts"
    )
    seen_agents: SeenAgents | None = Field(
        default=None, exclude=True, repr=False, description="The agents' data, where that was just read"
    )

    # Content of files that need not be read, each to be used once.
    _at_hand: dict[Path, bytes] = PrivateAttr(default_factory=dict)
    # Every version of the certified data that was read, by when it was written.
    _seen_data: dict[datetime, CertifiedHostData] = PrivateAttr(default_factory=dict)

    @contextmanager
    def _notify_on_connection_error(self) -> Iterator[None]:
        with Host._notify_on_connection_error(self):
            yield

    def get_name(self) -> HostName:
        """The name that the user gave the host."""
        return Host.get_name(self)

    def _build_source_env_commands(self, agent: AgentInterface[Any]) -> list[str]:
        """What mngr has shells read before a command of the user or an agent: the container's environment first."""
        return [SOURCE_ENVIRONMENT, *Host._build_source_env_commands(self, agent)]

    def get_certified_data(self) -> CertifiedHostData:
        """The content of data.json."""
        data = Host.get_certified_data(self)
        self._seen_data[data.updated_at] = data
        return data

    def set_certified_data(self, data: CertifiedHostData) -> None:
        """Let the provider change what differs from the version that ``data`` was made of; all of it, if unknown."""
        before = self._seen_data.get(data.updated_at)
        self.on_host_data(self.id, (lambda _current: data) if before is None else change_between(before, data))

    def get_agents(self) -> list[AgentInterface[Any]]:
        """The host's agents; if that was just read, and nothing was done to the host since, without asking it."""
        seen, self.seen_agents = self.seen_agents, None
        if seen is None or not seen.are_fresh:
            return Host.get_agents(self)
        folders = {self.host_dir / "agents" / str(data["id"]): data for data in seen.data}
        self._at_hand = {folder / "data.json": json.dumps(data).encode() for folder, data in folders.items()}
        loaded = [self._load_seen_agent(folder) for folder in folders]
        return [agent for agent in loaded if agent is not None]

    def _load_seen_agent(self, folder: Path) -> AgentInterface[Any] | None:
        try:
            return self._load_agent_from_dir(folder)
        # It lacks a field, or is of a type that cannot be had here: that costs no other agent.
        except (MngrError, KeyError, ValueError) as error:
            logger.warning("Left out agent {} of {}: {}", folder.name, self.id, repr(error))
            return None

    def execute_streaming_command(
        self,
        command: str,
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> CommandResult:
        """Run shell text and hand on each line of both its streams as it comes."""
        stream = _OverOpenSsh.execute_streaming_command
        return self._repairing(lambda: stream(self, command, on_line, env=env, timeout_seconds=timeout_seconds))

    def read_file(self, path: Path) -> bytes:
        """Return the content of a file; raises FileNotFoundError if it does not exist.

        A host that another process of this machine is destroying has no files. Raises RemoteOutputError for a file
        that is too large, which is less for what mngr notes there. Of an agent's data.json, what mngr decided is as
        mngr kept it, whatever the agent made of it.
        """
        content = self._at_hand.pop(path, None)
        if content is None:
            try:
                content = self._repairing(lambda: _OverOpenSsh.read_file(self, path))
            except HostGoneError as error:
                raise FileNotFoundError(str(error)) from error
        is_of_agent = path.name == _NOTE and path.parent.parent == self.host_dir / "agents"
        return self._believed(path.parent.name, content) if is_of_agent else content

    def _believed(self, agent_id: str, content: bytes) -> bytes:
        try:
            live = json_object(content)
        except UnusableDataError:
            # mngr says so itself.
            return content
        data = believed(live, self.kept_agent(self.id, agent_id))
        if _is_worktree_here(data.get("work_dir")):
            data.pop("created_branch_name", None)
        return content if data == live else json.dumps(data, indent=2).encode()

    def _limit_bytes(self, path: Path) -> int:
        is_note = path.name == _NOTE and path.is_relative_to(self.host_dir)
        return _NOTE_BYTES if is_note else _OverOpenSsh._limit_bytes(self, path)

    def write_file(self, path: Path, content: bytes, mode: str | None = None, is_atomic: bool = False) -> None:
        """Write a file and its parent folders; ``mode`` is octal text ("755"), ``is_atomic`` replaces it at once."""
        self._repairing(lambda: _OverOpenSsh.write_file(self, path, content, mode, is_atomic))

    def _execute(
        self,
        command: str,
        user: str | None,
        cwd: Path | None,
        env: Mapping[str, str] | None,
        timeout_seconds: float | None,
        effect: Effect,
    ) -> CommandResult:
        execute = _OverOpenSsh._execute
        try:
            return self._repairing(lambda: execute(self, command, user, cwd, env, timeout_seconds, effect))
        except HostGoneError as error:
            return CommandResult(stdout="", stderr=str(error), success=False)

    def _repairing[Answer](self, act: Callable[[], Answer]) -> Answer:
        """Do something, after bringing the container's sshd back if it is that which is missing."""
        self.seen_agents = None
        try:
            try:
                return act()
            except SshdDownError:
                if self.on_sshd_down is None or self.local_store.is_going(self.id):
                    raise
            self.on_sshd_down(self.id)
            return act()
        except VpsDockerError as error:
            if isinstance(error, VpsConnectionError) and self.local_store.is_going(self.id):
                raise HostGoneError(f"Host {self.id} is being destroyed by another process") from error
            # A full disk here must not hide what happened there.
            with suppress(OSError):
                self.local_store.save_failure(self.id, str(error))
            raise

    def _get_file_mtime(self, path: Path) -> datetime | None:
        try:
            return self._repairing(lambda: _OverOpenSsh.get_file_mtime(self, path))
        except HostGoneError:
            return None

    @contextmanager
    def lock_cooperatively(self, timeout_seconds: float = 300.0) -> Iterator[None]:
        """mngr's lock on the host; what would destroy it, on this machine, waits for that a while."""
        with self.local_store.in_use(self.id), Host.lock_cooperatively(self, timeout_seconds):
            yield

    def _close_paramiko_client(self) -> None:
        """There is no such client; to look for it would build pyinfra's view of every host that is closed."""


def _is_worktree_here(work_dir: object) -> bool:
    """Whether there is a git worktree at this path on this machine.

    mngr looks for it here, wherever the agent is, and deletes the agent's branch in its repository.
    """
    try:
        return isinstance(work_dir, str) and (Path(work_dir) / ".git").is_file()
    except OSError:
        return False


def _purpose(command: str) -> str:
    """What a command given by mngr or the user is for, in errors and the command log: its own first words."""
    first_line = next((line.strip() for line in command.splitlines() if line.strip()), "")
    shortened = first_line if len(first_line) <= 60 else first_line[:57] + "..."
    return f"run `{shortened}`"
