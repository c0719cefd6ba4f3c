"""Quoting is done once, by type, and survives any nesting."""

import copy
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbue.mngr_vps_docker.ssh.shell import (
    RUN_STDIN,
    Secret,
    ShellScript,
    as_stdin,
    join,
    quote,
    redacted,
    secret_names,
    shell_argv,
)

WITHOUT_NUL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(words=st.lists(WITHOUT_NUL, min_size=1, max_size=4), depth=st.integers(0, 4))
@settings(max_examples=60)
def test_any_words_survive_any_number_of_nested_shells(words: list[str], depth: int) -> None:
    text = join(("printf", r"%s\0", *words))
    for _ in range(depth):
        text = join(shell_argv(text))
    done = subprocess.run(["sh", "-c", text], capture_output=True, timeout=10, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_a_path_is_one_word() -> None:
    assert quote(Path("/it's here")) == """'/it'"'"'s here'"""


def test_what_no_argument_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0b")


def test_a_secret_is_never_shown() -> None:
    secret = Secret("hunter2")
    assert secret.revealed == "hunter2"
    for text in (str(secret), repr(secret), f"{secret}", repr([secret]), repr({"key": secret})):
        assert "hunter2" not in text
    with pytest.raises(TypeError):
        quote(secret)  # type: ignore[arg-type]
    for write_down in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            _call(write_down, secret)


def _call(function: Any, argument: object) -> object:
    return function(argument)


def test_a_script_that_arrives_in_part_is_not_run(tmp_path: Path) -> None:
    script = as_stdin(f"touch {tmp_path}/begun\ncat <<'END'\nall of it\nEND\n")
    for length in range(len(script)):
        done = subprocess.run(["sh", "-c", RUN_STDIN], input=script[:length], capture_output=True)
        assert not (tmp_path / "begun").exists(), (length, done.stderr)
    assert subprocess.run(["sh", "-c", RUN_STDIN], input=script, capture_output=True).stdout == b"all of it\n"


def test_secrets_of_a_text_are_in_what_goes_to_stdin_alone() -> None:
    script = ShellScript.with_environment("printenv A", {"A": "it's\nhunter2"})
    assert "hunter2" not in f"{script} {script!r} {redacted(script)}"
    assert secret_names(script) == ("A",)
    done = subprocess.run(["sh", "-c", RUN_STDIN], input=as_stdin(script), capture_output=True, timeout=10, check=True)
    assert done.stdout == b"it's\nhunter2\n"


@pytest.mark.parametrize("name", ["A;touch x;B", "", "1A", "A B", "A\n"])
def test_an_invalid_variable_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid variable name"):
        ShellScript.with_environment("true", {name: "x"})
