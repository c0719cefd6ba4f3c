"""What a user writes in settings.toml arrives validated, in every layer, for subclasses too."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from imbue.mngr.errors import ConfigParseError
from imbue.mngr.primitives import ActivitySource, DockerBuilder, IdleMode
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig


class CloudConfig(VpsDockerProviderConfig):
    """A provider package's own settings."""

    api_key: SecretStr
    default_region: str = "fra"
    default_plan: str = "tiny"
    default_os_id: int | str = "debian-12"
    default_image: str = "debian:12"


def from_toml(**values: object) -> VpsDockerProviderConfig:
    """What mngr does with the values of a TOML table."""
    return VpsDockerProviderConfig.model_construct(**values)


def test_the_documented_defaults() -> None:
    config = VpsDockerProviderConfig()
    assert config.host_dir == Path("/mngr")
    assert config.default_image == "debian:bookworm-slim"
    assert (config.default_idle_timeout, config.default_idle_mode) == (800, IdleMode.IO)
    assert (config.ssh_connect_timeout, config.vps_boot_timeout, config.docker_install_timeout) == (60.0, 300.0, 300.0)
    assert (config.container_ssh_port, config.default_start_args) == (2222, ())
    assert (config.default_region, config.default_plan, config.default_os_id) == ("ewr", "vc2-1c-1gb", 2136)
    assert config.builder is DockerBuilder.DOCKER


def test_values_from_toml_get_their_types() -> None:
    config = from_toml(builder="DEPOT", host_dir="/data", default_start_args=["--cpus=2"], default_idle_mode="user")
    assert config.builder is DockerBuilder.DEPOT
    assert config.host_dir == Path("/data")
    assert config.default_start_args == ("--cpus=2",)
    assert config.default_idle_mode is IdleMode.USER


def test_lists_of_names_may_be_in_lower_case() -> None:
    assert from_toml(default_activity_sources=["user", "BOOT"]).default_activity_sources == (
        ActivitySource.USER,
        ActivitySource.BOOT,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("container_ssh_port", 70000),
        ("builder", "PODMAN"),
        ("ssh_connect_timeout", -1),
        ("default_idle_timeout", "soon"),
        ("default_start_args", 3),
        ("host_dir", "mngr"),
        ("host_dir", ""),
        ("host_dir", "/"),
        ("host_dir", "~/.mngr"),
        ("host_dir", "/mngr-vol"),
        ("host_dir", "/mngr-vol/data"),
        ("host_dir", "/data/../mngr-vol"),
        ("host_dir", "//mngr"),
        ("host_dir", "/mngr data"),
        ("default_image", ""),
        ("default_image", "-x"),
        ("default_image", "Debian:bookworm"),
        ("default_region", ""),
        ("default_plan", " "),
        ("default_os_id", ""),
        ("default_os_id", True),
        ("allowed_private_networks", ["10.0.5.1/24"]),
        ("allowed_private_networks", ["db.internal"]),
        ("allowed_private_networks", ["10.0.5.0/24; reboot"]),
        ("allowed_private_networks", ["fe80::1%eth0'; reboot"]),
        ("ssh_connect_timeout", float("inf")),
        ("vps_boot_timeout", float("inf")),
        ("docker_install_timeout", float("nan")),
        ("build_timeout_seconds", 1e12),
        ("container_ssh_port", 22),
        ("allowed_build_args", ["network"]),
    ],
)
@pytest.mark.parametrize("config_class", [VpsDockerProviderConfig, CloudConfig])
def test_a_bad_value_is_refused_by_the_name_of_its_field(
    config_class: type[VpsDockerProviderConfig], name: str, value: object
) -> None:
    with pytest.raises(ConfigParseError, match=f": {name}") as raised:
        config_class.model_construct(**{name: value})
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("host_dir", ["/mngr", "/data/mngr/", "/home/me/.mngr", "/mngr-volume"])
def test_the_folder_for_mngr_s_data_may_be_any_plain_path(host_dir: str) -> None:
    assert from_toml(host_dir=host_dir).host_dir == Path(host_dir)


def test_only_what_a_layer_sets_overrides_the_layer_below() -> None:
    merged = from_toml(default_region="ams", default_plan="big").merge_with(from_toml(default_plan="small"))
    assert (merged.default_region, merged.default_plan, merged.container_ssh_port) == ("ams", "small", 2222)
    assert merged.model_fields_set == {"default_region", "default_plan"}


def test_a_secret_of_a_subclass_arrives_as_a_secret() -> None:
    config = CloudConfig.model_construct(api_key="s3cret")
    assert config.api_key.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(config)


def test_a_required_field_may_stand_in_another_layer() -> None:
    upper = CloudConfig.model_construct(default_plan="small", builder="depot")
    merged = CloudConfig.model_construct(api_key="s3cret").merge_with(upper)
    assert (merged.default_plan, merged.default_region, merged.builder) == ("small", "fra", DockerBuilder.DEPOT)
    assert merged.api_key.get_secret_value() == "s3cret"


def test_a_bad_value_is_refused_in_a_partial_layer_too() -> None:
    with pytest.raises(ConfigParseError, match="container_ssh_port"):
        CloudConfig.model_construct(container_ssh_port=0)


def test_a_required_field_that_no_layer_sets_is_named_where_it_is_first_used() -> None:
    config = CloudConfig.model_construct(default_plan="small").merge_with(CloudConfig.model_construct())
    with pytest.raises(ConfigParseError, match="'api_key' is required and not set"):
        _ = config.api_key
    assert config.default_plan == "small"
    with pytest.raises(AttributeError):
        _ = config.colour  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["RequestTTY=force", "remotecommand=false", "StdinNull=yes", "LogLevel=QUIET"])
def test_options_of_ssh_with_which_commands_do_not_run_are_refused(option: str) -> None:
    with pytest.raises(ConfigParseError, match=r"ssh_options.*cannot be set"):
        from_toml(ssh_options=[option])
    assert from_toml(ssh_options=["ProxyJump=bastion"]).ssh_options == ("ProxyJump=bastion",)
