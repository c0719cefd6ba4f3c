"""The script that makes a running container a host of mngr: account, packages, sshd, folder, activity watcher.

It runs inside the container by ``docker exec`` after every start of it, and again to repair it; every step leaves
alone what is already done. Keys are on the host's volume, never in the container's own layers: a snapshot has none.

An image may set ``LD_LIBRARY_PATH`` or ``PATH`` so that neither ``sh`` nor sshd starts, and so may ``-s --env``. So
Docker sets these variables under other names (docker.commands.run_script), which mean nothing to any program and stay
with the container and its snapshots. The script writes them to a file that the user's sessions read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from imbue.mngr.providers.ssh_host_setup import REQUIRED_HOST_PACKAGES, load_resource_script
from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH
from imbue.mngr_vps_docker.setup.scripts import SSHD_FOLDER, script
from imbue.mngr_vps_docker.ssh.shell import Secret, quote

# The keys that the host was created with: only create knows them, and every later set-up leaves them alone.
_EXTRA_KEYS_FILE = "extra_authorized_keys"
_SESSION_FILE = SSHD_FOLDER / "session"
# The first of its folder, so that additions to PATH by others there are kept.
_PROFILE_FILE = PurePosixPath("/etc/profile.d/00-mngr.sh")
# Written at an orderly stop, removed at start; if it is missing on a stopped host, the host crashed.
_STOP_REASON_PATH = HOST_VOLUME_PATH / "stop_reason"

# Keeps a container running and ends it at once on `docker stop`: as PID 1, a shell ignores signals without a trap.
_IDLE_LOOP = "while :; do sleep 86400 & wait $!; done"
STATE_CONTAINER_SCRIPT = f"trap 'exit 0' TERM INT; {_IDLE_LOOP}"
# Also records that the stop was an orderly one, unless the reason is there already.
HOST_CONTAINER_SCRIPT = (
    f"trap '[ -e {_STOP_REASON_PATH} ] || echo STOPPED >{_STOP_REASON_PATH}; exit 0' TERM INT; {_IDLE_LOOP}"
)

# Why sshd refuses logins: the end of its log, and the rules of TCP wrappers, which it does not log.
REFUSALS_SCRIPT = f"""\
tail -n 5 {SSHD_FOLDER}/log | tail -c 1000
sed -n 's,^[^#],/etc/hosts.deny: &,p' /etc/hosts.deny 2>/dev/null | tail -n 3 | tail -c 500
"""

# ForceCommand and not SetEnv, which takes no line feeds, and before OpenSSH 8.7 no quotes.
_SESSION_SSHD_CONFIG = f"""\
Match User root
ForceCommand exec /bin/sh {_SESSION_FILE}
"""

# mngr's own ssh offers every key of the user's agent before the host's key. Fewer tries would lock out users with many
# keys, and protect nothing: keys cannot be guessed, and LoginGraceTime limits the time.
_SSHD_CONFIG = f"""\
Port 22
HostKey {SSHD_FOLDER}/host_key
AuthorizedKeysFile {SSHD_FOLDER}/authorized_keys {SSHD_FOLDER}/{_EXTRA_KEYS_FILE} .ssh/authorized_keys
PidFile /run/mngr-sshd.pid
AuthenticationMethods publickey
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
AllowAgentForwarding no
X11Forwarding no
PrintMotd no
MaxSessions 100
MaxStartups 100:30:200
LoginGraceTime 20
MaxAuthTries 20
KexAlgorithms -ecdh-sha2-nistp*,diffie-hellman-group14-*,diffie-hellman-group-exchange-*
MACs -hmac-sha1*,umac-64*
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""

# Idle connections from one address (of IPv6: one network) must not block others. OpenSSH before 8.5 has neither.
_SSHD_LIMITS_PER_SOURCE = """\
PerSourceMaxStartups 10
PerSourceNetBlockSize 32:64
"""

_SHUTDOWN_SCRIPT = f"""\
#!/bin/sh
# Called by the activity watcher when the host is idle (no argument) or all its agents have ended (STOPPED).
echo "${{1:-PAUSED}}" >{_STOP_REASON_PATH}
kill -TERM 1
"""


@dataclass(frozen=True, slots=True)
class ContainerSetup:
    """What one container needs to become a host."""

    host_dir: PurePosixPath
    client_public_key: str
    host_private_key: Secret
    extra_authorized_keys: Sequence[str] = ()
    extra_known_hosts: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """More files to write, by path relative to host_dir; an existing one is replaced."""


