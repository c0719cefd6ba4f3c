"""The user data itself; and its two scripts, run on a machine made of stand-ins for apt, docker, sshd and so on."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import yaml

from imbue.mngr_vps_docker import cloud_init
from imbue.mngr_vps_docker.cloud_init import (
    TIMED_OUT_EXIT_CODE,
    failure_of,
    generate_cloud_init_user_data,
    wait_for_ready_command,
)
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.setup.scripts import script
from imbue.mngr_vps_docker.state.keys import load_or_create_key_pair, new_key_pair

SETUP_SCRIPT = Path(cloud_init.__file__).parent / "setup" / "vps_setup.sh"
FINGERPRINT = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
TOOLS = (
    "sh cat mv rm mkdir dirname grep tail head tr cut cp ln sleep awk install timeout date sed sort uniq ls readlink"
)


# Has what the settings say only where it reads nothing else.
SSHD_OF_OTHERS = 'case "$*" in -t*) ;; *" -f "*) echo "maxsessions 100" ;; *) echo "maxsessions 10" ;; esac'


@pytest.fixture
def user_data(tmp_path: Path) -> str:
    pair = load_or_create_key_pair(tmp_path / "host_key")
    return generate_cloud_init_user_data(pair.private_key_path.read_text(), pair.public_key)


def setup_script_in(user_data: str) -> str:
    """The script that cloud-init writes."""
    file = yaml.safe_load(user_data)["write_files"][-1]
    assert file["encoding"] == "gz+b64"
    return gzip.decompress(b64decode(file["content"])).decode()


def test_user_data_holds_the_host_key_once_and_fits_every_cloud(user_data: str, tmp_path: Path) -> None:
    config = yaml.safe_load(user_data)
    assert user_data.startswith("#cloud-config\n")
    assert len(user_data.encode()) <= 9 * 1024  # room for what is to come
    assert config["ssh_keys"]["ed25519_private"] == (tmp_path / "host_key").read_text()
    assert config["ssh_keys"]["ed25519_public"] == (tmp_path / "host_key.pub").read_text()
    assert user_data.count("PRIVATE KEY") == 2  # its first and its last line
    secret = (tmp_path / "host_key").read_text().splitlines()[3]
    assert user_data.count(secret) == 1
    assert (config["ssh_pwauth"], config["disable_root"], config["ssh_deletekeys"]) == (False, False, True)


def test_user_data_runs_the_script_that_it_writes(user_data: str) -> None:
    config = yaml.safe_load(user_data)
    file = config["write_files"][-1]
    assert config["runcmd"] == [[file["path"]]]
    assert file["permissions"] == "0755"
    lines = setup_script_in(user_data).splitlines()
    # All of it but comments and empty lines, which are for those who read it here.
    assert lines[0] == "#!/bin/sh"
    assert [line for line in lines[1:] if not line.strip() or line.strip().startswith("#")] == []
    assert set(lines) <= set(SETUP_SCRIPT.read_text().splitlines())


def test_user_data_opens_roots_account_before_sshd_starts_and_at_the_end(user_data: str, tmp_path: Path) -> None:
    """Clouds have images whose root must set a password first; some let cloud-init itself ask for that."""
    config = yaml.safe_load(user_data)
    (boot_command,) = config["bootcmd"]
    place = "/usr/local/sbin/mngr-root-account"
    assert f"sh {place}" in setup_script_in(user_data)
    written = tmp_path / "script"
    moved = boot_command.replace(f"\nsh {place}", "").replace(place, str(written))
    subprocess.run(["sh", "-eu", "-c", moved], check=True, timeout=60)
    assert written.read_text() == script("root_account.sh")


class StandInMachine:
    """The setup script with its folders below a temporary one, and a PATH of nothing but what a test puts there."""

    def __init__(self, root: Path, user_data: str) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir(parents=True)
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool) or pytest.fail(f"there is no {tool}"))
        for folder in ("etc/ssh", "etc/apt/sources.list.d", "var/log", "var/lib/cloud/scripts/per-boot", "run"):
            (root / folder).mkdir(parents=True)
        (root / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
        self.script = root / "setup"
        (root / "etc/default").mkdir()
        (root / "etc/default/mngr-vps").write_text(yaml.safe_load(user_data)["write_files"][0]["content"])
        self.script.write_text(self._moved(setup_script_in(user_data)))
        self.put("sync", "")
        self.put("sshd", 'echo "MaxSessions 100"; echo "PasswordAuthentication no"')
        self.put("systemctl", '[ "$*" != "enable --now docker" ] || : >"$root/docker-runs"')
        self.put("docker", '[ -e "$root/docker-runs" ] || exit; case "$*" in *LiveRestore*) echo true ;; esac')
        self.put("unattended-upgrade", "")
        self.put("apt-get", 'case "$*" in *" docker.io"*) : >"$root/docker-installed" ;; esac')
        self.put("apt-cache", "false")
        self.put("ssh-keyscan", "")
        self.put("dpkg", "echo amd64")
        self.put("curl", "exit 6")
        self.put("gpg", "false")
        self.put("python3", f'exec {sys.executable} -I "$@"')
        for program in ("iptables", "ip6tables"):
            self.put(program, 'case "$*" in *" -C "*) exit 1 ;; esac')
            self.put(f"{program}-restore", f'cat >>"$root/{program}-restored"')

    def _moved(self, script: str) -> str:
        for folder in ("/var/lib/", "/var/log/", "/etc/", "/run/", "/proc/net/", "/sys/class/net/", "/snap/"):
            script = script.replace(folder, f"{self.root}{folder}")
        return script.replace("/usr/local/sbin/mngr-", f"{self.root}/").replace(
            f"{self.root}/vps-setup", f"{self.root}/setup"
        )

    def put(self, name: str, script: str) -> None:
        """Have a command that notes its call and then does what ``script`` says."""
        text = f'#!/bin/sh\nroot={self.root}\necho "{name} $*" >>"$root/calls"\n{script}\n'
        # Never through the link to the real command.
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def set_up(self) -> int:
        """Run the setup script."""
        return self._run(("sh", str(self.script))).returncode

    def wait(self, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run what is run over ssh to wait."""
        return self._run(("sh", "-c", self._moved(wait_for_ready_command(timeout_seconds))))

    def _run(self, argv: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin)}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def calls(self, name: str) -> list[str]:
        """The calls of one command so far."""
        lines = (self.root / "calls").read_text().splitlines() if (self.root / "calls").exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]

    @property
    def status(self) -> str:
        """The marker."""
        return (self.root / "var/lib/mngr-vps/status").read_text()


