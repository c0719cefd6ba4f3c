"""Which options of `docker run` a user may give, in whatever way they are written."""

from pathlib import PurePosixPath

import pytest

from imbue.mngr_vps_docker.config import VpsDockerProviderConfig
from imbue.mngr_vps_docker.docker.run_options import allowed_start_args, checked_start_args, without_values
from imbue.mngr_vps_docker.errors import BuildArgumentError

HARMLESS = [
    ["--cpus=2", "-m", "1g", "--memory-swap", "-1"],
    ["-p", "8080:80", "-p8443:443/tcp", "-itP", "--env", "--privileged", "-e=A=b c"],
    ["-v", "data:/data", "-v/cache", "--volume=/anonymous", "--tmpfs", "/tmp"],
    ["--mount", "type=volume,src=data,dst=/data", "--mount=type=tmpfs,dst=/scratch"],
    ["--privileged=false", "--rm=false", "--network", "bridge", "--net=mine", "--restart=no"],
    ["--cap-add", "net_raw", "--cap-add=CAP_KILL", "--cap-drop", "SETPCAP", "--security-opt", "no-new-privileges"],
    ["--memory=0", "--memory=128m", "-m0.5GiB", "--pids-limit=-1", "--pids-limit=0", "--ulimit=nofile=1024:4096"],
    ["--tmpfs=/run", "--tmpfs", "/usr/local/x", "-v", "system:/usr", "-w", "/work", "--init", "-t", "--pull=never"],
    ["--runtime=runsc", "--oom-score-adj=900", "--label", "team=a", "--log-driver=journald"],
    ["--user=0:0", "-u", "root", "--workdir=/tmp"],
    ["--network=name=mine,alias=web", "--net", "default", "--volume-driver=local"],
    ["-p", "2222:22/udp", "-p=127.0.0.1::22", "-p2220-2221:80-81", "--publish=published=8022,target=22"],
    ["-v", "data:/mngr-volume", "--tmpfs=/mngr.d", "--mount=src=mngr-host,dst=/data,readonly", "--env=A=b\n\tc"],
]
DANGEROUS = [
    ["--privileged"],
    ["--privileged=1"],
    ["--cpus", "2", "--privileged"],
    ["--network", "host"],
    ["--net=host"],
    ["--network=container:mngr-docker-state-x"],
    ["--network", "name=host"],
    ["--network=name=HOST"],
    ["--network=name=host,alias=x"],
    ["--network=alias=x,name = host "],
    ["--network", '"name=host"'],
    ["--network", "name=mine,name=container:abc"],
    ["--network", "name=container:abc"],
    ["--net", " name = host "],
    ["--network=container:a,name=b"],
    ["--network=ns:/proc/1/ns/net"],
    ["--network", "name="],
    ["--cgroup-parent=/"],
    ["--annotation", "org.systemd.property.DevicePolicy=auto"],
    ["--gpus=all"],
    ["--gpus", "device=0"],
    ["--volume-driver", "nfs"],
    ["--pid=host"],
    ["--ipc", "host"],
    ["--uts=host"],
    ["--userns", "host"],
    ["--cgroupns=host"],
    ["--cap-add=SYS_ADMIN"],
    ["--cap-add", "all"],
    ["--cap-add", "cap_sys_ptrace"],
    ["--device", "/dev/sda"],
    ["--device-cgroup-rule=b *:* rwm"],
    ["--security-opt", "seccomp=unconfined"],
    ["--security-opt=no-new-privileges:false"],
    ["-v", "/:/host"],
    ["-v/var/run/docker.sock:/docker.sock"],
    ["-itv", "../etc:/x"],
    ["-itv=/etc:/x"],
    ["--volume=/etc:/etc:ro"],
    ["--mount", "type=bind,src=/,dst=/host"],
    ["--mount=src=data,dst=/x,volume-opt=device=/"],
    ["--mount", '"type=bind",src=/,dst=/host'],
    ["--mount", "TYPE=Bind,src=/,dst=/host"],
    ["--mount", "type=volume,src=data,dst=/x,volume-driver=nfs"],
    ["--mount", "src=data,dst=/x,type=image"],
    ["--mount", "TYPE=Image,src=data,dst=/x"],
    ["--mount", "src=/etc,dst=/x"],
    ["--mount", 'src=x,dst="/x'],
    ["--volumes-from=mngr-docker-state-x"],
    ["--oom-kill-disable"],
    ["--oom-score-adj=-1000"],
    ["--use-api-socket"],
    ["--log-driver=gelf", "--log-opt", "gelf-address=udp://169.254.169.254:53"],
    ["--log-driver", "plugin-of-theirs"],
    ["--new-option=of-docker"],
    ["--new-switch=true"],
]
OURS = [
    ["--name=mine"],
    ["--entrypoint", "bash"],
    ["--rm"],
    ["-d=false"],
    ["-u", "nobody"],
    ["--user=1000:0"],
    ["--restart=always"],
    ["--cidfile=/x"],
    ["-l", "com.imbue.mngr.host-id=x"],
    ["--help"],
    ["--env-file", "/etc/shadow"],
    ["--label-file=/etc/shadow"],
    ["-v", "mngr-host-vol-0123:/other"],
    ["-vmngr-docker-state-me:/state:ro"],
    ["--mount", "type=volume,source=mngr-docker-state-me,target=/state"],
    ["--mount=src=x,source=mngr-host-vol-1,src=mngr-docker-state-me,dst=/state"],
    ["--mount=source=mngr-docker-state-me,src=data,source=mngr-docker-state-me,dst=/state"],
    ["-v", "data:/mngr"],
    ["-v/mngr/"],
    ["-v", "data:/x/../mngr-vol"],
    ["--volume=/mngr-vol/.sshd"],
    ["--tmpfs", "/mngr-vol:size=1m"],
    ["--tmpfs=//mngr/agents"],
    ["--mount", "type=tmpfs,destination=/mngr-vol"],
    ["--mount=type=tmpfs,dst=/x,target=/mngr"],
    ["-p", "22:80"],
    ["-p2222:80"],
    ["-p", "127.0.0.1:2222:80/tcp"],
    ["--publish=[::1]:2220-2230:80-90"],
    ["--publish", "target=80,published=22"],
    ["--read-only"],
    ["--network=none"],
    ["--net", "name=none,alias=x"],
    ["-a", "stdout"],
    ["-m", "6m"],
    ["--memory=100000"],
    ["--memory=0.1g"],
    ["--pids-limit=1"],
    ["--ulimit=nofile=1"],
    ["--ulimit=nofile=0"],
    ["--ulimit", "nofile=1024:16"],
    ["--tmpfs=/etc"],
    ["--mount=type=tmpfs,dst=/usr/"],
    ["-w", "work"],
    ["--pull=always"],
]
ALLOWED_IN_VAIN = (
    "name entrypoint rm detach user restart cidfile label help env-file label-file volume mount tmpfs publish"
    " read-only network attach memory pids-limit ulimit workdir pull"
)
UNREADABLE = [
    ["--new", "--privileged"],
    ["--new"],
    ["--new", "value"],
    ["---privileged"],
    ["--=x"],
    ["-v=", "--privileged"],
    ["-d=", "--privileged"],
    ["-itz"],
    ["--memory="],
    ["--memory", " "],
    ["-e", ""],
    ["--rm=perhaps"],
    ["--" + "x" * 300 + "="],
    ["--env=A=\x1b[0m"],
    ["--env=A=\ud800"],
    ["--env=A=" + "x" * 70_000],
]


