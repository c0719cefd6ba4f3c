"""Rules of the source that no linter knows. Contracts of import-linter in pyproject.toml keep the order of rooms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "mngr_vps_docker"
LONGEST_MODULE_LINES = 450

SOURCES = sorted((*PACKAGE.rglob("*.py"), *CHECKOUT.glob("providers/*/mngr_*/**/*.py")))
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())


def _room(source: Path) -> str:
    """The folder or the loose module of the library; of a provider, the folder `providers`."""
    return source.relative_to(PACKAGE if source.is_relative_to(PACKAGE) else CHECKOUT).with_suffix("").parts[0]


def _words_written(source: Path) -> Iterator[tuple[int, str]]:
    """Every string constant in ``source`` that is not a docstring, with its line."""
    tree = ast.parse(source.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@every_source
def test_a_module_fits_on_a_few_screens(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= LONGEST_MODULE_LINES


# They call a provider package's client, which may raise anything, within work that must be finished; or they pass an
# exception on to another thread.
CALLERS_OF_FOREIGN_CODE = {
    PACKAGE / name
    for name in (
        "hosts/cloud_resources.py",
        "hosts/discovery.py",
        "hosts/vps_reader.py",
        "lifecycle/create.py",
        "lifecycle/destroy.py",
        "lifecycle/steps.py",
    )
}


@every_source
def test_every_handler_names_what_it_handles(source: Path) -> None:
    vague = [
        node.lineno
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or any(isinstance(n, ast.Name) and n.id == "Exception" for n in ast.walk(node.type)))
    ]
    assert vague == [] or source in CALLERS_OF_FOREIGN_CODE


@every_source
def test_ssh_options_are_written_in_the_ssh_room_only(source: Path) -> None:
    names = "BatchMode|Control(Master|Path|Persist)|ConnectTimeout|HostKeyAlias|IdentityFile|ProxyCommand|"
    names += "ServerAlive(Interval|CountMax)|StrictHostKeyChecking|(User|Global)KnownHostsFile"
    option = re.compile(rf"^-[FSO]$|\b({names})\b")
    written = [line for line, text in _words_written(source) if option.search(text)]
    assert written == [] or _room(source) == "ssh"


@every_source
def test_shell_text_is_quoted_in_one_place(source: Path) -> None:
    quoting = [
        node.lineno
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("shlex.quote", "shlex.join")
    ]
    assert quoting == [] or source == PACKAGE / "ssh" / "shell.py"


@every_source
def test_docker_command_lines_are_written_in_the_docker_rooms_only(source: Path) -> None:
    verbs = "attach|build|buildx|commit|cp|create|exec|export|image|images|import|info|inspect|kill|load|logs|network|"
    verbs += "pause|ps|pull|restart|rm|rmi|run|save|start|stats|stop|system|tag|unpause|update|version|volume|wait"
    command_line = re.compile(rf"(^|[;&|($\n]\s*)docker +({verbs})\b")
    written = [line for line, text in _words_written(source) if command_line.search(text)]
    assert written == [] or _room(source) in {"docker", "docker_over_ssh", "providers"}
