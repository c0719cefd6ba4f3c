"""The one script that makes a running container a host of mngr: account, packages, sshd, folder, activity watcher.

It runs inside the container by ``docker exec`` after every start of it, and again to repair it; every step leaves
alone what is already so. Keys live on the host's volume, never in the container's own layers: a snapshot holds none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imbue.mngr.providers.ssh_host_setup import REQUIRED_HOST_PACKAGES, RequiredHostPackage, load_resource_script
from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH
from imbue.mngr_vps_docker.setup.container_environment import (
    SESSION_FILE,
    SESSION_SSHD_CONFIG,
    SSHD_FOLDER,
    profile_script,
    session_script,
    take_environment_script,
)
from imbue.mngr_vps_docker.setup.root_account import root_account_script
from imbue.mngr_vps_docker.ssh.shell import Secret, quote

# Written whenever the container stops in an orderly way, removed when it starts; absent on a stopped host: it crashed.
STOP_REASON_FILE = "stop_reason"

# The keys that the host was made with: only who makes it knows them, and every later set-up leaves them alone.
_EXTRA_KEYS_FILE = "extra_authorized_keys"
# The first of its folder, so that what others there add to PATH is kept.
_PROFILE_FILE = PurePosixPath("/etc/profile.d/00-mngr.sh")
_STOP_REASON_PATH = HOST_VOLUME_PATH / STOP_REASON_FILE

# A file of its own, so that it can be read, linted and run by itself.
_STEADY_CLOCK = Path(__file__).with_name("steady_clock.sh")

# Keeps a container running and ends it at once on `docker stop`; a shell as PID 1 heeds no signal without a trap.
_IDLE_LOOP = "while :; do sleep 86400 & wait $!; done"
STATE_CONTAINER_SCRIPT = f"trap 'exit 0' TERM INT; {_IDLE_LOOP}"
# The host's also records that the stop was an orderly one, unless who stopped it has said why.
HOST_CONTAINER_SCRIPT = (
    f"trap '[ -e {_STOP_REASON_PATH} ] || echo STOPPED >{_STOP_REASON_PATH}; exit 0' TERM INT; {_IDLE_LOOP}"
)

# Why sshd lets nobody in: the end of its log, or, of which it logs nothing, the rules of TCP wrappers.
REFUSALS_SCRIPT = f"""\
tail -n 5 {SSHD_FOLDER}/log | tail -c 1000
sed -n 's,^[^#],/etc/hosts.deny: &,p' /etc/hosts.deny 2>/dev/null | tail -n 3 | tail -c 500
"""

# mngr's own ssh offers every key of the user's agent before the host's key. Fewer tries would lock out who has as many
# keys, and protect nothing: no key can be guessed, and LoginGraceTime ends what takes long.
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

# Idle connections from one address (of IPv6: one network) must not keep others out. OpenSSH before 8.5 knows neither.
_SSHD_LIMITS_PER_SOURCE = """\
PerSourceMaxStartups 10
PerSourceNetBlockSize 32:64
"""

# In images, sources of packages are often broken, and so is what was left half installed. A source counts only if a
# package cannot be had without it. Files of the image's maker stay as they are, and nothing asks.
_INSTALL_PACKAGES = r"""
  export LC_ALL=C DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
  keep="--force-confdef --force-confold"
  # apt makes its own folders, but not those around them, which small images often lack.
  mkdir -p /var/cache /var/log
  # The machine's clock may be slow. As root, since apt's own user may be unable to read a source or to write to /tmp.
  options="-q -y -o DPkg::Lock::Timeout=120 -o Acquire::Retries=1 -o Acquire::http::Timeout=15
    -o Acquire::https::Timeout=15 -o Acquire::Max-FutureTime=86400 -o APT::Sandbox::User=root"
  for option in $keep; do options="$options -o Dpkg::Options::=$option"; done
  broken=
  # apt reads no source at all if one is malformed or contradicts another: take those that it can read together.
  if ! apt-get $options indextargets >/dev/null 2>&1; then
    readable=$(mktemp -d)
    trap 'rm -rf "$readable"' EXIT
    options="$options -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$readable"
    check_source() { # NAME SOURCE
      apt-get $options indextargets </dev/null >/dev/null 2>&1 && return
      rm -f "$readable/$1"
      broken="$broken$2: apt cannot read it; "
    }
    number=0
    cd /etc/apt
    for file in sources.list sources.list.d/debian.sources sources.list.d/ubuntu.sources \
      sources.list.d/*.list sources.list.d/*.sources; do
      name=${file##*/}
      [ -f "$file" ] && [ ! -e "$readable/$name" ] || continue
      if [ "${name%.list}" = "$name" ]; then
        cp "$file" "$readable/$name"
        check_source "$name" "$file"
        continue
      fi
      while read -r line || [ -n "$line" ]; do
        case $line in deb*) ;; *) continue ;; esac
        number=$((number + 1))
        printf '%s\n' "$line" >"$readable/$number.list"
        check_source "$number.list" "'$line' in $file"
      done <"$file"
    done
  fi
  dpkg $keep --configure -a >/dev/null 2>&1 || :
  tries=60
  until updated=$(timeout -k 5 150 apt-get $options update 2>&1); do
    # apt waits for dpkg's lock by itself, but not for the one of its lists.
    case $updated in *"Could not get lock"*) [ $((tries -= 1)) -gt 0 ] && sleep 2 && continue ;; esac
    break
  done
  broken="$broken$(printf '%s\n' "$updated" |
    sed -n -e '/^Err:/{N;s/^Err:[0-9]* \(.*\)\n */\1: /;s/$/;/p;}' -e '/^E: Release file/s/$/;/p')"
  install() { apt-get $options --no-install-recommends --no-remove install "$@" 2>&1; }
  in_one_line() { printf '%s\n' "$2" | tail -n 8 | tr -s '\n\t ' ' ' | sed "s/^ */$1: /;s/[; ]*\$/\n/"; }
  if said=$(install "$@") || { install --fix-broken >/dev/null && said=$(install "$@"); }; then
    [ -z "$broken" ] || in_one_line "Not needed, and not to be used" "$broken"
  else
    in_one_line "apt-get cannot install $*" "$said"
    [ -z "$broken" ] || in_one_line "Sources that cannot be used" "$broken"
    exit 1
  fi
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
    """The set-up as shell text for ``sh -s``; it holds a private key, so it may only travel on stdin."""
    text = "\n".join(
        [
            "set -eu",
            "umask 022",
            "main() {",
            take_environment_script(),
            _check_image(setup.host_dir),
            _open_roots_account(),
            _install_packages(),
            _mend_ping(),
            _link_host_dir(setup.host_dir),
            _configure_sshd(setup),
            *(_write_file(HOST_VOLUME_PATH / path, content) for path, content in setup.files.items()),
            _install_commands(setup.host_dir),
            _start_services(setup.host_dir),
            "}",
            # The script itself comes on stdin: nothing that it runs may read from there. What it prints is one stream,
            # so that an error shows the end of all of it.
            "main </dev/null 2>&1",
            "",
        ]
    )
    return Secret(text)


