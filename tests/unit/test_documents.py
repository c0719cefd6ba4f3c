"""What the documents say of this repository is true."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
# `unit/a.py::test_b…, test_c`: a module of tests, and perhaps names in it, which an ellipsis may shorten.
NAMED_TESTS = re.compile(r"`((?:unit|ssh|e2e)/[\w/]+\.py)((?:::[^`]*)?)`")
LINKED_FILES = re.compile(r"\]\(([^):#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(("module", "names"), NAMED_TESTS.findall((CHECKOUT / "SECURITY.md").read_text()))
def test_every_test_that_security_md_names_exists(module: str, names: str) -> None:
    source = (CHECKOUT / "tests" / module).read_text()
    assert [name for name in re.findall(r"test_\w+", names) if f"def {name}" not in source] == []


@pytest.mark.parametrize(
    "document",
    [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("providers/*/*.md")],
    ids=lambda document: document.relative_to(CHECKOUT).as_posix(),
)
def test_every_file_that_a_document_links_exists(document: Path) -> None:
    linked = LINKED_FILES.findall(document.read_text())
    assert [name for name in linked if not (document.parent / name).exists()] == []