@pytest.mark.parametrize("args", HARMLESS, ids=" ".join)
def test_what_harms_nobody_goes_to_docker(args: list[str]) -> None:
    words = checked_start_args(args)
    assert all(word.startswith("--") for word in words)
    assert checked_start_args(words) == words


def test_options_are_kept_in_their_long_form_and_with_their_exact_values() -> None:
    assert checked_start_args(["-p", "80:80", "-itP", "-eA=b c\n", "--net=mine", "--env", "--rm", "-v=ab:/b"]) == (
        "--publish=80:80",
        "--interactive",
        "--tty",
        "--publish-all",
        "--env=A=b c\n",
        "--network=mine",
        "--env=--rm",
        "--volume=ab:/b",
    )


def test_what_this_machine_keeps_has_no_value_of_an_environment() -> None:
    kept = without_values(["-e", "TOKEN=a=b", "--env=A=x\ny", "-m1g", "--env", "HOME"])
    assert without_values(["not an option"]) == ("***",)
    assert kept == ("--env=TOKEN=***", "--env=A=***", "--memory=1g", "--env=HOME")
    assert without_values(["-z", "what docker cannot read"]) == ("***",)
    with pytest.raises(BuildArgumentError, match="keeps no values"):
        checked_start_args(kept)


@pytest.mark.parametrize("args", DANGEROUS, ids=" ".join)
def test_what_lets_an_agent_out_is_refused_with_the_way_to_allow_it(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match=r"is refused: .* add '(--[^']*)' to allowed_start_args") as raised:
        checked_start_args(args)
    assert "\n" not in str(raised.value)
    allowed = str(raised.value).split("add '")[1].split("'")[0]
    assert checked_start_args(args, allowed=[allowed]) == checked_start_args(args, allowed=[allowed.partition("=")[0]])