def _check_image(host_dir: PurePosixPath) -> str:
    """Refuse an image without root, or one that puts mngr's data outside of the host's volume, where it goes with the
    container.
    """
    folder = quote(host_dir)
    return f"""\
while read -r _ _ _ _ place _; do
  case $place in {folder} | {folder}/* | {HOST_VOLUME_PATH}/*)
    echo "The image has a VOLUME at $place, where mngr keeps its own data: remove it from the Dockerfile" >&2
    exit 1 ;;
  esac
done </proc/self/mountinfo
if ! grep -q '^root:[^:]*:0:' /etc/passwd; then
  echo "The image has no user root, as whom mngr logs in: leave root in its /etc/passwd" >&2
  exit 1
fi
if [ -L {folder} ] && [ "$(readlink -f {folder})" != "$(readlink -f {HOST_VOLUME_PATH})" ]; then
  echo {folder}" is a link to $(readlink {folder}) in the image, where mngr keeps its own data: remove it there" >&2
  exit 1
elif [ -e {folder} ] && [ ! -d {folder} ]; then
  echo {folder}" is a file in the image, where mngr has its own folder: remove it there" >&2
  exit 1
fi"""


def _open_roots_account() -> str:
    """Let root run commands, and make the folders that every program takes for granted."""
    return f"""\
open_roots_account() {{
{root_account_script()}}}
open_roots_account || :
# In an image, either may be a link to a folder that is not there.
[ -d "${{HOME:-/root}}" ] || mkdir -p -m 700 "$(readlink -m "${{HOME:-/root}}")"
[ -d /tmp ] || mkdir -p -m 1777 "$(readlink -m /tmp)"
"""


def _install_packages() -> str:
    def check(package: RequiredHostPackage) -> str:
        test = package.check_cmd or f"command -v {package.binary} >/dev/null 2>&1"
        return f'{test} || missing="$missing {package.package}"'

    checks = "\n".join(check(package) for package in REQUIRED_HOST_PACKAGES)
    return f"""\
missing=""
{checks}
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null 2>&1 || {{
    echo "The image lacks$missing and has no apt-get: use a Debian or Ubuntu image, or add them to it." >&2
    exit 1
  }}
  echo "Installing what the image lacks:$missing"
  install_packages() ({_INSTALL_PACKAGES})
  install_packages $missing
fi"""


def _mend_ping() -> str:
    """Replace a ping that carries a capability, as Debian 12's does, by a copy without: containers do not have it.

    It needs none: Docker lets every user of a container send echo requests (net.ipv4.ping_group_range).
    """
    return """\
ping=$(command -v ping) || ping=
if [ -n "$ping" ] && { "$ping" -V >/dev/null 2>&1; [ $? -eq 126 ]; }; then
  cp -p "$ping" "$ping.new" && mv -f "$ping.new" "$ping"
fi"""


