"""Creating a host: one VPS, Docker on it, one container in it, and its record."""

import os
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from imbue.mngr.errors import MngrError, UserInputError
from imbue.mngr.interfaces.data_types import CertifiedHostData
from imbue.mngr_vps_docker.cloud_init import failure_of, generate_cloud_init_user_data, wait_for_ready_command
from imbue.mngr_vps_docker.config import CONTAINER_SETUP_TIMEOUT_SECONDS, LOOPBACK_ADDRESS
from imbue.mngr_vps_docker.docker.commands import inspect_container
from imbue.mngr_vps_docker.docker.containers import run_container, unless_there
from imbue.mngr_vps_docker.docker_over_ssh import DockerOverSsh
from imbue.mngr_vps_docker.errors import (
    RemoteCommandError,
    VpsApiError,
    VpsDockerError,
    VpsProvisioningError,
    describe_error,
)
from imbue.mngr_vps_docker.hosts.cloud_resources import (
    delete_instance_of,
    delete_key_of,
    delete_uploaded_key,
    key_name,
)
from imbue.mngr_vps_docker.hosts.host_access import HOST_ID_TAG, HOST_NAME_TAG, PROVIDER_TAG, ProviderContext
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.container import (
    enter_container,
    host_container,
    setup_command,
    state_container,
)
from imbue.mngr_vps_docker.lifecycle.creation import CreateRequest, Creation
from imbue.mngr_vps_docker.lifecycle.destroy import forget_host
from imbue.mngr_vps_docker.lifecycle.image import prepare_image
from imbue.mngr_vps_docker.lifecycle.names import check_name_is_free, claiming_name
from imbue.mngr_vps_docker.lifecycle.steps import Step, ending_in_order, run_steps
from imbue.mngr_vps_docker.lifecycle.vps_identity import activate_host_key, generate_host_key
from imbue.mngr_vps_docker.primitives import VpsInstanceId, replace
from imbue.mngr_vps_docker.ssh.outcome import Effect
from imbue.mngr_vps_docker.ssh.pipeline import Pipeline
from imbue.mngr_vps_docker.ssh.user_config import refuse_forwarding
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import VpsDockerHostRecord, VpsHostConfig
from imbue.mngr_vps_docker.text import logger

# Clouds have images whose root must set a password, or may not log in, until cloud-init has run.
_ACCOUNT_GRACE_SECONDS = 60.0
# What the cloud will give is not known yet: an address of documentation (RFC 5737), which no Host line means.
_UNKNOWN_ADDRESS = "192.0.2.1"
_PREPARING_IMAGE = "Preparing the image"
_STARTING_CONTAINER = "Starting the container and setting it up"
_ENTERING_CONTAINER = "Logging in to the container"

KEEP_FAILED_HOSTS_VARIABLE = "MNGR_KEEP_FAILED_HOSTS"
HOW_TO_REMOVE = "mngr gc --all-providers"


def create_host(context: ProviderContext, request: CreateRequest) -> ObservedHost:
    """Create the host and return it; on any failure, Ctrl-C included, leave nothing behind.

    With ``MNGR_KEEP_FAILED_HOSTS=1`` a failed host is kept, and the user is told how to get in and how to remove it.
    """
    check_name_is_free(request.name, request.others)
    # mngr pushes the agent's work with the user's own ssh, after the VPS is paid for.
    address = LOOPBACK_ADDRESS if context.config.container_ssh_via_vps else _UNKNOWN_ADDRESS
    refuse_forwarding("root", address, context.config.container_ssh_port, context.runner, label="a new host")
    with ending_in_order(), context.local_store.ownership(request.host_id):
        creation = Creation(context, request, _new_entry(context, request))
        try:
            run_steps(CREATE_STEPS, creation, on_failure=lambda title, error: _should_undo(creation, title, error))
        # A provider package's client may raise anything, and the user gets one clear line of it.
        except Exception as error:
            if not isinstance(error, MngrError):
                # Not loguru's own way, which shows the values of variables too: keys are among them.
                for line in "".join(traceback.format_exception(error)).splitlines():
                    logger.debug("Creating {} failed: {}", request.name, line)
            raise _explained(creation, error) from error
        context.local_store.await_agent(request.host_id)
    return ObservedHost(creation.entry, is_read=True, vps_record=creation.record, container=creation.container)


