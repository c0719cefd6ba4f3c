"""Bad input gets one clear line and costs nothing."""

import pytest
from support.mngr_cli import MngrCli

CREATE = ("--type", "command", "--no-connect")
AGENT = ("--", "sleep", "100000")

# What is asked for, and what the answer must name.
REFUSED = {
    "an unknown --vps- argument": (("a1@h1.local-vps", "--new-host", "-b", "--vps-colour=red"), "--vps-region"),
    "a --vps- argument without value": (("a1@h1.local-vps", "--new-host", "-b", "--vps-region"), "--vps-region"),
    "an unknown region": (("a1@h1.local-vps", "--new-host", "-b", "--vps-region=mars"), "mars"),
    "an unknown operating system": (("a1@h1.local-vps", "--new-host", "-b", "--vps-os=abc"), "abc"),
    "a missing Dockerfile": (("a1@h1.local-vps", "--new-host", "-b", "--file=Nofile", "-b", "."), "Nofile"),
    "a missing context directory": (("a1@h1.local-vps", "--new-host", "-b", "nowhere"), "nowhere"),
    "an unknown snapshot": (("a1@h1.local-vps", "--new-host", "--snapshot", "nothing"), "nothing"),
    "a host name too long": ((f"a1@{'h' * 80}.local-vps", "--new-host"), "h" * 80),
}


@pytest.mark.parametrize("case", REFUSED)
def test_create_refuses_what_cannot_work_before_anything_is_made(mngr: MngrCli, case: str) -> None:
    arguments, named = REFUSED[case]
    done = mngr.run("create", *arguments, *CREATE, *AGENT)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert named in [line for line in done.stderr.splitlines() if line.strip()][-1]
    assert mngr.cloud.find_instances({}) == []
    assert mngr.cloud.list_ssh_keys() == []
    assert mngr.agents() == []
