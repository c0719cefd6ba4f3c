"""Git checkouts for tests, made by git itself."""

import os
import subprocess
from pathlib import Path

import pytest


def use_own_git_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but these, in ``home/.gitconfig``, so that the tests mean the same everywhere."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    home.mkdir()
    (home / ".gitconfig").write_text(
        '[user]\nname=n\nemail=e@example.com\n[init]\ndefaultBranch=main\n[protocol "file"]\nallow=always\n'
        "[advice]\ndetachedHead=false\n"
    )
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(home))


def git(directory: Path, *args: str) -> str:
    done = subprocess.run(("git", *args), cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"git {args}: {done.stderr}"
    return done.stdout.rstrip("\n")


def write(directory: Path, name: str, content: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def commit(directory: Path, name: str, content: str) -> str:
    write(directory, name, content)
    git(directory, "add", name)
    git(directory, "commit", "-q", "-m", f"change {name}")
    return git(directory, "rev-parse", "HEAD")