def _explained(creation: Creation, error: Exception) -> MngrError:
    """The error for the user: one about the request unchanged, any other with its step and with what is left."""
    if isinstance(error, MngrError) and not creation.leftovers and not _is_of_a_stage(error):
        return error
    parts = (f"{creation.failed_step} failed: {describe_error(error)}", *_suspects(creation), *creation.leftovers)
    return VpsProvisioningError(". ".join(part.rstrip(".") for part in parts))


def _suspects(creation: Creation) -> tuple[str, ...]:
    """The names of the start arguments, which may have caused an error that does not mention them."""
    names = dict.fromkeys(word.partition("=")[0] for word in creation.request.start_args)
    is_suspect = names and creation.failed_step in (_STARTING_CONTAINER, _ENTERING_CONTAINER)
    return (f"Start arguments of this host may be the reason: {', '.join(names)}",) if is_suspect else ()


def _is_of_a_stage(error: MngrError) -> bool:
    return isinstance(error, VpsDockerError) and not isinstance(error, UserInputError)


def _new_entry(context: ProviderContext, request: CreateRequest) -> LocalHostRecord:
    created_at = datetime.now(UTC)
    return LocalHostRecord(
        host_id=request.host_id,
        host_name=request.name,
        phase=HostPhase.CREATING,
        created_at=created_at,
        region=request.build.region,
        ssh_key_name=key_name(request.host_id, created_at, context.config.longest_create_seconds),
    )


def _should_undo(creation: Creation, title: str, error: BaseException) -> bool:
    reason = f"{title}: {describe_error(error)}"
    creation.failed_step = title
    creation.stop_image_work()
    if os.environ.get(KEEP_FAILED_HOSTS_VARIABLE) != "1":
        logger.warning("Creating {} failed; removing what was made of it ...", creation.request.name)
        return True
    creation.save(replace(creation.entry, phase=HostPhase.FAILED, failure_reason=reason))
    logger.warning(
        "Creating {} failed and {}=1 keeps it, so its VPS is still billed. Remove it: {}",
        creation.request.name,
        KEEP_FAILED_HOSTS_VARIABLE,
        HOW_TO_REMOVE,
    )
    if creation.entry.vps_ip is not None:
        logger.warning("Get in: {}", creation.host.vps.ssh_command())
    return False


def _claim_name(creation: Creation) -> None:
    """Write the host to disk before the cloud is asked, unless another process has taken its name since."""
    request = creation.request
    with claiming_name(creation.context, request.name, request.host_id, request.others):
        creation.context.local_store.write(creation.entry)


def _upload_key(creation: Creation) -> None:
    public_key = creation.context.keys.vps_client_key().public_key
    key_id = creation.context.client.upload_ssh_key(creation.entry.ssh_key_name or "", public_key)
    creation.save(replace(creation.entry, ssh_key_id=key_id))


def _order_instance(creation: Creation) -> None:
    context, request = creation.context, creation.request
    host_key = context.keys.create_vps_host_key(request.host_id)
    tags = {HOST_ID_TAG: request.host_id, PROVIDER_TAG: context.provider_name, HOST_NAME_TAG: request.name}
    creation.save(replace(creation.entry, is_vps_ordered=True, vps_ordered_at=datetime.now(UTC)))
    try:
        instance_id = context.client.create_instance(
            label=f"mngr-{request.name}",
            region=request.build.region,
            plan=request.build.plan,
            os_id=request.build.os_id,
            user_data=generate_cloud_init_user_data(
                host_key.private_key_path.read_text(), host_key.public_key, context.config
            ),
            ssh_key_ids=[creation.entry.ssh_key_id or ""],
            tags=[f"{name}={value}" for name, value in tags.items()],
        )
    except VpsApiError as error:
        if error.is_refusal:
            creation.save(replace(creation.entry, is_vps_ordered=False))
        raise
    creation.save(replace(creation.entry, vps_instance_id=VpsInstanceId(instance_id)))


