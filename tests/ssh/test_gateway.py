"""A machine behind a gateway is reached over the shared login to that, by our ssh and by any other program."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import VpsConnectionError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.gateway import by_way_of, forward
from imbue.mngr_vps_docker.ssh.process import run_process
from imbue.mngr_vps_docker.ssh.shell import join
from imbue.mngr_vps_docker.ssh.target import SshTarget, standalone_argv
from support.loopback_sshd import LoopbackSshd
from support.remote import run

pytestmark = pytest.mark.usefixtures("both_homes")

HERE = "127.0.0.1"
# An address of documentation (RFC 5737), to which nothing leads.
NOWHERE = "192.0.2.1"


class Route:
    """``machine``, which can be reached from ``gateway`` only; the path of the key to that is not a plain word."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.gateway, self.machine = self.sshd("gateway"), self.sshd("machine")
        key = folder / "the 100% key"
        key.write_bytes(self.gateway.target().identity_file.read_bytes())
        key.chmod(0o600)
        self.gateway_target = self.gateway.target(identity_file=key)
        self.to_gateway = self.connection(self.gateway_target)
        self.to_machine = self.connection(self.way(self.gateway_target, ()))

    def sshd(self, name: str) -> LoopbackSshd:
        folder = self._folder / name
        folder.mkdir()
        return self._stack.enter_context(LoopbackSshd(folder))

    def connection(self, target: SshTarget) -> SshConnection:
        return self._stack.enter_context(closing(SshConnection(target)))

    def way(self, gateway: SshTarget, options: tuple[str, ...]) -> SshTarget:
        return by_way_of(gateway, self.machine.target(host=NOWHERE, options=options), HERE, run_process)

    def forward(self, *local_ports: int) -> int:
        return forward(self.gateway_target, HERE, local_ports, (HERE, self.machine.port), run_process)

    def greeting(self, port: int) -> bytes:
        with socket.create_connection((HERE, port), timeout=10) as client:
            return client.recv(3)


@pytest.fixture
def route(tmp_path: Path) -> Iterator[Route]:
    with ExitStack() as stack:
        yield Route(tmp_path, stack)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HERE, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def test_a_machine_behind_a_gateway_costs_the_gateway_no_login(route: Route) -> None:
    run(route.to_gateway, "true").checked()
    assert run(route.to_machine, "echo there").checked().text == "there\n"
    assert (route.gateway.login_count, route.machine.login_count) == (1, 1)


def test_a_machine_is_reached_without_a_login_to_its_gateway(route: Route) -> None:
    assert run(route.to_machine, "echo there").checked().text == "there\n"
    argv = join(standalone_argv(route.to_machine.target, "echo pasted"))
    done = subprocess.run(["sh", "-c", argv], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "pasted\n"


def test_an_option_of_the_user_leads_to_the_gateway(route: Route) -> None:
    bastion = route.sshd("bastion")
    *login, host = standalone_argv(bastion.target(), None)
    options = (f"ProxyCommand={join((*login[:-1], '-W', '[%h]:%p', '--', host))}",)
    behind = route.connection(route.way(replace(route.gateway_target, options=options), options))
    assert run(behind, "echo there").checked().text == "there\n"
    assert [sshd.login_count for sshd in (bastion, route.gateway, route.machine)] == [1, 1, 1]


def test_a_forwarded_port_is_reused(route: Route) -> None:
    ports = free_ports(2)
    assert [route.forward(*ports), route.forward(*ports)] == [ports[0], ports[0]]
    assert route.greeting(ports[0]) == b"SSH"
    assert route.gateway.login_count == 1


def test_a_port_that_another_program_has_is_not_taken_for_ours(route: Route) -> None:
    with socket.create_server((HERE, 0)) as other:
        taken = other.getsockname()[1]
        (free,) = free_ports(1)
        assert route.forward(taken, free) == free
        with pytest.raises(VpsConnectionError, match=f"all are taken \\({taken}\\)"):
            route.forward(taken)


def test_a_port_is_forwarded_again_after_the_shared_login_has_ended(route: Route) -> None:
    (port,) = free_ports(1)
    route.forward(port)
    route.to_gateway.close()
    with pytest.raises(ConnectionRefusedError):
        route.greeting(port)
    assert route.forward(port) == port
    assert route.greeting(port) == b"SSH"


def test_no_port_is_forwarded_by_a_gateway_that_does_not_let_us_in(route: Route) -> None:
    route.gateway.stop()
    with pytest.raises(VpsConnectionError, match="loopback"):
        route.forward(*free_ports(1))
