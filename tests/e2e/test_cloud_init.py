"""The user data on machines that boot with the real cloud-init, sshd, apt and Docker."""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imbue.mngr_local_vps.client import LocalVpsClient
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.images import require_image
from imbue.mngr_vps_docker.errors import VpsAuthenticationError
from support.booted_vps import Vps
from support.higher_versions import DOCKER, FORGET_HIGHER_VERSIONS, SECURITY, offer_higher_versions
from support.remote import wait_for

pytestmark = pytest.mark.core

README = Path(__file__).resolve().parents[2] / "README.md"
SETUP = "/usr/local/sbin/mngr-vps-setup"


@pytest.fixture(scope="module")
def vps_settings() -> dict[str, object]:
    return {"security_upgrades": True}


def test_a_vps_with_docker_gets_ready_and_is_locked_down(vps: Vps) -> None:
    assert vps.run("cloud-init schema --config-file /var/lib/cloud/instance/user-data.txt").is_success
    assert {
        "maxsessions 100",
        "maxstartups 100:30:200",
        "authenticationmethods publickey",
        "allowagentforwarding no",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "permitrootlogin without-password",
        "hostkey /etc/ssh/ssh_host_ed25519_key",
        "x11forwarding no",
        "maxauthtries 3",
        "logingracetime 20",
        "persourcemaxstartups 10",
        "persourcenetblocksize 32:64",
    } <= vps.sshd_settings()
    assert len([line for line in vps.sshd_settings() if line.startswith("hostkey ")]) == 1
    assert vps.run("ls /etc/ssh/ssh_host_*_key").text.split() == ["/etc/ssh/ssh_host_ed25519_key"]
    assert vps.run("docker info").is_success


def test_the_readme_says_with_which_versions_this_is_tested(vps: Vps, os_id: str) -> None:
    if os_id not in ("debian-12", "debian-13"):
        pytest.skip("README promises nothing for this operating system")
    named = []
    for name, package in (("OpenSSH", "openssh-server"), ("Docker", "docker.io"), ("cloud-init", "cloud-init")):
        installed = vps.run(f"dpkg-query --show --showformat='${{Version}}' {package}").checked().text
        # Without the epoch.
        version = re.match(r"(?:\d+:)?(\d+\.\d+)", installed)
        assert version is not None, installed
        named.append(f"{name} {version[1]}")
    assert f"Debian {os_id.removeprefix('debian-')} ({', '.join(named)})" in " ".join(README.read_text().split())


def test_containers_outlive_security_upgrades_of_docker(vps: Vps) -> None:
    """All of it as apt's timers do it. Debian has Docker among its own packages; Docker has a repository, too."""
    assert vps.wait().is_success
    wait_for(lambda: vps.run("systemctl is-active apt-daily.timer apt-daily-upgrade.timer").is_success)
    assert json.loads(vps.run("cat /etc/docker/daemon.json").checked().text) == {"live-restore": True}
    pid = "docker inspect --format '{{.State.Pid}}' lasting; docker exec lasting true"
    vps.run(f"docker run --detach --name lasting {vps.agent_image} sleep 1000").checked()
    before, daemon_before = vps.run(pid).checked().text, vps.run("pidof dockerd").checked().text
    packages = {"hostname": SECURITY, "docker.io": SECURITY, "runc": SECURITY, "containerd": DOCKER}
    try:
        vps.run(offer_higher_versions(packages)).checked()
        vps.run("systemctl start apt-daily.service && systemctl start apt-daily-upgrade.service", 120).checked()
        versions = vps.run(f"dpkg-query --show --showformat='${{Version}} ' {' '.join(packages)}").checked().text
        assert all(version.endswith("+1") for version in versions.split()), versions
        wait_for(lambda: vps.run("docker info").is_success, 60)
        assert vps.run("pidof dockerd").checked().text != daemon_before
        assert vps.run(pid).checked().text == before
    finally:
        vps.run(f"{FORGET_HIGHER_VERSIONS}; docker rm --force lasting").checked()


