"""The two containers on a VPS: the host's own, and the keeper of the state volume."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.config import CONTAINER_SETUP_TIMEOUT_SECONDS, HOST_VOLUME_PATH, LOOPBACK_ADDRESS
from imbue.mngr_vps_docker.docker.containers import ContainerSpec, explaining_end, hidden
from imbue.mngr_vps_docker.docker.exec import exec_with_secret_stdin
from imbue.mngr_vps_docker.docker.models import ContainerInfo
from imbue.mngr_vps_docker.errors import VpsConnectionError, VpsDockerError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.host_access import (
    HOST_NAME_LABEL,
    PROVIDER_LABEL,
    TAGS_LABEL,
    HostAccess,
    ProviderContext,
)
from imbue.mngr_vps_docker.primitives import HOST_ID_LABEL
from imbue.mngr_vps_docker.setup.container_setup import (
    HOST_CONTAINER_SCRIPT,
    REFUSALS_SCRIPT,
    STATE_CONTAINER_SCRIPT,
    ContainerSetup,
    setup_script,
)
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.remote_command import RemoteCommand
from imbue.mngr_vps_docker.ssh.shell import Secret
from imbue.mngr_vps_docker.state.certified_changes import certified_data_json
from imbue.mngr_vps_docker.text import logger

STATE_VOLUME_PATH = PurePosixPath("/mngr-state")
CONTAINER_SSHD_PORT = 22
# Whatever user and folder the image names: the set-up needs root, which may not be able to enter another folder.
_AS_ROOT = ("--user=0:0", "--workdir=/")
# They keep an agent from taking the VPS down; start arguments come later, and win. `local` is a log driver whose
# logs are bounded (100 MB); a fork bomb ends at the limit; when memory is short, the container's processes go first.
# Raw sockets lead to much code of the kernel, and device files to its drivers. AUDIT_WRITE stays: without it sshd ends
# each login with a terminal.
PROTECTIVE_ARGS = (
    "--security-opt=no-new-privileges",
    "--cap-drop=NET_RAW",
    "--cap-drop=MKNOD",
    "--log-driver=local",
    "--pids-limit=4096",
    "--oom-score-adj=500",
)


# Our process 1 stops on it, whatever signal the image or a start argument names for another program.
_STOP_SIGNAL_ARG = "--stop-signal=SIGTERM"
# The state container runs the agent's own image and only sleeps.
_KEEPER_ARGS = (
    _STOP_SIGNAL_ARG,
    "--no-healthcheck",
    "--workdir=/",
    "--network=none",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--pids-limit=64",
    "--memory=64m",
    "--log-driver=local",
)
_LOCK_FOLDER = PurePosixPath("/run")
_LOCK_SECONDS = 120
_LOG_SECONDS = 10.0


def state_container(context: ProviderContext, *, image: str) -> ContainerSpec:
    """The keeper of the state volume: it makes the volume visible and keeps it from being pruned.

    It runs the image that the host needs anyway, which is the agent's own, and so can do nothing but look at the
    volume. It comes back after a reboot.
    """
    name = context.state_volume_name
    return ContainerSpec(
        name=name,
        image=image,
        labels={"com.imbue.mngr.type": "state-container", PROVIDER_LABEL: context.provider_name},
        volumes={name: f"{STATE_VOLUME_PATH}:ro"},
        restart_policy="unless-stopped",
        extra_args=(*_AS_ROOT, *_KEEPER_ARGS),
        hides_environment=True,
        entrypoint="sh",
        command=("-c", STATE_CONTAINER_SCRIPT),
    )


def host_container(
    context: ProviderContext,
    *,
    host_id: HostId,
    host_name: str,
    container_name: str,
    image: str,
    start_args: Sequence[str],
    tags: Mapping[str, str],
) -> ContainerSpec:
    """A host's container; its sshd is reached at the VPS's public address, or through the VPS only.

    It has no restart policy: an idle stop must last, and after a reboot of the VPS the host is shown as stopped.
    """
    return ContainerSpec(
        name=container_name,
        image=image,
        labels={
            HOST_ID_LABEL: host_id,
            HOST_NAME_LABEL: host_name,
            PROVIDER_LABEL: context.provider_name,
            TAGS_LABEL: json.dumps(dict(tags)),
        },
        volumes={context.host_volume_name(host_id): str(HOST_VOLUME_PATH)},
        published_ports={context.config.container_ssh_port: CONTAINER_SSHD_PORT},
        publish_address=LOOPBACK_ADDRESS if context.config.container_ssh_via_vps else None,
        extra_args=(*_AS_ROOT, *PROTECTIVE_ARGS, *(hidden(word) for word in start_args), _STOP_SIGNAL_ARG),
        hides_environment=True,
        entrypoint="sh",
        command=("-c", HOST_CONTAINER_SCRIPT),
    )


def is_behind_vps(container: ContainerInfo) -> bool:
    """Whether the sshd of a host's container can be reached through its VPS only."""
    return any(
        port.container_port == CONTAINER_SSHD_PORT and port.host_ip == LOOPBACK_ADDRESS for port in container.ports
    )


