"""An image built from what is sent holds exactly what Docker makes of the original directory."""

import io
import os
import re
import secrets
import subprocess
import tarfile
from pathlib import Path

import pytest

from imbue.mngr_vps_docker.builds.context import archive
from imbue.mngr_vps_docker.builds.options import parse_build_args

pytestmark = pytest.mark.usefixtures("engine")

FILES = (
    "a.txt", "b.TXT", "keep", "with space", "docker/Dockerfile", "docker/x", "src/a.py", "src/a.pyc", "src/deep/keep",
    "src/deep/b.pyc", "node_modules/x/index.js", "node_modules/keep", "dist/out", "#odd", "[x]", "x.log", "y.log",
)  # fmt: skip

CASES = {
    "none": None,
    "empty": "",
    "names": "node_modules\ndist\n",
    "slashes": "/node_modules/\n./dist\nsrc/../a.txt\n",
    "stars": "*.txt\n*/*.pyc\n",
    "double stars": "**/*.pyc\n**/keep\n",
    "exception": "*.log\n!x.log\n",
    "exception below": "node_modules\n!node_modules/keep\n",
    "all but some": "*\n!src\n!a.txt\n",
    "all but some, less some": "*\n!src\nsrc/deep\n",
    "all but deep": "*\n!src/deep/keep\n",
    "everything": "*\n",
    "the files that Docker reads": "Dockerfile\n.dockerignore\n",
    "comments, spaces, mark": "\ufeffdist  \r\n# a.txt\n\n   keep\n #odd\n",
    "classes": "[a-b].*\n[[]x]\n?.log\n",
    "case": "*.TXT\n",
    "order": "!a.txt\n*.txt\n",
}

# The legacy builder puts a Dockerfile from outside into the context, and its name into .dockerignore.
RANDOM_NAME = re.compile(rb"\n\.dockerfile\.[0-9a-f]{20}\n")


def tree_of(directory: Path, dockerfile: Path, context_dir: Path) -> dict[str, tuple[int, int, int, str, bytes]]:
    """What an image built of a context holds: type, mode, owner, link and content of each path."""
    tag = f"mngr-test-context:{secrets.token_hex(6)}"
    build = ("docker", "build", "--quiet", "--tag", tag, "--file", str(dockerfile), str(context_dir))
    environment = os.environ | {"DOCKER_CONFIG": str(directory)}
    try:
        subprocess.run(build, check=True, capture_output=True, timeout=120, env=environment)
        create = subprocess.run(
            ("docker", "create", tag, "none"), check=True, capture_output=True, timeout=60, text=True
        )
        container = create.stdout.strip()
        try:
            exported = subprocess.run(
                ("docker", "export", container), check=True, capture_output=True, timeout=60
            ).stdout
        finally:
            subprocess.run(("docker", "rm", container), check=True, capture_output=True, timeout=60)
    finally:
        subprocess.run(("docker", "image", "rm", "--force", tag), check=False, capture_output=True, timeout=60)
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        return {
            member.name: (
                int(member.type),
                member.mode,
                member.uid,
                member.linkname,
                RANDOM_NAME.sub(b"", (tar.extractfile(member) or io.BytesIO()).read()) if member.isreg() else b"",
            )
            for member in tar
            if member.name.startswith("ctx/")
        }


@pytest.mark.parametrize(
    ("case", "dockerfile"),
    [
        *((case, "Dockerfile") for case in CASES),
        *((case, "docker/Dockerfile") for case in ("none", "everything", "the files that Docker reads")),
        *((case, "../outside.Dockerfile") for case in ("none", "everything", "exception")),
    ],
)
def test_the_image_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, dockerfile: str) -> None:
    ignore = CASES[case]
    project = tmp_path / "project"
    for name in FILES:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / dockerfile).write_text("FROM scratch\nCOPY . /ctx/\n")
    (project / "src/a.py").chmod(0o750)
    (project / "empty").mkdir()
    (project / "link").symlink_to("src/deep")
    if ignore is not None:
        (project / ".dockerignore").write_text(ignore)
    monkeypatch.chdir(project)
    build = parse_build_args(["-f", dockerfile, "."], default_region="r", default_plan="p", default_os_id=1)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    with archive(build) as chunks:
        subprocess.run(("tar", "-x", "-p", "-C", str(unpacked)), input=b"".join(chunks), check=True, timeout=60)
    outside = unpacked / "dockerfile/outside.Dockerfile"
    sent_dockerfile = outside if outside.exists() else unpacked / "context" / dockerfile
    expected = tree_of(tmp_path, project / dockerfile, project)
    assert tree_of(tmp_path, sent_dockerfile, unpacked / "context") == expected