@pytest.fixture
def machine(tmp_path: Path, user_data: str) -> StandInMachine:
    return StandInMachine(tmp_path / "machine", user_data)


def test_root_s_account_is_opened_again_at_the_end(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    (machine.root / "root-account").write_text("systemctl the account is opened\n")
    assert machine.set_up() == 0
    assert "systemctl the account is opened" in machine.calls("systemctl")


def test_docker_that_runs_already_is_kept(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    assert machine.set_up() == 0
    assert machine.status == "ready\n"
    assert machine.calls("apt-get") == []


def test_docker_that_is_installed_is_started(machine: StandInMachine) -> None:
    machine.put("dockerd", "")
    assert machine.set_up() == 0
    assert machine.calls("apt-get") == []
    assert "systemctl enable --now docker" in machine.calls("systemctl")


def test_what_looks_at_the_host_key_is_installed_where_it_is_missing(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    (machine.bin / "ssh-keyscan").unlink()
    assert machine.set_up() == 0
    assert machine.status == "ready\n"
    assert machine.calls("apt-get")[-1].endswith(" install --no-install-recommends openssh-client")


def test_docker_comes_from_its_own_repository_under_its_own_key(machine: StandInMachine) -> None:
    machine.put("curl", 'while [ "$1" != -o ]; do shift; done; echo key >"$2"')
    machine.put("gpg", f"printf 'pub:-:4096\\nfpr:::::::::{FINGERPRINT}:\\nsub:-:\\nfpr:::::::::0000:\\n'")
    assert machine.set_up() == 0
    assert machine.calls("apt-get")[-1].endswith("docker-ce docker-ce-cli containerd.io docker-buildx-plugin")
    sources = (machine.root / "etc/apt/sources.list.d/docker.list").read_text()
    assert sources.endswith("/docker.asc] https://download.docker.com/linux/debian bookworm stable\n")
    # An answer that is an error, one by another way, and a list that apt only warns of do not count as a download.
    (download,) = machine.calls("curl")
    assert "-fsSL --proto =https " in download
    assert all("APT::Update::Error-Mode=any" in call for call in machine.calls("apt-get"))


@pytest.mark.parametrize(
    ("curl", "gpg"),
    [
        ("exit 6", "false"),
        ('while [ "$1" != -o ]; do shift; done; echo key >"$2"', "printf 'pub:-:\\nfpr:::::::::0123:\\n'"),
        (
            'while [ "$1" != -o ]; do shift; done; echo key >"$2"',
            f"printf 'pub:-:\\nfpr:::::::::{FINGERPRINT}:\\npub:-:\\nfpr:::::::::0123:\\n'",
        ),
    ],
    ids=["no network", "another key", "a second key"],
)
def test_without_docker_s_own_key_it_comes_from_the_distribution(machine: StandInMachine, curl: str, gpg: str) -> None:
    machine.put("curl", curl)
    machine.put("gpg", gpg)
    assert machine.set_up() == 0
    assert machine.status == "ready\n"
    assert machine.calls("apt-get")[-1].endswith("--no-install-recommends docker.io")
    assert "DPkg::Lock::Timeout=" in machine.calls("apt-get")[-1]
    assert list((machine.root / "etc/apt/sources.list.d").iterdir()) == []


def test_a_repository_that_fails_is_taken_back(machine: StandInMachine) -> None:
    machine.put("curl", 'while [ "$1" != -o ]; do shift; done; echo key >"$2"')
    machine.put("gpg", f"printf 'pub:-:\\nfpr:::::::::{FINGERPRINT}:\\n'")
    machine.put("apt-get", 'case "$*" in *docker-ce*) exit 100 ;; esac')
    assert machine.set_up() == 0
    assert machine.calls("apt-get")[-1].endswith("docker.io")
    assert list((machine.root / "etc/apt/sources.list.d").iterdir()) == []


def test_a_package_list_that_is_locked_is_waited_for(machine: StandInMachine) -> None:
    machine.put("sleep", "")
    locked = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)"
    machine.put("apt-get", f'[ $(grep -c update "$root/calls") -gt 3 ] || {{ echo "{locked}" >&2; exit 100; }}')
    assert machine.set_up() == 0
    assert len([call for call in machine.calls("apt-get") if call.endswith("update")]) == 4


# apt-get that fails for one source, as it does for a broken one, and says so again whenever it is asked.
BROKEN_SOURCE = 'case "$*" in *update) echo "E: The repository x s is not signed." >&2; exit 100 ;; esac'
NOT_FOUND = 'echo "E: Unable to locate package docker.io" >&2; exit 100'


def test_what_the_other_package_sources_have_is_enough(machine: StandInMachine) -> None:
    machine.put("apt-get", BROKEN_SOURCE)
    assert machine.set_up() == 0


def test_a_source_that_fails_is_named_where_a_package_is_missing(machine: StandInMachine) -> None:
    machine.put("apt-get", f"{BROKEN_SOURCE}; {NOT_FOUND}")
    assert machine.set_up() == 1
    reason = "E: Unable to locate package docker.io E: The repository x s is not signed. \n"
    assert machine.status.endswith(reason)


def test_packages_that_are_there_are_enough_though_apt_failed_for_another(machine: StandInMachine) -> None:
    machine.put("apt-get", 'case "$*" in *docker.io*) exit 100 ;; esac')
    machine.put("dpkg-query", "echo installed")
    assert machine.set_up() == 0


def test_dpkg_is_helped_up_and_asks_nothing(machine: StandInMachine) -> None:
    updates = machine.root / "var/lib/dpkg/updates"
    updates.mkdir(parents=True)
    (updates / "0001").touch()
    machine.put("dpkg", 'echo amd64; case "$*" in *configure*) rm "$root/var/lib/dpkg/updates/0001" ;; esac')
    machine.put("apt-get", f'case "$*" in *install*) [ ! -e {updates}/0001 ] ;; esac')
    assert machine.set_up() == 0
    keep = ("--force-confdef", "--force-confold")
    assert all(f"DPkg::Options::={option}" in call for option in keep for call in machine.calls("apt-get"))
    assert all(option in machine.calls("dpkg")[0] for option in keep)


def test_lists_are_accepted_by_a_clock_that_is_behind_and_https_waits_for_it(machine: StandInMachine) -> None:
    machine.put("sleep", "")
    early = "E: The certificate chain uses not yet valid certificate"
    machine.put("apt-get", f'[ $(grep -c update "$root/calls") -gt 3 ] || {{ echo "{early}" >&2; exit 100; }}')
    assert machine.set_up() == 0
    updates = [call for call in machine.calls("apt-get") if call.endswith("update")]
    assert len(updates) == 4
    assert all("Acquire::Max-FutureTime=31536000" in call for call in updates)


def test_a_clock_that_is_never_set_is_waited_for_a_minute(machine: StandInMachine) -> None:
    machine.put("sleep", "")
    machine.put("apt-get", 'echo "E: The certificate chain uses not yet valid certificate" >&2; exit 100')
    assert machine.set_up() == 1
    # Each of 5 s.
    assert len(machine.calls("sleep")) == 11
    assert "not yet valid certificate" in machine.status


@pytest.mark.parametrize(
    ("command", "script", "status"),
    [
        ("apt-get", "echo 'E: no route to mirror' >&2; exit 100", "failed: docker: E: no route to mirror"),
        ("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1", "failed: docker: Cannot connect"),
        ("sshd", 'echo "$0: Bad configuration option" >&2; exit 255', "failed: sshd: "),
        ("sshd", SSHD_OF_OTHERS, "failed: sshd: sshd does not take over the settings: another file or a Match block"),
        ("iptables", "echo 'can not initialize table raw' >&2; exit 3", "failed: firewall: can not initialize"),
    ],
)
def test_a_failure_is_marked_with_its_stage_and_last_words(
    machine: StandInMachine, command: str, script: str, status: str
) -> None:
    machine.put("sleep", "")
    machine.put(command, script)
    (machine.root / "etc/ssh/sshd_config").write_text("# as it was\n")
    assert machine.set_up() == 1
    assert machine.status.startswith(status)
    assert len(machine.status.splitlines()) == 1
    waited = machine.wait()
    assert (waited.returncode, waited.stdout) == (1, machine.status)
    assert waited.stderr.endswith(machine.status)
    if command == "sshd" and "Bad" in script:
        assert (machine.root / "etc/ssh/sshd_config").read_text() == "# as it was\n"
        assert list((machine.root / "etc/ssh/sshd_config.d").iterdir()) == []
        assert not [call for call in machine.calls("systemctl") if "reload" in call]


def test_what_the_image_says_of_docker_is_kept(machine: StandInMachine) -> None:
    settings = machine.root / "etc/docker/daemon.json"
    settings.parent.mkdir()
    settings.write_text('{"live-restore": false, "mtu": 1400}')
    assert machine.set_up() == 0
    assert json.loads(settings.read_text()) == {"live-restore": False, "mtu": 1400}


@pytest.mark.parametrize("text", ["{torn", "[1]", "{'live-restore': true}"])
def test_settings_of_docker_that_cannot_be_read_are_left_alone_and_named(machine: StandInMachine, text: str) -> None:
    settings = machine.root / "etc/docker/daemon.json"
    settings.parent.mkdir()
    settings.write_text(text)
    assert machine.set_up() == 1
    assert settings.read_text() == text
    assert machine.status.startswith(f"failed: docker: {settings} of the image is not a JSON object: ")


def test_an_empty_file_of_settings_is_as_good_as_no_file(machine: StandInMachine) -> None:
    settings = machine.root / "etc/docker/daemon.json"
    settings.parent.mkdir()
    settings.touch()
    assert machine.set_up() == 0
    assert json.loads(settings.read_text()) == {"live-restore": True}


def test_a_swarm_goes_without_what_docker_refuses_in_it(machine: StandInMachine) -> None:
    settings, data = machine.root / "etc/docker/daemon.json", machine.root / "data"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"data-root": str(data)}))
    (data / "swarm").mkdir(parents=True)
    (data / "swarm/docker-state.json").touch()
    assert machine.set_up() == 0
    assert json.loads(settings.read_text()) == {"data-root": str(data)}


