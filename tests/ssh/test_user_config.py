"""An ssh configuration of the user's that forwards something to a container is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imbue.mngr_vps_docker.errors import VpsDockerError
from imbue.mngr_vps_docker.ssh.process import ProcessResult, run_process
from imbue.mngr_vps_docker.ssh.user_config import refuse_forwarding


def check(folder: Path, config: str, host: str = "198.51.100.7") -> None:
    """Check the real ssh with ``config`` in the place of the user's."""
    path = folder / "config"
    path.write_text(config)

    def run(argv: Sequence[str], **options: Any) -> ProcessResult:
        return run_process((argv[0], "-F", str(path), *argv[1:]), **options)

    refuse_forwarding("root", host, 2222, run)


@pytest.mark.parametrize(
    "line",
    [
        "ForwardAgent yes",
        "ForwardAgent /run/agent",
        "ForwardAgent $OTHER_AGENT",
        "ForwardX11 yes",
        "Tunnel yes",
        "Tunnel point-to-point",
        "RemoteForward 8080 [localhost]:80",
        "RemoteForward 1080",
        "LocalForward 5432 [localhost]:5432",
        "DynamicForward 1080",
        "SendEnv GITHUB_TOKEN",
        "SendEnv *",
        "SetEnv TOKEN=secret",
    ],
)
def test_what_would_be_forwarded_is_refused(tmp_path: Path, line: str) -> None:
    name = line.split()[0]
    with pytest.raises(VpsDockerError, match=rf"sets {name} .* for root@198\.51\.100\.7 \({tmp_path}/config line 2\)"):
        check(tmp_path, f"Host *\n  {line}\n")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "Host *\n  ForwardAgent no\n  ForwardX11 no\n  Tunnel no\n",
        "Host elsewhere\n  ForwardAgent yes\n",
        "Host *\n  SendEnv LANG LC_* COLORTERM NO_COLOR\n  SetEnv TERM=xterm\n",
        "Match user root\n  ForwardAgent no\nHost *\n  ForwardAgent yes\n",
        "Match user root\n  ClearAllForwardings yes\nHost *\n  RemoteForward 1080\n  LocalForward 1 [localhost]:1\n",
    ],
)
def test_a_configuration_without_forwarding_is_accepted(tmp_path: Path, config: str) -> None:
    check(tmp_path, config)


def test_a_configuration_that_ssh_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VpsDockerError, match=r"your ssh configuration for root@198\.51\.100\.7: .*config"):
        check(tmp_path, "NoSuchOption yes\n")


def test_the_message_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(VpsDockerError, match=r"'Match user root' with 'ForwardX11 no' at the top of ~/\.ssh/config"):
        check(tmp_path, "ForwardX11 yes\n")


def test_the_host_key_of_a_forwarded_port_of_this_machine_is_checked(tmp_path: Path) -> None:
    config = "NoHostAuthenticationForLocalhost yes\n"
    check(tmp_path, config)
    with pytest.raises(VpsDockerError, match="sets NoHostAuthenticationForLocalhost yes for root@127"):
        check(tmp_path, config, host="127.0.0.1")
