"""The tests of the ssh layer against the OpenSSH, client and server, and the Python of a newer Debian.

From version 9.8 on, an sshd refuses addresses from which too many connections fail (PerSourcePenalties), as it is set.
"""

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imbue.mngr_local_vps.engine import remove_if_there, run_docker
from imbue.mngr_local_vps.images import ensure_images, image_of_os
from imbue.mngr_local_vps.operating_systems import DEFAULT_OS
from support.operating_system import CHOSEN_OS

CHECKOUT = Path(__file__).resolve().parents[2]
CONSTRAINTS = CHECKOUT / "constraints.txt"
# The Python of Debian 12 is too old.
OS_ID = "debian-13" if CHOSEN_OS.startswith(DEFAULT_OS) else CHOSEN_OS
TIMEOUT_SECONDS = 500

# In one home: that ssh passes over the user's settings does not depend on its version. The checkout is read-only, and
# installed nowhere. From Debian 14 on sshd comes without the client.
RUN = """\
command -v ssh >/dev/null || { apt-get -qq update && apt-get -qq install -y openssh-client >/dev/null; } || exit
mkdir -p /run/sshd /package/imbue
ln -s /checkout/mngr_vps_docker /checkout/providers/*/mngr_* /package/imbue/
exec python3 -m pytest --quiet -n 4 -p no:cacheprovider --hypothesis-profile=quick -k "not hostile" tests/ssh
"""


@pytest.fixture
def image(engine: None) -> str:
    """A VPS's image of that system, which has OpenSSH and (for cloud-init) Python."""
    ensure_images(lambda _: None, [OS_ID])
    return image_of_os(OS_ID)


@pytest.fixture
def python_packages(image: str) -> Path:
    """What the tests import, for the Python of that system; kept until the versions change."""
    version = run_docker(
        *("run", "--rm", "--entrypoint=python3", image, "-c", 'import sys; print("%d.%d" % sys.version_info[:2])')
    ).strip()
    wanted = hashlib.sha256(f"{version} {CONSTRAINTS.read_text()}".encode()).hexdigest()[:16]
    folder = CHECKOUT / "build" / f"python-{version}-{wanted}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                    *("--no-deps", "--no-compile", "--only-binary=:all:", f"--python-version={version}"),
                    *(f"--target={made}/packages", f"--requirement={CONSTRAINTS}"),
                ],
                stdin=subprocess.DEVNULL,
                check=True,
                timeout=300,
            )
            Path(made, "packages").rename(folder)
    return folder


def test_the_ssh_layer_works_with_a_newer_openssh_and_its_penalties(image: str, python_packages: Path) -> None:
    defaults = run_docker("run", "--rm", "--entrypoint=sshd", image, "-G", "-f", "/dev/null").lower()
    assert "\npersourcepenalties crash:" in defaults
    name = f"mngr-test-{secrets.token_hex(4)}"
    try:
        done = subprocess.run(
            [
                *("docker", "run", "--rm", "--init", f"--name={name}", "--workdir=/checkout", "--entrypoint=sh"),
                # The tests put a hostile home in the place of root's.
                *("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"),
                f"--mount=type=bind,source={CHECKOUT},target=/checkout,readonly",
                f"--mount=type=bind,source={python_packages},target=/site,readonly",
                *("--env=PYTHONPATH=/package:/site", "--env=PYTHONDONTWRITEBYTECODE=1"),
                *(f"--env=CI={os.environ.get('CI', '')}", image, "-c", RUN),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    finally:
        remove_if_there("rm", "--force", name)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