def setup_script(setup: ContainerSetup) -> Secret:
    """The script as text for ``sh -s``; it holds a private key, so it may only travel on stdin."""
    checks = (
        f'{needed.check_cmd or f"command -v {needed.binary} >/dev/null 2>&1"} || missing="$missing {needed.package}"'
        for needed in REQUIRED_HOST_PACKAGES
    )
    commands = HOST_VOLUME_PATH / "commands"
    steps = [
        "set -eu",
        "umask 022",
        f"volume={HOST_VOLUME_PATH} sshd={SSHD_FOLDER} host_dir={quote(setup.host_dir)}",
        script("container_setup.sh"),
        f"open_roots_account() {{\n{script('root_account.sh')}}}",
        "main() {",
        f"folder=$sshd\n{script('container_environment.sh')}",
        "check_image",
        "open_roots_account || :",
        "make_usual_folders",
        'missing=""',
        *checks,
        'if [ -n "$missing" ]; then install_missing $missing; fi',
        "replace_ping || :",
        "link_host_dir",
        *_configure_sshd(setup),
        *(_write_file(HOST_VOLUME_PATH / path, content) for path, content in setup.files.items()),
        _write_file(commands / "shutdown.sh", _SHUTDOWN_SCRIPT, mode="755"),
        _write_file(commands / "mngr_log.sh", load_resource_script("mngr_log.sh"), mode="755"),
        _write_file(commands / "activity_watcher.sh", load_resource_script("activity_watcher.sh"), mode="755"),
        _write_file(commands / "steady_clock.sh", script("steady_clock.sh")),
        "start_services",
        "}",
        # The script itself comes on stdin: its programs must not read from there. Its output is one stream, so that an
        # error shows the end of all of it.
        "main </dev/null 2>&1",
        "",
    ]
    return Secret("\n".join(steps))


def _configure_sshd(setup: ContainerSetup) -> Sequence[str]:
    steps = [
        _write_file(SSHD_FOLDER / "host_key", setup.host_private_key.revealed, mode="600"),
        # sshd refuses a folder in which others can write, and some images open whole folders: chmod -R g=u /run.
        "mkdir -p /run/sshd && chown 0:0 /run/sshd && chmod 755 /run/sshd",
        _write_file(SSHD_FOLDER / "sshd_config", _SSHD_CONFIG),
        f"if /usr/sbin/sshd -T -f {SSHD_FOLDER}/sshd_config | grep -qi '^persourcemaxstartups '; then",
        _write_file(SSHD_FOLDER / "sshd_config", _SSHD_CONFIG + _SSHD_LIMITS_PER_SOURCE),
        "fi",
        # Without an environment of its own, a container needs no session script, which takes a millisecond.
        'if [ -n "$environment" ]; then',
        _write_file(_SESSION_FILE, script("container_session.sh")),
        f"printf %s {quote(_SESSION_SSHD_CONFIG)} >>{SSHD_FOLDER}/sshd_config",
        "fi",
        f"if [ -d {_PROFILE_FILE.parent} ]; then",
        _write_file(_PROFILE_FILE, script("container_profile.sh")),
        "fi",
        _write_file(SSHD_FOLDER / "authorized_keys", _lines([setup.client_public_key]), mode="600"),
    ]
    if setup.extra_authorized_keys:
        steps.append(_write_file(SSHD_FOLDER / _EXTRA_KEYS_FILE, _lines(setup.extra_authorized_keys), mode="600"))
    if setup.extra_known_hosts:
        steps += [
            "mkdir -p /root/.ssh && chmod 700 /root/.ssh",
            f"printf %s {quote(_lines(setup.extra_known_hosts))} >>/root/.ssh/known_hosts",
        ]
    return steps


def _lines(texts: Sequence[str]) -> str:
    return "".join(f"{text.strip()}\n" for text in texts)


def _write_file(path: PurePosixPath, content: str, mode: str = "644") -> str:
    """Shell text that replaces a file in one step, so that readers see the old file or the new one."""
    target = quote(path)
    temporary = quote(f"{path}.new")
    return (
        f"rm -f {temporary}; (umask 077; printf %s {quote(content)} >{temporary});"
        f" chmod {mode} {temporary}; mv -f {temporary} {target}"
    )
