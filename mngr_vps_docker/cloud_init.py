"""The user data that prepares a new VPS at its first boot by cloud-init, and the wait for its end."""

import gzip
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_network

import yaml

try:
    # libyaml's takes a twentieth of the time, and PyYAML may be built without it.
    from yaml import CSafeDumper as SafeDumper
except ImportError:
    from yaml import SafeDumper  # type: ignore[assignment]

from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.setup.scripts import script

_SETUP_PATH = "/usr/local/sbin/mngr-vps-setup"
_SETTINGS_PATH = "/etc/default/mngr-vps"
_ACCOUNT_PATH = "/usr/local/sbin/mngr-root-account"

_STATUS_PATH = "/var/lib/mngr-vps/status"
TIMED_OUT_EXIT_CODE = 124


def generate_cloud_init_user_data(
    host_private_key: str, host_public_key: str, config: VpsDockerProviderConfig | None = None
) -> str:
    """Return the user data for one VPS, a ``#cloud-config`` of less than 9 KiB.

    The VPS shows only the given ed25519 host key, accepts root by key only, and has Docker running when
    ``wait_for_ready_command`` says so. ``host_private_key`` is in OpenSSH's form, ``host_public_key`` one line.
    ``config`` is of the provider; None stands for the defaults.
    """
    user_data = {
        "ssh_deletekeys": True,
        # Not used if keys are given, but the schema forbids an empty list.
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {
            "ed25519_private": f"{host_private_key.strip()}\n",
            "ed25519_public": f"{host_public_key.strip()}\n",
        },
        # Before sshd starts: without it our commands may be refused. The setup script runs it once more, since clouds
        # also let cloud-init change root's account.
        "bootcmd": [f"cat >{_ACCOUNT_PATH} <<'END'\n{script('root_account.sh')}END\nsh {_ACCOUNT_PATH}\n"],
        "disable_root": False,
        "ssh_pwauth": False,
        "write_files": [
            {"path": _SETTINGS_PATH, "content": _settings(config or VpsDockerProviderConfig())},
            {
                "path": _SETUP_PATH,
                "owner": "root:root",
                "permissions": "0755",
                "encoding": "gz+b64",
                # Compressed, since user data has little room; without a time, so that it is always the same:
                # https://cloudinit.readthedocs.io/en/latest/reference/modules.html#write-files
                "content": b64encode(gzip.compress(script("vps_setup.sh").encode(), mtime=0)).decode(),
            },
        ],
        "runcmd": [[_SETUP_PATH]],
    }
    return f"#cloud-config\n{_to_yaml(user_data)}"


def _settings(config: VpsDockerProviderConfig) -> str:
    """Settings as shell variables, which vps_setup.sh reads."""
    allowed = [ip_network(network) for network in config.allowed_private_networks]
    networks = "".join(
        f"allowed_ipv{version}='{' '.join(str(network) for network in allowed if network.version == version)}'\n"
        for version in (4, 6)
    )
    upgrades = "yes" if config.security_upgrades else ""
    return f"{networks}container_ssh_port={config.container_ssh_port}\nsecurity_upgrades={upgrades}\n"


def wait_for_ready_command(timeout_seconds: float) -> str:
    """Return shell text that waits on a VPS until its first boot has made it ready, in one round trip.

    It prints the status and exits with 0 when the VPS is ready, 1 when preparing it failed, ``TIMED_OUT_EXIT_CODE``
    after ``timeout_seconds``; a failure prints the end of the logs and then the reason on stderr.
    """
    variables = {
        "timeout_seconds": max(1, round(timeout_seconds)),
        "timed_out_code": TIMED_OUT_EXIT_CODE,
        "status_file": _STATUS_PATH,
    }
    return "".join(f"{name}={value}\n" for name, value in variables.items()) + script("wait_until_ready.sh")


def failure_of(stderr: str) -> str:
    """Return why a VPS is not ready, then the end of its logs, from what ``wait_for_ready_command`` printed."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()][-20:]
    return f"{lines[-1]} (its logs: {' / '.join(lines[:-1])})" if len(lines) > 1 else "".join(lines)


class _ReadableDumper(SafeDumper):
    """Writes text of several lines as it is, which is also the shortest form."""


def _represent_text(dumper: SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _represent_text)


def _to_yaml(config: Mapping[str, object]) -> str:
    return yaml.dump(dict(config), Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=1000)
