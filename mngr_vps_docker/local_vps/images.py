"""The image that a local VPS boots from, built once per machine from the files in ``image/``.

Four images are made: ``base`` (Debian 12 as ``debian:bookworm-slim``), ``agent`` (base plus what mngr needs in every
agent container) and the two operating systems a VPS may have, ``debian-12`` (with a Docker engine) and
``debian-12-no-docker`` (cloud-init has to install one). Both hold ``base`` and ``agent`` as a tar that their inner
engine loads, where they are called ``debian:bookworm-slim`` and ``mngr-agent:bookworm``. Loading takes an engine
seconds, so ``debian-12`` also holds what one stores that has loaded them, and lays it down at the birth of a VPS.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from tempfile import TemporaryFile
from typing import Final

from imbue.mngr_vps_docker.errors import VpsApiError
from imbue.mngr_vps_docker.errors import VpsProvisioningError
from imbue.mngr_vps_docker.local_vps.engine import describe
from imbue.mngr_vps_docker.local_vps.engine import machine_lock
from imbue.mngr_vps_docker.local_vps.engine import require_suitable_engine
from imbue.mngr_vps_docker.local_vps.engine import run_docker
from imbue.mngr_vps_docker.local_vps.labels import DIGEST_LABEL
from imbue.mngr_vps_docker.local_vps.labels import NAME_PREFIX
from imbue.mngr_vps_docker.local_vps.labels import label_arguments
from imbue.mngr_vps_docker.local_vps.machine import MACHINE_OPTIONS

DEFAULT_OS: Final = "debian-12"
OS_WITHOUT_DOCKER: Final = "debian-12-no-docker"

_STAGE_OF_OS: Final = {DEFAULT_OS: "with-images", OS_WITHOUT_DOCKER: "without-docker"}
OPERATING_SYSTEMS: Final = tuple(_STAGE_OF_OS)

# Inside a VPS: the image for agents that already has what mngr needs in a container.
AGENT_IMAGE: Final = "mngr-agent:bookworm"

_SOURCE: Final = Path(__file__).parent / "image"
_OFFICIAL_BASE: Final = "debian:bookworm-slim"
_BASE: Final = f"{NAME_PREFIX}:base"
_AGENT: Final = f"{NAME_PREFIX}:agent"
_ENGINE: Final = f"{NAME_PREFIX}:engine"
_PULL_TIMEOUT_SECONDS: Final = 120.0
_STEP_TIMEOUT_SECONDS: Final = 900.0
_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

type Report = Callable[[str], None]


def image_of_os(os_id: str) -> str:
    """The engine's name for the image of one operating system; raise VpsApiError 400 for one that is not offered."""
    if os_id not in _STAGE_OF_OS:
        raise VpsApiError(400, f"unknown operating system '{os_id}'; valid: {', '.join(OPERATING_SYSTEMS)}")
    return f"{NAME_PREFIX}:{os_id}"


def require_image(os_id: str) -> str:
    """The image of one operating system; raise VpsApiError 503 if it has not been built on this machine."""
    image = image_of_os(os_id)
    if not describe("image", [image]):
        raise VpsApiError(
            503, "the image of local VPSes is not built yet: run python -m imbue.mngr_vps_docker.local_vps image"
        )
    return image


