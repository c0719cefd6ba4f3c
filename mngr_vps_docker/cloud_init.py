"""What a new VPS is told at its first boot (cloud-init user data), and how its success is waited for."""

import gzip
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import yaml

try:
    # libyaml's takes a twentieth of the time; PyYAML may have been built without it.
    from yaml import CSafeDumper as SafeDumper
except ImportError:
    from yaml import SafeDumper  # type: ignore[assignment]

from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.setup.root_account import root_account_script, without_comments

# Beside this module, so that it can be read, linted and run by itself.
_SETUP_SCRIPT = Path(__file__).parent / "setup" / "vps_setup.sh"
_SETUP_PATH = "/usr/local/sbin/mngr-vps-setup"
_SETTINGS_PATH = "/etc/default/mngr-vps"
_ACCOUNT_PATH = "/usr/local/sbin/mngr-root-account"

STATUS_PATH = "/var/lib/mngr-vps/status"
TIMED_OUT_EXIT_CODE = 124

# cloud-init writes result.json when its last stage has ended, after which no status will come any more. An error that
# it reports before that may be of a part that does not matter here. The clock may be set meanwhile: the uptime counts.
READINESS_SCRIPT = f"""
uptime() {{
    read -r seconds _ </proc/uptime
    echo "${{seconds%.*}}"
}}
deadline=$(($(uptime) + timeout_seconds))
explain() {{
    for log in /var/log/mngr-vps-setup.log /var/log/cloud-init-output.log; do
        if [ -r "$log" ]; then
            echo "The end of $log:"
            tail -n 20 "$log"
        fi
    done >&2
    echo "$1" >&2
}}
while :; do
    ended=
    [ ! -e /run/cloud-init/result.json ] || ended=yes
    if [ -r {STATUS_PATH} ]; then
        status=$(cat {STATUS_PATH})
        echo "$status"
        [ "$status" != ready ] || exit 0
        explain "$status"
        exit 1
    fi
    if [ -n "$ended" ]; then
        explain "cloud-init ended without preparing the VPS ($(timeout 10 cloud-init status 2>&1 | head -n 1))"
        exit 1
    fi
    if [ "$(uptime)" -ge "$deadline" ]; then
        explain "not ready after $timeout_seconds s ($(timeout 10 cloud-init status 2>&1 | head -n 1))"
        exit {TIMED_OUT_EXIT_CODE}
    fi
    sleep 0.2
done
"""


def generate_cloud_init_user_data(
    host_private_key: str, host_public_key: str, config: VpsDockerProviderConfig | None = None
) -> str:
    """Return the user data for one VPS, a ``#cloud-config``; it fits ``max_user_data_bytes`` of ordinary clients.

    The VPS shows the given ed25519 host key and no other, lets root in by key only, and has Docker running when
    ``wait_for_ready_command`` says so. ``host_private_key`` is in OpenSSH's form, ``host_public_key`` one line of it.
    Of ``config``, which settings hold on the VPS; None: the defaults.
    """
    user_data = {
        "ssh_deletekeys": True,
        # Not used while keys are given, but the schema allows no empty list.
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {
            "ed25519_private": f"{host_private_key.strip()}\n",
            "ed25519_public": f"{host_public_key.strip()}\n",
        },
        # Before sshd starts: until then our commands may be refused. The setup script runs it once more, since clouds
        # too have cloud-init change root's account.
        "bootcmd": [f"cat >{_ACCOUNT_PATH} <<'END'\n{root_account_script()}END\nsh {_ACCOUNT_PATH}\n"],
        "disable_root": False,
        "ssh_pwauth": False,
        "write_files": [
            {"path": _SETTINGS_PATH, "content": _settings(config or VpsDockerProviderConfig())},
            {
                "path": _SETUP_PATH,
                "owner": "root:root",
                "permissions": "0755",
                "encoding": "gz+b64",
                "content": _setup_script(),
            },
        ],
        "runcmd": [[_SETUP_PATH]],
    }
    return f"#cloud-config\n{_to_yaml(user_data)}"


def _settings(config: VpsDockerProviderConfig) -> str:
    """What the script reads, as shell variables."""
    allowed = [ip_network(network) for network in config.allowed_private_networks]
    networks = "".join(
        f"allowed_ipv{version}='{' '.join(str(network) for network in allowed if network.version == version)}'\n"
        for version in (4, 6)
    )
    upgrades = "yes" if config.security_upgrades else ""
    return f"{networks}container_ssh_port={config.container_ssh_port}\nsecurity_upgrades={upgrades}\n"


def _setup_script() -> str:
    """The script without what the VPS does not need, compressed: user data has little room.

    https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files
    """
    script = without_comments(_SETUP_SCRIPT.read_text()).encode()
    # Without a time: the same for the same script.
    return b64encode(gzip.compress(script, mtime=0)).decode()


def wait_for_ready_command(timeout_seconds: float) -> str:
    """Return shell text that waits on a VPS until its first boot has made it ready, in one round trip.

    It prints the status and ends with 0 when the VPS is ready, 1 when preparing it failed, ``TIMED_OUT_EXIT_CODE``
    after ``timeout_seconds``; on a failure, with the end of the logs and then the reason on stderr.
    """
    return f"timeout_seconds={max(1, round(timeout_seconds))}\n{READINESS_SCRIPT.strip()}\n"


def failure_of(stderr: str) -> str:
    """Return why a VPS is not ready, and then the end of its logs, as ``wait_for_ready_command`` wrote them."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()][-20:]
    return f"{lines[-1]} (its logs: {' / '.join(lines[:-1])})" if len(lines) > 1 else "".join(lines)


class _ReadableDumper(SafeDumper):
    """Writes texts of several lines as they are, which is also the shortest form."""


def _represent_text(dumper: SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _represent_text)


def _to_yaml(config: Mapping[str, object]) -> str:
    return yaml.dump(dict(config), Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=1000)
