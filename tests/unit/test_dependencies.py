"""pyproject.toml declares exactly the distributions that the package imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "mngr_vps_docker"
OWN_NAME = "imbue.mngr_vps_docker"


def _imported_modules(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def _owners() -> Mapping[str, str]:
    """Which distribution each importable module is installed by; `imbue` is shared by several."""
    return {
        ".".join(file.with_suffix("").parts).removesuffix(".__init__"): _normal(distribution.name)
        for distribution in distributions()
        for file in distribution.files or ()
        if file.suffix in {".py", ".pyi", ".so"}
    }


def _normal(distribution_name: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution_name).lower()


def _imported_distributions() -> Mapping[str, str]:
    """Each imported distribution, and one file that imports it."""
    owners = _owners()
    found = {}
    for source in sorted(PACKAGE.rglob("*.py")):
        for module in _imported_modules(source):
            if module.split(".")[0] in sys.stdlib_module_names or module.startswith(OWN_NAME):
                continue
            parts = module.split(".")
            prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            owner = next((owners[prefix] for prefix in prefixes if prefix in owners), None)
            assert owner is not None, f"{source.name} imports {module}, which no installed distribution provides"
            found[owner] = source.relative_to(CHECKOUT).as_posix()
    return found


def _declared_distributions() -> set[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return {_normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in project["dependencies"]}


def test_every_imported_distribution_is_declared() -> None:
    undeclared = {
        name: where for name, where in _imported_distributions().items() if name not in _declared_distributions()
    }
    assert undeclared == {}


def test_every_declared_distribution_is_imported() -> None:
    assert _declared_distributions() - set(_imported_distributions()) == set()


def test_paramiko_is_never_imported() -> None:
    users = [
        source.relative_to(CHECKOUT).as_posix()
        for source in PACKAGE.rglob("*.py")
        for module in _imported_modules(source)
        if module.split(".")[0] == "paramiko"
    ]
    assert users == []
