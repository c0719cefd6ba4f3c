"""Text for a POSIX shell: the one place where anything is quoted.

Three things are kept apart by type. A plain ``str`` or path is an argument: ``quote`` makes it one word, whatever it
holds. ``ShellText`` is text that a shell parses. A ``Secret`` is neither: it cannot be quoted, printed or logged, only
``revealed`` on its way to a program's stdin.

Where a text needs secrets they are variables of a ``ShellScript``: the text is shown and logged as it is, the values
are set by what goes to stdin.

Nesting needs no rules of its own: the text for an inner shell is one argument of the outer one (``shell_argv``).
"""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Final, Self

from imbue.mngr_vps_docker.primitives import VARIABLE_NAME
from imbue.mngr_vps_docker.text import MASK, without_passwords


class ShellText(str):
    """Text that a POSIX shell parses, in which every value is quoted."""

    __slots__ = ()


class Secret:
    """A value that no text, argument, log line or exception shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @property
    def revealed(self) -> str:
        """The value itself, for stdin and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("A secret is not written down")


class ShellScript(ShellText):
    """Shell text with variables whose values are secret, which travels on stdin.

    Raises ValueError for a name that is not a valid variable name.
    """

    __slots__ = ("secrets",)

    secrets: Mapping[str, Secret]

    def __new__(cls, text: str, secrets: Mapping[str, Secret]) -> Self:
        for name in secrets:
            if not VARIABLE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid variable name")
        script = super().__new__(cls, text)
        script.secrets = dict(secrets)
        return script

    @classmethod
    def with_environment(cls, text: str, env: Mapping[str, str]) -> Self:
        """``text`` with ``env``, the values of which may all be secret, added to its environment."""
        exported = f"export {' '.join(env)}\n" if env else ""
        return cls(exported + text, {name: Secret(value) for name, value in env.items()})


def secret_names(text: str) -> tuple[str, ...]:
    """What ``redacted`` masks: the names of secret variables, and passwords of URLs."""
    variables = tuple(text.secrets) if isinstance(text, ShellScript) else ()
    return variables if without_passwords(text) == text else (*variables, "the password of a URL")


def redacted(text: str) -> ShellText:
    """``text`` as one line for showing and logging, with the values of its secrets masked."""
    variables = text.secrets if isinstance(text, ShellScript) else ()
    return one_line(without_passwords("".join(f"{name}='{MASK}'\n" for name in variables) + text))


def quote(argument: str | PurePath) -> ShellText:
    """One word of a command that stands for exactly ``argument``.

    Raises ValueError for a NUL, which an argument cannot hold, and TypeError for a Secret, since every user of a
    machine can see arguments.
    """
    if not isinstance(argument, str | PurePath):
        raise TypeError(f"{type(argument).__name__} cannot be an argument")
    text = str(argument)
    if "\0" in text:
        raise ValueError("An argument cannot hold a NUL")
    return ShellText(shlex.quote(text))


def join(argv: Iterable[str | PurePath]) -> ShellText:
    """The command that consists of these words."""
    return ShellText(" ".join(quote(word) for word in argv))


def shell_argv(text: str) -> tuple[str, ...]:
    """The program that parses ``text`` as a shell: three arguments, which can be quoted for a shell around it."""
    return ("sh", "-c", text)


# Runs what ``as_stdin`` made.
RUN_STDIN: Final = ShellText('eval "$(cat)"')


def run_from_stdin(size_bytes: int) -> ShellText:
    """Runs what ``as_stdin`` made, of that size; what follows on stdin is that of the text."""
    return ShellText(f'eval "$({take_from_stdin(size_bytes)} || echo exit 125)"')


def take_from_stdin(size_bytes: int) -> ShellText:
    """Prints that much of stdin, and leaves the rest to the next command; busybox's head(1) would read ahead."""
    return ShellText(f"dd bs={size_bytes} count=1 iflag=fullblock 2>/dev/null")


def as_stdin(text: str) -> bytes:
    """Shell text for RUN_STDIN: of any length, with its secrets, and invisible in a list of processes.

    In braces: a lost connection looks like the end of the data, and without the closing brace a shell runs nothing.
    """
    values = text.secrets if isinstance(text, ShellScript) else {}
    assigned = "".join(f"{name}={quote(value.revealed)}\n" for name, value in values.items())
    return f"{{ {assigned}{text}\n}}".encode("utf-8", "surrogateescape")


_ESCAPED: Final = {"\n": "\\n", "\t": "\\t", "\\": "\\\\"}


def one_line(text: str) -> ShellText:
    """Shell text that does the same as ``text`` and is one line of printable characters.

    Pasted, a line is run as a whole or not at all, and it cannot control a terminal.
    """
    if text.isprintable():
        return ShellText(text)
    escaped = "".join(_escape(character) for character in text.rstrip("\n"))
    return ShellText(f"""eval "$(printf %b {quote(escaped)})\"""")


def _escape(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    if character.isprintable():
        return character
    return "".join(f"\\0{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
