"""Settings of an image, or of a user on the VPS, do not override what mngr needs of the container."""

import json
from typing import Any

import pytest

from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import HostId, HostName, HostState, SnapshotName
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.docker.containers import run_container
from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.hosts.host_access import HostAccess
from imbue.mngr_vps_docker.hosts.observed_host import ObservedHost
from imbue.mngr_vps_docker.lifecycle.container import enter_container, host_container, setup_command
from imbue.mngr_vps_docker.text import logger
from support.builders import local_record_of
from support.provider import ProviderLab, copy_machine

HABITS = """\
RUN rm -rf /tmp /root && ln -s /scratch/tmp /tmp && ln -s /scratch/root /root
RUN mkdir -p /run/sshd && chmod -R g=u /run && rm /etc/shadow
STOPSIGNAL SIGRTMIN+3
HEALTHCHECK --interval=1h CMD false
VOLUME /data
WORKDIR /work
ENTRYPOINT ["/bin/false"]
SHELL ["/bin/bash", "-c"]
ONBUILD RUN false
"""
OTHER = "another"
CONTAINER = "$(docker ps --all --quiet --filter label=com.imbue.mngr.host-id)"


@pytest.fixture(scope="module")
def host(lab: ProviderLab) -> Host:
    """A host of an image with habits, and with start arguments that repeat some of them."""
    context = lab.folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {agent_image_of_os(lab.os_id)}\n{HABITS}")
    return lab.process().create_host(
        HostName("h1"),
        build_args=[str(context)],
        start_args=["--stop-signal=SIGUSR1", "--stop-timeout=600", "--init", "-t"],
    )


def described(lab: ProviderLab, host: Host, container: str = CONTAINER) -> dict[str, Any]:
    """What Docker says of a container of the VPS."""
    found: dict[str, Any]
    (found,) = json.loads(lab.on_vps(host.id, f"docker container inspect {container}"))
    return found


def test_the_state_container_ignores_the_images_habits(lab: ProviderLab, host: Host) -> None:
    found = described(lab, host, "$(docker ps -q --filter label=com.imbue.mngr.type=state-container)")
    config = found["Config"]
    assert (config["StopSignal"], config["WorkingDir"], config["Healthcheck"]["Test"]) == ("SIGTERM", "/", ["NONE"])
    assert "Health" not in found["State"]


def test_a_container_that_is_paused_is_shown_so_and_is_resumed(lab: ProviderLab, host: Host) -> None:
    began = described(lab, host)["State"]["StartedAt"]
    lab.on_vps(host.id, f"docker pause {CONTAINER}")
    assert lab.state_of(host.id) is HostState.PAUSED
    lab.process().start_host(host.id)
    assert lab.state_of(host.id) is HostState.RUNNING
    assert described(lab, host)["State"]["StartedAt"] == began
    assert lab.process().get_host(host.id).execute_idempotent_command("echo in").stdout == "in"


def test_it_is_stopped_in_order_whatever_its_stop_signal_is(lab: ProviderLab, host: Host) -> None:
    # Paused, too: no process of it hears of a signal until it is resumed.
    for pause in ("true", f"docker pause {CONTAINER}"):
        lab.on_vps(host.id, f"rm -rf /work; {pause}")
        lab.process().stop_host(host.id, create_snapshot=False)
        state = described(lab, host)["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)
        assert lab.state_of(host.id) is HostState.STOPPED
        lab.process().start_host(host.id)


def test_volumes_of_the_image_outlive_the_container_outside_snapshots(lab: ProviderLab, host: Host) -> None:
    lab.in_container(host.id, "echo kept >/data/file; rm -rf /work")
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        snapshot = lab.process().create_snapshot(host.id, SnapshotName("s1"))
    finally:
        logger.remove(sink)
    assert said == ["Snapshot s1 leaves out what is on volumes of the container: /data\n"]
    lab.process().stop_host(host.id, create_snapshot=False)
    lab.process().start_host(host.id, snapshot)
    assert lab.in_container(host.id, "cat /data/file") == "kept\n"
    assert lab.on_vps(host.id, "docker volume ls --quiet --filter dangling=true") == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("VOLUME /mngr", "has a VOLUME at /mngr, where mngr keeps its own data"),
        ("VOLUME /mngr/agents", "has a VOLUME at /mngr/agents"),
        ("VOLUME /mngr-vol/agents", "has a VOLUME at /mngr-vol/agents"),
        ("RUN echo x >/mngr", "/mngr is a file in the image"),
        ("RUN ln -s /opt /mngr", "/mngr is a link to /opt in the image"),
        ("RUN rm /bin/sh", "has no shell"),
        ("RUN sed -i s/^root:/admin:/ /etc/passwd", "The image has no user root, as whom mngr logs in"),
        (
            "RUN echo -:root:ALL >>/etc/security/access.conf; echo account required pam_access.so >/etc/pam.d/sshd",
            "Access denied for user root by PAM account configuration",
        ),
        ("RUN echo 'sshd: ALL' >>/etc/hosts.deny", "/etc/hosts.deny: sshd: ALL"),
    ],
)
def test_an_image_that_cannot_be_a_host_is_told_why(lab: ProviderLab, host: Host, line: str, reason: str) -> None:
    with pytest.raises(VpsDockerError) as raised:
        make_another(lab, host, f"FROM {agent_image_of_os(lab.os_id)}\n{line}")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_host_whose_container_is_paused_can_be_destroyed(lab: ProviderLab, host: Host) -> None:
    lab.on_vps(host.id, f"docker pause {CONTAINER}")
    lab.process().destroy_host(host.id)
    assert lab.leftovers() == []


def make_another(lab: ProviderLab, host: Host, dockerfile: str) -> None:
    """Make a container of another image on the VPS of a host, as create does."""
    if not (lab.folder / "there").exists():
        copy_machine(lab, "there")
    context = lab.process(machine="there", container_ssh_port=2223, ssh_connect_timeout=4.0).context
    known = context.local_store.read(host.id)
    assert known is not None and known.vps_ip is not None and known.record is not None
    host_id = HostId.generate()
    context.keys.create_vps_host_key(host_id)
    context.pin_vps(host_id, known.vps_ip, known.record.ssh_host_public_key or "")
    remove = f"docker rm --force {context.container_name(OTHER)} 2>/dev/null"
    lab.on_vps(host.id, f"{remove}; docker build --tag {OTHER} - <<'END'\n{dockerfile}\nEND")
    entry = local_record_of(host_id, host_name=OTHER, vps_ip=known.vps_ip, record=None)
    another = HostAccess(context, ObservedHost(entry))
    spec = host_container(
        context,
        host_id=host_id,
        host_name=OTHER,
        container_name=another.container_name,
        image=OTHER,
        start_args=(),
        tags={},
    )
    another.vps.call(run_container(spec, timeout_seconds=60))
    another.vps.call(setup_command(another))
    enter_container(another)
