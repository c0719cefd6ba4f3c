"""The environment of a container: for the user's sessions, and not for what keeps the container running.

An image may set ``LD_LIBRARY_PATH`` or ``PATH`` so that neither ``sh`` nor sshd starts, and ``-s --env`` may, too. So
Docker sets these variables under other names (see ``docker_commands.run_script``), which mean nothing to any program
and stay with the container and its snapshots. The set-up writes them to a file that the user's sessions read.
"""

from pathlib import Path
from typing import Final

from imbue.mngr_vps_docker.config import HOST_VOLUME_PATH
from imbue.mngr_vps_docker.setup.root_account import without_comments

SSHD_FOLDER: Final = HOST_VOLUME_PATH / ".sshd"
SESSION_FILE: Final = SSHD_FOLDER / "session"

# Beside this module, so that they can be read, linted and run by themselves.
_TAKE_ENVIRONMENT: Final = Path(__file__).with_name("container_environment.sh")
_SESSION: Final = Path(__file__).with_name("container_session.sh")
_PROFILE: Final = Path(__file__).with_name("container_profile.sh")

SOURCE_ENVIRONMENT: Final = f"[ -f {SSHD_FOLDER}/environment ] && . {SSHD_FOLDER}/environment || true"
"""Shell text that gives a shell the environment of its container, if that has one."""

# ForceCommand and not SetEnv, which takes no line feeds, and before OpenSSH 8.7 no quotes.
SESSION_SSHD_CONFIG: Final = f"""\
Match User root
ForceCommand exec /bin/sh {SESSION_FILE}
"""


def take_environment_script() -> str:
    """Shell text, for the set-up of a container, that writes what sessions need and clears its own environment.

    It leaves the text of the environment in the variable ``environment``.
    """
    return f"folder={SSHD_FOLDER}\n{without_comments(_TAKE_ENVIRONMENT.read_text())}"


def session_script() -> str:
    """The script that sshd runs in the place of each command."""
    return without_comments(_SESSION.read_text())


def profile_script() -> str:
    """A file for /etc/profile.d, of which it must be the first."""
    return _PROFILE.read_text()
