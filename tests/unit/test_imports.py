"""What every mngr command imports of this package."""

import subprocess
import sys

OWN_NAME = "imbue.mngr_vps_docker"


def test_loading_the_provider_imports_nothing_that_reaches_a_vps() -> None:
    code = f"import sys, {OWN_NAME}.instance; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    own = {name.removeprefix(f"{OWN_NAME}.") for name in done.stdout.split() if name.startswith(f"{OWN_NAME}.")}
    assert own == {
        "config",
        "hosts",
        "hosts.timings",
        "instance",
        "package_hooks",
        "primitives",
        "text",
        "vps_client",
    }