@pytest.mark.parametrize(
    ("family", "routes", "expected"),
    [
        ("-4", "default via 10.0.0.1 dev eth0 proto dhcp metric 100", None),
        ("-4", "default via 10.0.0.1 dev wg0", 1380),
        ("-6", "default via fe80::1 dev wg0 proto ra metric 1024 pref medium", 1380),
        ("-6", "default via fe80::1 dev eth0 proto ra metric 1024 mtu 1400 pref medium", 1400),
        ("-4", "default via 10.0.0.1 dev eth0 mtu lock 1400 advmss 1360", 1400),
        ("-4", "default\n\tnexthop via 10.0.0.1 dev jumbo weight 1\n\tnexthop via 10.1.0.1 dev wg0 weight 1", 1380),
        ("-4", "default via 10.0.0.1 dev jumbo", None),
        ("-4", "", None),
    ],
)
def test_containers_fit_the_uplink(machine: StandInMachine, family: str, routes: str, expected: int | None) -> None:
    for device, mtu in (("eth0", 1500), ("wg0", 1380), ("jumbo", 9001)):
        (machine.root / "sys/class/net" / device).mkdir(parents=True)
        (machine.root / "sys/class/net" / device / "mtu").write_text(f"{mtu}\n")
    machine.put("ip", f"[ $1 != {family} ] || echo '{routes}'")
    assert machine.set_up() == 0
    settings = json.loads((machine.root / "etc/docker/daemon.json").read_text())
    assert settings.get("mtu") == expected
    assert f"systemctl {'restart' if expected else 'reload'} docker" in machine.calls("systemctl")


