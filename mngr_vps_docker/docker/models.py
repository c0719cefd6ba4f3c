"""What Docker says of its containers, images and itself, read from its JSON into typed values.

The JSON comes from another machine: what is missing or of another type than expected is a DockerError, never a crash.
Names and shapes are those of the Docker Engine API, https://docs.docker.com/reference/api/engine/.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

from pydantic import (
    AfterValidator,
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from imbue.mngr_vps_docker.docker.errors import DockerError
from imbue.mngr_vps_docker.untrusted import UnusableDataError, check_count, describe_invalid, parse_utc

_PORT: Final = re.compile(r"[0-9]{1,5}")
_DEFAULT_CPU_PERIOD_MICROSECONDS: Final = 100_000


class PublishedPort(NamedTuple):
    """A container's TCP port, reachable at a port of the machine; on all of its addresses if ``host_ip`` is None."""

    host_port: int
    container_port: int
    host_ip: str | None = None


def _moment(moment: datetime | None) -> datetime | None:
    """The moment, if there was one: Docker writes year 1 for "never"."""
    try:
        return None if moment is None else parse_utc(moment)
    except UnusableDataError:
        return None


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


# Docker counts in 64 bits.
type _Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]
type _Time = Annotated[AwareDatetime | None, AfterValidator(_moment)]


class _Model(BaseModel):
    # Most commands read one kind of object, and many none.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_unknown(cls, data: Any) -> Any:
        """Docker writes null, or an empty text, for what it does not know; some versions leave it out."""
        if not isinstance(data, dict):
            return data
        known = {name: value for name, value in data.items() if value is not None and value != ""}
        for part in ("State", "Config", "HostConfig"):
            if isinstance(known.get(part), dict):
                known[part] = {name: value for name, value in known[part].items() if value is not None and value != ""}
        return known


class Mount(_Model):
    """What a container sees at the path ``destination``; ``name`` is that of a volume (``type`` "volume")."""

    type: str = Field(default="", validation_alias="Type")
    name: str = Field(default="", validation_alias="Name")
    destination: str = Field(default="", validation_alias="Destination")


class ContainerInfo(_Model):
    """One container.

    ``status`` is Docker's word: created, running, paused, restarting, removing, exited or dead. ``exit_code`` is of
    the last run (0 while running). ``started_at`` and ``finished_at`` are None if that never happened. ``image`` is
    the name it was started with, ``image_id`` what that name meant.
    """

    id: str = Field(validation_alias="Id")
    name: Annotated[str, AfterValidator(lambda name: name.removeprefix("/"))] = Field(validation_alias="Name")
    status: str = Field(validation_alias=AliasPath("State", "Status"))
    exit_code: _Number = Field(default=0, validation_alias=AliasPath("State", "ExitCode"))
    created_at: AwareDatetime = Field(validation_alias="Created")
    started_at: _Time = Field(default=None, validation_alias=AliasPath("State", "StartedAt"))
    finished_at: _Time = Field(default=None, validation_alias=AliasPath("State", "FinishedAt"))
    labels: dict[str, str] = Field(default={}, validation_alias=AliasPath("Config", "Labels"))
    image: str = Field(default="", validation_alias=AliasPath("Config", "Image"))
    image_id: str = Field(default="", validation_alias="Image")
    memory_limit_bytes: _Number = Field(default=0, validation_alias=AliasPath("HostConfig", "Memory"))
    limit_nano_cpus: _Number = Field(default=0, validation_alias=AliasPath("HostConfig", "NanoCpus"))
    cpu_quota_microseconds: _Number = Field(default=0, validation_alias=AliasPath("HostConfig", "CpuQuota"))
    cpu_period_microseconds: _Number = Field(default=0, validation_alias=AliasPath("HostConfig", "CpuPeriod"))
    port_bindings: dict[str, list[dict[str, str]] | None] = Field(
        default={}, validation_alias=AliasPath("HostConfig", "PortBindings")
    )
    mounts: tuple[Mount, ...] = Field(default=(), validation_alias="Mounts")

    @property
    def is_running(self) -> bool:
        """Whether a process of the container can run now."""
        return self.status == "running"

    @property
    def is_paused(self) -> bool:
        """Whether its processes are frozen, by `docker pause`."""
        return self.status == "paused"

    @property
    def nano_cpus(self) -> int | None:
        """Its limit in 1e-9 of a CPU, if it has one: by `--cpus`, or by `--cpu-quota` of each `--cpu-period`."""
        period = self.cpu_period_microseconds or _DEFAULT_CPU_PERIOD_MICROSECONDS
        return self.limit_nano_cpus or max(0, self.cpu_quota_microseconds) * 10**9 // period or None

    @property
    def memory_bytes(self) -> int | None:
        """Its limit, if it has one."""
        return self.memory_limit_bytes or None

    @property
    def volumes(self) -> dict[str, str]:
        """The names of its volumes, by where it sees them."""
        return {mount.destination: mount.name for mount in self.mounts if mount.type == "volume" and mount.name}

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """What it publishes by its configuration; unlike Docker's NetworkSettings, also while it is stopped."""
        return tuple(
            PublishedPort(int(binding["HostPort"]), int(number), binding.get("HostIp") or None)
            for container_port, bindings in self.port_bindings.items()
            for number, _, protocol in (container_port.partition("/"),)
            for binding in bindings or ()
            if protocol in ("", "tcp") and _PORT.fullmatch(number) and _PORT.fullmatch(binding.get("HostPort", ""))
        )


