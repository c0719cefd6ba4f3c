"""Options of a docker command as docker itself reads them, and rules about which of them a user may give.

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

# How the parts of such a value arrive here cannot be told from words that were meant to be two.
SPLIT_AT_SPACES: Final = "mngr splits arguments at spaces; a value with spaces needs quotes of its own, as in"

_NAME: Final = re.compile(r"--[A-Za-z0-9][A-Za-z0-9-]{0,63}")
# What Go's strconv.ParseBool knows.
_ON: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_OFF: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True, slots=True)
class Option:
    """One option in its long form, and as one ``word``.

    ``value`` is "true" for a switch that stands alone. It is None for an option that is not known and stands alone:
    whether the next word belongs to it cannot be told.
    """

    name: str
    value: str | None
    word: str

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Whether one of ``names``, each ``--option`` or ``--option=value``, means this option."""
        return self.name in names or f"{self.name}={self.value}" in names


@dataclass(frozen=True, slots=True)
class Rule:
    """When an option is refused, by its value, and why."""

    why: str
    is_met: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """What is known of the options of one docker command.

    ``verb`` is Docker's name of it, ``kind`` what messages call such an argument. ``switches`` and ``with_value`` are
    options in their long form, ``letters`` the short forms of either, ``aliases`` other long forms. What meets a rule
    of ``forbidden`` is always refused; what meets one of ``dangers``, unless the setting ``allowing`` names it; so is
    any option that is not known, if there is a rule ``unknown``. With ``is_strict``, a value that is the next word
    must not look like an option; Docker itself takes it all the same.
    """

    verb: str
    kind: str
    allowing: str
    switches: frozenset[str]
    with_value: frozenset[str]
    letters: Mapping[str, str]
    forbidden: Mapping[str, Rule]
    dangers: Mapping[str, Rule]
    aliases: Mapping[str, str] = field(default_factory=dict)
    unknown: Rule | None = None
    is_strict: bool = False

    def parsed(self, args: Sequence[str]) -> Iterator[Option | str]:
        """Take ``args`` apart; what is no option, and all from a ``--`` on, comes as it is.

        Raises BuildArgumentError for what Docker could not read.
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
        """Raise BuildArgumentError, with the reason and what would be right, if ``option`` may not be given."""
        forbidden, danger = self.forbidden.get(option.name), self.dangers.get(option.name)
        if option.name not in self.switches | self.with_value:
            danger = danger or self.unknown
        if forbidden is not None and forbidden.is_met(option.value or ""):
            # By its name alone where its value does not matter: that may be a secret.
            what = option.name if forbidden.is_met is always else option.word
            raise BuildArgumentError(f"{self.kind} '{excerpt(what)}' cannot be used here: {forbidden.why}")
        if danger is not None and danger.is_met(option.value or "") and not option.is_one_of(allowed):
            wanted = option.word if option.word == excerpt(option.word) else option.name
            remedy = f"If that is what you want, add '{wanted}' to {self.allowing} in the provider's settings"
            raise BuildArgumentError(f"{self.kind} '{excerpt(option.word)}' is refused: {danger.why}. {remedy}")
        if option.value is None:
            raise BuildArgumentError(
                f"{self.kind} '{excerpt(option.name)}' is not known here; give it its value in one word:"
                f" {excerpt(option.name)}=value (=true, if it takes none)"
            )

    def _long(self, word: str, words: Iterator[str]) -> Option:
        name, has_value, value = word.partition("=")
        if not _NAME.fullmatch(name):
            raise BuildArgumentError(f"{self.kind} '{excerpt(word)}' is no option of `docker {self.verb}`")
        name = self.aliases.get(name, name)
        if has_value:
            return self._with_value(name, value)
        return self._with_value(name, self._next(name, words)) if name in self.with_value else self._alone(name)

    def _short(self, word: str, words: Iterator[str]) -> Iterator[Option]:
        for position, letter in enumerate(word[1:], start=1):
            name, rest = self.letters.get(letter), word[position + 1 :]
            if name is None or rest == "=":
                raise BuildArgumentError(f"{self.kind} '{excerpt(word)}' is no option of `docker {self.verb}`")
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
    """For any value."""
    return True


def is_on(value: str) -> bool:
    """For a switch that is turned on."""
    return value in _ON


def is_off(value: str) -> bool:
    """For a switch that is turned off."""
    return value in _OFF


def csv_fields(value: str) -> list[str] | None:
    """The fields of a value that Docker reads as a line of comma-separated values; None for what it would refuse."""
    if "\n" in value or "\r" in value:
        return None
    try:
        (fields,) = csv.reader([value], strict=True)
    except (csv.Error, ValueError):
        return None
    return fields


def settings_of(value: str) -> list[tuple[str, str]]:
    """The ``key=value`` fields of such a value in order, keys in lower case; none where Docker would refuse it."""
    pairs = (part.partition("=") for part in csv_fields(value) or ())
    return [(key.strip().lower(), setting.strip()) for key, _, setting in pairs]


_PLAIN_NETWORK: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*", re.ASCII | re.IGNORECASE)
_NETWORK_SETTINGS: Final = frozenset(
    ("name", "alias", "driver-opt", "ip", "ip6", "mac-address", "link-local-ip", "gw-priority")
)


def is_foreign_network(value: str) -> bool:
    """For a network that is the machine's or another container's, or no plain name of one.

    ``name=…,alias=…`` is read as docker/cli's opts/network.go does it: in lower case, and the last name counts.
    """
    settings = dict(settings_of(value.lower())) if "=" in value else {"name": value.lower()}
    name = settings.get("name", "")
    return name == "host" or not _PLAIN_NETWORK.fullmatch(name) or not settings.keys() <= _NETWORK_SETTINGS
