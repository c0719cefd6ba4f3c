"""What the documents say of this repository is so."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
# `unit/a.py::test_b…, test_c`: a module of tests and perhaps names in it, which may be cut short by an ellipsis.
NAMED_TESTS = re.compile(r"`((?:unit|ssh|e2e)/[\w/]+\.py)((?:::[^`]*)?)`")


@pytest.mark.parametrize(("module", "names"), NAMED_TESTS.findall((CHECKOUT / "SECURITY.md").read_text()))
def test_every_test_that_security_md_names_exists(module: str, names: str) -> None:
    source = (CHECKOUT / "tests" / module).read_text()
    assert [name for name in re.findall(r"test_\w+", names) if f"def {name}" not in source] == []
