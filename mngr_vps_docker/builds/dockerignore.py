"""Which files of a directory Docker takes into a build, by its ``.dockerignore``.

The rules are those of moby/patternmatcher and BuildKit, which the Docker SDK's own matcher differs from (it ignores
case, and loses files below ``!**/name``): https://docs.docker.com/build/concepts/context/#dockerignore-files.
"""

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple, Self

from imbue.mngr_vps_docker.errors import BuildContextError

DOCKERIGNORE = ".dockerignore"


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: one character of a path, or any number of them.

    With ``may_skip_next`` it may be left out together with the next part, as in ``(?:.*/)?``.
    """

    character: re.Pattern[str]
    is_repeated: bool = False
    may_skip_next: bool = False


# What one character of a path may be: any, one of a name, a slash; and for the end of a pattern, no character.
_ANY: Final = re.compile(".", re.DOTALL)
_IN_NAME: Final = re.compile("[^/]")
_SLASH: Final = re.compile("/")
_END: Final = _Part(re.compile("(?!)"))
# Without any of these, a pattern is plain text.
_SPECIAL: Final = re.compile(r"[][*?\\]")


@dataclass(frozen=True, slots=True)
class _Pattern:
    parts: tuple[_Part, ...]
    is_exception: bool


class _Position(NamedTuple):
    """All places in the patterns that some characters of a path lead to.

    ``last_match`` is the last pattern that matches these characters, ``last_exception`` the last exception that may
    match more characters, each -1 if there is none.
    """

    places: frozenset[int]
    last_match: int
    last_exception: int


@dataclass(frozen=True, slots=True)
class MatchState:
    """What is known of one path, for the paths below it.

    ``last_match`` is the last pattern that matches it or a directory above it, or -1. ``below`` is the position where
    the name of a path below it begins.
    """

    last_match: int
    is_ignored: bool
    below: _Position

    @property
    def may_have_exceptions(self) -> bool:
        """Whether something below may be taken though the path itself is left out."""
        return self.below.last_exception > self.last_match


class IgnorePatterns:
    """The patterns of one ignore file, in order; a path is matched against all of them at once.

    Python's ``re`` backtracks, which takes exponential time for some patterns, and a repository may come with one.
    This follows all places in the patterns at the same time, as Docker's own regular expressions (RE2) do.
    """

    def __init__(self, patterns: Sequence[_Pattern] = ()) -> None:
        self._patterns = tuple(patterns)
        # Places are numbered across all patterns: one for each part, and one for the end of each pattern.
        self._parts: list[_Part] = []
        self._pattern_by_end: dict[int, int] = {}
        self._exception_of: dict[int, int] = {}
        first_places: list[int] = []
        for number, pattern in enumerate(patterns):
            first_places.append(len(self._parts))
            if pattern.is_exception:
                places = range(len(self._parts), len(self._parts) + len(pattern.parts))
                self._exception_of |= dict.fromkeys(places, number)
            self._parts += [*pattern.parts, _END]
            self._pattern_by_end[len(self._parts) - 1] = number
        # Paths have many steps in common. An ordinary ignore file needs some hundreds.
        self._step = lru_cache(maxsize=50_000)(self._uncached_step)
        self._position = lru_cache(maxsize=50_000)(self._uncached_position)
        self.root: Final = MatchState(-1, is_ignored=False, below=self._position(self._entered(first_places)))
        """The state of the directory itself, which is never left out."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an ignore file; BuildContextError names the first pattern that Docker would refuse."""
        try:
            text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError as error:
            raise BuildContextError(f"{path} cannot be read: {error.strerror}") from error
        return cls.parse(text.split("\n"), source=str(path))

    @classmethod
    def parse(cls, lines: Sequence[str], *, source: str = DOCKERIGNORE) -> Self:
        """Parse the lines of an ignore file."""
        # A comment begins in the first column; "#" after a space is a name.
        return cls([_parse_line(line.strip(), source) for line in lines if line.strip() and not line.startswith("#")])

    def match(self, name: str, parent: MatchState) -> MatchState:
        """The state of ``name`` in a directory that has the state ``parent``.

        A pattern that matches a directory matches all that is in it; the last pattern that matches decides.
        """
        position = parent.below
        for character in name:
            position = self._step(position.places, character)
        last_match = max(parent.last_match, position.last_match)
        is_ignored = last_match >= 0 and not self._patterns[last_match].is_exception
        return MatchState(last_match, is_ignored, below=self._step(position.places, "/"))

    def ignores(self, path: str) -> bool:
        """Whether ``path`` (relative, with ``/``) is left out."""
        state = self.root
        for name in path.split("/"):
            state = self.match(name, state)
        return state.is_ignored

    def _uncached_position(self, places: frozenset[int]) -> _Position:
        last_match = max((self._pattern_by_end.get(place, -1) for place in places), default=-1)
        last_exception = max((self._exception_of.get(place, -1) for place in places), default=-1)
        return _Position(places, last_match, last_exception)

    def _uncached_step(self, places: frozenset[int], character: str) -> _Position:
        """The position after one more character; equal ones are the same object, which saves memory."""
        taken = [place for place in places if self._parts[place].character.fullmatch(character)]
        repeated = frozenset(place for place in taken if self._parts[place].is_repeated)
        return self._position(repeated | self._entered(place + 1 for place in taken))

    def _entered(self, places: Iterable[int]) -> frozenset[int]:
        """These places, and those behind parts that may match nothing."""
        entered: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place in entered:
                continue
            entered.add(place)
            if self._parts[place].is_repeated:
                waiting.append(place + 1)
            if self._parts[place].may_skip_next:
                waiting.append(place + 2)
        return frozenset(entered)


