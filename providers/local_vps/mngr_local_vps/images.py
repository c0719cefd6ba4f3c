"""The images that local VPSes boot from, built once per machine from the files in ``image/``.

For each release of Debian two container images are built: ``base`` (as small as ``debian:<release>-slim``) and
``agent`` (base plus the packages that mngr needs in a container). The image of an operating system contains those of
its own release and of the common one as a tar, which its inner engine loads as ``debian:<release>-slim`` and
``mngr-agent:<release>``. Loading takes seconds, so an operating system with Docker also contains the storage of an
engine that has loaded them, which the first boot of a VPS unpacks.
"""

import hashlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Final

from imbue.mngr_local_vps.engine import describe, machine_lock, require_suitable_engine, run_docker
from imbue.mngr_local_vps.labels import NAME_PREFIX
from imbue.mngr_local_vps.machine import MACHINE_OPTIONS
from imbue.mngr_local_vps.operating_systems import (
    DEFAULT_OS,
    OperatingSystem,
    agent_image,
    base_image,
    find_operating_system,
    without_docker,
)
from imbue.mngr_vps_docker.errors import VpsApiError, VpsProvisioningError

DEFAULT_IMAGES: Final = (DEFAULT_OS, without_docker(DEFAULT_OS))

_SOURCE: Final = Path(__file__).parent / "image"
_BASE_FILES: Final = ("make-base",)
_AGENT_FILES: Final = (*_BASE_FILES, "agent.Dockerfile")
_PULL_TIMEOUT_SECONDS: Final = 120.0
_STEP_TIMEOUT_SECONDS: Final = 900.0
_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

type Report = Callable[[str], None]


def image_of_os(os_id: str) -> str:
    """The name of the image of an operating system; raise VpsApiError 400 if it does not exist."""
    return _named(find_operating_system(os_id).os_id)


def image_of_base(release: str) -> str:
    """The name, on this machine, of the image that VPSes know as ``debian:<release>-slim``."""
    return _named(f"base-{release}", *_BASE_FILES)


def require_image(os_id: str) -> str:
    """The name of the image of an operating system; raise VpsApiError 503 if it is not built on this machine."""
    image = image_of_os(os_id)
    if not _is_there(image):
        raise VpsApiError(
            503,
            f"the image of local VPSes with {os_id} is not built yet: run"
            f" python -m imbue.mngr_local_vps image {os_id}",
        )
    return image


def ensure_images(report: Report, os_ids: Sequence[str] = DEFAULT_IMAGES) -> None:
    """Build the images of these operating systems that are missing or were built from other sources.

    Raises VpsApiError for an unknown operating system or if no engine answers, VpsProvisioningError (with the end of
    the output) if a step fails.
    """
    systems = [find_operating_system(os_id) for os_id in os_ids]
    require_suitable_engine()
    # First without the lock: if all images exist, do not wait for another process that builds others.
    missing = [system for system in systems if not _is_there(image_of_os(system.os_id))]
    if not missing:
        return
    with machine_lock(_SOURCE):
        for system in missing:
            if not _is_there(image_of_os(system.os_id)):
                _make_vps_image(system, report)


def _make_vps_image(system: OperatingSystem, report: Report) -> None:
    for release in system.container_releases:
        _make_container_images(release, report)
    with TemporaryDirectory(prefix=f"{NAME_PREFIX}-image-") as folder:
        context = Path(folder) / "context"
        shutil.copytree(_SOURCE, context)
        with _step(f"packing the images of {' and '.join(system.container_releases)} for the inner engine", report):
            _pack_container_images(system.container_releases, context)
        packages = "with-docker" if system.has_docker else "without-docker"
        arguments = ("--build-arg", f"BASE={image_of_base(system.release)}", "--build-arg", f"PACKAGES={packages}")
        # A unique name: another checkout of the same version may build at the same time.
        engine = f"{NAME_PREFIX}:engine-{secrets.token_hex(4)}"
        stage = ("--target", "machine")
        if system.has_docker:
            _build(f"an engine for {system.os_id}", engine, context, report, *arguments, *stage)
            with _step("loading them into it", report), (context / "stored.tar").open("wb") as archive:
                _run_logged(
                    [
                        *("docker", "run", "--rm", *MACHINE_OPTIONS, "--volume=/var/lib/docker"),
                        *("--entrypoint=sh", engine, "/usr/local/lib/local-vps/store-images"),
                    ],
                    "loading the images into an engine",
                    stdout=archive.fileno(),
                )
            stage = ("--target", "with-images")
        image = image_of_os(system.os_id)
        _build(f"the VPS image {system.os_id}", image, context, report, *arguments, *stage)
        if system.has_docker:
            run_docker("image", "rm", "--no-prune", engine)


