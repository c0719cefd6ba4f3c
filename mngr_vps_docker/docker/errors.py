"""Docker's refusals as errors with names, classified by Docker's own words.

The wordings are those of Docker 20.10 up to 29 (they moved between the client and the daemon over the years); each
error keeps Docker's words and adds one hint. Others are a plain ``DockerError`` with the same words.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from imbue.mngr_vps_docker.errors import RemoteCommandError, VpsDockerError
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus


class DockerError(RemoteCommandError):
    """Docker ran and refused; ``outcome`` is what the command did."""

    def __init__(self, message: str, outcome: CommandOutcome | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome


class NoSuchContainerError(DockerError):
    """There is no container of that name or id."""


class ContainerNotRunningError(DockerError):
    """The container exists, but does not run."""


class NoSuchImageError(DockerError):
    """The image is neither on the machine nor in its registry (or the registry does not show it to us)."""


class WrongArchitectureError(DockerError):
    """The image is made for another kind of processor than the machine's."""


class NoSuchVolumeError(DockerError):
    """There is no volume of that name."""


class NameInUseError(DockerError):
    """Another container has that name."""


class PortInUseError(DockerError):
    """Something on the machine listens on the port that the container should publish."""


class DiskFullError(DockerError):
    """The machine's disk is full."""


class DaemonNotRunningError(DockerError):
    """No Docker daemon answers on the machine (or Docker is not installed)."""


class DockerForbiddenError(DockerError):
    """The account may not speak to the machine's Docker daemon."""


class PullRateLimitError(DockerError):
    """The registry allows no more pulls for now."""


class UnknownRuntimeError(DockerError):
    """The container runtime that was asked for is not installed on the machine."""


class NoShellError(DockerError):
    """The image has no ``sh``, by which everything is run in its containers."""


class InvalidDockerArgumentError(DockerError):
    """Docker does not know an option, or refuses its value."""


@dataclass(frozen=True, slots=True)
class _Kind:
    error: type[DockerError]
    # Compiled at the first refusal, which is rare.
    words: str
    hint: str


def _kind(error: type[DockerError], hint: str, *words: str) -> _Kind:
    return _Kind(error, "|".join(words), hint)


# The first match wins: what says most about the machine comes first.
_KINDS: Final = (
    _kind(
        DockerForbiddenError,
        "log in as root, or add the account to the machine's group 'docker'",
        r"permission denied while trying to connect to the docker (?:daemon|api)",
    ),
    _kind(
        DaemonNotRunningError,
        "see 'systemctl status docker' and 'journalctl -u docker' on the machine",
        r"cannot connect to the docker daemon",
        r"failed to connect to the docker api",
        r"error during connect:",
        r"docker: (?:command )?not found",
        r"command not found: docker",
    ),
    # The kernel uses the words of a full disk for its limit of keys.
    _kind(
        DockerError,
        "no disk is full: raise the kernel's limits of keys on the machine with sysctl, kernel.keys.maxkeys and"
        " kernel.keys.maxbytes (for root, kernel.keys.root_maxkeys and kernel.keys.root_maxbytes)",
        r"session key.*disk quota exceeded",
    ),
    _kind(
        DiskFullError,
        "free space on the machine ('docker system df' shows what Docker holds) or choose a larger plan",
        r"no space left on device",
        r"disk quota exceeded",
    ),
    _kind(
        PullRateLimitError,
        "wait, log in to the registry on the machine ('docker login'), or use an image of another registry",
        r"toomanyrequests",
        r"pull rate limit",
        r"429 too many requests",
    ),
    _kind(
        DockerError,
        "an image has 125 layers at most, and each snapshot adds one: use fewer RUN, COPY and ADD lines, or make one"
        " layer of the image with 'docker export' and 'docker import'",
        r"max depth exceeded",
    ),
    _kind(
        DockerError,
        "remove credsStore and credHelpers from ~/.docker/config.json on the machine, or install what they name",
        r"error (?:getting|listing) credentials",
        r"docker-credential-\S+\W+executable file not found",
    ),
    _kind(
        DockerError,
        "check the machine's clock; the certificate of a registry of your own belongs in /etc/docker/certs.d there",
        r"x509: certificate ",
    ),
    _kind(
        DockerError,
        "something removed Docker's firewall rules: run 'systemctl restart docker' on the machine",
        r"no chain/target/match by that name",
        r"chain 'docker\S*' does not exist",
    ),
    _kind(
        WrongArchitectureError,
        "use an image for the machine's processor, or choose a plan or region with machines for the image's",
        r"exec format error",
        r"the image is for \S+ where the machine is",
        r"no matching manifest for",
        r"was found but (?:does not match|its platform \(\S+\) does not match) the specified platform",
    ),
    # See explaining_end in docker.containers: what follows are the container's words, not Docker's.
    _kind(ContainerNotRunningError, "", r"^the container has ended: "),
    _kind(
        NoShellError,
        "the image has no shell, by which mngr runs everything: use a Debian or Ubuntu image",
        r'exec: \\?"(?:/bin/)?sh\\?": ',
    ),
    _kind(
        DockerError,
        "if it is no typing error, it is too new for that builder: begin the Dockerfile with"
        " '# syntax=docker/dockerfile:1', and where Docker is 23 or newer, install docker-buildx on the machine (with"
        " docker-ce: docker-buildx-plugin)",
        r"requires buildkit",
        r"dockerfile parse error.*unknown (?:instruction|flag)",
    ),
    _kind(
        InvalidDockerArgumentError,
        "see 'docker run --help' for the options and their forms",
        r"unknown (?:shorthand )?flag:",
        r"flag needs an argument:",
        r"invalid argument \".*\" for ",
        r"invalid (?:reference format|publish opts|(?:host|container) ?port|spec:|mode:|volume specification)",
        r"invalid (?:mount config|restart policy|environment variable|container name|ip address|signal)",
        r"^docker: invalid |^invalid |bad format for|bad parameter|invalid value",
        r"conflicting options",
        r"unknown capability",
        r"(?:minimum memory|memory\S* limit|range of cpus|cpu count) .*(?:is|should|must|allowed)",
        r"requires (?:at least|exactly|at most) \d+ argument",
        r"includes invalid characters",
        r"must be an absolute path|mount path must be absolute|is an invalid mount point",
        r"can't combine|cannot be (?:used|combined) (?:with|together)",
    ),
    _kind(
        UnknownRuntimeError,
        "install and register that runtime in the machine's /etc/docker/daemon.json, or leave --runtime out",
        r"unknown (?:or invalid )?runtime",
    ),
    _kind(
        NameInUseError,
        "remove or rename that container first",
        r"the container name \".*\" is already in use",
    ),
    _kind(
        PortInUseError,
        "choose another port, or stop what listens there ('ss -ltnp' on the machine)",
        r"port is already allocated",
        r"address already in use",
        r"ports are not available",
    ),
    _kind(
        NoSuchContainerError,
        "'docker ps -a' on the machine shows what there is",
        r"no such container",
        r"no such object",
    ),
    _kind(
        ContainerNotRunningError,
        "start it first",
        r"container \S+ is (?:not running|restarting|paused)",
    ),
    _kind(
        NoSuchVolumeError,
        "'docker volume ls' on the machine shows what there is",
        r"no such volume",
    ),
    _kind(
        NoSuchImageError,
        "check the image's name and tag; a private registry needs 'docker login' on the machine",
        r"no such image",
        r"pull access denied",
        r"manifest (?:for .* )?(?:not found|unknown)",
        r"repository .* not found",
        r"no basic auth credentials",
        r"unauthorized: ",
        r"failed to resolve (?:reference|source metadata).*: not found",
    ),
)

