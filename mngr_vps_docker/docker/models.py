"""What Docker says of its containers, images and itself, read from its JSON into typed values.

The JSON comes from another machine: what is missing or of another type than expected is a DockerError, never a crash.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import (
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
from imbue.mngr_vps_docker.text import printable
from imbue.mngr_vps_docker.untrusted import UnusableDataError, check_count, parse_utc


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A container's TCP port, reachable at a port of the machine; on all of its addresses if ``host_ip`` is None."""

    host_port: int
    container_port: int
    host_ip: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerInfo:
    """One container.

    ``status`` is Docker's word: created, running, paused, restarting, removing, exited or dead. ``exit_code`` is of
    the last run (0 while running). ``started_at`` and ``finished_at`` are None if that never happened. ``nano_cpus``
    (1e-9 of a CPU) and ``memory_bytes`` are the container's limits, None where it has none. ``image`` is the name it
    was started with, ``image_id`` what that name meant. ``volumes`` are its volumes, by where it sees them.
    """

    id: str
    name: str
    status: str
    exit_code: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    labels: Mapping[str, str]
    image: str
    image_id: str
    nano_cpus: int | None
    memory_bytes: int | None
    ports: tuple[PublishedPort, ...]
    volumes: Mapping[str, str]

    @property
    def is_running(self) -> bool:
        """Whether a process of the container can run now."""
        return self.status == "running"

    @property
    def is_paused(self) -> bool:
        """Whether its processes are frozen, by `docker pause`."""
        return self.status == "paused"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image on the machine; ``tags`` are its ``name:tag`` forms, ``size_bytes`` includes shared layers.

    ``created_at`` is None where whatever built the image did not say.
    """

    id: str
    tags: tuple[str, ...]
    created_at: datetime | None
    size_bytes: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DockerInfo:
    """The machine's Docker daemon, and what the machine has."""

    server_version: str
    cpus: int
    memory_bytes: int
    root_dir: str
    driver: str
    runtimes: tuple[str, ...]
    architecture: str