def ignore_file_for(context_dir: Path, dockerfile: Path) -> Path | None:
    """The ignore file that Docker uses: the Dockerfile's own (``<Dockerfile>.dockerignore``) before the context's.

    Raises BuildContextError if it is not a file, or a link that leads nowhere: what to ignore is unknown then.
    """
    candidates = (dockerfile.with_name(f"{dockerfile.name}{DOCKERIGNORE}"), context_dir / DOCKERIGNORE)
    path = next((path for path in candidates if os.path.lexists(path)), None)
    if path is not None and not path.is_file():
        raise BuildContextError(f"{path} is not a file; replace it by a file, or remove it")
    return path


def _parse_line(text: str, source: str) -> _Pattern:
    is_exception = text.startswith("!")
    name = text.removeprefix("!").strip()
    if not name:
        raise BuildContextError(f"{source} has a '!' without a pattern; write the pattern after it")
    # normpath keeps two leading slashes, which Docker takes for one.
    cleaned = posixpath.normpath("/" + name.lstrip("/") if name.startswith("/") else name)
    if len(cleaned) > 1:
        cleaned = cleaned.removeprefix("/")
    try:
        return _Pattern(tuple(_parts(cleaned)), is_exception)
    except (ValueError, re.error) as error:
        raise BuildContextError(f"{source} has a pattern that Docker cannot read: {text}") from error


def _parts(pattern: str) -> Iterator[_Part]:
    """The parts of a pattern, as moby/patternmatcher reads them; ValueError or re.error if it is malformed."""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*" and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":
                at += 1
            # Since Docker 23, "**.log" means every path that ends so, and "**.lo?" only whole names.
            if at == len(pattern) or (at == 2 and not _SPECIAL.search(pattern, at)):
                yield _Part(_ANY, is_repeated=True)
            else:
                yield _Part(_ANY, is_repeated=True, may_skip_next=True)
                yield _Part(_SLASH)
        elif character == "*":
            yield _Part(_IN_NAME, is_repeated=True)
        elif character == "?":
            yield _Part(_IN_NAME)
        elif character == "[":
            text, at = _character_class(pattern, at)
            yield _Part(re.compile(text))
        elif character == "\\":
            if at == len(pattern):
                raise ValueError("nothing to escape")
            yield _Part(re.compile(re.escape(pattern[at])))
            at += 1
        else:
            yield _Part(re.compile(re.escape(character)))


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    """Translate the rest of a ``[…]``, as Go reads it: only ``^`` negates."""
    is_negated = pattern[at : at + 1] == "^"
    at += is_negated
    members: list[str] = []
    while not (members and pattern[at : at + 1] == "]"):
        low, at = _class_member(pattern, at)
        if pattern[at : at + 1] == "-":
            high, at = _class_member(pattern, at + 1)
            members.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            members.append(re.escape(low))
    return f"[{'^' if is_negated else ''}{''.join(members)}]", at + 1


def _class_member(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise ValueError("malformed character class")
    if pattern[at] == "\\":
        at += 1
        if at == len(pattern):
            raise ValueError("nothing to escape")
    return pattern[at], at + 1
