"""The environment of an image reaches the user's sessions as it is, and those alone."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from imbue.mngr.api.connect import _build_ssh_activity_wrapper_script
from imbue.mngr_vps_docker.docker.containers import HIDDEN_PREFIX, ContainerSpec, hidden, run_script
from imbue.mngr_vps_docker.setup.scripts import script
from imbue.mngr_vps_docker.ssh.framing import Framing
from imbue.mngr_vps_docker.ssh.shell import as_stdin, quote

PLAIN_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VALUES = {
    "QUOTES": "it's \"x\" ''",
    "SIGNS": " $HOME \\ `id` # = * ; \t é ",
    "LINES": f"a\n{HIDDEN_PREFIX}NO=1\n\nexport NO=1\n",
    "EMPTY": "",
    "http_proxy": "http://user:it's@192.0.2.1/",
    # What the scripts of this package call their own.
    **dict.fromkeys(("command", "environment", "folder", "name", "path", "rest", "shell", "value"), "the image's"),
    "PATH": f"/opt/tool:{os.environ['PATH']}",
}


def run(argv: list[str | Path], env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, env=env, capture_output=True, check=False, timeout=30)


def variables(shown: bytes) -> dict[str, str]:
    return dict(variable.split("=", 1) for variable in shown.decode().split("\0") if variable)


def take(folder: Path, values: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """What the set-up does with the environment of a container, and shows afterwards of its own."""
    text = script("container_environment.sh")
    env = {f"{HIDDEN_PREFIX}{name}": value for name, value in values.items()} | {"PATH": os.environ["PATH"]}
    return run(["sh", "-euc", f"folder={folder}\n{text}\nenv -0"], env)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the set-up puts VALUES."""
    (tmp_path / "session").write_text(script("container_session.sh"))
    seen = variables(take(tmp_path, VALUES).stdout)
    assert [name for name in seen if name.startswith(HIDDEN_PREFIX)] == []
    # Of all of it, apt needs the proxy.
    assert seen.keys() & VALUES.keys() == {"PATH", "http_proxy"} and seen["http_proxy"] == VALUES["http_proxy"]
    return tmp_path


def session(folder: Path, command: str, login_shell: str = "/bin/sh") -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"], "SHELL": login_shell, "SSH_ORIGINAL_COMMAND": command}
    return run(["/bin/sh", folder / "session"], env)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_that_reads_the_environment_has_every_value_unchanged(folder: Path, shell: str) -> None:
    shown = run([shell, "-euc", f". {folder}/environment; env -0"], {"PATH": os.environ["PATH"]})
    assert VALUES.items() <= variables(shown.stdout).items()
    assert "NO" not in variables(shown.stdout)


@pytest.mark.parametrize(("shell", "kept"), [("/bin/sh", b"/bin/sh\n"), ("/no/zsh", b"\n"), ("/bin/false", b"\n")])
def test_a_shell_that_runs_nothing_is_not_the_one_of_agents(tmp_path: Path, shell: str, kept: bytes) -> None:
    take(tmp_path, {"SHELL": shell})
    shown = run(["sh", "-euc", f'. {tmp_path}/environment; echo "${{SHELL-}}"'], {"PATH": os.environ["PATH"]})
    assert shown.stdout == kept


def test_only_its_user_can_read_it(folder: Path) -> None:
    assert [(folder / name).stat().st_mode & 0o777 for name in (".", "environment", "path")] == [0o700, 0o600, 0o600]


def test_a_session_has_it_and_ends_as_its_command_does(folder: Path) -> None:
    assert VALUES.items() <= variables(session(folder, "env -0").stdout).items()
    assert "SSH_ORIGINAL_COMMAND" not in variables(session(folder, "env -0").stdout)
    assert (session(folder, "exit 7").returncode, session(folder, "kill -TERM $$").returncode) == (7, -15)


def test_commands_of_ours_do_without_it_but_find_its_programs_last(folder: Path) -> None:
    framing = Framing("0123456789abcdef")
    script = as_stdin("env -0")
    wrapped = subprocess.run(
        ["/bin/sh", folder / "session"],
        input=script,
        env={"PATH": os.environ["PATH"], "SHELL": "/bin/false", "SSH_ORIGINAL_COMMAND": framing.wrap(len(script), 20)},
        capture_output=True,
        timeout=30,
        check=True,
    )
    shown = variables(wrapped.stdout.partition(b"\n")[2].rpartition(b"\0")[0])
    assert not shown.keys() & VALUES.keys() - {"PATH"}
    assert shown["PATH"] == f"{os.environ['PATH']}:{VALUES['PATH']}"
    (folder / "environment").write_text("echo read\n")
    connect = f"bash -c {quote(_build_ssh_activity_wrapper_script('m-a1', folder))}"
    for command in (connect, "git-receive-pack '/x'", "git-upload-pack '/x'", "rsync --server .", "scp -t /x"):
        assert session(folder, command, login_shell="/bin/echo").stdout.decode() == f"-c {command}\n"
    assert session(folder, framing.end_command(1 << 22)).stdout == b""
    assert session(folder, "git status", login_shell="/bin/echo").stdout == b"read\n-c git status\n"


def test_commands_of_ours_have_a_plain_path_where_the_image_has_none_of_its_own(folder: Path) -> None:
    """An empty part of it would be the current folder, which is often an agent's."""
    take(folder, {"FOO": "bar"})
    assert variables(session(folder, "under() { :; }; env -0").stdout)["PATH"] == os.environ["PATH"]


def test_docker_gets_the_variables_of_an_image_under_other_names(tmp_path: Path) -> None:
    words = f"'A=it'\\''s' 'B=\n1' 'GONE' 'C=ours' '{HIDDEN_PREFIX}C=of snapshot' '{PLAIN_PATH}' "
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\n[ "$1" = run ] || exec cat {tmp_path}/words\nprintf "%s\\0" "$@"\n')
    docker.chmod(0o755)
    (tmp_path / "words").write_text(words)
    extra = (hidden("--env=A=arg"), hidden("--env=D"), hidden("--memory=1g"))
    script = run_script(ContainerSpec("c", "i", extra_args=extra, hides_environment=True))
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", 'eval "$(cat)"'], input=as_stdin(script), env={"A": "1", "PATH": path}, capture_output=True
    )
    assert done.stdout.decode().split("\0")[:-1] == [
        "run",
        *("--env", "A=", "--env", f"{HIDDEN_PREFIX}A=it's", "--env", "B", "--env", f"{HIDDEN_PREFIX}B=\n1"),
        *("--env", "C", "--env", "PATH="),
        *("--detach", "--name", "c", "--env", PLAIN_PATH),
        *(f"--env={HIDDEN_PREFIX}A=arg", f"--env={HIDDEN_PREFIX}D", "--memory=1g", "i"),
    ]


def test_a_loader_that_starts_nothing_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "libc.so.6").write_text("x")
    taken = take(tmp_path, {"LD_LIBRARY_PATH": str(tmp_path), "FOO": "bar"})
    assert taken.stdout.startswith(b"Warning: No program starts with the LD_LIBRARY_PATH")
    (tmp_path / "session").write_text(script("container_session.sh"))
    assert session(tmp_path, "env | grep -e FOO -e LD_").stdout == b"FOO=bar\n"
    (tmp_path / "libc.so.6").unlink()
    assert take(tmp_path, {"LD_LIBRARY_PATH": str(tmp_path)}).stdout.startswith(b"PATH=")
    assert session(tmp_path, "env | grep LD_").stdout.decode() == f"LD_LIBRARY_PATH={tmp_path}\n"
