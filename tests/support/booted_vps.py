"""A local VPS that has booted with the package's user data and has no host."""

import json
import secrets
import shlex
from pathlib import Path
from typing import Any

from imbue.mngr_local_vps.client import DEFAULT_PLAN, DEFAULT_REGION, LocalVpsClient
from imbue.mngr_local_vps.config import LocalVpsProviderConfig
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.cloud_init import generate_cloud_init_user_data, wait_for_ready_command
from imbue.mngr_vps_docker.docker.image_build import BuildSpec, build_script
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.target import SshTarget
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair
from support.remote import wait_for

_READY_TIMEOUT_SECONDS = 300.0


class Vps:
    """One booted machine, with user data as ``settings`` of the provider make it.

    ``habits`` is shell text that it runs at each boot before all else, as an image that has habits of its own.
    """

    def __init__(self, client: LocalVpsClient, folder: Path, os_id: str, *, habits: str = "", **settings: Any) -> None:
        self.agent_image = agent_image_of_os(os_id)
        host_key = load_or_create_key_pair(folder / "host")
        login = load_or_create_key_pair(folder / "login")
        key_id = client.upload_ssh_key(folder.name, login.public_key)
        config = LocalVpsProviderConfig.model_validate(settings)
        user_data = generate_cloud_init_user_data(host_key.private_key_path.read_text(), host_key.public_key, config)
        user_data = user_data.replace("bootcmd:\n", f"bootcmd:\n- {json.dumps(habits)}\n")
        self.instance_id = client.create_instance(
            f"mngr-{folder.name}", DEFAULT_REGION, DEFAULT_PLAN, os_id, user_data, [key_id], ["mngr-provider=test"]
        )
        address = client.wait_for_instance_active(self.instance_id)
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"vps {host_key.public_key}\n")
        target = SshTarget(address, login.private_key_path, known_hosts, host_key_alias="vps", label="the VPS")
        self.connection = SshConnection(target)
        self.connection.wait_until_ready(60)

    def run(self, command: str, timeout_seconds: float = 60) -> CommandOutcome:
        """Run one command as root."""
        return self.connection.run(command, purpose="test", timeout_seconds=timeout_seconds)

    def wait(self) -> CommandOutcome:
        """Wait as create does."""
        return self.run(wait_for_ready_command(_READY_TIMEOUT_SECONDS), _READY_TIMEOUT_SECONDS + 30)

    def sshd_settings(self) -> set[str]:
        """What the running configuration makes of root's logins, in lower case, as OpenSSH up to 10.0 prints it."""
        return set(self.run("sshd -T -C user=root,host=h,addr=192.0.2.1").checked().text.lower().splitlines())

    @property
    def network(self) -> str:
        """The engine's name for the network that it shares with its neighbours."""
        (network,) = json.loads(run_docker("inspect", self.instance_id))[0]["NetworkSettings"]["Networks"]
        return str(network)

    def reboot(self) -> None:
        """Reboot, and wait until ssh and Docker answer."""
        self.connection.close()
        run_docker("restart", self.instance_id, timeout_seconds=120)
        self.connection.wait_until_ready(60)
        wait_for(lambda: self.run("docker info").is_success, 60)

    def answers(self, address: str, port: int) -> bool:
        """Whether the VPS itself reaches a port."""
        return self.run(_connect(address, port)).is_success

    def answers_container(self, address: str, port: int, network: str = "bridge") -> bool:
        """Whether a container on one of its networks does."""
        ask = f'docker run --rm --network={network} {self.agent_image} sh -c "{_connect(address, port)}"'
        return self.run(ask).is_success

    def answers_build(self, address: str, port: int) -> bool:
        """Whether a step of a build of ours does; each attempt is another step, which no cache answers."""
        step = f"RUN {_connect(address, port)} # {secrets.token_hex(4)}"
        return self.build(f"FROM {self.agent_image}\n{step}\n").is_success

    def build(self, dockerfile: str, *build_args: str, tag: str = "built") -> CommandOutcome:
        """Build an image as create does."""
        write = f"mkdir -p /srv/context && printf %s {shlex.quote(dockerfile)} >/srv/context/Dockerfile"
        self.run(write).checked()
        return self.run(build_script(BuildSpec(tag, "/srv/context", build_args=build_args)), 120)


def _connect(address: str, port: int) -> str:
    return f"timeout 2 bash -c '</dev/tcp/{address}/{port}'"