@pytest.mark.parametrize(("version", "is_told"), [("20.10.24+dfsg1", False), ("24.0.0", True), ("29.1.2", True)])
def test_networks_that_users_make_fit_the_uplink_where_docker_can_be_told(
    machine: StandInMachine, version: str, is_told: bool
) -> None:
    machine.put("ip", "echo default dev x mtu 1400")
    (machine.root / "sys/class/net/x").mkdir(parents=True)
    (machine.root / "sys/class/net/x/mtu").write_text("1500\n")
    machine.put("dockerd", f"echo Docker version {version}, build 297e128")
    assert machine.set_up() == 0
    settings = json.loads((machine.root / "etc/docker/daemon.json").read_text())
    bridge = {"com.docker.network.driver.mtu": "1400"}
    assert settings.get("default-network-opts") == ({"bridge": bridge} if is_told else None)
    clamp = "-t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
    assert any(call.endswith(clamp) for call in machine.calls("iptables"))


def test_a_kernel_that_cannot_clamp_segments_is_set_up_all_the_same(machine: StandInMachine) -> None:
    machine.put("iptables", 'case "$*" in *" -C "*) exit 1 ;; *TCPMSS*) exit 4 ;; esac')
    assert machine.set_up() == 0


def test_podman_in_the_place_of_docker_is_refused(machine: StandInMachine) -> None:
    machine.put("docker", '[ "$1" != --version ] || echo podman version 4.3.1')
    assert machine.set_up() == 1
    assert machine.status.startswith("failed: docker: The docker command here comes from Podman: choose an image ")
    assert not (machine.root / "etc/docker").exists()


