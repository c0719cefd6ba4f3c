"""Each pyproject.toml declares the distributions that its package imports, and no others.

deptry knows a module by its first name only, and several distributions share `imbue`: it reports none of those.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = (CHECKOUT / "mngr_vps_docker", *CHECKOUT.glob("providers/*/mngr_*"))


def _normal(distribution_name: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution_name).lower()


@cache
def _owners() -> Mapping[str, str]:
    """The distribution of each module that a third party installed. Ours are editable: they list no modules."""
    return {
        ".".join(file.with_suffix("").parts).removesuffix(".__init__"): _normal(distribution.name)
        for distribution in distributions()
        for file in distribution.files or ()
        if file.suffix in {".py", ".pyi", ".so"}
    } | {f"imbue.{package.name}": _project_name(package) for package in PACKAGES}


def _project(package: Path) -> Mapping[str, object]:
    project: Mapping[str, object] = tomllib.loads((package.parent / "pyproject.toml").read_text())["project"]
    return project


def _project_name(package: Path) -> str:
    return _normal(str(_project(package)["name"]))


def _imported_distributions(package: Path) -> set[str]:
    modules = set()
    for source in package.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module))
    return {_owner(module) for module in modules if module.split(".")[0] not in sys.stdlib_module_names}


def _owner(module: str) -> str:
    parts = module.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((_owners()[prefix] for prefix in prefixes if prefix in _owners()), f"unknown owner of {module}")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_distribution_declares_what_it_imports_and_nothing_else(package: Path) -> None:
    requirements = _project(package)["dependencies"]
    assert isinstance(requirements, list)
    declared = {_normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}
    assert _imported_distributions(package) - {_project_name(package)} == declared
