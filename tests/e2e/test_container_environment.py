"""User, folder and environment of an image apply to the user's sessions, not to what mngr runs."""

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from imbue.mngr.api.connect import build_ssh_base_args
from imbue.mngr.hosts.host import Host
from imbue.mngr.primitives import HostName, SnapshotName
from imbue.mngr_local_vps.engine import run_docker
from imbue.mngr_local_vps.operating_systems import agent_image_of_os
from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.docker.run_options import allowed_start_args
from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.lifecycle.container import PROTECTIVE_ARGS
from support.mngr_cli import MngrCli

# As ENV has them in a Dockerfile, and what they mean.
OF_IMAGE = {
    "SPACES": ('" a  b "', " a  b "),
    "QUOTES": ('"it\'s \\"x\\""', 'it\'s "x"'),
    "SIGNS": ('"\\$HOME \\\\ `id` # = * ; é"', "$HOME \\ `id` # = * ; é"),
    "EMPTY": ('""', ""),
    "UID": ("1234", None),
    "PATH": ("/opt/only", "/opt/only"),
    "LD_LIBRARY_PATH": ("/opt/bad", "/opt/bad"),
    "GCONV_PATH": ("/opt/bad", "/opt/bad"),
    "BASH_ENV": ("/nowhere", "/nowhere"),
    "ENV": ("/nowhere", "/nowhere"),
    "TMPDIR": ("/nowhere", "/nowhere"),
    "HOME": ("/nowhere", "/nowhere"),
    "LC_ALL": ("xx_YY", "xx_YY"),
    "PYTHONHOME": ("/nowhere", "/nowhere"),
    "IFS": ("/", None),
    "SHELL": ("/bin/zsh", None),
    "A_START_ARG_WINS": ("image", "start arg"),
    "HOST_ENV_WINS": ("image", "start arg"),
}
OF_START_ARGS = {
    "FEEDS": "a\nMNGR_CONTAINER_ENV_NO=1\nexport NO=1\n",
    "A_START_ARG_WINS": "start arg",
    "HOST_ENV_WINS": "start arg",
}
EXPECTED = {name: value for name, (_, value) in OF_IMAGE.items() if value is not None} | OF_START_ARGS
# All libraries but those of bash, tmux and coreutils.
DOCKERFILE = r"""
RUN mkdir -p -m 700 /opt/only /opt/bad /opt/locked && chmod 755 /opt/only /opt/bad && chown nobody /opt/locked \
 && cd /lib/$(uname -m)-linux-gnu && for library in *.so.*; do case $library in \
    libc.*|libm.*|libtinfo.*|libevent*|libresolv.*|libutempter.*|libsystemd.*|libcap.*|libselinux.*|libpcre2*) ;; \
    *) echo x >/opt/bad/$library ;; esac; done; \
 for library in libgcrypt liblzma libzstd liblz4 libgpg-error; do rm -f /opt/bad/$library.*; done; \
 printf '#!/bin/sh\necho tool\n' >/opt/only/tool && chmod 755 /opt/only/tool
WORKDIR /opt/locked
"""
SHOW = "/usr/bin/env -0 | /usr/bin/tr '\\0' '\\1'"


@dataclass(frozen=True)
class Lab:
    """One host of such an image, and mngr."""

    mngr: MngrCli

    @property
    def host(self) -> Host:
        """The host, as a new process finds it."""
        host = self.mngr.provider().get_host(HostName("h1"))
        assert isinstance(host, Host)
        return host

    def on_vps(self, command: str) -> str:
        """Run a command on its VPS."""
        (vps,) = self.mngr.cloud.find_instances({})
        return run_docker("exec", vps.id, "sh", "-c", command)

    def ssh(self, command: str = "", stdin: str = "", *options: str) -> subprocess.CompletedProcess[str]:
        """Run a command by the user's own ssh, or log in."""
        argv = [*build_ssh_base_args(self.host), *options, *([command] if command else [])]
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def provider_settings() -> str:
    start_args = (f"--env={name}={value}" for name, value in OF_START_ARGS.items())
    return f"default_start_args = {[*start_args]!r}".replace("'", '"')


@pytest.fixture(scope="module")
def lab(mngr: MngrCli) -> Lab:
    """A host created by the command line, in whose image nothing of ours would run without care."""
    variables = "".join(f"ENV {name}={value}\n" for name, (value, _) in OF_IMAGE.items())
    dockerfile = f"FROM {agent_image_of_os(mngr.os_id)}\n{DOCKERFILE}{variables}USER nobody\n"
    (mngr.project / "Dockerfile").write_text(dockerfile)
    mngr.commit("Set an environment")
    create = ("create", "a1@h1.local-vps", "--new-host", "--type", "command", "--no-connect", "-b", ".")
    mngr(*create, "--host-env", "HOST_ENV_WINS=host", "--", f"{SHOW} >/tmp/of-agent; /bin/sleep 100000")
    return Lab(mngr)


def values(shown: str) -> dict[str, str]:
    """The variables in what SHOW printed that are expected somewhere."""
    pairs = (part.partition("=")[::2] for part in shown.strip("\1\r\n").split("\1"))
    return {name: value for name, value in pairs if name in EXPECTED}


