"""A VPS shows its own host key only after this machine has pinned it."""

from typing import Any

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.lifecycle import create
from imbue.mngr_vps_docker.lifecycle.creation import Creation
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from support.builders import create_request
from support.world import ScriptedMachine, World

ADDRESS = "192.0.2.9"
OWN = "ssh-ed25519 " + "A" * 68


def test_the_own_key_of_a_vps_is_pinned_before_it_is_shown(world: World, healthy: HostId) -> None:
    context, host_id = world.context, HostId.generate()
    first = context.keys.create_vps_host_key(host_id).public_key
    context.pin_vps(host_id, ADDRESS, first)
    pinned: list[set[str]] = []

    def note_pinned() -> None:
        lines = context.vps_known_hosts.path.read_text().splitlines()
        pinned.append({key for name, _, key in (line.partition(" ") for line in lines) if name == host_id})

    class Vps(ScriptedMachine):
        stdout = OWN.encode()

        def run(self, command: str, **options: Any) -> CommandOutcome:
            note_pinned()
            return super().run(command, **options)

    world.network.machines[ADDRESS] = Vps(world.vps(healthy).target)
    request = create_request(host_id=host_id)
    entry = create._new_entry(context, request).model_copy(update={"vps_ip": ADDRESS})
    create._replace_host_key(Creation(context, request, entry))
    note_pinned()
    assert pinned == [{first}, {first, OWN}, {OWN}]