@pytest.mark.parametrize("args", OURS, ids=" ".join)
def test_what_mngr_needs_for_itself_is_refused_whatever_is_allowed(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match="cannot be used"):
        checked_start_args(
            args,
            allowed=[f"--{name}" for name in ALLOWED_IN_VAIN.split()],
            host_dir=PurePosixPath("/mngr"),
            ssh_port=2222,
            state_volume="mngr-docker-state-me",
        )


def test_capabilities_that_sshd_or_apt_needs_cannot_be_dropped() -> None:
    names = ("AUDIT_WRITE", "CHOWN", "dac_override", "FOWNER", "SETGID", "CAP_SETUID", "SYS_CHROOT")
    given = [f"--cap-add={name}" for name in names]
    assert checked_start_args(["--cap-drop=ALL", *given])
    for args in (["--cap-drop=all"], ["--cap-drop=ALL", *given[1:]], ["--cap-drop", "audit_write"]):
        with pytest.raises(BuildArgumentError, match=r"sshd and apt in the container need .*AUDIT_WRITE"):
            checked_start_args(args)


@pytest.mark.parametrize("args", [["alpine"], ["--cpus", "2", "alpine"], ["-"], ["--"], [""], ["-z"], ["x\0y"]])
def test_what_docker_would_take_for_the_image_is_refused(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError):
        checked_start_args(args)


@pytest.mark.parametrize("args", [["--cpus"], ["-v"], ["-it", "-e"]])
def test_an_option_without_its_value_is_refused(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match="needs a value"):
        checked_start_args(args)


@pytest.mark.parametrize("args", UNREADABLE, ids=repr)
def test_what_cannot_be_read_as_docker_would_read_it_is_refused_in_one_line(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError) as raised:
        checked_start_args(args, allowed=["--new", "--privileged"])
    assert str(raised.value).isprintable() and len(str(raised.value)) < 300


def test_the_settings_of_a_provider_say_what_its_hosts_may_have() -> None:
    config = VpsDockerProviderConfig(allowed_start_args=("--pid=host",))
    assert allowed_start_args(config, ["--cpus=2", "--pid=host"], state_volume="state") == ("--cpus=2", "--pid=host")
    for args in (["-p2222:80"], ["-vstate:/x"], ["--tmpfs=/mngr"], ["--ipc=host"]):
        with pytest.raises(BuildArgumentError):
            allowed_start_args(config, args, state_volume="state")