def of_login(lab: Lab, *options: str) -> str:
    """What a shell sees that is typed to."""
    lab.ssh("", f"{SHOW} >/tmp/seen; exit\n", *options)
    return lab.ssh("/bin/cat /tmp/seen").stdout


WAYS: dict[str, Callable[[Lab], str]] = {
    "command": lambda lab: lab.ssh(SHOW).stdout,
    "login shell": lambda lab: lab.ssh(f"/bin/bash -lc {shlex.quote(SHOW)}").stdout,
    "login": of_login,
    "login with a terminal": lambda lab: of_login(lab, "-tt"),
    "mngr exec": lambda lab: lab.mngr("exec", "a1", SHOW),
    "agent": lambda lab: lab.mngr("exec", "a1", "until [ -s /tmp/of-agent ]; do :; done; /bin/cat /tmp/of-agent"),
    "login shell of an agent": lambda lab: lab.mngr("exec", "a1", f"/bin/bash -lc {shlex.quote(SHOW)}"),
}
MNGR = ("mngr exec", "agent", "login shell of an agent")


@pytest.mark.parametrize("way", WAYS)
def test_sessions_see_what_the_image_and_the_start_arguments_set(lab: Lab, way: str) -> None:
    of_host = {"HOST_ENV_WINS": "host"} if way in MNGR else {}
    assert values(WAYS[way](lab)) == EXPECTED | of_host


def test_nothing_of_ours_runs_in_it_or_shows_it(lab: Lab) -> None:
    ours = "pgrep -x sshd; pgrep -f ^bash./mngr/commands/activity_watcher; echo 1"
    environments = f"for p in $({ours}); do cat /proc/$p/environ; done"
    shown = lab.on_vps(f"for c in $(docker ps -q); do docker exec $c sh -c {shlex.quote(environments)}; done")
    variables = dict(variable.partition("=")[::2] for variable in shown.split("\0"))
    # The set-up's own; BASH_ENV is that of the activity watcher. The docker command has a locale and a shell, and they
    # do without.
    own = {"PATH", "HOME", "LC_ALL", "BASH_ENV", "SHELL"}
    assert not variables.keys() & (OF_IMAGE.keys() | OF_START_ARGS.keys()) - own
    assert (variables["BASH_ENV"], variables["SHELL"]) == ("/mngr/commands/steady_clock.sh", "")
    assert (variables["PATH"].split(":")[-1], variables["HOME"], variables["LC_ALL"]) == ("/bin", "/root", "")
    look = "cat /proc/*/cmdline /proc/*/environ /mngr-vol/.sshd/* /etc/profile.d/*"
    as_nobody = f"docker exec -u nobody $(docker ps -q --filter publish=2222) setpriv --reset-env sh -c '{look}'"
    assert "start arg" not in lab.on_vps(f"{as_nobody} 2>/dev/null || :")


def test_files_travel_and_commands_end_as_they_do_without(lab: Lab) -> None:
    (lab.mngr.project / "pushed.txt").write_text("x\n")
    lab.mngr.commit("Add a file")
    lab.mngr("push", "a1")
    base = build_ssh_base_args(lab.host)
    sftp = ["sftp", *("-P" if word == "-p" else word for word in base[1:-1]), "-b", "-", base[-1]]
    subprocess.run(sftp, input="ls /etc/hostname\n", capture_output=True, text=True, timeout=60, check=True)
    ends = [lab.ssh(command).returncode for command in ("exit 7", "kill -TERM $$", "tool", "ls")]
    assert ends == [7, 255, 0, 127]
    assert lab.ssh("read line; echo $line; exec tool", stdin="in\n").stdout == "in\ntool\n"


def test_sudo_works_for_other_users_where_the_settings_allow_it(lab: Lab, os_id: str) -> None:
    way_out = "--security-opt=no-new-privileges=false"
    with pytest.raises(BuildArgumentError, match=f"add '{way_out}' to allowed_start_args"):
        allowed_start_args(VpsDockerProviderConfig(), [way_out], state_volume="s")
    config = VpsDockerProviderConfig(allowed_start_args=(way_out,))
    allowed = allowed_start_args(config, [way_out], state_volume="s")
    become_root = "cp /usr/bin/id /tmp/id; chmod u+s /tmp/id; setpriv --reuid=nobody --clear-groups /tmp/id -u"
    for start_args, user in (((), "65534\n"), (allowed, "0\n")):
        run = (
            "docker",
            "run",
            "--rm",
            *PROTECTIVE_ARGS,
            *start_args,
            agent_image_of_os(os_id),
            "sh",
            "-c",
            become_root,
        )
        assert lab.on_vps(shlex.join(run)) == user


def test_a_stop_a_start_and_a_snapshot_keep_it(lab: Lab) -> None:
    host_id = lab.host.id
    snapshot = lab.mngr.provider().create_snapshot(host_id, SnapshotName("s1"))
    for snapshot_id in (None, snapshot):
        lab.mngr.provider().stop_host(host_id)
        lab.mngr.provider().start_host(host_id, snapshot_id)
        assert values(WAYS["command"](lab)) == EXPECTED
