"""Prints what the Docker engine of a VPS answers, as JSON, for the tests of what reads it.

Meant for a new VPS of local_vps, which is of no use afterwards: docker exec -i VPS python3 - <capture.py >VERSION.json
"""

import json
import subprocess

IMAGE = "mngr-agent:bookworm"
SLEEP = ("--entrypoint=sleep", IMAGE, "1000")

# What is done before anything is asked.
PREPARATION = (
    ("volume", "create", "--label=kept=yes", "data"),
    (
        *("run", "--detach", "--name=running", "--label=host=h1", "--publish=2222:22", "--volume=data:/data"),
        *("--cpus=0.5", "--memory=64m", "--init", *SLEEP),
    ),
    ("run", "--name=stopped", "--entrypoint=sh", IMAGE, "-c", "exit 3"),
    ("create", "--name=created", IMAGE),
    ("commit", "--change", 'LABEL "kept"="yes"', "stopped", "snapshot:1"),
)
ANSWERS = {
    "containers": ("container", "inspect", "--", "running", "stopped", "created"),
    "images": ("image", "inspect", "--", "snapshot:1"),
    "info": ("info", "--format", "{{json .}}"),
    "volumes": ("volume", "inspect", "--", "data"),
}
REFUSALS = {
    "inspect no container": ("container", "inspect", "--", "none"),
    "start no container": ("start", "--", "none"),
    "stop no container": ("stop", "--", "none"),
    "remove no container": ("rm", "--", "none"),
    "commit no container": ("commit", "--", "none", "x:1"),
    "exec in no container": ("exec", "--", "none", "true"),
    "exec in a stopped container": ("exec", "--", "stopped", "true"),
    "inspect no image": ("image", "inspect", "--", "none:1"),
    "remove no image": ("image", "rm", "--", "none:1"),
    "inspect no volume": ("volume", "inspect", "--", "none"),
    "remove no volume": ("volume", "rm", "--", "none"),
    "take a name again": ("run", "--name=running", *SLEEP),
    "publish a port again": ("run", "--rm", "--publish=2222:22", *SLEEP),
    "publish a port of another program": ("run", "--rm", "--publish=22:22", *SLEEP),
    "use no runtime": ("run", "--rm", "--runtime=none", *SLEEP),
    "give an unknown option": ("run", "--rm", "--none", *SLEEP),
    "give an option without its value": ("run", "--cpus"),
    "give CPUs that are no number": ("run", "--rm", "--cpus=many", *SLEEP),
    "give more CPUs than there are": ("run", "--rm", "--cpus=10000", *SLEEP),
    "give memory that is no number": ("run", "--rm", "--memory=much", *SLEEP),
    "give too little memory": ("run", "--rm", "--memory=1m", *SLEEP),
    "give a name with a space": ("run", "--rm", "--name=a b", *SLEEP),
    "name no image": ("run", "--rm", "Debian:1"),
    "mount at a relative path": ("run", "--rm", "--volume=data:data", *SLEEP),
    "publish no port": ("run", "--rm", "--publish=x:22", *SLEEP),
    "restart in no known way": ("run", "--restart=never", *SLEEP),
    "add no capability": ("run", "--rm", "--cap-add=NONE_SUCH", *SLEEP),
}


def docker(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


def refusal(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode != 0, done.args
    return done.stderr


def main() -> None:
    for arguments in PREPARATION:
        docker(*arguments)
    answers = {what: json.loads(docker(*arguments).stdout) for what, arguments in ANSWERS.items()}
    refusals = {what: refusal(docker(*arguments)) for what, arguments in REFUSALS.items()}
    nobody = ["su", "--shell=/bin/sh", "nobody", "--command", "docker ps"]
    refusals["ask as another user"] = refusal(subprocess.run(nobody, capture_output=True, text=True, check=False))
    subprocess.run(["systemctl", "stop", "docker.socket", "docker.service"], check=True, capture_output=True)
    refusals["ask no daemon"] = refusal(docker("ps"))
    print(json.dumps({**answers, "refusals": refusals}, indent=1))  # noqa: T201


main()
