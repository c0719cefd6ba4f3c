"""The command lines that reach a machine: hermetic, strict, and the same everywhere."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.ssh.target import SshTarget, exit_argv, master_argv, shared_argv, standalone_argv

TARGET = SshTarget(
    host="192.0.2.7",
    identity_file=Path("/keys/id"),
    known_hosts_file=Path("/keys/known_hosts"),
    host_key_alias="host-1",
    label="VPS 192.0.2.7",
    connect_timeout_seconds=7.4,
)
SOCKET = Path("/run/s")

COMMON = (
    "-F none -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none -o IdentityFile=/keys/id"
    " -o UserKnownHostsFile=/keys/known_hosts -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"
    " -o UpdateHostKeys=no -o VerifyHostKeyDNS=no -o NoHostAuthenticationForLocalhost=no"
    " -o IgnoreUnknown=KnownHostsCommand -o KnownHostsCommand=none -o HostKeyAlias=host-1"
    " -o ConnectTimeout=7 -o ServerAliveInterval=3 -o ServerAliveCountMax=2"
)
DESTINATION = "-p 22 -l root -- 192.0.2.7"


def test_a_login_of_its_own() -> None:
    assert standalone_argv(TARGET, "docker ps") == (
        "ssh", *shlex.split(COMMON), *shlex.split(DESTINATION), "docker ps"
    )  # fmt: skip
    assert standalone_argv(TARGET, None)[-1] == "192.0.2.7"


def test_the_shared_connection_is_opened_in_the_background() -> None:
    assert shlex.join(master_argv(TARGET, SOCKET, Path("/log"))) == (
        f"ssh -M -N -f -E /log -o ControlPath=/run/s -o ControlPersist=600 {COMMON} {DESTINATION}"
    )


def test_a_command_over_the_shared_connection_never_logs_in_by_itself() -> None:
    argv = shared_argv(TARGET, SOCKET, "true", Path("/log"))
    assert shlex.join(argv) == (
        f"ssh -v -E /log -o ControlPath=/run/s -o ControlMaster=no -o ProxyCommand=false {COMMON} {DESTINATION} true"
    )


def test_without_persistence_the_shared_connection_still_ends_by_itself() -> None:
    assert "ControlPersist=5" in master_argv(replace(TARGET, persist_seconds=0), SOCKET, Path("/log"))


def test_options_of_the_user_come_after_the_strict_ones() -> None:
    argv = standalone_argv(replace(TARGET, options=("StrictHostKeyChecking=no", "ServerAliveInterval=99")), None)
    assert argv.index("StrictHostKeyChecking=yes") < argv.index("StrictHostKeyChecking=no")
    assert argv.index("ServerAliveInterval=99") < argv.index("ServerAliveInterval=3")


@pytest.mark.parametrize(
    ("option", "effective"),
    [
        ("VerifyHostKeyDNS=yes", "verifyhostkeydns false"),
        ("NoHostAuthenticationForLocalhost=yes", "nohostauthenticationforlocalhost no"),
        ("StrictHostKeyChecking=no", "stricthostkeychecking true"),
        ("UserKnownHostsFile=/tmp/evil", "userknownhostsfile /keys/known_hosts"),
        ("GlobalKnownHostsFile=/tmp/evil", "globalknownhostsfile /dev/null"),
        ("UpdateHostKeys=yes", "updatehostkeys false"),
        ("HostKeyAlias=evil", "hostkeyalias host-1"),
        ("IdentityAgent=/tmp/evil", "identityagent none"),
        ("IdentitiesOnly=no", "identitiesonly yes"),
        ("BatchMode=no", "batchmode yes"),
        # ssh would show a command; that it shows none is our option's doing.
        ("KnownHostsCommand=/bin/cat /tmp/evil", "hostkeyalias host-1"),
    ],
)
def test_options_of_the_user_cannot_undo_what_makes_a_login_trustworthy(option: str, effective: str) -> None:
    """As the installed ssh understands the command line."""
    argv = standalone_argv(replace(TARGET, options=(option,)), None)
    shown = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, timeout=10, check=True).stdout
    assert effective in shown.splitlines()
    assert "evil" not in shown


def test_an_older_ssh_ignores_an_option_that_it_does_not_know() -> None:
    """KnownHostsCommand came with OpenSSH 8.5; here an option that no release has stands for it."""
    words = [word.replace("KnownHostsCommand", "NoSuchOption") for word in standalone_argv(TARGET, None)]
    done = subprocess.run([words[0], "-G", *words[1:]], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shared_connection_is_ended() -> None:
    assert shlex.join(exit_argv(TARGET, SOCKET)) == f"ssh -O exit -o ControlPath=/run/s -F none {DESTINATION}"


def test_paths_with_blanks_and_percent_signs_reach_ssh_whole() -> None:
    target = replace(TARGET, identity_file=Path("/my keys/100%/id"))
    assert 'IdentityFile="/my keys/100%%/id"' in standalone_argv(target, None)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "192.0.2.8"},
        {"port": 2222},
        {"user": "admin"},
        {"identity_file": Path("/other")},
        {"known_hosts_file": Path("/other")},
        {"host_key_alias": "host-2"},
        {"options": ("ProxyJump=jump",)},
    ],
)
def test_targets_that_differ_in_identity_share_no_connection(change: dict[str, object]) -> None:
    assert replace(TARGET, **change).fingerprint != TARGET.fingerprint  # type: ignore[arg-type]


def test_targets_that_differ_in_other_settings_share_the_connection() -> None:
    assert replace(TARGET, label="x", connect_timeout_seconds=1, persist_seconds=1).fingerprint == TARGET.fingerprint