def test_readiness_survives_a_reboot(vps: Vps, client: LocalVpsClient) -> None:
    assert vps.wait().is_success
    written = vps.run("stat -c %Y /var/log/mngr-vps-setup.log /var/lib/mngr-vps/status").checked().text
    vps.connection.close()
    subprocess.run(("docker", "restart", vps.instance_id), check=True, capture_output=True, timeout=120)
    vps.connection.wait_until_ready(60)
    assert vps.wait().text == "ready\n"
    deadline = time.monotonic() + 60
    while not vps.run("docker info").is_success:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert vps.run("stat -c %Y /var/log/mngr-vps-setup.log /var/lib/mngr-vps/status").text == written
    assert "maxsessions 100" in vps.sshd_settings()


def test_a_root_that_may_not_log_in_may_after_the_next_boot(vps: Vps) -> None:
    """As at the first boot of an image in which it may not: cloud-init comes before sshd."""
    assert vps.wait().is_success
    vps.run("echo root:x | chpasswd && chage -d 0 root && usermod -s /usr/sbin/nologin root").checked()
    vps.connection.close()
    with pytest.raises(VpsAuthenticationError, match=r"not available|assword"):
        vps.connection.wait_until_ready(60)
    subprocess.run(("docker", "restart", vps.instance_id), check=True, capture_output=True, timeout=120)
    vps.connection.wait_until_ready(60, account_grace_seconds=60)
    assert vps.run("getent passwd root").text == "root:x:0:0:root:/root:/bin/bash\n"


OWN_LINK_LOCAL_ADDRESS = "169.254.7.7"


@pytest.fixture
def metadata_service(vps: Vps, os_id: str) -> Iterator[None]:
    """What clouds have at this address, here on the VPS's own network: a port for user data, and one for names."""
    answer = f"ip address add 169.254.169.254/32 dev eth0; ip route add {OWN_LINK_LOCAL_ADDRESS} dev eth0"
    serve = f"{answer}; python3 -m http.server 53 & exec python3 -m http.server 80"
    options = ("--detach", "--cap-add=NET_ADMIN", f"--network={vps.network}", "--entrypoint=sh", "--workdir=/srv")
    server = run_docker("run", *options, require_image(os_id), "-c", serve).strip()
    try:
        yield
    finally:
        run_docker("rm", "--force", server)


def test_only_the_vps_itself_reaches_its_metadata_service(
    vps: Vps, client: LocalVpsClient, metadata_service: None
) -> None:
    assert vps.wait().is_success
    vps.run("docker network create other").checked()
    service = "169.254.169.254"

    def check() -> None:
        vps.run("ip route replace 169.254.169.254 dev eth0").checked()
        wait_for(lambda: vps.answers(service, 80))
        assert not vps.answers_container(service, 80) and not vps.answers_container(service, 80, "other")
        assert not vps.answers_build(service, 80)
        assert vps.answers_container(service, 53) and vps.answers_build(service, 53)

    check()
    vps.run("iptables -t raw -F").checked()
    assert vps.answers_container(service, 80) and vps.answers_build(service, 80)
    vps.run(f"{SETUP} firewall; {SETUP} firewall").checked()
    vps.run("systemctl restart docker").checked()
    check()
    vps.reboot()
    check()
    rules = vps.run("iptables -t raw -S").checked().text
    assert (rules.count("169.254.0.0/16"), rules.count("--name mngr-iptables")) == (2, 2)


def test_a_vps_with_a_link_local_address_gets_answers_to_it(vps: Vps, metadata_service: None) -> None:
    assert vps.wait().is_success
    vps.run("ip route replace 169.254.169.254 dev eth0").checked()
    vps.run(f"ip address replace {OWN_LINK_LOCAL_ADDRESS}/32 dev eth0").checked()
    ask = f"curl --silent --max-time 3 --interface {OWN_LINK_LOCAL_ADDRESS} http://169.254.169.254"
    wait_for(lambda: vps.run(ask).is_success)