class _Json(BaseModel):
    # Most commands read one kind of thing, and many none.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_unknown(cls, data: Any) -> Any:
        """Docker writes null, or an empty text, for what it does not know; some versions leave it out."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None and value != ""}


def _or_none(value: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


# Docker counts in 64 bits.
type _Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _State(_Json):
    status: str = Field(alias="Status")
    exit_code: _Number = Field(default=0, alias="ExitCode")
    started_at: AwareDatetime | None = Field(default=None, alias="StartedAt")
    finished_at: AwareDatetime | None = Field(default=None, alias="FinishedAt")


class _Config(_Json):
    image: str = Field(default="", alias="Image")
    labels: dict[str, str] = Field(default={}, alias="Labels")


class _HostConfig(_Json):
    nano_cpus: _Number = Field(default=0, alias="NanoCpus")
    cpu_quota: _Number = Field(default=0, alias="CpuQuota")
    cpu_period: _Number = Field(default=0, alias="CpuPeriod")
    memory: _Number = Field(default=0, alias="Memory")
    port_bindings: dict[str, list[dict[str, str]] | None] = Field(default={}, alias="PortBindings")


class _Mount(_Json):
    type: str = Field(default="", alias="Type")
    name: str = Field(default="", alias="Name")
    destination: str = Field(default="", alias="Destination")


class _Container(_Json):
    id: str = Field(alias="Id")
    name: str = Field(alias="Name")
    created: AwareDatetime = Field(alias="Created")
    image: str = Field(default="", alias="Image")
    state: _State = Field(alias="State")
    config: _Config = Field(default_factory=_Config, alias="Config")
    host_config: _HostConfig = Field(default_factory=_HostConfig, alias="HostConfig")
    mounts: tuple[_Mount, ...] = Field(default=(), alias="Mounts")


class _Image(_Json):
    id: str = Field(alias="Id")
    repo_tags: tuple[str, ...] = Field(default=(), alias="RepoTags")
    # Written by whatever built the image, and needed for nothing but tidying up.
    created: Annotated[AwareDatetime | None, WrapValidator(_or_none)] = Field(default=None, alias="Created")
    size: _Number = Field(default=0, alias="Size")
    config: _Config = Field(default_factory=_Config, alias="Config")


class _Info(_Json):
    server_version: str = Field(alias="ServerVersion")
    cpus: _Number = Field(alias="NCPU")
    memory: _Number = Field(alias="MemTotal")
    root_dir: str = Field(alias="DockerRootDir")
    driver: str = Field(alias="Driver")
    runtimes: dict[str, object] = Field(default={}, alias="Runtimes")
    architecture: str = Field(default="", alias="Architecture")


_DEFERRED: Final = ConfigDict(defer_build=True)
_CONTAINERS: Final = TypeAdapter(tuple[_Container, ...], config=_DEFERRED)
_IMAGES: Final = TypeAdapter(tuple[_Image, ...], config=_DEFERRED)
_PORT: Final = re.compile(r"[0-9]{1,5}")
_DEFAULT_CPU_PERIOD_MICROSECONDS: Final = 100_000


def parse_containers(text: str) -> tuple[ContainerInfo, ...]:
    """The containers in what ``docker container inspect`` printed. Raises DockerError if that cannot be read."""
    try:
        containers = _CONTAINERS.validate_json(_bounded(text))
    except ValidationError as error:
        raise _unreadable("containers", error) from error
    return tuple(_container(raw) for raw in containers)


def parse_container(text: str) -> ContainerInfo:
    """The one container in what ``docker container inspect`` printed. Raises DockerError if that cannot be read."""
    return _only(parse_containers(text))


def parse_images(text: str) -> tuple[ImageInfo, ...]:
    """The images in what ``docker image inspect`` printed. Raises DockerError if that cannot be read."""
    try:
        images = _IMAGES.validate_json(_bounded(text))
    except ValidationError as error:
        raise _unreadable("images", error) from error
    return tuple(
        ImageInfo(
            id=raw.id,
            tags=raw.repo_tags,
            created_at=_moment(raw.created),
            size_bytes=raw.size,
            labels=raw.config.labels,
        )
        for raw in images
    )


def parse_image(text: str) -> ImageInfo:
    """The one image in what ``docker image inspect`` printed. Raises DockerError if that cannot be read."""
    return _only(parse_images(text))


def parse_info(text: str) -> DockerInfo:
    """The daemon in what ``docker info`` printed as JSON. Raises DockerError if that cannot be read."""
    try:
        raw = _Info.model_validate_json(_bounded(text))
    except ValidationError as error:
        raise _unreadable("the daemon", error) from error
    return DockerInfo(
        server_version=raw.server_version,
        cpus=raw.cpus,
        memory_bytes=raw.memory,
        root_dir=raw.root_dir,
        driver=raw.driver,
        runtimes=tuple(raw.runtimes),
        architecture=raw.architecture,
    )


def server_errors(text: str) -> str:
    """What ``docker info`` wrote into its JSON instead of failing, as some versions do when no daemon answers."""
    try:
        raw = json.loads(_bounded(text))
    # What is nested too deep, or too much, is as little Docker's as what is no JSON.
    except (ValueError, RecursionError, DockerError):
        return ""
    errors = raw.get("ServerErrors") if isinstance(raw, dict) else None
    return "\n".join(str(error) for error in errors) if isinstance(errors, list) else ""


def _container(raw: _Container) -> ContainerInfo:
    limits = raw.host_config
    period = limits.cpu_period or _DEFAULT_CPU_PERIOD_MICROSECONDS
    quota_nano_cpus = limits.cpu_quota * 10**9 // period if limits.cpu_quota > 0 else 0
    return ContainerInfo(
        id=raw.id,
        name=raw.name.removeprefix("/"),
        status=raw.state.status,
        exit_code=raw.state.exit_code,
        created_at=raw.created,
        started_at=_moment(raw.state.started_at),
        finished_at=_moment(raw.state.finished_at),
        labels=raw.config.labels,
        image=raw.config.image,
        image_id=raw.image,
        nano_cpus=limits.nano_cpus or quota_nano_cpus or None,
        memory_bytes=limits.memory or None,
        ports=tuple(_ports(limits)),
        volumes={mount.destination: mount.name for mount in raw.mounts if mount.type == "volume" and mount.name},
    )


def _ports(limits: _HostConfig) -> list[PublishedPort]:
    """What the container publishes by its configuration; unlike Docker's NetworkSettings, also while it is stopped."""
    ports: list[PublishedPort] = []
    for container_port, bindings in limits.port_bindings.items():
        number, _, protocol = container_port.partition("/")
        for binding in bindings or ():
            host_port = binding.get("HostPort", "")
            if protocol in ("", "tcp") and _PORT.fullmatch(number) and _PORT.fullmatch(host_port):
                ports.append(PublishedPort(int(host_port), int(number), binding.get("HostIp") or None))
    return ports


def _moment(moment: datetime | None) -> datetime | None:
    """The moment, if there was one: Docker writes year 1 for "never"."""
    try:
        return None if moment is None else parse_utc(moment)
    except UnusableDataError:
        return None


def _bounded(text: str) -> str:
    try:
        check_count(text.encode())
    except UnusableDataError as error:
        raise DockerError(f"Docker's answer cannot be read: {error}") from error
    return text


def _only[Thing](things: tuple[Thing, ...]) -> Thing:
    if len(things) != 1:
        raise DockerError(f"Docker describes {len(things)} things instead of one")
    return things[0]


def _unreadable(what: str, error: ValidationError) -> DockerError:
    first = error.errors(include_input=False, include_url=False)[0]
    where = printable(".".join(str(part) for part in first["loc"])) or "the beginning"
    return DockerError(f"Docker's description of {what} cannot be read: {first['msg']} at {where}")
