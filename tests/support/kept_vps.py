"""A local cloud that hands out the same VPS again, so that tests of many hosts boot only one."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import PrivateAttr

from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.primitives import VpsInstanceId, VpsInstanceStatus
from imbue.mngr_vps_docker.vps_client import VpsInstanceInfo

_REMOVE_HOST = """\
docker ps --all --quiet | xargs -r docker rm --force
docker volume ls --quiet | xargs -r docker volume rm
"""
# As cloud-init does it at the first boot.
_TAKE_INJECTED_KEY = "umask 077; cat >/etc/ssh/ssh_host_ed25519_key && systemctl reload ssh"


class KeptVpsClient(LocalVpsClient):
    """One VPS for one host at a time: what was made on it for a host is removed when that is destroyed."""

    _instance_id: VpsInstanceId | None = PrivateAttr(default=None)
    # Those of the host that is on it; None while the cloud has, as far as it says, no VPS.
    _tags: Mapping[str, str] | None = PrivateAttr(default=None)

    def create_instance(self, *arguments: Any, **order: Any) -> VpsInstanceId:
        assert self._tags is None, "the VPS is in use"
        if self._instance_id is None:
            self._instance_id = super().create_instance(*arguments, **order)
        else:
            key = yaml.safe_load(order["user_data"])["ssh_keys"]["ed25519_private"]
            self._run(_TAKE_INJECTED_KEY, key)
        self._tags = dict(tag.split("=", 1) for tag in order["tags"])
        return self._instance_id

    def destroy_instance(self, instance_id: VpsInstanceId) -> None:
        self._require(instance_id)
        self._run(_REMOVE_HOST)
        self._tags = None

    def get_instance_status(self, instance_id: VpsInstanceId) -> VpsInstanceStatus:
        self._require(instance_id)
        return super().get_instance_status(instance_id)

    def get_instance_ip(self, instance_id: VpsInstanceId) -> str:
        self._require(instance_id)
        return super().get_instance_ip(instance_id)

    def find_instances(self, tags: Mapping[str, str]) -> Sequence[VpsInstanceInfo]:
        if self._tags is None or not tags.items() <= self._tags.items():
            return []
        return [found.model_copy(update={"tags": self._tags}) for found in super().find_instances({})]

    def remove(self) -> None:
        """Remove the VPS itself."""
        if self._instance_id is not None:
            super().destroy_instance(self._instance_id)

    def _require(self, instance_id: VpsInstanceId) -> None:
        if self._tags is None or instance_id != self._instance_id:
            raise VpsApiError(404, f"there is no VPS {instance_id}")

    def _run(self, script: str, stdin: str = "") -> None:
        assert self._instance_id is not None
        run_docker("exec", "--interactive", self._instance_id, "sh", "-ec", script, stdin=stdin.encode())
