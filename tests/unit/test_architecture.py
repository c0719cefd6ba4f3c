"""The layers and rules of the package, read off its source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mngr_vps_docker"
OWN_NAME = "imbue.mngr_vps_docker"
LONGEST_MODULE_LINES = 450

# A module may import from the lines above its own only; the modules of one line know nothing of each other. Inside a
# folder, modules order themselves: there, only a circle is forbidden.
LAYERS = (
    ("text",),
    ("primitives", "errors", "files"),
    ("config", "untrusted"),
    ("ssh",),
    ("docker", "setup", "replay"),
    ("cloud_init",),
    ("vps_client",),
    ("builds", "docker_over_ssh"),
    ("state",),
    ("host_store",),
    ("hosts",),
    ("lifecycle",),
    ("package_hooks",),
    ("instance",),
    ("testing",),
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FOLDERS = {path.name for path in PACKAGE.iterdir() if path.is_dir()}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
every_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def _layer(source: Path) -> str:
    return source.relative_to(PACKAGE).with_suffix("").parts[0]


def _own_imports(source: Path) -> Iterator[str]:
    """The modules of this package that ``source`` imports, without the package's own name in front."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{source.name}:{node.lineno} imports relatively"
            if node.module.startswith(f"{OWN_NAME}."):
                yield node.module.removeprefix(f"{OWN_NAME}.")
            elif node.module == OWN_NAME:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix(f"{OWN_NAME}.") for alias in node.names if alias.name.startswith(OWN_NAME)
            )


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


def test_every_module_has_its_line_in_the_table_of_layers() -> None:
    assert {_layer(source) for source in SOURCES} <= LEVELS.keys()


@every_source
def test_a_module_imports_only_from_layers_above_its_own(source: Path) -> None:
    layer = _layer(source)
    allowed = {name for name, level in LEVELS.items() if level < LEVELS[layer]} | ({layer} & FOLDERS)
    assert [name for name in _own_imports(source) if name.split(".")[0] not in allowed] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = {
        ".".join(source.relative_to(PACKAGE).with_suffix("").parts): set(_own_imports(source)) for source in SOURCES
    }
    left = dict(imports)
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@every_source
def test_a_module_fits_on_a_few_screens(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= LONGEST_MODULE_LINES


# They call a provider package's client, which may raise anything, in the midst of what must be brought to its end; or
# they hand on, from another thread, whatever it is.
CALLERS_OF_FOREIGN_CODE = {
    PACKAGE / name
    for name in (
        "hosts/cloud_resources.py",
        "hosts/discovery.py",
        "hosts/prefetch.py",
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
def test_ssh_options_are_written_in_the_ssh_layer_only(source: Path) -> None:
    names = "BatchMode|Control(Master|Path|Persist)|ConnectTimeout|HostKeyAlias|IdentityFile|ProxyCommand|"
    names += "ServerAlive(Interval|CountMax)|StrictHostKeyChecking|(User|Global)KnownHostsFile"
    option = re.compile(rf"^-[FSO]$|\b({names})\b")
    written = [line for line, text in _words_written(source) if option.search(text)]
    assert written == [] or _layer(source) in {"ssh", "testing"}


@every_source
def test_what_is_logged_cannot_act_upon_a_terminal(source: Path) -> None:
    written = [
        node.lineno
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "loguru" in ast.unparse(node)
    ]
    assert written == [] or source == PACKAGE / "text.py"


@every_source
def test_shell_text_is_quoted_in_one_place(source: Path) -> None:
    quoting = [
        node.lineno
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("shlex.quote", "shlex.join")
    ]
    assert quoting == [] or source == PACKAGE / "ssh" / "shell.py"


DOCKER_SPEAKERS = {"docker", "docker_over_ssh"}


@every_source
def test_docker_command_lines_are_written_in_the_docker_modules_only(source: Path) -> None:
    verbs = "attach|build|buildx|commit|cp|create|exec|export|image|images|import|info|inspect|kill|load|logs|network|"
    verbs += "pause|ps|pull|restart|rm|rmi|run|save|start|stats|stop|system|tag|unpause|update|version|volume|wait"
    command_line = re.compile(rf"(^|[;&|($\n]\s*)docker +({verbs})\b")
    written = [line for line, text in _words_written(source) if command_line.search(text)]
    assert written == [] or _layer(source) in DOCKER_SPEAKERS
