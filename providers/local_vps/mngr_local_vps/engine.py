"""The Docker engine of this machine, driven by the ``docker`` command."""

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.text import logger

DEFAULT_TIMEOUT_SECONDS: Final = 60.0
# A removal first stops everything that runs in the VPS.
_REMOVE_TIMEOUT_SECONDS: Final = 120.0

HOW_TO_GET_AN_ENGINE: Final = "run scripts/ensure-engine as root, or start Docker and let this user use it"

# Docker's messages when no engine answers, in clients 20.10 to 28.
_UNAVAILABLE: Final = ("cannot connect to the docker daemon", "permission denied", "error during connect")

# Not "no such host": that is a registry whose name does not resolve.
_NO_SUCH_OBJECT: Final = re.compile(r"no such (container|image|network|object|volume)|not found")


def run_docker(*arguments: str, stdin: bytes | None = None, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> str:
    """Run one docker command and return its output.

    Raises VpsApiError with the status that a cloud would answer: 404 if the object does not exist, 409 if it exists
    already or is in use, 503 if no engine answers, 504 at the time-out, else 500.
    """
    try:
        completed = subprocess.run(
            ["docker", *arguments], input=stdin or b"", capture_output=True, timeout=timeout_seconds, check=False
        )
    except FileNotFoundError as error:
        raise VpsApiError(503, f"there is no docker command on this machine: {HOW_TO_GET_AN_ENGINE}") from error
    except subprocess.TimeoutExpired as error:
        raise VpsApiError(504, f"docker {arguments[0]} did not end within {timeout_seconds:.0f} s") from error
    logger.trace("docker {} -> {}", " ".join(arguments), completed.returncode)
    if completed.returncode != 0:
        raise api_error_of(arguments, completed.stderr.decode(errors="replace"))
    return completed.stdout.decode(errors="replace")


def describe(object_type: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """`docker inspect` of each named object (a container, image, volume or network) that still exists."""
    if not names:
        return []
    try:
        descriptions: list[dict[str, Any]] = json.loads(run_docker(object_type, "inspect", *names))
        return descriptions
    except VpsApiError as error:
        if not error.is_gone:
            raise
    # If one object is gone, docker reports none of the others: ask for each alone.
    return [] if len(names) == 1 else [found for name in names for found in describe(object_type, [name])]


def remove_if_there(*removal: str) -> None:
    """Run a docker command that removes an object; succeed if the object is already gone."""
    try:
        run_docker(*removal, timeout_seconds=_REMOVE_TIMEOUT_SECONDS)
    except VpsApiError as error:
        if not error.is_gone:
            raise


def remove_machine(name: str) -> None:
    """Remove the container of a VPS; succeed if it is already gone."""
    # Under cgroup v1 nothing can kill a process that the VPS's own Docker has paused.
    resume = "for state in /sys/fs/cgroup/freezer/docker/*/freezer.state; do echo THAWED >$state; done"
    with suppress(VpsApiError):
        run_docker("exec", name, "sh", "-c", resume, timeout_seconds=10)
    remove_if_there("rm", "--force", "--volumes", name)


def lines_of(output: str) -> list[str]:
    """The non-empty lines of a command's output."""
    return [line for line in output.splitlines() if line]


def api_error_of(arguments: Sequence[str], stderr: str) -> VpsApiError:
    """Turn the stderr of a failed docker command into the error that a cloud would give."""
    reason = next(reversed(lines_of(stderr)), "it failed and printed nothing")
    said = stderr.lower()
    if any(words in said for words in _UNAVAILABLE):
        return VpsApiError(503, f"no Docker engine answers on this machine ({reason}): {HOW_TO_GET_AN_ENGINE}")
    if _NO_SUCH_OBJECT.search(said):
        return VpsApiError(404, reason)
    if "conflict" in said or "already" in said or "in use" in said:
        return VpsApiError(409, reason)
    return VpsApiError(500, f"docker {arguments[0]}: {reason}")


def require_suitable_engine() -> None:
    """Raise VpsApiError 503 if this machine cannot reach the engine's containers by their addresses."""
    system, options = lines_of(
        run_docker("info", "--format", "{{.OperatingSystem}}\n{{json .SecurityOptions}}", timeout_seconds=20)
    )[:2]
    if system == "Docker Desktop" or "name=rootless" in options:
        kind = "Docker Desktop" if system == "Docker Desktop" else "a rootless Docker engine"
        raise VpsApiError(
            503,
            f"local VPSes need an engine that runs as root on this Linux machine itself, and this is {kind},"
            " whose containers cannot be reached by their addresses",
        )


@contextmanager
def machine_lock(subject: Path = Path(__file__).parent) -> Iterator[None]:
    """Hold a lock among the processes of this installation. Building images, which takes minutes, has its own
    ``subject``, so that VPSes can be created at the same time.
    """
    descriptor = os.open(subject, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
