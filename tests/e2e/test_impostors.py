"""Create fails if an impostor answers in place of a new VPS, and sends it nothing."""

import pytest

from imbue.mngr.primitives import HostName
from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.lifecycle import create
from imbue.mngr_vps_docker.primitives import VpsInstanceId
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from support.provider import ProviderLab

OTHER_KEY = "rm -f /tmp/key*; ssh-keygen -q -t ed25519 -N '' -f /tmp/key; cp /tmp/key /etc/ssh/ssh_host_ed25519_key"


def logins_to(instance_id: str) -> int:
    return run_docker("exec", instance_id, "journalctl", "--unit", "ssh", "--no-pager").count("Accepted publickey")


class Deceived(LocalVpsClient):
    """A cloud that gives the address of another VPS for the one that it made."""

    impostor: str

    def wait_for_instance_active(self, instance_id: VpsInstanceId, timeout_seconds: float = 300.0) -> str:
        super().wait_for_instance_active(instance_id, timeout_seconds)
        return self.impostor


def test_an_impostor_before_the_first_login_is_sent_nothing(lab: ProviderLab) -> None:
    bystander = lab.process().create_host(HostName("bystander")).id
    (instance,) = lab.cloud.find_instances({"mngr-host-id": bystander})
    before = logins_to(instance.id)
    client = Deceived(account=lab.account, impostor=str(instance.address))
    with pytest.raises(VpsProvisioningError, match=r"Waiting for its ssh failed: .* another host key|not pinned"):
        lab.process(client, vps_boot_timeout=5).create_host(HostName("h1"))
    assert logins_to(instance.id) == before
    lab.process().destroy_host(bystander)
    assert lab.leftovers() == []


def test_an_impostor_before_the_new_host_key_is_sent_nothing(
    lab: ProviderLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, seen = create.generate_host_key, {}

    def make_and_be_replaced(vps: SshConnection) -> str:
        public_key = make(vps)
        (instance,) = lab.cloud.find_instances({})
        run_docker("exec", instance.id, "sh", "-c", f"{OTHER_KEY}; systemctl restart ssh")
        vps.close()
        seen["before"] = logins_to(instance.id)
        return public_key

    def take(vps: SshConnection, public_key: str) -> None:
        try:
            create_take(vps, public_key)
        finally:
            (instance,) = lab.cloud.find_instances({})
            seen["after"] = logins_to(instance.id)

    create_take = create.activate_host_key
    monkeypatch.setattr(create, "generate_host_key", make_and_be_replaced)
    monkeypatch.setattr(create, "activate_host_key", take)
    with pytest.raises(VpsProvisioningError, match="another host key than the pinned one, and was sent nothing"):
        lab.process().create_host(HostName("h2"))
    assert seen["before"] == seen["after"] == 1
    assert lab.leftovers() == []