def _wait_until_active(creation: Creation) -> None:
    context = creation.context
    instance_id = creation.entry.vps_instance_id
    if instance_id is None:
        raise VpsProvisioningError("The cloud gave the new VPS no id")
    address = context.client.wait_for_instance_active(instance_id, context.config.vps_boot_timeout)
    creation.save(replace(creation.entry, vps_ip=address))
    creation.host.pin_vps(context.keys.vps_host_key(creation.host_id).public_key)


def _wait_for_vps_ssh(creation: Creation) -> None:
    context = creation.context
    docker = creation.host.docker
    docker.connection.wait_until_ready(context.config.vps_boot_timeout, account_grace_seconds=_ACCOUNT_GRACE_SECONDS)
    # Sending the build context, or pulling the image, need not wait until the VPS is set up.
    creation.begin_image_work(_PREPARING_IMAGE, lambda: _prepare_image(creation, docker))


def _wait_for_docker(creation: Creation) -> None:
    timeout_seconds = creation.context.config.docker_install_timeout
    outcome = creation.host.vps.run(
        wait_for_ready_command(timeout_seconds),
        purpose="wait for cloud-init and Docker",
        timeout_seconds=timeout_seconds + 30,
        effect=Effect.READ_ONLY,
    )
    try:
        outcome.checked()
    except RemoteCommandError as error:
        raise VpsProvisioningError(
            f"cloud-init did not make Docker ready on {outcome.host}: {failure_of(outcome.error_text) or error}"
        ) from error
    creation.docker_ready.set_result(None)


def _replace_host_key(creation: Creation) -> None:
    context, host_id = creation.context, creation.host_id
    vps, injected = creation.host.vps, context.keys.vps_host_key(host_id).public_key
    creation.vps_public_key = generate_host_key(vps)
    creation.host.pin_vps(injected, creation.vps_public_key)
    activate_host_key(vps, creation.vps_public_key)
    creation.host.pin_vps(creation.vps_public_key)


def _prepare_image(creation: Creation, docker: DockerOverSsh) -> str:
    """Over the connection that is abandoned if the creation fails, and no other."""
    request = creation.request
    return prepare_image(
        creation.context,
        docker,
        host_id=request.host_id,
        image=request.image,
        build=request.build,
        snapshot=request.snapshot,
        docker_ready=creation.docker_ready,
    )


def _wait_for_image(creation: Creation) -> None:
    if creation.image_work is not None:
        creation.image = creation.image_work.result()


def _start_container(creation: Creation) -> None:
    """Start both containers and set up the host's, in one round trip."""
    context, request = creation.context, creation.request
    container = context.container_name(request.name)
    pipeline = Pipeline(creation.host.vps, f"start container {container}")
    keeper = run_container(
        state_container(context, image=creation.image), timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS
    )
    pipeline.add(unless_there(context.state_volume_name, keeper))
    host = host_container(
        context,
        host_id=request.host_id,
        host_name=request.name,
        container_name=container,
        image=creation.image,
        start_args=request.start_args,
        tags=request.tags,
    )
    pipeline.add(run_container(host, timeout_seconds=CONTAINER_SETUP_TIMEOUT_SECONDS))
    set_up = pipeline.add(
        setup_command(
            creation.host,
            authorized_keys=request.authorized_keys,
            known_hosts=request.known_hosts,
            certified_data=_certified_data(creation),
        )
    )
    inspected = pipeline.add(inspect_container(container))
    pipeline.run()
    _ = set_up.value
    creation.container = inspected.value


def _enter_container(creation: Creation) -> None:
    enter_container(creation.host, is_new=True)


def _delete_key_from_cloud(creation: Creation) -> None:
    """The VPS has the public key. Without it at the cloud, other machines take the host for finished."""
    for pause_seconds in (*creation.context.timings.key_retry_pauses_seconds, None):
        try:
            delete_uploaded_key(creation.context, creation.entry)
        except VpsDockerError as error:
            if pause_seconds is None:
                logger.warning(
                    "The host is finished; the next command deletes its public key from the cloud: {}", error
                )
                return
            time.sleep(pause_seconds)
        else:
            creation.entry = replace(creation.entry, ssh_key_id=None, ssh_key_name=None)
            return


