"""Which private networks containers and builds reach: a neighbour of the VPS has an address in several of them."""

from collections.abc import Iterator

import pytest

from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.images import require_image
from support.booted_vps import Vps
from support.remote import wait_for

pytestmark = pytest.mark.core

CLOSED, ALLOWED = "10.98.0.1", "10.99.0.1"
CLOSED_IPV6, ALLOWED_IPV6 = "fd00:98::1", "fd00:99::1"
SETUP = "/usr/local/sbin/mngr-vps-setup"


@pytest.fixture(scope="module")
def vps_settings() -> dict[str, object]:
    return {"allowed_private_networks": ["10.99.0.0/16", "fd00:99::/32"]}


@pytest.fixture(scope="module")
def neighbour(vps: Vps, os_id: str) -> Iterator[str]:
    """The engine's name of a machine that serves at ports 53 and 80 of all its addresses."""
    addresses = "; ".join(f"ip address add {address} dev eth0" for address in (f"{CLOSED}/16", f"{ALLOWED}/16"))
    addresses_ipv6 = "; ".join(
        f"ip address add {address}/64 dev eth0 nodad" for address in (CLOSED_IPV6, ALLOWED_IPV6, "fd00:97::2")
    )
    # The way back to the containers of the network `six`.
    way_back = "ip -6 route add fd00:aaaa::/64 via fd00:97::1"
    serve = "python3 -m http.server --bind :: 53 & exec python3 -m http.server --bind :: 80"
    options = ("--detach", "--cap-add=NET_ADMIN", "--sysctl=net.ipv6.conf.all.disable_ipv6=0", "--entrypoint=sh")
    script = f"{addresses}; {addresses_ipv6}; {way_back}; cd /srv; {serve}"
    server = run_docker("run", *options, f"--network={vps.network}", require_image(os_id), "-c", script).strip()
    try:
        yield server
    finally:
        run_docker("rm", "--force", server)


def open_ways(vps: Vps) -> None:
    """Make the neighbour's networks the VPS's own, and wait until it answers."""
    vps.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6").checked()
    for address in ("10.98.0.2/16", "10.99.0.2/16"):
        vps.run(f"ip address replace {address} dev eth0").checked()
    for address in ("fd00:97::1/64", "fd00:98::2/64", "fd00:99::2/64"):
        vps.run(f"ip address replace {address} dev eth0 nodad").checked()
    for address in (CLOSED, ALLOWED, CLOSED_IPV6, ALLOWED_IPV6):
        wait_for(lambda address=address: vps.answers(address, 80), 30)  # type: ignore[misc]


def test_containers_and_builds_reach_no_private_network_but_the_allowed(vps: Vps, neighbour: str) -> None:
    vps.run("docker network create --opt com.docker.network.bridge.name=odd apart").checked()

    def check() -> None:
        open_ways(vps)
        assert not vps.answers_container(CLOSED, 80) and not vps.answers_container(CLOSED, 80, "apart")
        assert not vps.answers_build(CLOSED, 80)
        assert vps.answers_container(ALLOWED, 80) and vps.answers_container(ALLOWED, 80, "apart")
        assert vps.answers_build(ALLOWED, 80)
        # Name service, which may be in a private network.
        assert vps.answers_container(CLOSED, 53)

    check()
    vps.run("iptables -t mangle -F").checked()
    assert vps.answers_container(CLOSED, 80) and vps.answers_build(CLOSED, 80)
    vps.run(f"{SETUP} firewall; {SETUP} firewall; systemctl restart docker").checked()
    wait_for(lambda: vps.run("docker info").is_success, 60)
    check()
    # A firewall of the image that begins with an empty set of rules, as Debian's own example does.
    install = "apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq install nftables >/dev/null"
    vps.run(f"{install} && echo flush ruleset >/etc/nftables.conf && systemctl enable nftables", 120).checked()
    vps.reboot()
    check()
    rules = "iptables -t raw -S | grep -c 169.254.169.254; iptables -t mangle -S FORWARD | grep -c MNGR-PRIVATE"
    assert vps.run(rules).text == "2\n1\n"
    for action in ("restart", "reload", "stop"):
        vps.run(f"systemctl {action} nftables").checked()
        assert vps.run(rules).text == "2\n1\n"
    # Docker's own rules went, too.
    vps.run("systemctl disable --quiet nftables; systemctl restart docker").checked()


def test_containers_reach_no_private_network_by_ipv6_but_the_allowed(vps: Vps, neighbour: str) -> None:
    open_ways(vps)
    vps.run("docker network create --ipv6 --subnet fd00:aaaa::/64 six; sysctl -w net.ipv6.conf.all.forwarding=1")
    wait_for(lambda: vps.answers_container(ALLOWED_IPV6, 80, "six"), 30)
    assert not vps.answers_container(CLOSED_IPV6, 80, "six")
    assert vps.answers_container(CLOSED_IPV6, 53, "six")
    vps.run("ip6tables -t mangle -F").checked()
    assert vps.answers_container(CLOSED_IPV6, 80, "six")
    vps.run(f"{SETUP} firewall").checked()


def test_a_private_network_reaches_published_ports_and_containers_each_other(vps: Vps, neighbour: str) -> None:
    open_ways(vps)
    serve = "sh -c 'mkdir -p /run/sshd; ssh-keygen -A; exec /usr/sbin/sshd -D'"
    vps.run("docker network create --opt com.docker.network.bridge.name=own near").checked()
    vps.run(f"docker run --detach --name server --publish 8022:22 --network near {vps.agent_image} {serve}").checked()
    try:
        where = vps.run("docker inspect server --format '{{.NetworkSettings.Networks.near.IPAddress}}'").text.strip()
        wait_for(lambda: vps.answers_container(where, 22, "near"), 30)
        source = f"('{CLOSED}', 0)"
        greet = f"import socket; print(socket.create_connection(('10.98.0.2', 8022), 10, {source}).recv(4).decode())"
        assert run_docker("exec", neighbour, "python3", "-c", greet) == "SSH-\n"
    finally:
        vps.run("docker rm --force server; docker network rm near").checked()
