"""The settings of a provider, validated where they are read."""

import re
from ipaddress import ip_network
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, TypeAdapter, ValidationError, field_validator

from imbue.mngr.config.data_types import ProviderInstanceConfig
from imbue.mngr.errors import ConfigParseError
from imbue.mngr.primitives import ActivitySource, DockerBuilder, IdleMode, ProviderBackendName
from imbue.mngr_vps_docker.primitives import is_image_reference

HOST_VOLUME_PATH: Final = PurePosixPath("/mngr-vol")
"""Where a host's volume is mounted in its container; host_dir is a link to it."""

VPS_SSH_PORT: Final = 22
LOOPBACK_ADDRESS: Final = "127.0.0.1"
# Most of it is for apt on a slow mirror; without apt, setting up a container takes about a second.
CONTAINER_SETUP_TIMEOUT_SECONDS = 600.0

# Such a path needs no quotes in a shell or in ssh's options; ssh accepts time-outs up to this one.
_PLAIN_PATH: Final = re.compile(r"(?:/[\w.@+-]+)+", re.ASCII)
type _Seconds = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


# They change what ssh runs, or hide its exit status. Names of options are case-insensitive.
_REFUSED_SSH_OPTIONS = frozenset((
    "controlmaster", "controlpath", "controlpersist", "forkafterauthentication", "loglevel", "logverbose",
    "remotecommand", "requesttty", "sessiontype", "stdinnull",
))  # fmt: skip


def _harmless(option: str) -> str:
    name = option.partition("=")[0]
    if name.lower() in _REFUSED_SSH_OPTIONS:
        raise ValueError(f"{name} cannot be set: commands would not run, or their exit status would be lost")
    return option


def _network(text: str) -> str:
    try:
        network = ip_network(text)
    except ValueError:
        network = None
    # A scope (fe80::1%eth0) may be any text, and a shell on the VPS reads the networks.
    if network is None or "%" in text:
        raise ValueError(f"{text!r} is not a network like 10.0.5.0/24 or fd12:3456::/64")
    return text