def test_containers_reach_no_metadata_service_by_ipv6(vps: Vps) -> None:
    """The addresses that clouds use, and one that means nothing, are the VPS's own here."""
    assert vps.wait().is_success
    services = ["fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fd00:a9fe:a9fe::1"]
    services += ["fd00:c1::a9fe:a9fe", "fd00:100::100:200"]
    other = "fd00:1234::1"
    vps.run("docker network create --ipv6 --subnet fd00:aaaa::/64 six").checked()
    vps.run("echo 0 >/proc/sys/net/ipv6/conf/lo/disable_ipv6").checked()
    for address in (*services, other):
        vps.run(f"ip -6 address add {address}/128 dev lo").checked()
    serve = "systemd-run --quiet --unit=metadata --working-directory=/srv python3 -m http.server --bind :: 80"
    vps.run(serve).checked()

    def reached(addresses: list[str]) -> list[str]:
        # Docker gives a container its address, and the kernel takes a second to make sure that no other has it.
        ask = "; ".join(f"timeout 3 bash -c '</dev/tcp/{address}/80' && echo {address}" for address in addresses)
        return vps.run(f'docker run --rm --network=six {vps.agent_image} sh -c "{ask}; true"').checked().text.split()

    try:
        wait_for(lambda: reached([other]))
        assert reached([*services, other]) == [other]
        vps.run("ip6tables -t raw -F").checked()
        assert reached([*services, other]) == [*services, other]
    finally:
        vps.run(f"{SETUP} firewall; systemctl stop metadata; docker network rm six").checked()


@pytest.mark.parametrize(
    "rest",
    [
        "PasswordAuthentication yes\nMaxSessions 5\n",
        "Match User nobody\n    PasswordAuthentication yes\n    MaxSessions 5\n",
        "Subsystem sftp internal-sftp\nMatch Address 198.51.100.0/24\n    X11Forwarding yes",
    ],
    ids=["other values", "a Match block at the end", "no newline at the end"],
)
def test_sshd_settings_hold_where_nothing_includes_the_drop_in(vps: Vps, rest: str) -> None:
    assert vps.wait().is_success
    config = "/etc/ssh/sshd_config"
    vps.run(f"cp -p {config} {config}.kept").checked()
    try:
        script = f"printf %s {shlex.quote(rest)} >{config}; sh -eu {SETUP} sshd && tail -c {len(rest)} {config}"
        outcome = vps.run(script).checked()
        assert outcome.text == rest
        assert {"maxsessions 100", "passwordauthentication no"} <= vps.sshd_settings()
        # Once more changes nothing.
        before = vps.run(f"cat {config}").text
        vps.run(f"sh -eu {SETUP} sshd").checked()
        assert vps.run(f"cat {config}").text == before
    finally:
        vps.run(f"mv {config}.kept {config}; sh -eu {SETUP} sshd").checked()


OTHERS = "/etc/ssh/sshd_config.d/00-aaa.conf"


@pytest.mark.parametrize("line", ["PermitRootLogin yes", "AuthenticationMethods password", "X11Forwarding yes"])
def test_sshd_settings_hold_where_another_file_comes_first(vps: Vps, line: str) -> None:
    assert vps.wait().is_success
    config = "/etc/ssh/sshd_config"
    vps.run(f"cp -p {config} {config}.kept; echo {line} >{OTHERS}").checked()
    try:
        vps.run(f"sh -eu {SETUP} sshd").checked()
        assert {
            "permitrootlogin without-password",
            "authenticationmethods publickey",
            "x11forwarding no",
        } <= vps.sshd_settings()
    finally:
        vps.run(f"rm {OTHERS}; mv {config}.kept {config}; sh -eu {SETUP} sshd").checked()


def test_the_own_host_key_is_found_where_sshd_keeps_it(vps: Vps) -> None:
    assert vps.wait().is_success
    config, second = "/etc/ssh/sshd_config", "/root/second"
    vps.run(f"ssh-keygen -q -t ed25519 -N '' -f {second}; cp -p {config} {config}.kept").checked()
    try:
        vps.run(f"echo 'hostkey {second}' >>{config}; sh -eu {SETUP} sshd").checked()
        assert f"hostkey {second}" not in vps.sshd_settings()
        outcome = vps.run(f"echo HostKey {second} >{OTHERS}; sh -eu {SETUP} sshd")
        assert outcome.exit_code != 0
        assert f"says hostkey {second};" in outcome.error_text.lower()
    finally:
        vps.run(f"rm {OTHERS}; mv {config}.kept {config}; sh -eu {SETUP} sshd").checked()


