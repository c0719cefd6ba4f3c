"""Every module can be imported by itself, first, in a fresh interpreter: no import order is needed."""

import pkgutil
import subprocess
import sys

import imbue.mngr_vps_docker

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(imbue.mngr_vps_docker.__path__, f"{imbue.mngr_vps_docker.__name__}.")
    if not module.name.endswith(".__main__")
)

# One child process per module by fork, after mngr itself is imported: an interpreter each would take a minute.
IMPORT_EACH = """
import importlib, os, sys, traceback
import imbue.mngr.interfaces.host, imbue.mngr.providers.base_provider
failed = []
for name in sys.argv[1:]:
    if os.fork() == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        failed.append(name)
sys.exit(f"cannot be imported on its own: {failed}" if failed else 0)
"""


def test_each_module_imports_on_its_own_without_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *MODULES], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mngr_that_is_told_something_else_imports_nothing_that_reaches_a_vps() -> None:
    code = "import sys, imbue.mngr_vps_docker.instance; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    own = {name for name in done.stdout.split() if name in MODULES}
    assert {name.removeprefix(f"{imbue.mngr_vps_docker.__name__}.") for name in own} == {
        "config",
        "instance",
        "package_hooks",
        "primitives",
        "text",
        "vps_client",
    }
