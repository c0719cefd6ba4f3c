"""Bad input gets one clear line, before anything is made."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imbue.mngr.primitives import HostName
from imbue.mngr_vps_docker.errors import BuildArgumentError, VpsApiError, VpsProvisioningError
from imbue.mngr_vps_docker.testing.faulty_client import Fault, FaultyClient
from support.mngr_cli import MngrCli

pytestmark = pytest.mark.usefixtures("nothing_left")

ADDRESS = "a1@h1.local-vps"
OPTIONS = ("--new-host", "--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")
HOST = HostName("h1")

# What is asked for, and what the answer must name: what is wrong, and what would be right.
REFUSED: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "an unknown --vps- argument": (
        ("-b", "--vps-colour=red"),
        ("--vps-colour", "--vps-region=", "--vps-plan=", "--vps-os="),
    ),
    "a --vps- argument without value": (("-b", "--vps-region"), ("--vps-region=…",)),
    "an unknown region": (("-b", "--vps-region=mars"), ("'mars'", "valid: local")),
    "an unknown plan": (("-b", "--vps-plan=huge"), ("'huge'", "1c-1gb")),
    "an unknown operating system": (("-b", "--vps-os=abc"), ("'abc'", "debian-12")),
    "a number that is none": (
        ("-S", "providers.local-vps.default_os_id=12", "-b", "--vps-os=abc"),
        ("--vps-os", "'abc'", "number like 12"),
    ),
    "a missing Dockerfile": (("-b", "--file=Nofile", "-b", "."), ("Nofile does not exist", "--file=PATH")),
    "a missing context directory": (("-b", "nowhere"), ("'nowhere' does not exist",)),
    "a start argument that opens the VPS to the agent": (
        ("-s", "--privileged"),
        ("'--privileged' is refused", "allowed_start_args"),
    ),
    "a start argument that is none": (("-s", "alpine"), ("'alpine' is not an option", "--option=value")),
    "the VPS's network by another name": (
        ("-s", "--network=name=host"),
        ("'--network=name=host' is refused", "allowed_start_args"),
    ),
    "a port that mngr needs": (("-s", "-p2222:80"), ("'--publish=2222:80'", "cannot be used")),
    "a build argument that opens the VPS": (
        ("-b", "--network=host", "-b", "."),
        ("'--network=host' is refused", "allowed_build_args"),
    ),
    "a build argument behind another letter": (("-b", "-qtmine", "-b", "."), ("'--tag' cannot be used",)),
    "a folder that is none": (("-S", "providers.local-vps.host_dir=mngr"), ("host_dir", "absolute path")),
    "an image that is none": (
        ("-S", "providers.local-vps.default_image=-x"),
        ("default_image", "not the name of an image"),
    ),
    "an unknown snapshot": (("--snapshot", "nothing"), ("nothing",)),
    "DEPOT without its token": (
        ("-S", "providers.local-vps.builder=depot", "-b", "."),
        ("DEPOT_TOKEN", "providers.local-vps.builder to DOCKER"),
    ),
    "a port that cannot be": (
        ("-S", "providers.local-vps.container_ssh_port=0"),
        ("container_ssh_port", "greater than or equal to 1"),
    ),
    "a builder that does not exist": (
        ("-S", "providers.local-vps.builder=NOPE"),
        ("builder", "'DOCKER' or 'DEPOT'"),
    ),
    "a time that is no number": (
        ("-S", "providers.local-vps.default_idle_timeout=soon"),
        ("default_idle_timeout", "valid integer"),
    ),
}


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what is wrong."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("Error: "), done.stderr
    return lines[-1]


@pytest.mark.parametrize("case", REFUSED)
def test_create_refuses_what_cannot_work(mngr: MngrCli, case: str) -> None:
    arguments, named = REFUSED[case]
    error = error_of(mngr.run("create", ADDRESS, *OPTIONS, *arguments, *AGENT))
    assert [word for word in named if word not in error] == [], error


@pytest.mark.parametrize("name", ["h" * 80, "under_score", "dash-"])
def test_create_refuses_a_name_that_no_machine_can_have(mngr: MngrCli, name: str) -> None:
    error = error_of(mngr.run("create", f"a1@{name}.local-vps", *OPTIONS, *AGENT))
    assert name in error
    assert "letters, digits and hyphens" in error


def test_a_prefix_with_which_docker_can_name_nothing_is_refused(
    mngr: MngrCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = mngr.environment() | {"MNGR_PREFIX": "a b-"}
    monkeypatch.setattr(MngrCli, "environment", lambda _self: environment)
    assert "MNGR_PREFIX ('a b-')" in error_of(mngr.run("create", ADDRESS, *OPTIONS, *AGENT))


def test_settings_of_the_file_are_checked_as_those_of_the_command_line(mngr: MngrCli) -> None:
    settings = mngr.profile / "settings.toml"
    kept = settings.read_text()
    try:
        settings.write_text(f"{kept}ssh_connect_timeout = -1\n")
        assert "ssh_connect_timeout" in error_of(mngr.run("create", ADDRESS, *OPTIONS, *AGENT))
    finally:
        settings.write_text(kept)


def test_without_ssh_on_this_machine_nothing_is_begun(mngr: MngrCli, tmp_path: Path) -> None:
    for program in ("git", "tmux", "docker", "sh", "env", "bash", "rsync"):
        path = shutil.which(program)
        if path is not None:
            (tmp_path / program).symlink_to(path)
    done = subprocess.run(
        [Path(sys.executable).with_name("mngr"), "create", ADDRESS, *OPTIONS, *AGENT],
        cwd=mngr.project,
        env=mngr.environment() | {"PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    error = error_of(done)
    assert "ssh is required" in error
    assert "Install OpenSSH" in error
    assert "Ordering" not in done.stderr


def test_a_context_in_a_deleted_working_directory_is_refused(mngr: MngrCli, tmp_path: Path) -> None:
    """Through the provider: mngr's own command line ends before it has loaded any provider."""
    provider = mngr.provider()
    gone = tmp_path / "gone"
    gone.mkdir()
    here = Path.cwd()
    try:
        os.chdir(gone)
        gone.rmdir()
        with pytest.raises(BuildArgumentError, match=r"The current directory has been deleted.*change to one that"):
            provider.create_host(HOST, build_args=["."])
    finally:
        os.chdir(here)


def test_a_name_of_an_unfinished_host_is_taken(mngr: MngrCli) -> None:
    faults = (Fault("wait_for_instance_active", VpsApiError(503, "overload")), Fault("delete_ssh_key", TimeoutError()))
    with pytest.raises(VpsProvisioningError, match="overload"):
        mngr.provider(FaultyClient(real=mngr.cloud, faults=faults)).create_host(HOST)
    keys = mngr.cloud.list_ssh_keys()
    error = error_of(mngr.run("create", ADDRESS, *OPTIONS, *AGENT))
    assert "Host name already exists: h1" in error
    assert mngr.cloud.list_ssh_keys() == keys
    provider = mngr.provider()
    provider.destroy_host(provider.get_host(HOST).id)
