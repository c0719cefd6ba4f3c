"""An ssh that cannot do what is asked of it is named before it is asked."""

from typing import Any

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.process import ProcessResult
from imbue.mngr_vps_docker.ssh.version import OpenSshVersion, installed_openssh, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17 1 Jul 2025", OpenSshVersion(9, 2)),
        ("OpenSSH_10.0p2, LibreSSL 3.3.6", OpenSshVersion(10, 0)),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", OpenSshVersion(9, 5)),
        ("Dropbear v2022.83", None),
        ("", None),
    ],
)
def test_the_version_is_read_from_what_ssh_says(text: str, version: OpenSshVersion | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["OpenSSH_7.9p1", "Dropbear v2022.83"])
def test_another_ssh_is_refused_in_its_own_words(text: str) -> None:
    def runner(*_arguments: Any, **_options: Any) -> ProcessResult:
        return ProcessResult(exit_code=0, stdout=b"", stderr=text.encode())

    with pytest.raises(VpsDockerError, match=text):
        installed_openssh(runner)


def test_the_one_that_is_installed_will_do() -> None:
    assert installed_openssh() >= OpenSshVersion(8, 4)