class ImageInfo(_Model):
    """One image on the machine; ``tags`` are its ``name:tag`` forms, ``size_bytes`` includes shared layers.

    ``created_at`` is None where whatever built the image did not say: it is needed for nothing but tidying up.
    """

    id: str = Field(validation_alias="Id")
    tags: tuple[str, ...] = Field(default=(), validation_alias="RepoTags")
    created_at: Annotated[_Time, WrapValidator(_or_none)] = Field(default=None, validation_alias="Created")
    size_bytes: _Number = Field(default=0, validation_alias="Size")
    labels: dict[str, str] = Field(default={}, validation_alias=AliasPath("Config", "Labels"))


class DockerInfo(_Model):
    """The machine's Docker daemon, and what the machine has."""

    server_version: str = Field(validation_alias="ServerVersion")
    cpus: _Number = Field(validation_alias="NCPU")
    memory_bytes: _Number = Field(validation_alias="MemTotal")
    root_dir: str = Field(validation_alias="DockerRootDir")
    driver: str = Field(validation_alias="Driver")
    runtimes: dict[str, object] = Field(default={}, validation_alias="Runtimes")
    architecture: str = Field(default="", validation_alias="Architecture")


_DEFERRED: Final = ConfigDict(defer_build=True)
_CONTAINERS: Final = TypeAdapter(tuple[ContainerInfo, ...], config=_DEFERRED)
_IMAGES: Final = TypeAdapter(tuple[ImageInfo, ...], config=_DEFERRED)


def parse_containers(text: str) -> tuple[ContainerInfo, ...]:
    """The containers in what ``docker container inspect`` printed. Raises DockerError if that cannot be read."""
    return _parsed(text, "containers", _CONTAINERS.validate_json)


def parse_container(text: str) -> ContainerInfo:
    """The one container in what ``docker container inspect`` printed. Raises DockerError if that cannot be read."""
    return _only(parse_containers(text))


def parse_images(text: str) -> tuple[ImageInfo, ...]:
    """The images in what ``docker image inspect`` printed. Raises DockerError if that cannot be read."""
    return _parsed(text, "images", _IMAGES.validate_json)


def parse_image(text: str) -> ImageInfo:
    """The one image in what ``docker image inspect`` printed. Raises DockerError if that cannot be read."""
    return _only(parse_images(text))


def parse_info(text: str) -> DockerInfo:
    """The daemon in what ``docker info`` printed as JSON. Raises DockerError if that cannot be read."""
    return _parsed(text, "the daemon", DockerInfo.model_validate_json)


def server_errors(text: str) -> str:
    """What ``docker info`` wrote into its JSON instead of failing, as some versions do when no daemon answers."""
    try:
        raw = json.loads(_bounded(text))
    # Too deep or too large: treat as invalid output.
    except (ValueError, RecursionError, DockerError):
        return ""
    errors = raw.get("ServerErrors") if isinstance(raw, dict) else None
    return "\n".join(str(error) for error in errors) if isinstance(errors, list) else ""


def _parsed[T](text: str, what: str, validate: Callable[[str], T]) -> T:
    try:
        return validate(_bounded(text))
    except ValidationError as error:
        reason = describe_invalid(error)
        raise DockerError(f"Docker's description of {what} cannot be read: {reason}") from error


def _bounded(text: str) -> str:
    try:
        check_count(text.encode())
    except UnusableDataError as error:
        raise DockerError(f"Docker's answer cannot be read: {error}") from error
    return text


def _only[Thing](things: tuple[Thing, ...]) -> Thing:
    if len(things) != 1:
        raise DockerError(f"Docker describes {len(things)} objects instead of one")
    return things[0]
