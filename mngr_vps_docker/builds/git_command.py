"""Running git on a repository that this package made: only the settings in it count, and nothing is downloaded."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.errors import BuildContextError

GIT_TIMEOUT_SECONDS: Final = 900.0

_SETTINGS: Final = ("-c", "core.logAllRefUpdates=false", "-c", "gc.auto=0")

# The settings of the user and of the machine may name programs, such as hooks. Git finds them by HOME, which is used
# here because git before 2.32 does not know GIT_CONFIG_GLOBAL.
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": os.devnull,
    "XDG_CONFIG_HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    # Refs are copied as files, which is not git's default for ever.
    "GIT_DEFAULT_REF_FORMAT": "files",
    # A missing object is an error. Git could otherwise fetch it by a program that settings can name. Git before 2.39.4
    # knows only the second of these: no protocol is allowed.
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "LC_ALL": "C",
}


@dataclass(frozen=True, slots=True)
class Repository:
    """Git, run on the git directory ``git_dir``; errors name ``context_dir``, the checkout that it is made for."""

    context_dir: Path
    git_dir: Path

    def run(self, *args: str, stdin: bytes = b"", protocol: str = "", is_failure_allowed: bool = False) -> bytes:
        """Run one git command and return its output, which is empty if it failed and may.

        It can fetch by ``protocol`` only. Raises BuildContextError, with git's own words, for other failures.
        """
        # Variables of a surrounding git command, such as a hook, would lead to its repository.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        own = {"GIT_DIR": str(self.git_dir), "GIT_ALLOW_PROTOCOL": protocol}
        try:
            done = subprocess.run(
                ("git", *_SETTINGS, *args),
                cwd=self.git_dir.parent,
                env={**inherited, **_ENVIRONMENT, **own},
                input=stdin,
                capture_output=True,
                timeout=GIT_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise BuildContextError(
                f"Sending the git checkout {self.context_dir} needs git, which is not installed"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BuildContextError(f"git {args[0]} did not end within {GIT_TIMEOUT_SECONDS:.0f} s") from error
        if done.returncode == 0:
            return done.stdout
        if is_failure_allowed:
            return b""
        words = " ".join(done.stderr.decode(errors="replace").replace(str(self.git_dir), ".git").split())
        raise BuildContextError(f"The git checkout {self.context_dir} cannot be sent: git {args[0]} says: {words}")

    def read(self, *args: str, is_failure_allowed: bool = False) -> str:
        """Run one git command and return its output as text, without the last newline."""
        output = self.run(*args, is_failure_allowed=is_failure_allowed)
        return output.decode("utf-8", "surrogateescape").removesuffix("\n")


def read_settings(context_dir: Path, path: Path) -> tuple[tuple[str, str], ...]:
    """The names and values in a settings file, without those of files that it includes; names are in lower case.

    Raises BuildContextError for a file that git cannot read.
    """
    no_repository = Repository(context_dir, Path(os.devnull))
    listing = no_repository.read("config", "--file", str(path), "--no-includes", "--null", "--list")
    # A name without a value means "true".
    settings = (setting.partition("\n") for setting in listing.split("\0") if setting)
    return tuple((name, value if has_value else "true") for name, has_value, value in settings)
