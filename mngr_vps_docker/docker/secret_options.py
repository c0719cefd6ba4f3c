"""Options of docker whose values may be secret: ``--env=NAME=…`` and ``--build-arg=NAME=…``."""

import re
from collections.abc import Iterable
from typing import Final

from imbue.mngr_vps_docker.ssh.shell import Secret, ShellScript, quote
from imbue.mngr_vps_docker.text import MASK

_WORD_WITH_SECRET: Final = re.compile(r"(--(?:env|build-arg)=([^=]*)=)(.*)", re.DOTALL)


def as_script(words: Iterable[str]) -> ShellScript:
    """A command as shell text, in which the values of ``--env=`` and ``--build-arg=`` are secrets."""
    quoted: list[str] = []
    values: dict[str, Secret] = {}
    for word in words:
        found = _WORD_WITH_SECRET.fullmatch(word)
        if found is None:
            quoted.append(quote(word))
        else:
            name = f"mngr_value_{len(values)}"
            values[name] = Secret(found[3])
            quoted.append(f'{quote(found[1])}"${name}"')
    return ShellScript(" ".join(quoted), values)


def without_value(word: str) -> str:
    """An option of `docker run` or `docker build` with MASK in the place of a value that may be secret."""
    return _WORD_WITH_SECRET.sub(rf"\g<1>{MASK}", word)


def variable_of(word: str) -> str | None:
    """The name of the variable to which an option of `docker run` or `docker build` gives a value, if it does."""
    found = _WORD_WITH_SECRET.fullmatch(word)
    return None if found is None else found[2]
