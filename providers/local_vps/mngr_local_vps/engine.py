"""The Docker engine of this machine, driven by the ``docker`` command."""

import fcntl
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.text import logger

DEFAULT_TIMEOUT_SECONDS: Final = 60.0
# The engine ends everything that runs in a VPS before the removal is done.
_REMOVE_TIMEOUT_SECONDS: Final = 120.0

HOW_TO_GET_AN_ENGINE: Final = "run scripts/ensure-engine as root, or start Docker and let this user use it"

# What docker prints where the engine cannot be asked at all, in the clients 20.10 to 28.
_UNAVAILABLE: Final = ("cannot connect to the docker daemon", "permission denied", "error during connect")

# Not "no such host", which is what a registry that cannot be reached looks like.
_NO_SUCH_OBJECT: Final = re.compile(r"no such (container|image|network|object|volume)|not found")


def run_docker(*arguments: str, stdin: bytes | None = None, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> str:
    """Run one docker command to its end and return what it printed.

    Raises VpsApiError with the status a cloud would answer: 404 where docker knows no such thing, 409 where it is
    taken or in use, 503 where no engine answers, 504 at the time-out, else 500.
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


def describe(object_type: str, names: Sequence[str]) -> list[dict[str, JsonValue]]:
    """Docker's own description of each named object (container, image, volume, network), leaving out what is gone."""
    if not names:
        return []
    try:
        return _parse_descriptions(run_docker(object_type, "inspect", *names))
    except VpsApiError as error:
        if not error.is_gone:
            raise
    # Something went while it was being listed: docker then fails as a whole, so each is asked for alone.
    return [] if len(names) == 1 else [found for name in names for found in describe(object_type, [name])]


def remove_if_there(*removal: str) -> None:
    """Run a docker command that removes something; that it is gone already is no error."""
    try:
        run_docker(*removal, timeout_seconds=_REMOVE_TIMEOUT_SECONDS)
    except VpsApiError as error:
        if not error.is_gone:
            raise


def remove_machine(name: str) -> None:
    """Remove the container of a VPS; that it is gone already is no error."""
    # Under control groups v1 nothing ends a process that the VPS's own Docker has paused.
    resume = "for state in /sys/fs/cgroup/freezer/docker/*/freezer.state; do echo THAWED >$state; done"
    with suppress(VpsApiError):
        run_docker("exec", name, "sh", "-c", resume, timeout_seconds=10)
    remove_if_there("rm", "--force", "--volumes", name)


def lines_of(output: str) -> list[str]:
    """The non-empty lines of a command's output."""
    return [line for line in output.splitlines() if line]


def api_error_of(arguments: Sequence[str], stderr: str) -> VpsApiError:
    """The cloud-like error for what a failed docker command printed."""
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
    """Raise VpsApiError 503 unless this machine reaches the engine's containers by their own addresses."""
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
    """Hold what only one process of this installation may do at a time: choose an address, or (by the folder that is
    the ``subject``) build images, which takes minutes.
    """
    descriptor = os.open(subject, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse_descriptions(output: str) -> list[dict[str, JsonValue]]:
    parsed = json.loads(output)
    if not isinstance(parsed, list):
        raise VpsApiError(500, "docker inspect printed something that is not a list")
    return parsed
