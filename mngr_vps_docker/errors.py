"""All errors that this package raises.

::

    VpsDockerError                    (mngr's MngrError: one clear line for the user)
    ├── VpsProvisioningError          the machine or its Docker could not be made ready; says at which stage
    ├── VpsApiError                   the cloud answered with an error; carries the HTTP status
    ├── BuildArgumentError            a build or start argument is wrong (also mngr's UserInputError)
    ├── BuildContextError             the Dockerfile or the context directory cannot be used
    ├── HostRecordError               a record on the VPS's state volume cannot be read or written
    ├── UnsafeVolumePathError         a path would leave its volume (in host_volume)
    ├── RemoteCommandError            a remote command ran to its end and failed; carries the outcome
    │   ├── UnreadableAnswerError     the answer to several commands cannot be read (in ssh.pipeline)
    │   ├── WrongFileTypeError        a path that must be a file is something else (in host_volume)
    │   └── DockerError               the same, for docker; see docker.errors for its kinds
    ├── RemoteCommandTimeoutError     a remote command was stopped at its deadline
    ├── RemoteOutputError             a remote command printed more than is accepted, and was stopped
    └── VpsConnectionError            (also mngr's HostOfflineError) ssh could not reach the machine, or lost it
        ├── SshBusyError              the machine answers, but all its sessions stayed in use
        ├── SshdDownError             the machine answers, but no sshd does
        ├── HostGoneError             another process of this machine destroys the host, or has destroyed it
        └── VpsAuthenticationError    (also mngr's HostAuthenticationError) our key was refused, or the host key is
                                      not the pinned one

mngr's own errors are raised where mngr has one: HostNotFoundError, HostNameConflictError,
SnapshotNotFoundError, ConfigParseError, BinaryNotInstalledError.
"""

from imbue.mngr.errors import BaseMngrError, HostAuthenticationError, HostOfflineError, MngrError, UserInputError
from imbue.mngr_vps_docker.text import printable, shortened, without_passwords


class VpsDockerError(MngrError):
    """Base of all errors of this package.

    In the message, control characters are escaped, long text is shortened, and passwords in URLs are masked.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(shortened(without_passwords(message)), kept="\n\t"))


class VpsProvisioningError(VpsDockerError):
    """A VPS, or Docker on it, could not be made ready."""


class VpsApiError(VpsDockerError):
    """The cloud's API answered with an error."""

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(f"The VPS API answered {status_code}: {message}")
        self.status_code = status_code

    @property
    def is_gone(self) -> bool:
        """Whether the answer says that the thing does not exist."""
        return self.status_code in (404, 410)

    @property
    def is_refusal(self) -> bool:
        """Whether the answer says that nothing was done; after a time-out (408) or a 5xx that is unknown."""
        return 400 <= self.status_code < 500 and self.status_code != 408


class BuildArgumentError(VpsDockerError, UserInputError):
    """A build argument or start argument cannot be understood or is not allowed."""


class BuildContextError(VpsDockerError, UserInputError):
    """The Dockerfile or the build context cannot be used."""


class HostRecordError(VpsDockerError):
    """A host record cannot be read or written."""


class RemoteCommandError(VpsDockerError):
    """A remote command ran to its end and failed."""


class RemoteCommandTimeoutError(VpsDockerError):
    """A remote command did not end within its deadline and was stopped."""


class RemoteOutputError(VpsDockerError):
    """A remote command printed more than is accepted, and was stopped."""


class VpsConnectionError(VpsDockerError, HostOfflineError):
    """A machine could not be reached over ssh, or the connection was lost.

    HostOfflineError is the only HostConnectionError after which mngr's gc continues.
    """


class SshBusyError(VpsConnectionError):
    """A machine can be reached, but all the sessions that it allows are in use."""


class SshdDownError(VpsConnectionError):
    """A machine can be reached, but no sshd answers at the port."""


class HostGoneError(VpsConnectionError):
    """A machine cannot be reached, and another process of this machine destroys its host or has destroyed it."""


class VpsAuthenticationError(VpsConnectionError, HostAuthenticationError):
    """A machine refused our key, or showed another host key than the pinned one."""

    user_help_text = "Destroy the host of a machine that was reinstalled; share the profile of one made elsewhere"


def describe_error(error: BaseException) -> str:
    """The text of ``error`` for a user, with its type in front unless it is one of mngr's own."""
    return str(error) if isinstance(error, BaseMngrError) else f"{type(error).__name__}: {error}".rstrip(": ")
