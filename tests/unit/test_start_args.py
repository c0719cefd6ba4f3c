"""Which options of `docker run` a user may give, in whatever way they are written."""

import pytest

from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.start_args import checked_start_args

HARMLESS = [
    ["--cpus=2", "-m", "1g", "--memory-swap", "-1"],
    ["-p", "8080:80", "-p8443:443/tcp", "-itP", "--env", "--privileged", "-e=A=b c"],
    ["-v", "data:/data", "-v/cache", "--volume=/anonymous", "--tmpfs", "/tmp"],
    ["--mount", "type=volume,src=data,dst=/data", "--mount=type=tmpfs,dst=/scratch"],
    ["--privileged=false", "--rm=false", "--network", "bridge", "--net=mine", "--restart=no"],
    ["--cap-add", "net_raw", "--cap-add=CAP_KILL", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"],
    ["--gpus", "all", "--runtime=runsc", "--oom-score-adj=900", "--label", "team=a", "--new-option=of-docker"],
]
DANGEROUS = [
    ["--privileged"],
    ["--privileged=1"],
    ["--cpus", "2", "--privileged"],
    ["--network", "host"],
    ["--net=host"],
    ["--network=container:mngr-docker-state-x"],
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
    ["--mount=src=x,dst=/x,volume-opt=device=/"],
    ["--mount", '"type=bind",src=/,dst=/host'],
    ["--volumes-from=mngr-docker-state-x"],
    ["--oom-kill-disable"],
    ["--oom-score-adj=-1000"],
    ["--use-api-socket"],
]
OURS = [
    ["--name=mine"],
    ["--entrypoint", "bash"],
    ["--rm"],
    ["-d=false"],
    ["--restart=always"],
    ["--cidfile=/x"],
    ["-l", "com.imbue.mngr.host-id=x"],
    ["--help"],
]


@pytest.mark.parametrize("args", HARMLESS, ids=" ".join)
def test_what_harms_nobody_goes_to_docker_as_it_is(args: list[str]) -> None:
    assert checked_start_args(args) == tuple(args)


@pytest.mark.parametrize("args", DANGEROUS, ids=" ".join)
def test_what_lets_an_agent_out_is_refused_with_the_way_to_allow_it(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match=r"is refused: .* add '(--[^']*)' to allowed_start_args") as raised:
        checked_start_args(args)
    assert "\n" not in str(raised.value)
    allowed = str(raised.value).split("add '")[1].split("'")[0]
    assert checked_start_args(args, allowed=[allowed]) == tuple(args)
    assert checked_start_args(args, allowed=[allowed.partition("=")[0]]) == tuple(args)


@pytest.mark.parametrize("args", OURS, ids=" ".join)
def test_what_mngr_needs_for_itself_is_refused_whatever_is_allowed(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match="cannot be used"):
        checked_start_args(args, allowed=["--name", "--entrypoint", "--rm", "--detach", "--restart", "--label"])


@pytest.mark.parametrize("args", [["alpine"], ["--cpus", "2", "alpine"], ["-"], ["--"], [""], ["-z"], ["x\0y"]])
def test_what_docker_would_take_for_the_image_is_refused(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError):
        checked_start_args(args)


@pytest.mark.parametrize("args", [["--cpus"], ["-v"], ["-it", "-e"]])
def test_an_option_without_its_value_is_refused(args: list[str]) -> None:
    with pytest.raises(BuildArgumentError, match="needs a value"):
        checked_start_args(args)