def setup_command(
    host: HostAccess,
    *,
    authorized_keys: Sequence[str] = (),
    known_hosts: Sequence[str] = (),
    certified_data: CertifiedHostData | None = None,
) -> RemoteCommand[None]:
    """Set up a running container for mngr, and log what that did and warned of. Idempotent.

    ``certified_data`` becomes the host's data.json, if given.
    """
    files = {} if certified_data is None else {"data.json": certified_data_json(certified_data)}
    setup = ContainerSetup(
        host_dir=host.context.host_dir,
        client_public_key=host.context.keys.container_client_key(host.host_id).public_key,
        host_private_key=Secret(host.context.keys.container_host_key(host.host_id).private_key_path.read_text()),
        extra_authorized_keys=authorized_keys,
        extra_known_hosts=known_hosts,
        files=files,
    )
    command = exec_with_secret_stdin(
        host.container_name,
        "sh -s",
        stdin=setup_script(setup),
        purpose="set up the container",
        timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS,
    )

    def read(outcome: CommandOutcome) -> None:
        for line in command.read(outcome).checked().text.splitlines():
            warning = line.removeprefix("Warning: ")
            if warning != line:
                logger.warning("{}", warning)
            else:
                logger.debug("{}", line)

    set_up = RemoteCommand(command.script, command.purpose, read, command.timeout_seconds, command.effect)
    return under_vps_lock(host.host_id, explaining_end(host.container_name, set_up))


def under_vps_lock[T](host_id: HostId, command: RemoteCommand[T]) -> RemoteCommand[T]:
    """``command`` under a lock on the VPS, which all processes and machines share for one host.

    A command that starts or enters a container would otherwise find it paused while a snapshot is taken.
    """
    # On the VPS, not in the container, whose agent could hold it for ever.
    lock = _LOCK_FOLDER / f"mngr-{host_id}.lock"
    waiting = command.with_script(f"(flock -w {_LOCK_SECONDS} 9; {command.script}) 9>{lock}")
    return replace(waiting, timeout_seconds=command.timeout_seconds + _LOCK_SECONDS)


def enter_container(host: HostAccess, *, is_new: bool = False) -> None:
    """Pin the host key of a container that was set up, and prove by a command that mngr can work on it.

    Raises VpsProvisioningError for a new one in which mngr's rsync and git would fail. Of one that was in use, whose
    agent may have changed its start-up files, that is only logged: it can be repaired from inside.
    """
    host.pin_container(host.context.keys.container_host_key(host.host_id).public_key)
    try:
        greeting = host.container_ssh.wait_until_ready(host.context.config.ssh_connect_timeout)
    except VpsConnectionError as error:
        reason = _what_sshd_says(replace(host, connect_timeout_seconds=_LOG_SECONDS))
        raise type(error)(f"{error}. In the container: {reason}") from error
    if not greeting:
        return
    problem = (
        f"A start-up file of root's shell, such as .bashrc, prints {greeting.splitlines()[-1]!r} before the output of"
        " every command, which rsync and git cannot read: let it print in interactive shells only"
    )
    if is_new:
        raise VpsProvisioningError(problem)
    logger.warning("{}", problem)


def _what_sshd_says(host: HostAccess) -> str:
    """Why a container's sshd may refuse us, as far as the container can say, in one line."""
    try:
        said = host.docker.exec(
            host.container_name,
            REFUSALS_SCRIPT,
            purpose="read sshd's log",
            timeout_seconds=_LOG_SECONDS,
            effect=Effect.READ_ONLY,
        )
    except VpsDockerError as error:
        return str(error)
    return said.last_words(8)