class VpsDockerProviderConfig(ProviderInstanceConfig):
    """Settings of every VPS provider; a provider package adds its own (API token, …) in a subclass.

    mngr builds provider configs from TOML without validation, and merges layers without knowing which fields are set.
    ``model_construct`` and ``merge_with`` correct both, for subclasses too.
    """

    backend: ProviderBackendName = Field(
        default=ProviderBackendName("vps-docker"), description="Provider backend that this provider belongs to"
    )
    host_dir: Path = Field(default=Path("/mngr"), description="Folder for mngr's data inside each container")
    default_image: str = Field(
        default="debian:bookworm-slim", description="Image of a host that is not built from a Dockerfile"
    )
    default_idle_timeout: PositiveInt = Field(default=800, description="Seconds without activity until a host stops")
    default_idle_mode: Annotated[IdleMode, BeforeValidator(_upper)] = Field(
        default=IdleMode.IO, description="What counts as activity"
    )
    default_activity_sources: tuple[Annotated[ActivitySource, BeforeValidator(_upper)], ...] = Field(
        default_factory=lambda: tuple(ActivitySource),
        description="Activity sources that keep a host alive, where the idle mode does not say",
    )
    ssh_connect_timeout: _Seconds = Field(default=60.0, description="Seconds until a machine counts as unreachable")
    vps_boot_timeout: _Seconds = Field(
        default=300.0, description="Seconds for a new VPS to become active, and again for its ssh to accept our key"
    )
    docker_install_timeout: _Seconds = Field(
        default=300.0, description="Seconds for cloud-init to finish and Docker to answer on a new VPS"
    )
    build_timeout_seconds: _Seconds = Field(
        default=1800.0, description="Seconds for pulling or building an image, and again for sending its context"
    )
    container_ssh_port: int = Field(
        default=2222, ge=1, le=65535, description="Port on the VPS's public address that leads to the container's sshd"
    )
    container_ssh_via_vps: bool = Field(
        default=False,
        description="Whether new containers are reached through the VPS only, and have no port on its public address",
    )
    default_region: str = Field(default="ewr", description="Region of a new VPS; -b --vps-region= overrides it")
    default_plan: str = Field(default="vc2-1c-1gb", description="Size of a new VPS; -b --vps-plan= overrides it")
    default_os_id: int | str = Field(
        default=2136, description="Operating system image of a new VPS; -b --vps-os= overrides it"
    )
    default_start_args: tuple[str, ...] = Field(
        default=(), description="Arguments of `docker run` for every host, before those of -s"
    )
    allowed_start_args: tuple[Annotated[str, Field(pattern=r"^--.")], ...] = Field(
        default=(),
        description="Dangerous arguments of `docker run` that are allowed, as --option or --option=value",
    )
    allowed_build_args: tuple[Annotated[str, Field(pattern=r"^--.")], ...] = Field(
        default=(),
        description="The same of `docker build`",
    )
    allowed_private_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        default=(),
        description="Private networks, by CIDR, that containers and builds on new VPSes may reach",
    )
    security_upgrades: bool = Field(
        default=True,
        description="Whether new VPSes install security upgrades by themselves, those of Docker included",
    )
    builder: Annotated[DockerBuilder, BeforeValidator(_upper)] = Field(
        default=DockerBuilder.DOCKER,
        description="DOCKER builds on the VPS; DEPOT builds there with the depot CLI and DEPOT_TOKEN",
    )
    ssh_control_persist_seconds: int = Field(
        default=600, ge=0, description="Seconds that a shared ssh connection outlives the last command; 0: not at all"
    )
    ssh_options: tuple[Annotated[str, Field(pattern=r"^[A-Za-z]+=."), AfterValidator(_harmless)], ...] = Field(
        default=(),
        description="More options of ssh, each Name=value, such as one that leads through another machine",
    )

    # By name, so that they also check fields that a subclass redefines. They change no value: see model_construct.

    @field_validator("host_dir")
    @classmethod
    def _check_host_dir(cls, folder: Path) -> Path:
        path = PurePosixPath(folder)
        if not _PLAIN_PATH.fullmatch(str(path)) or ".." in path.parts or path.is_relative_to(HOST_VOLUME_PATH):
            raise ValueError(
                f"must be an absolute path of letters, digits and ._@+- like /mngr, without '..' and not under"
                f" {HOST_VOLUME_PATH}"
            )
        return folder

    @field_validator("default_image")
    @classmethod
    def _check_image(cls, image: str) -> str:
        if not is_image_reference(image):
            raise ValueError("is not the name of an image, like debian:bookworm-slim")
        return image

    @field_validator("default_region", "default_plan", "default_os_id", mode="before")
    @classmethod
    def _check_is_named(cls, name: object) -> object:
        # pydantic takes true for the number 1.
        if isinstance(name, bool) or (isinstance(name, str) and not name.strip()):
            raise ValueError("must be a non-empty identifier of the cloud")
        return name

    @field_validator("container_ssh_port")
    @classmethod
    def _check_port(cls, port: int) -> int:
        if port == VPS_SSH_PORT:
            raise ValueError(f"must not be {VPS_SSH_PORT}, where the VPS's own sshd listens")
        return port

    @property
    def longest_create_seconds(self) -> float:
        """The sum of all time-outs of creating a host: an unfinished create that is older has ended."""
        return (
            2 * self.vps_boot_timeout
            + self.docker_install_timeout
            + 2 * self.build_timeout_seconds
            # Two containers are started, and one of them is set up.
            + 3 * CONTAINER_SETUP_TIMEOUT_SECONDS
            + self.ssh_connect_timeout
            # Calls of the cloud, new host keys, files, small docker commands.
            + 900.0
        )

    @classmethod
    def model_construct(cls, _fields_set: set[str] | None = None, **values: Any) -> Self:
        """Validate what mngr read from TOML, and remember which fields were set.

        A required field may be missing: another config layer may set it, or else ``__getattr__`` raises. Raises
        ConfigParseError, which names the field.
        """
        present = {name: value for name, value in values.items() if value is not None and name in cls.model_fields}
        try:
            return cls.model_validate(present)
        except ValidationError as error:
            _raise_unless_only_missing(cls, error)
        validated = {name: _validated_field(cls, name, value) for name, value in present.items()}
        return super().model_construct(_fields_set=set(present), **validated)

    def __getattr__(self, name: str) -> Any:
        """Raise ConfigParseError for a required field that no layer of settings sets."""
        if name in type(self).model_fields:
            raise ConfigParseError(
                f"The provider setting '{name}' is required and not set: add it to the settings of the provider whose"
                f" backend is {self.backend}"
            )
        return super().__getattr__(name)  # type: ignore[misc]

    def merge_with(self, override: ProviderInstanceConfig) -> Self:
        """Return this config with the fields that ``override`` sets."""
        if not isinstance(override, type(self)):
            raise ConfigParseError(f"Cannot merge {type(override).__name__} into {type(self).__name__}")
        layers = (self, override)
        return type(self).model_construct(**{name: getattr(c, name) for c in layers for name in c.model_fields_set})


def _raise_unless_only_missing(config_class: type[ProviderInstanceConfig], error: ValidationError) -> None:
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
        if problem["type"] != "missing"
    )
    if problems:
        raise ConfigParseError(f"Invalid provider setting in {config_class.__name__}: {problems}") from None


def _validated_field(config_class: type[ProviderInstanceConfig], name: str, value: object) -> object:
    field = config_class.model_fields[name]
    annotation: Any = Annotated[field.annotation, field]
    return TypeAdapter(annotation).validate_python(value)
