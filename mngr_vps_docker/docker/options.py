"""Options of a docker command as docker itself reads them, and rules that say which ones a user may give.

Docker reads its command lines by https://github.com/spf13/pflag: ``--option=value``, ``--option value``, ``-o value``,
``-ovalue``, ``-o=value``, and several letters in one word (``-itv /x:/y``), of which the last may take a value.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from imbue.mngr_vps_docker.errors import BuildArgumentError
from imbue.mngr_vps_docker.text import excerpt

# After that, the parts of such a value look like separate words.
SPLIT_AT_SPACES: Final = "mngr splits arguments at spaces; a value with spaces needs quotes of its own, as in"

_NAME: Final = re.compile(r"--[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# As Go's strconv.ParseBool reads them.
_ON: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_OFF: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True, slots=True)
class Option:
    """One option in its long form, and as one ``word``.

    ``value`` is "true" for a switch without a value. It is None for an unknown option without one: the next word may
    belong to it, or not.
    """

    name: str
    value: str | None
    word: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Why an option is refused, and for which values."""

    why: str
    is_met: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """The options of one docker command, and the rules for them.

    ``verb`` is Docker's name of the command, ``kind`` that of its arguments in messages. ``switches`` and
    ``with_value`` are options in their long form, ``letters`` the short forms of either, ``aliases`` other long forms.
    ``forbidden`` options are always refused; ``dangers``, and all unknown options, unless the setting ``allowing``
    names them. With ``is_strict``, a value in the next word must not look like an option, though Docker takes it.
    """

    verb: str
    kind: str
    allowing: str
    switches: frozenset[str]
    with_value: frozenset[str]
    letters: Mapping[str, str]
    forbidden: Mapping[str, Rule]
    dangers: Mapping[str, Rule]
    unknown: Rule
    aliases: Mapping[str, str] = field(default_factory=dict)
    is_strict: bool = False

    def parsed(self, args: Sequence[str]) -> Iterator[Option | str]:
        """Parse ``args``; other words, and all from a ``--`` on, are yielded as they are.

        Raises BuildArgumentError for words that Docker cannot read.
        """
        words = iter(args)
        for word in words:
            if word == "--":
                yield word
                yield from words
            elif word.startswith("--"):
                yield self._long(word, words)
            elif word.startswith("-") and word != "-":
                yield from self._short(word, words)
            else:
                yield word

    def check(self, option: Option, allowed: Sequence[str]) -> None:
        """Raise BuildArgumentError, with the reason and the remedy, if ``option`` may not be given."""
        forbidden, danger = self.forbidden.get(option.name), self.dangers.get(option.name)
        if option.name not in self.switches | self.with_value:
            danger = danger or self.unknown
        if forbidden is not None and forbidden.is_met(option.value or ""):
            # Without the value where that does not matter: it may be a secret.
            what = option.name if forbidden.is_met is always else option.word
            raise BuildArgumentError(f"{self.kind} '{excerpt(what)}' cannot be used here: {forbidden.why}")
        is_allowed = option.name in allowed or f"{option.name}={option.value}" in allowed
        if danger is not None and danger.is_met(option.value or "") and not is_allowed:
            wanted = option.word if option.word == excerpt(option.word) else option.name
            remedy = f"To allow it, add '{wanted}' to {self.allowing} in the provider's settings"
            raise BuildArgumentError(f"{self.kind} '{excerpt(option.word)}' is refused: {danger.why}. {remedy}")
        if option.value is None:
            raise BuildArgumentError(
                f"{self.kind} '{excerpt(option.name)}' is not known; give it its value in one word:"
                f" {excerpt(option.name)}=value (=true, if it is a switch)"
            )

    def _long(self, word: str, words: Iterator[str]) -> Option:
        name, has_value, value = word.partition("=")
        if not _NAME.fullmatch(name):
            raise BuildArgumentError(f"{self.kind} '{excerpt(word)}' is not an option of `docker {self.verb}`")
        name = self.aliases.get(name, name)
        if has_value:
            return self._with_value(name, value)
        return self._with_value(name, self._next(name, words)) if name in self.with_value else self._alone(name)

    def _short(self, word: str, words: Iterator[str]) -> Iterator[Option]:
        for position, letter in enumerate(word[1:], start=1):
            name, rest = self.letters.get(letter), word[position + 1 :]
            if name is None or rest == "=":
                raise BuildArgumentError(f"{self.kind} '{excerpt(word)}' is not an option of `docker {self.verb}`")
            if rest.startswith("=") or name in self.with_value:
                yield self._with_value(name, rest.removeprefix("=") or self._next(name, words))
                return
            yield self._alone(name)

    def _alone(self, name: str) -> Option:
        return Option(name, "true" if name in self.switches else None, name)

    def _with_value(self, name: str, value: str) -> Option:
        if not value.strip():
            raise BuildArgumentError(f"{self.kind} '{name}' needs a value; write {name}=…")
        if name in self.switches and value not in _ON | _OFF:
            raise BuildArgumentError(f"{self.kind} '{name}={excerpt(value)}' must say true or false")
        return Option(name, value, f"{name}={value}")

    def _next(self, name: str, words: Iterator[str]) -> str:
        value = next(words, "")
        if self.is_strict and value.startswith("--"):
            raise BuildArgumentError(f"{self.kind} '{name}' needs a value before '{excerpt(value)}'; write {name}=…")
        return value


def always(_value: str) -> bool:
    """A rule for any value."""
    return True


def is_on(value: str) -> bool:
    return value in _ON


def is_off(value: str) -> bool:
    return value in _OFF


def csv_fields(value: str) -> list[str] | None:
    """The fields of a value that Docker reads as comma-separated values; None if Docker refuses it."""
    if "\n" in value or "\r" in value:
        return None
    try:
        (fields,) = csv.reader([value], strict=True)
    except (csv.Error, ValueError):
        return None
    return fields


def settings_of(value: str) -> list[tuple[str, str]]:
    """The ``key=value`` fields of such a value in order, keys in lower case; empty if Docker refuses it."""
    pairs = (part.partition("=") for part in csv_fields(value) or ())
    return [(key.strip().lower(), setting.strip()) for key, _, setting in pairs]


_PLAIN_NETWORK: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.ASCII | re.IGNORECASE)
_NETWORK_SETTINGS: Final = frozenset(
    ("name", "alias", "driver-opt", "ip", "ip6", "mac-address", "link-local-ip", "gw-priority")
)


def is_foreign_network(value: str) -> bool:
    """Whether a network is the machine's or another container's, or not a plain name.

    ``name=…,alias=…`` is read as docker/cli's opts/network.go reads it: in lower case, and the last name counts.
    """
    settings = dict(settings_of(value.lower())) if "=" in value else {"name": value.lower()}
    name = settings.get("name", "")
    return name == "host" or not _PLAIN_NETWORK.fullmatch(name) or not settings.keys() <= _NETWORK_SETTINGS
