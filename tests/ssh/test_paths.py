"""Keys may be in any folder, and sockets in any that is fit for them."""

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from support.loopback_sshd import LoopbackSshd
from support.remote import run, socket_of


@pytest.mark.parametrize(
    "name", ["a b", "100%d", "it's", 'q"q', "b\\s", 'b\\"', "$x", "#h", "é", "~x", "a=b", "a,b;c"]
)
def test_keys_in_a_folder_of_any_name_are_found(sshd: LoopbackSshd, tmp_path: Path, name: str) -> None:
    with closing(SshConnection(sshd.target(**_copies(sshd, tmp_path / name)))) as connection:
        assert run(connection, "echo in").text == "in\n"


@pytest.mark.parametrize("name", ["${HOME}", "a\nb", "tab\tx"])
def test_a_folder_that_no_option_can_name_is_refused_in_one_line(
    sshd: LoopbackSshd, tmp_path: Path, name: str
) -> None:
    with pytest.raises(VpsDockerError, match="ssh cannot use the path") as raised:
        run(SshConnection(sshd.target(**_copies(sshd, tmp_path / name))), "true")
    assert "\n" not in str(raised.value)


def _copies(sshd: LoopbackSshd, folder: Path) -> dict[str, object]:
    folder.mkdir()
    target = sshd.target()
    shutil.copy(target.identity_file, folder / "key")
    shutil.copy(target.known_hosts_file, folder / "known_hosts")
    return {"identity_file": folder / "key", "known_hosts_file": folder / "known_hosts"}


def test_sockets_may_lie_in_a_folder_of_an_odd_name(
    sshd: LoopbackSshd, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b", 'q"q', "it's", "p%d"):
        folder = Path(f"/tmp/{name}{tmp_path_factory.mktemp('x').stat().st_ino}")
        folder.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        try:
            with closing(SshConnection(replace(sshd.target()))) as connection:
                assert run(connection, "echo in").text == "in\n"
                assert socket_of(connection).is_relative_to(folder)
        finally:
            shutil.rmtree(folder)
