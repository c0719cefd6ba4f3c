"""This machine in the place of a VPS: its own shell, and a stand-in for docker that knows a few volumes."""

import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from imbue.mngr_vps_docker.ssh.connection import LARGE_OUTPUT_BYTES, OnLine, SshConnection, StandardInput, Stream
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect, OutcomeStatus
from imbue.mngr_vps_docker.ssh.shell import RUN_STDIN, ShellScript, as_stdin
from imbue.mngr_vps_docker.ssh.target import SshTarget

# Refuses every command line but those that the scripts are known to use.
_DOCKER = """\
#!/bin/sh
volumes=${0%/*}/../volumes
[ ! -e "$volumes/.daemon-down" ] || { echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2; exit 1; }
case "$*" in
  "volume inspect --format {{.Mountpoint}} -- "*)
    [ -d "$volumes/$6" ] || { echo "Error response from daemon: get $6: no such volume" >&2; exit 1; }
    echo "$volumes/$6" ;;
  "volume ls --format {{.Name}} {{.Mountpoint}}")
    for volume in "$volumes"/*; do [ -d "$volume" ] && echo "${volume##*/} $volume"; done; : ;;
  "ps --all --quiet --no-trunc --filter label="*)
    cat "$volumes/.container-ids" 2>/dev/null || : ;;
  "container inspect -- "*)
    cat "$volumes/.container-$4" 2>/dev/null ||
      { grep -qsx -- "$4" "$volumes/.container-ids" && cat "$volumes/.containers"; } ||
      { echo "Error: No such container: $4" >&2; exit 1; } ;;
  "image inspect -- "*)
    printf '[{"Id": "sha256:1", "RepoTags": ["%s"]}]\\n' "$4" ;;
  *) echo "unexpected command line: docker $*" >&2; exit 99 ;;
esac
"""  # noqa: E501


class LocalMachine(SshConnection):
    """Runs commands in a shell here, with a deadline; counts them."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            SshTarget(
                host="localhost",
                identity_file=Path("/dev/null"),
                known_hosts_file=Path("/dev/null"),
                host_key_alias="local",
                label="the VPS",
            )
        )
        self.volumes = root / "volumes"
        self.volumes.mkdir()
        self._bin = root / "bin"
        self._bin.mkdir()
        docker = self._bin / "docker"
        docker.write_text(_DOCKER)
        docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
        self.commands: list[str] = []
        self.before_command: Callable[[str], None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands, which find the stand-in."""
        return {"PATH": f"{self._bin}:/usr/sbin:/usr/bin:/sbin:/bin"}

    def volume(self, name: str) -> Path:
        """The directory of a volume, made now."""
        path = self.volumes / name
        path.mkdir()
        return path

    def run(
        self,
        command: str,
        *,
        purpose: str,
        timeout_seconds: float,
        idle_timeout_seconds: float | None = None,
        stdin: StandardInput = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
        limit_bytes: int = LARGE_OUTPUT_BYTES,
    ) -> CommandOutcome:
        assert stdin is None or isinstance(stdin, bytes)
        if self.before_command is not None:
            self.before_command(purpose)
        if isinstance(command, ShellScript):
            assert stdin is None
            command, stdin = RUN_STDIN, as_stdin(command)
        self.commands.append(command)
        argv = ("sh", "-c", command)
        started = time.monotonic()
        done = subprocess.run(
            argv,
            input=stdin or b"",
            capture_output=True,
            timeout=30,
            env=self.environment,
            cwd="/",
        )
        is_too_much = len(done.stdout) + len(done.stderr) > limit_bytes
        return CommandOutcome(
            status=OutcomeStatus.TOO_MUCH_OUTPUT if is_too_much else OutcomeStatus.COMPLETED,
            argv=argv,
            host=self.target.name,
            purpose=purpose,
            elapsed_seconds=time.monotonic() - started,
            exit_code=None if is_too_much else done.returncode,
            stdout=done.stdout,
            stderr=done.stderr,
            detail=f"it printed more than {limit_bytes} bytes" if is_too_much else "",
        )

    def stream(
        self,
        command: str,
        *,
        on_line: OnLine | None,
        purpose: str,
        timeout_seconds: float,
        idle_timeout_seconds: float | None = None,
        stdin: StandardInput = None,
        effect: Effect = Effect.NON_IDEMPOTENT,
    ) -> CommandOutcome:
        outcome = self.run(command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=stdin)
        for text, stream in ((outcome.text, Stream.STDOUT), (outcome.error_text, Stream.STDERR)):
            for line in text.splitlines():
                if on_line is not None:
                    on_line(line, stream)
        return outcome