def test_an_sshd_that_refuses_its_settings_is_left_as_it_was(vps: Vps) -> None:
    assert vps.wait().is_success
    config = "/etc/ssh/sshd_config"
    vps.run(f"cp -p {config} {config}.kept").checked()
    try:
        outcome = vps.run(f"echo Nonsense yes >>{config}; sh -eu {SETUP} sshd")
        assert outcome.exit_code != 0
        assert "Bad configuration option: Nonsense" in outcome.error_text
        assert not vps.run("ls /etc/ssh/sshd_config.d/00-mngr.conf").is_success
        assert vps.run(f"head -n 1 {config}").text == vps.run(f"head -n 1 {config}.kept").text
    finally:
        vps.run(f"mv {config}.kept {config}; sh -eu {SETUP} sshd").checked()


HABITS = """\
ip link set eth0 mtu 1400
mount -o remount,noexec /tmp
[ ! -e /usr/bin/docker ] || exit 0
echo '# ours' >/etc/default/docker
sed -n '/^Package: hostname$/,/^$/p' /var/lib/dpkg/status >/var/lib/dpkg/updates/0001
mkdir -p /srv/broken/dists/s /srv/early/dists/s
touch /srv/broken/dists/s/InRelease
printf 'Suite: s\\nDate: %s\\nSHA256:\\n' "$(date -u -d tomorrow '+%a, %d %b %Y %T UTC')" >/srv/early/dists/s/Release
echo 'deb file:/srv/broken s main' >/etc/apt/sources.list.d/broken.list
echo 'deb [trusted=yes] file:/srv/early s main' >/etc/apt/sources.list.d/early.list
"""


def test_docker_is_installed_where_it_is_missing(
    client: LocalVpsClient, os_without_docker: str, tmp_path: Path
) -> None:
    """dpkg cut short, sources that are broken or of tomorrow, a setting of Docker's, /tmp noexec, a small MTU."""
    machine = Vps(client, tmp_path, os_without_docker, habits=HABITS, security_upgrades=True)
    try:
        waited = machine.wait()
        assert (waited.exit_code, waited.text) == (0, "ready\n"), waited.error_text
        assert machine.run("docker info").is_success
        assert machine.run("systemctl is-enabled docker").text == "enabled\n"
        wait_for(
            lambda: machine.run("command -v unattended-upgrade && systemctl is-active apt-daily.timer").is_success, 60
        )
        assert machine.run("cat /etc/default/docker").text == "# ours\n"
        said = machine.run("cat /var/lib/mngr-vps/apt-update").text
        assert "The repository 'file:/srv/broken s InRelease' is not signed" in said
        assert "not valid yet" not in said
        mtu = "cat /sys/class/net/eth0/mtu"
        assert machine.run(f"docker run --rm {machine.agent_image} {mtu}").text == "1400\n"
        # Docker 20.10, that of Debian 12, cannot be told of other networks, and its BuildKit knows no here-documents.
        if not os_without_docker.startswith("debian-12"):
            machine.run("docker network create own").checked()
            assert machine.run(f"docker run --rm --network=own {machine.agent_image} {mtu}").text == "1400\n"
            here_document = f"FROM {machine.agent_image}\\nRUN <<EOF\\ntrue && test -d /tmp\\nEOF\\n"
            machine.run(f"printf '{here_document}' | docker build -").checked()
        build = (
            f"printf 'FROM {machine.agent_image}\\nRUN test $({mtu}) = 1400\\n' | DOCKER_BUILDKIT=%d docker build -"
        )
        machine.run(build % 0).checked()
        machine.run(build % 1).checked()
    finally:
        machine.connection.close()
        client.destroy_instance(machine.instance_id)