def _write_record(creation: Creation) -> None:
    context, request, instance_id = creation.context, creation.request, creation.entry.vps_instance_id
    if instance_id is None:
        raise VpsProvisioningError("The cloud gave the new VPS no id")
    record = VpsDockerHostRecord(
        certified_host_data=_certified_data(creation),
        vps_ip=creation.host.address,
        ssh_host_public_key=creation.vps_public_key,
        container_ssh_host_public_key=context.keys.container_host_key(request.host_id).public_key,
        container_id=None if creation.container is None else creation.container.id,
        config=VpsHostConfig(
            vps_instance_id=instance_id,
            region=request.build.region,
            plan=request.build.plan,
            os_id=request.build.os_id,
            start_args=tuple(request.start_args),
            image=creation.image,
            container_name=context.container_name(request.name),
            volume_name=context.host_volume_name(request.host_id),
            is_container_behind_vps=context.config.container_ssh_via_vps,
        ),
    )
    creation.host.store.write_host_record(record)
    creation.record = record
    creation.save(replace(creation.entry, phase=HostPhase.READY, record=record, awaits_agent=True))


def _certified_data(creation: Creation) -> CertifiedHostData:
    request = creation.request
    return CertifiedHostData(
        host_id=request.host_id,
        host_name=request.name,
        idle_timeout_seconds=request.activity.idle_timeout_seconds,
        activity_sources=request.activity.activity_sources,
        user_tags=dict(request.tags),
        image=creation.image,
        tmux_session_prefix=creation.context.prefix,
        created_at=creation.entry.created_at,
        updated_at=datetime.now(UTC),
    )


def _undo(remove: Callable[[ProviderContext, LocalHostRecord], None]) -> Callable[[Creation], None]:
    def undo(creation: Creation) -> None:
        try:
            remove(creation.context, creation.entry)
        except Exception as error:
            creation.leftovers.append(describe_error(error))
            raise

    return undo


def _delete_instance(creation: Creation) -> None:
    if creation.entry.is_vps_ordered:
        _undo(delete_instance_of)(creation)
        # If another undo fails, the host must not count as destroyed because its VPS is.
        creation.save(replace(creation.entry, vps_instance_id=None, is_vps_ordered=False))


def _delete_key(creation: Creation) -> None:
    # While a VPS may exist, the key tells other machines that the host was never finished.
    if not creation.entry.is_vps_ordered:
        _undo(delete_key_of)(creation)


def _forget_unless_something_is_left(creation: Creation) -> None:
    if not creation.leftovers:
        forget_host(creation.context, creation.entry)
        return
    creation.leftovers.append(f"Try again to remove it: {HOW_TO_REMOVE}")
    creation.save(replace(creation.entry, phase=HostPhase.FAILED, failure_reason=". ".join(creation.leftovers)))


# Undone in reverse: the VPS, which is billed, first, and the local record, which names it, last.
CREATE_STEPS: tuple[Step[Creation], ...] = (
    Step("Claiming the name", _claim_name, _forget_unless_something_is_left),
    Step("Giving the cloud the public key", _upload_key, _delete_key),
    Step("Ordering the VPS", _order_instance, _delete_instance),
    Step("Waiting for the VPS to become active", _wait_until_active),
    Step("Waiting for its ssh", _wait_for_vps_ssh),
    Step("Waiting for cloud-init and Docker", _wait_for_docker),
    Step("Replacing the host key that the cloud knows", _replace_host_key),
    Step(_PREPARING_IMAGE, _wait_for_image),
    Step(_STARTING_CONTAINER, _start_container),
    Step(_ENTERING_CONTAINER, _enter_container),
    Step("Taking the public key back from the cloud", _delete_key_from_cloud),
    Step("Writing the host record", _write_record),
)