_PREFIXES: Final = re.compile(r"^(?:#\d+ [\d.]+ )?(?:docker: |error response from daemon: |error: )*", re.IGNORECASE)
NOISE: Final = re.compile(
    r"^(?:see '|run '.*--help'|usage:|view build details:|unable to find image|warning:)", re.IGNORECASE
)
_WORDS_LIMIT: Final = 600
# How much of the end of an output, and of each line, is searched: patterns take the square of a line's length.
_TEXT_LIMIT: Final = 64 << 10
_LINE_LIMIT: Final = 4 << 10


def classify(text: str, ignored: Collection[type[DockerError]] = ()) -> tuple[type[DockerError], str, str]:
    """The error class for what Docker printed, Docker's own words (one line), and a hint (may be empty).

    Classes in ``ignored`` are not considered.
    """
    lines = [line.strip()[:_LINE_LIMIT] for line in text[-_TEXT_LIMIT:].splitlines() if line.strip()]
    for kind in (kind for kind in _KINDS if kind.error not in ignored):
        for line in lines:
            if re.search(kind.words, line, re.IGNORECASE):
                return kind.error, _own_words(line), kind.hint
    telling = [line for line in lines if not NOISE.match(line)] or lines
    return DockerError, " / ".join(_own_words(line) for line in telling[-3:]), ""


def refusal(
    text: str,
    *,
    purpose: str,
    host: str,
    outcome: CommandOutcome | None = None,
    ignored: Collection[type[DockerError]] = (),
) -> DockerError:
    """The error for what Docker printed when it refused to do ``purpose`` on ``host``."""
    error, words, hint = classify(text, ignored)
    silence = "it failed without a word" if outcome is None else f"it ended with {outcome.exit_code}, without a word"
    reference = "" if outcome is None else outcome.reference
    what = f"Could not {purpose} on {host}{reference}: {words or silence}"
    return error(f"{what} ({hint})" if hint else what, outcome)


def docker_error(
    outcome: CommandOutcome, text: str | None = None, *, ignored: Collection[type[DockerError]] = ()
) -> VpsDockerError:
    """The error for an unsuccessful docker command: Docker's refusal, or what ssh met.

    ``text`` is what Docker printed, where that is not simply stderr (stdout, where stderr is empty). Classes in
    ``ignored`` are not considered.
    """
    if outcome.status is not OutcomeStatus.COMPLETED:
        return outcome.error()
    printed = text if text is not None else outcome.error_text.strip() or outcome.text
    return refusal(printed, purpose=outcome.purpose, host=outcome.host, outcome=outcome, ignored=ignored)


def checked_docker(outcome: CommandOutcome) -> CommandOutcome:
    """Return ``outcome`` if the docker command succeeded, else raise ``docker_error(outcome)``."""
    if outcome.is_success:
        return outcome
    raise docker_error(outcome)


def _own_words(line: str) -> str:
    words = _PREFIXES.sub("", line)
    return words if len(words) <= _WORDS_LIMIT else words[:_WORDS_LIMIT] + "…"