def ensure_images(report: Report) -> None:
    """Build what is missing or was built from other files; quick where all is there.

    Raises VpsApiError if the engine cannot be asked, VpsProvisioningError (with the output's end) if a step fails.
    """
    require_suitable_engine()
    with machine_lock():
        digest = _digest_of_source()
        if all(_is_current(image_of_os(os_id), digest) for os_id in OPERATING_SYSTEMS):
            return
        with TemporaryDirectory(prefix=f"{NAME_PREFIX}-image-") as folder:
            context = Path(folder) / "context"
            shutil.copytree(_SOURCE, context)
            if not _is_current(_BASE, digest):
                _make_base(digest, report)
            _build("the image of agents", _AGENT, context, digest, report, "--file", str(context / "agent.Dockerfile"))
            with _step("packing both for the inner engines", report):
                archive = context / "images.tar"
                run_docker("save", "--output", str(archive), _BASE, _AGENT, timeout_seconds=_STEP_TIMEOUT_SECONDS)
                # The build copies the file with its mode, and docker save makes it readable to its owner only.
                archive.chmod(0o644)
            _build("an engine for VPSes", _ENGINE, context, digest, report, "--target", "with-docker")
            with _step("having it load both", report), (context / "stored.tar").open("wb") as archive_file:
                _run_logged(
                    [
                        *("docker", "run", "--rm", *MACHINE_OPTIONS, "--volume=/var/lib/docker"),
                        *("--entrypoint=sh", _ENGINE, "/usr/local/lib/local-vps/store-images"),
                    ],
                    "loading the images into an engine",
                    stdout=archive_file.fileno(),
                )
            for os_id in reversed(OPERATING_SYSTEMS):
                stage = ("--target", _STAGE_OF_OS[os_id])
                _build(f"the VPS image {os_id}", image_of_os(os_id), context, digest, report, *stage)
            run_docker("image", "rm", "--no-prune", _ENGINE)


def _digest_of_source() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.iterdir()):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _is_current(image: str, digest: str) -> bool:
    filters = (f"--filter=reference={image}", f"--filter=label={DIGEST_LABEL}={digest}")
    return run_docker("image", "ls", "--quiet", *filters).strip() != ""


def _make_base(digest: str, report: Report) -> None:
    was_there = bool(describe("image", [_OFFICIAL_BASE]))
    if was_there or _pulled(_OFFICIAL_BASE, report):
        source = f"FROM {_OFFICIAL_BASE}\n".encode()
        run_docker("build", "--tag", _BASE, *label_arguments({DIGEST_LABEL: digest}), "-", stdin=source)
        if not was_there:
            # Only the name goes, so that this machine's own list of images stays as it was.
            run_docker("image", "rm", _OFFICIAL_BASE)
        return
    with _step("no image registry is reached: making Debian 12 from the distribution's packages", report):
        change = ("--change", 'CMD ["bash"]', "--change", f"LABEL {DIGEST_LABEL}={digest}")
        with TemporaryFile() as archive:
            _run_logged(["sh", str(_SOURCE / "make-base")], "debootstrap", stdout=archive.fileno())
            archive.seek(0)
            _run_logged(["docker", "import", *change, "-", _BASE], "docker import", stdin=archive.fileno())


def _pulled(image: str, report: Report) -> bool:
    try:
        with _step(f"pulling {image}", report):
            run_docker("pull", "--quiet", image, timeout_seconds=_PULL_TIMEOUT_SECONDS)
    except VpsApiError as error:
        report(f"  not pulled: {str(error).partition(': ')[2]}")
        return False
    return True


def _build(what: str, image: str, context: Path, digest: str, report: Report, *options: str) -> None:
    proxies = [option for name in _PROXY_VARIABLES if name in os.environ for option in ("--build-arg", name)]
    argv = ["docker", "build", "--tag", image, "--build-arg", f"BASE={_BASE}", *proxies, *options]
    with _step(f"building {what}", report):
        _run_logged([*argv, *label_arguments({DIGEST_LABEL: digest}), str(context)], f"building {what}")


def _run_logged(argv: list[str], what: str, *, stdin: int = subprocess.DEVNULL, stdout: int | None = None) -> None:
    """Run one step with its output kept aside, to be shown only if it fails."""
    # A builder that runs in a container of its own would not see the images made here.
    environment = {**os.environ, "BUILDX_BUILDER": "default"}
    with TemporaryFile() as log:
        try:
            returncode = subprocess.run(
                argv,
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                env=environment,
                timeout=_STEP_TIMEOUT_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise VpsProvisioningError(f"{what} did not end within {_STEP_TIMEOUT_SECONDS:.0f} s") from error
        if returncode != 0:
            log.seek(0)
            tail = "\n".join(log.read().decode(errors="replace").splitlines()[-20:])
            raise VpsProvisioningError(f"{what} failed with exit code {returncode}:\n{tail}")


@contextmanager
def _step(what: str, report: Report) -> Iterator[None]:
    report(f"{what} ...")
    started = time.monotonic()
    yield
    report(f"  {time.monotonic() - started:.1f} s")