@pytest.mark.parametrize("is_in_path", [True, False])
def test_docker_from_a_snap_is_refused(machine: StandInMachine, is_in_path: bool) -> None:
    (machine.root / "snap/bin").mkdir(parents=True)
    (machine.bin / "docker").rename(machine.root / "snap/bin/docker")
    if is_in_path:
        (machine.bin / "docker").symlink_to(machine.root / "snap/bin/docker")
    assert machine.set_up() == 1
    assert machine.status.startswith("failed: docker: The docker command here comes from a snap: choose an image ")


def test_docker_that_maps_users_is_refused(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    machine.put("docker", 'case "$*" in *Security*) echo "[name=seccomp,profile=default name=userns]" ;; esac')
    assert machine.set_up() == 1
    assert "Docker has userns-remap here" in machine.status


def test_docker_that_does_not_start_says_why_itself(machine: StandInMachine) -> None:
    machine.put("dockerd", "")
    machine.put("systemctl", 'echo "See journalctl -xeu docker.service for details." >&2; exit 1')
    machine.put(
        "journalctl",
        "echo 'level=info msg=\"Starting up\"'; echo 'failed to start daemon: iptables not found';"
        " echo 'level=info msg=\"Starting up\"'",
    )
    assert machine.set_up() == 1
    assert machine.status.startswith(
        "failed: docker: Docker does not start: failed to start daemon: iptables not found"
    )


def test_without_python_it_is_installed(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    (machine.bin / "python3").rename(machine.root / "python3")
    machine.put("apt-get", 'case "$*" in *" python3") cp "$root/python3" "$root/bin/" ;; esac')
    assert machine.set_up() == 0


@pytest.mark.parametrize(("known", "expected"), [("PerSourceMaxStartups none", True), ("MaxSessions 10", False)])
def test_connections_are_limited_per_address_where_sshd_can(
    machine: StandInMachine, known: str, expected: bool
) -> None:
    machine.put("sshd", f'echo "{known}"; echo "MaxSessions 100"')
    assert machine.set_up() == 0
    drop_in = (machine.root / "etc/ssh/sshd_config.d/00-mngr.conf").read_text()
    assert ("PerSourceMaxStartups 10\nPerSourceNetBlockSize 32:64\n" in drop_in) == expected


def test_sshd_is_reloaded_after_the_check_and_not_restarted(machine: StandInMachine) -> None:
    machine.set_up()
    assert "sshd -t" in machine.calls("sshd")
    assert "systemctl reload ssh" in machine.calls("systemctl")
    assert not [call for call in machine.calls("systemctl") if "restart" in call]


NO_UPGRADES_OF_DOCKER = 'Unattended-Upgrade::Package-Blacklist { "docker"; "containerd"; "runc"; };\n'
UPGRADES = """\
APT::Periodic { Enable "1"; Update-Package-Lists "1"; Unattended-Upgrade "1"; };
Unattended-Upgrade::Automatic-Reboot "false";
"""


def test_security_upgrades_are_on_once_a_vps_is_ready(machine: StandInMachine) -> None:
    (machine.bin / "unattended-upgrade").unlink()
    machine.put("apt-get", 'case "$*" in *unattended*) cp "$root/var/lib/mngr-vps/status" "$root/before" ;; esac')
    (machine.root / "docker-runs").touch()
    assert machine.set_up() == 0
    assert machine.calls("apt-get")[-1].endswith(" install --no-install-recommends unattended-upgrades")
    assert (machine.root / "before").read_text() == "ready\n"
    assert json.loads((machine.root / "etc/docker/daemon.json").read_text()) == {"live-restore": True}
    docker = 'Unattended-Upgrade::Origins-Pattern { "origin=Docker"; };\n'
    assert (machine.root / "etc/apt/apt.conf.d/99-mngr").read_text() == UPGRADES + docker
    assert "systemctl enable --now apt-daily.timer apt-daily-upgrade.timer" in machine.calls("systemctl")


def test_upgrades_that_cannot_be_turned_on_are_tried_again_at_the_next_boot(machine: StandInMachine) -> None:
    (machine.bin / "unattended-upgrade").unlink()
    (machine.root / "docker-runs").touch()
    machine.put("apt-get", "exit 100")
    assert machine.set_up() == 1
    assert machine.wait().stdout == "ready\n"
    (at_next_boot,) = (machine.root / "var/lib/cloud/scripts/per-boot").iterdir()
    assert at_next_boot.resolve() == machine.script
    machine.put("apt-get", "")
    (machine.root / "calls").unlink()
    assert machine.set_up() == 0
    assert machine.calls("sshd") == []
    assert (machine.root / "etc/apt/apt.conf.d/99-mngr").read_text().startswith(UPGRADES)
    assert list(at_next_boot.parent.iterdir()) == []


def test_docker_is_not_upgraded_where_its_containers_would_not_outlive_that(machine: StandInMachine) -> None:
    (machine.root / "docker-runs").touch()
    machine.put("docker", 'case "$*" in *LiveRestore*) echo false ;; esac')
    assert machine.set_up() == 0
    assert (machine.root / "etc/apt/apt.conf.d/99-mngr").read_text() == UPGRADES + NO_UPGRADES_OF_DOCKER


def test_without_security_upgrades_nothing_is_turned_on(tmp_path: Path) -> None:
    config = VpsDockerProviderConfig(security_upgrades=False)
    machine = StandInMachine(tmp_path / "machine", generate_cloud_init_user_data(*new_key_pair(), config))
    (machine.root / "docker-runs").touch()
    assert machine.set_up() == 0
    assert (machine.root / "etc/apt/apt.conf.d/99-mngr").read_text() == NO_UPGRADES_OF_DOCKER
    assert not [call for call in machine.calls("systemctl") if "apt-daily" in call]


def test_containers_reach_no_metadata_service_of_any_cloud(machine: StandInMachine) -> None:
    (machine.root / "proc/net").mkdir(parents=True)
    (machine.root / "proc/net/if_inet6").touch()
    assert machine.set_up() == 0

    def dropped(program: str, match: str = "") -> set[tuple[str, str]]:
        rule = re.compile(rf"{program} -w -t raw -A PREROUTING -d (\S+) -p (tcp|udp) ! --dport 53{match} -j DROP")
        return {found.groups() for call in machine.calls(program) if (found := rule.fullmatch(call))}

    # The addresses as the clouds' own documentation has them.
    most_alibaba_azure_oracle = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
    openstack_aws_google_scaleway = ("fe80::a9fe:a9fe", "fd00:ec2::/32", "fd20:ce::254", "fd00:42::42")
    akamai_oracle_alibaba = ("fd00:a9fe:a9fe::1", "fd00:c1::a9fe:a9fe", "fd00:100::100:200")
    assert dropped("iptables") == set(product(most_alibaba_azure_oracle, ("tcp", "udp")))
    assert dropped("ip6tables") == set(
        product((*openstack_aws_google_scaleway, *akamai_oracle_alibaba), ("tcp", "udp"))
    )
    link_local = set(product(("169.254.0.0/16",), ("tcp", "udp")))
    assert dropped("iptables", " -m addrtype ! --dst-type LOCAL") == link_local


def test_containers_reach_no_private_network_but_those_of_the_settings(tmp_path: Path) -> None:
    config = VpsDockerProviderConfig(allowed_private_networks=("10.0.5.0/24", "fd12:3456::/64", "192.168.1.7"))
    machine = StandInMachine(tmp_path / "machine", generate_cloud_init_user_data(*new_key_pair(), config))
    (machine.root / "proc/net").mkdir(parents=True)
    (machine.root / "proc/net/if_inet6").touch()
    assert machine.set_up() == 0

    def rules(program: str) -> list[str]:
        lines = (machine.root / f"{program}-restored").read_text().splitlines()
        return [line.removeprefix("-A MNGR-PRIVATE ") for line in lines if line.startswith("-A ")]

    name_service = ["-p tcp --dport 53 -j RETURN", "-p udp --dport 53 -j RETURN"]
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
    assert rules("iptables") == [
        *name_service,
        *("-d 10.0.5.0/24 -j RETURN", "-d 192.168.1.7/32 -j RETURN"),
        *(f"-d {network} -j DROP" for network in private),
    ]
    assert rules("ip6tables") == [*name_service, "-d fd12:3456::/64 -j RETURN", "-d fc00::/7 -j DROP"]


def test_connections_to_sshd_are_limited_by_address_where_the_kernel_can(tmp_path: Path) -> None:
    config = VpsDockerProviderConfig(container_ssh_port=2200)
    machine = StandInMachine(tmp_path / "machine", generate_cloud_init_user_data(*new_key_pair(), config))
    (machine.root / "proc/net").mkdir(parents=True)
    (machine.root / "proc/net/if_inet6").touch()
    machine.put("iptables", 'case "$*" in *" -C "*) exit 1 ;; *" recent "*) exit 2 ;; esac')
    assert machine.set_up() == 0
    for program, source in (("iptables", "255.255.255.255"), ("ip6tables", "ffff:ffff:ffff:ffff::")):
        which = "-p tcp --syn -m multiport --dports 22,2200 -m addrtype --dst-type LOCAL"
        rule = f"{program} -w -t raw -A PREROUTING {which} -m recent --name mngr-{program} --mask {source}"
        # A table has one mask, that of who makes it. In this order: what is dropped does not count.
        limit = [call for call in machine.calls(program) if "recent" in call and " -A " in call]
        assert limit == [f"{rule} --rcheck --seconds 1 --hitcount 10 -j DROP", f"{rule} --set"]


def test_a_second_run_and_a_reboot_change_nothing(machine: StandInMachine) -> None:
    assert machine.set_up() == 0
    (machine.root / "calls").unlink()
    assert machine.set_up() == 0
    assert [machine.calls(name) for name in ("apt-get", "systemctl", "sshd")] == [[], [], []]
    assert list((machine.root / "var/lib/cloud/scripts/per-boot").iterdir()) == []


def test_a_run_cut_short_is_taken_up_at_the_next_boot(machine: StandInMachine) -> None:
    machine.put("apt-get", 'kill -9 "$(cat "$root/pid")"')
    machine.script.write_text(
        machine.script.read_text().replace("set -eu", f"set -eu; [ $# -gt 0 ] || echo $$ >{machine.root}/pid", 1)
    )
    assert machine.set_up() == -9
    (at_next_boot,) = (machine.root / "var/lib/cloud/scripts/per-boot").iterdir()
    assert at_next_boot.resolve() == machine.script
    assert not (machine.root / "var/lib/mngr-vps/status").exists()


def test_waiting_ends_when_the_machine_is_ready(machine: StandInMachine) -> None:
    machine.set_up()
    waited = machine.wait()
    assert (waited.returncode, waited.stdout, waited.stderr) == (0, "ready\n", "")


def test_waiting_ends_when_cloud_init_has_ended_without_a_marker(machine: StandInMachine) -> None:
    (machine.root / "run/cloud-init").mkdir()
    (machine.root / "run/cloud-init/result.json").touch()
    (machine.root / "var/log/cloud-init-output.log").write_text("".join(f"line {n}\n" for n in range(30)))
    machine.put("cloud-init", "echo 'status: error'")
    waited = machine.wait()
    assert waited.returncode == 1
    lines = waited.stderr.splitlines()
    assert lines[1:-1] == [f"line {number}" for number in range(10, 30)]
    assert lines[-1] == "cloud-init ended without preparing the VPS (status: error)"


def test_the_reason_comes_before_the_logs(machine: StandInMachine) -> None:
    machine.put("docker", '[ "$1" != --version ] || echo podman version 4.3.1')
    machine.set_up()
    reason, logs = failure_of(machine.wait().stderr).split(" (its logs: ")
    assert reason == machine.status.strip()
    assert logs.startswith("The end of /")


def test_waiting_ends_at_its_time_out_with_a_code_of_its_own(machine: StandInMachine) -> None:
    machine.put("cloud-init", "echo 'status: running'")
    machine.put("sleep", "")
    waited = machine.wait(timeout_seconds=1)
    assert waited.returncode == TIMED_OUT_EXIT_CODE
    assert waited.stderr == "not ready after 1 s (status: running)\n"


@pytest.mark.parametrize("step_seconds", [86_400, -86_400], ids=["forward", "back"])
def test_waiting_takes_no_notice_of_a_clock_that_is_set(machine: StandInMachine, step_seconds: int) -> None:
    machine.put("cloud-init", "echo 'status: running'")
    step = f'echo $((1700000000 + $(grep -c "^date" "$root/calls") * {step_seconds}))'
    machine.put("date", step)
    machine.put("sleep", '[ $(grep -c "^sleep" "$root/calls") -lt 3 ] || echo ready >"$root/var/lib/mngr-vps/status"')
    (machine.root / "var/lib/mngr-vps").mkdir()
    assert machine.wait().stdout == "ready\n"
    (machine.root / "var/lib/mngr-vps/status").unlink()
    machine.put("sleep", "")
    assert machine.wait(timeout_seconds=1).returncode == TIMED_OUT_EXIT_CODE


def test_errors_of_cloud_init_do_not_matter_once_the_vps_is_ready(machine: StandInMachine) -> None:
    machine.set_up()
    (machine.root / "run/cloud-init").mkdir()
    (machine.root / "run/cloud-init/result.json").write_text('{"v1": {"errors": ["a module failed"]}}')
    assert machine.wait().stdout == "ready\n"


def test_the_setup_script_passes_shellcheck(run_shellcheck: Callable[[str], str]) -> None:
    assert run_shellcheck(SETUP_SCRIPT.read_text()) == ""
    assert run_shellcheck(f"#!/bin/sh\n{wait_for_ready_command(5)}") == ""


@pytest.fixture
def run_shellcheck() -> Callable[[str], str]:
    """shellcheck, where it is installed; elsewhere at least the shell's own syntax check."""
    argv = ("shellcheck", "-") if shutil.which("shellcheck") else ("sh", "-n")

    def check(script: str) -> str:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    return check
