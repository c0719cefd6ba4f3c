"""Checks of a create request before any call that costs money."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from imbue.mngr.primitives import HostName
from imbue.mngr_vps_docker.builds.context import check_build_context
from imbue.mngr_vps_docker.builds.options import ParsedBuildArgs, parse_build_args
from imbue.mngr_vps_docker.cloud_init import generate_cloud_init_user_data
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.docker.run_options import allowed_start_args
from imbue.mngr_vps_docker.docker.secret_options import variable_of, without_value
from imbue.mngr_vps_docker.errors import BuildArgumentError, VpsDockerError, VpsProvisioningError
from imbue.mngr_vps_docker.hosts.host_access import ProviderContext
from imbue.mngr_vps_docker.lifecycle.image import check_tools
from imbue.mngr_vps_docker.lifecycle.names import check_host_name
from imbue.mngr_vps_docker.primitives import is_image_reference
from imbue.mngr_vps_docker.state.keys import new_key_pair
from imbue.mngr_vps_docker.text import excerpt, is_secret_name, logger
from imbue.mngr_vps_docker.untrusted import MAX_TEXT_BYTES, check_texts

# Of containers and volumes. A volume's is the name of a folder, too.
_DOCKER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,254}", re.ASCII)


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise BuildArgumentError for tags that no record can hold."""
    check_texts("Tag", (f"{name}={value}" for name, value in tags.items()))
    if len(json.dumps(dict(tags))) > MAX_TEXT_BYTES:
        raise BuildArgumentError(f"The tags are too long: as JSON they can have {MAX_TEXT_BYTES} bytes together")


def check_request(
    context: ProviderContext, *, name: HostName, image: str, tags: Mapping[str, str], key_lines: Sequence[str]
) -> None:
    """Check what a host is to be called and made of; ``key_lines`` are for its authorized_keys and known_hosts.

    Raises BuildArgumentError for the request, and VpsProvisioningError for a cloud that accepts too little user data.
    """
    check_host_name(name)
    for docker_name in (context.container_name(name), context.state_volume_name):
        if not _DOCKER_NAME.fullmatch(docker_name):
            raise BuildArgumentError(
                f"'{excerpt(docker_name)}' cannot be a name in Docker: let MNGR_PREFIX ('{excerpt(context.prefix)}')"
                " be short, of letters, digits and _.- and with a letter or digit first"
            )
    if not is_image_reference(image):
        raise BuildArgumentError(
            f"'{excerpt(image)}' cannot be the name of an image; they are like debian:bookworm-slim"
        )
    check_tags(tags)
    for line in key_lines:
        check_texts("Key", [line], may_have_lines=True)
    _check_user_data(context)


def read_build_args(config: VpsDockerProviderConfig, args: Sequence[str]) -> ParsedBuildArgs:
    """Split ``-b`` arguments into the provider's own and those of ``docker build``; raises BuildArgumentError."""
    return parse_build_args(
        args,
        default_region=config.default_region,
        default_plan=config.default_plan,
        default_os_id=config.default_os_id,
        allowed=config.allowed_build_args,
    )


def checked_build_args(parsed: object, reader: str) -> ParsedBuildArgs:
    """What the provider class ``reader`` read of ``-b`` arguments; raises VpsDockerError for a form of its own."""
    if not isinstance(parsed, ParsedBuildArgs):
        raise VpsDockerError(f"{reader}._parse_build_args must return what its super() returns")
    return parsed


def checked_run_args(context: ProviderContext, args: Sequence[str]) -> tuple[str, ...]:
    """The arguments of `docker run` for a host: the settings' own and ``args``; raises BuildArgumentError."""
    all_args = (*context.config.default_start_args, *args)
    run_args = allowed_start_args(context.config, all_args, state_volume=context.state_volume_name)
    _warn_of_secrets(run_args, "is kept in the host's record, in `docker inspect` and in every snapshot")
    return run_args


def check_build(context: ProviderContext, build: ParsedBuildArgs) -> ParsedBuildArgs:
    """Check the tools of this machine and the build context, and return the arguments with what is now known of it."""
    _warn_of_secrets(build.docker_build_args, "stays in the image (`docker history`), and in every snapshot")
    check_tools(context, build)
    return check_build_context(build)


def _warn_of_secrets(args: Sequence[str], where: str) -> None:
    for word in args:
        name = variable_of(word)
        if name is not None and is_secret_name(name):
            logger.warning("The value of {} {}: if it is a secret, give it by --host-env", without_value(word), where)


def _check_user_data(context: ProviderContext) -> None:
    """Compare the size of the user data, which is the same for any key, with the limit of the cloud."""
    size_bytes = len(generate_cloud_init_user_data(*new_key_pair(), context.config).encode())
    if size_bytes > context.client.max_user_data_bytes:
        raise VpsProvisioningError(
            f"A VPS needs {size_bytes} bytes of user data, but this cloud takes {context.client.max_user_data_bytes}"
        )
