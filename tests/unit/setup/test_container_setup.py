"""The script that turns a container into a host is valid shell and carries its data unharmed."""

import subprocess
from pathlib import PurePosixPath

import pytest

from imbue.mngr_vps_docker.setup.container_setup import HOST_CONTAINER_SCRIPT, ContainerSetup, setup_script
from imbue.mngr_vps_docker.ssh.shell import Secret

PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n"


def example(**changes: object) -> ContainerSetup:
    values: dict[str, object] = {
        "host_dir": PurePosixPath("/mngr"),
        "client_public_key": "ssh-ed25519 AAAAclient me@here",
        "host_private_key": Secret(PRIVATE_KEY),
    }
    return ContainerSetup(**{**values, **changes})  # type: ignore[arg-type]


def check_shell(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)


def test_it_is_valid_shell() -> None:
    check_shell(setup_script(example()).revealed)
    check_shell(HOST_CONTAINER_SCRIPT)


@pytest.mark.parametrize("content", ["it's", "$(touch /canary)", "a\nEOF\nb", "`x`", '{"a": "\\"b\\""}', "ü 🚀"])
def test_any_file_content_is_quoted(content: str) -> None:
    script = setup_script(
        example(files={"data.json": content}, extra_known_hosts=(content.replace("\n", " "),))
    ).revealed
    check_shell(script)
    write = next(line for line in script.split("\n") if "data.json.new;" in line and "printf" in line) + ""
    start = script.index(write)
    quoted = script[start:].split("printf %s ", 1)[1].split(" >/mngr-vol/data.json.new", 1)[0]
    printed = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, check=True).stdout
    assert printed.decode() == content


def test_keys_go_to_the_volume_and_so_never_into_a_snapshot() -> None:
    script = setup_script(example()).revealed
    assert "secret" in script
    for line in script.split("\n"):
        assert "/etc/ssh" not in line


def test_the_private_key_is_not_in_a_representation() -> None:
    assert "secret" not in repr(example(files={"x": "secret"}))


def test_boot_activity_is_written_before_the_watcher_starts() -> None:
    script = setup_script(example()).revealed
    assert script.index("activity/boot") < script.index("nohup ")


def test_the_watcher_has_a_clock_that_nobody_sets() -> None:
    script = setup_script(example()).revealed
    start = 'export BASH_ENV="$host_dir/commands/steady_clock.sh"\n    nohup "$host_dir/commands/activity_watcher.sh" '
    assert start in script


def test_root_s_account_is_opened_before_anything_is_installed() -> None:
    script = setup_script(example()).revealed
    assert script.index("\nopen_roots_account || :") < script.index("install_missing $missing")