def _make_container_images(release: str, report: Report) -> None:
    base, agent = image_of_base(release), _image_of_agent(release)
    if not _is_there(base):
        _make_base(release, report)
    if not _is_there(agent):
        with TemporaryDirectory(prefix=f"{NAME_PREFIX}-image-") as folder:
            arguments = ("--build-arg", f"BASE={base}", "--file", str(_SOURCE / "agent.Dockerfile"))
            _build(f"the image of agents for {release}", agent, Path(folder), report, *arguments)


def _pack_container_images(releases: Sequence[str], context: Path) -> None:
    """Write these images, and the list of their names here and in a VPS, into the build context of a VPS image."""
    names = {image: name for release in releases for image, name in _names_in_vps(release).items()}
    (context / "images.names").write_text("".join(f"{image} {name}\n" for image, name in names.items()))
    archive = context / "images.tar"
    run_docker("save", "--output", str(archive), *names, timeout_seconds=_STEP_TIMEOUT_SECONDS)
    # docker save makes the file readable to its owner only, and the build copies the mode.
    archive.chmod(0o644)


def _names_in_vps(release: str) -> dict[str, str]:
    return {image_of_base(release): base_image(release), _image_of_agent(release): agent_image(release)}


def _image_of_agent(release: str) -> str:
    return _named(f"agent-{release}", *_AGENT_FILES)


def _named(what: str, *files: str) -> str:
    """A name with a digest of these files of ``image/`` (default: all), so that checkouts can share the engine."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.iterdir()):
        if not files or path.name in files:
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return f"{NAME_PREFIX}:{what}-{digest.hexdigest()[:16]}"


def _is_there(image: str) -> bool:
    return bool(describe("image", [image]))


def _make_base(release: str, report: Report) -> None:
    image, official = image_of_base(release), base_image(release)
    was_there = _is_there(official)
    if was_there or _pulled(official, report):
        source = f"FROM {official}\n".encode()
        run_docker("build", "--tag", image, "-", stdin=source)
        if not was_there:
            # Only the tag is removed: this machine's list of images stays as it was.
            run_docker("image", "rm", official)
        return
    with _step(f"no image registry answers: building Debian {release} from the distribution's packages", report):
        change = ("--change", 'CMD ["bash"]')
        with TemporaryFile() as archive:
            _run_logged(["sh", str(_SOURCE / "make-base"), release], "debootstrap", stdout=archive.fileno())
            archive.seek(0)
            _run_logged(["docker", "import", *change, "-", image], "docker import", stdin=archive.fileno())


def _pulled(image: str, report: Report) -> bool:
    try:
        with _step(f"pulling {image}", report):
            run_docker("pull", "--quiet", image, timeout_seconds=_PULL_TIMEOUT_SECONDS)
    except VpsApiError as error:
        report(f"  not pulled: {str(error).partition(': ')[2]}")
        return False
    return True


def _build(what: str, image: str, context: Path, report: Report, *options: str) -> None:
    proxies = [option for name in _PROXY_VARIABLES if name in os.environ for option in ("--build-arg", name)]
    argv = ["docker", "build", "--tag", image, *proxies, *options]
    with _step(f"building {what}", report):
        _run_logged([*argv, str(context)], f"building {what}")


def _run_logged(argv: list[str], what: str, *, stdin: int = subprocess.DEVNULL, stdout: int | None = None) -> None:
    """Run one step; its output is shown only if it fails."""
    # A builder in a container of its own does not see the images built here.
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