def _link_host_dir(host_dir: PurePosixPath) -> str:
    folder = quote(host_dir)
    return f"""\
if [ ! -L {folder} ]; then
  if [ -d {folder} ]; then
    cp -an {folder}/. {HOST_VOLUME_PATH}/
    rm -rf {folder}
  fi
  mkdir -p {quote(host_dir.parent)}
  ln -s {HOST_VOLUME_PATH} {folder}
fi
mkdir -p {HOST_VOLUME_PATH}/agents {HOST_VOLUME_PATH}/activity {HOST_VOLUME_PATH}/commands {HOST_VOLUME_PATH}/logs"""


def _configure_sshd(setup: ContainerSetup) -> str:
    steps = [
        _write_file(SSHD_FOLDER / "host_key", setup.host_private_key.revealed, mode="600"),
        # sshd refuses one in which others can write, and images open whole folders: chmod -R g=u /run.
        "mkdir -p /run/sshd && chown 0:0 /run/sshd && chmod 755 /run/sshd",
        _write_file(SSHD_FOLDER / "sshd_config", _SSHD_CONFIG),
        f"if /usr/sbin/sshd -T -f {SSHD_FOLDER}/sshd_config | grep -qi '^persourcemaxstartups '; then",
        _write_file(SSHD_FOLDER / "sshd_config", _SSHD_CONFIG + _SSHD_LIMITS_PER_SOURCE),
        "fi",
        # A container without an environment of its own needs no session script, which takes a millisecond.
        'if [ -n "$environment" ]; then',
        _write_file(SESSION_FILE, session_script()),
        f"printf %s {quote(SESSION_SSHD_CONFIG)} >>{SSHD_FOLDER}/sshd_config",
        "fi",
        f"if [ -d {_PROFILE_FILE.parent} ]; then",
        _write_file(_PROFILE_FILE, profile_script()),
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
    return "\n".join(steps)


def _lines(texts: Sequence[str]) -> str:
    return "".join(f"{text.strip()}\n" for text in texts)


def _install_commands(host_dir: PurePosixPath) -> str:
    commands = HOST_VOLUME_PATH / "commands"
    return "\n".join(
        [
            _write_file(commands / "shutdown.sh", _SHUTDOWN_SCRIPT, mode="755"),
            _write_file(commands / "mngr_log.sh", load_resource_script("mngr_log.sh"), mode="755"),
            _write_file(commands / "activity_watcher.sh", load_resource_script("activity_watcher.sh"), mode="755"),
            _write_file(commands / _STEADY_CLOCK.name, _STEADY_CLOCK.read_text()),
        ]
    )


def _start_services(host_dir: PurePosixPath) -> str:
    """Start sshd and the activity watcher where they do not run.

    Pid files survive a restart on some images and then name strangers, so the process itself is looked at. A watcher
    that does not run means that the container has just started: that is the moment of BOOT activity, which the watcher
    must find when it starts, and nobody can hold the host lock of before.
    """
    watcher = f"{host_dir}/commands/activity_watcher.sh"
    clock = f"{host_dir}/commands/{_STEADY_CLOCK.name}"
    return f"""\
is_running() {{ # PATTERN: does any process other than this shell have it in its command line?
  for process in /proc/[0-9]*; do
    [ "$process" != "/proc/$$" ] || continue
    tr '\\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q -- "$1" && return 0
  done
  return 1
}}
if ! is_running '^sshd: /usr/sbin/sshd .*{SSHD_FOLDER}\\|^/usr/sbin/sshd .*{SSHD_FOLDER}'; then
  /usr/sbin/sshd -t -f {SSHD_FOLDER}/sshd_config
  /usr/sbin/sshd -f {SSHD_FOLDER}/sshd_config -E {SSHD_FOLDER}/log
fi
if ! is_running {quote(f"^[^ ]*bash {watcher} ")}; then
  rm -f {_STOP_REASON_PATH} {HOST_VOLUME_PATH}/host_lock
  printf '{{"time": %s000, "source": "container start"}}\\n' "$(date +%s)" >{HOST_VOLUME_PATH}/activity/boot
  export BASH_ENV={quote(clock)}
  nohup {quote(watcher)} {quote(host_dir)} >>{HOST_VOLUME_PATH}/logs/activity_watcher.log 2>&1 &
fi"""


def _write_file(path: PurePosixPath, content: str, mode: str = "644") -> str:
    """Shell text that replaces a file in one step, so that a running reader never sees half of it."""
    target = quote(path)
    temporary = quote(f"{path}.new")
    return (
        f"rm -f {temporary}; (umask 077; printf %s {quote(content)} >{temporary});"
        f" chmod {mode} {temporary}; mv -f {temporary} {target}"
    )
