"""Which files of a directory Docker takes into a build, by its ``.dockerignore``.

The rules are those of moby/patternmatcher and BuildKit, which the Docker SDK's own matcher differs from (it ignores
case, and loses files below ``!**/name``): https://docs.docker.com/build/concepts/context/#dockerignore-files.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imbue.mngr_vps_docker.errors import BuildContextError

DOCKERIGNORE = ".dockerignore"


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]
    is_exception: bool


@dataclass(frozen=True, slots=True)
class MatchState:
    """What is known of one path, for the paths below it: which patterns match it, and whether it is left out."""

    matched: tuple[bool, ...]
    is_ignored: bool


@dataclass(frozen=True, slots=True)
class IgnorePatterns:
    """The patterns of one ignore file, in order."""

    patterns: tuple[_Pattern, ...] = ()

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
        """Understand the lines of an ignore file."""
        return cls(tuple(_parse_line(line.strip(), source) for line in lines if _is_pattern(line)))

    @property
    def has_exceptions(self) -> bool:
        """Whether something below an ignored directory may be taken all the same."""
        return any(pattern.is_exception for pattern in self.patterns)

    @property
    def root(self) -> MatchState:
        """The state of the directory itself, which is never left out."""
        return MatchState(matched=(False,) * len(self.patterns), is_ignored=False)

    def match(self, path: str, parent: MatchState) -> MatchState:
        """The state of ``path`` (relative, with ``/``), given that of the directory it lies in.

        A pattern that matches a directory matches all that is in it; the last pattern that matches decides.
        """
        matched = tuple(
            above or pattern.regex.fullmatch(path) is not None
            for above, pattern in zip(parent.matched, self.patterns, strict=True)
        )
        deciding = next((p for hit, p in zip(reversed(matched), reversed(self.patterns), strict=True) if hit), None)
        return MatchState(matched, is_ignored=deciding is not None and not deciding.is_exception)

    def ignores(self, path: str) -> bool:
        """Whether ``path`` is left out."""
        state = self.root
        parts = path.split("/")
        for length in range(1, len(parts) + 1):
            state = self.match("/".join(parts[:length]), state)
        return state.is_ignored


def ignore_file_for(context_dir: Path, dockerfile: Path) -> Path | None:
    """The ignore file that counts: the Dockerfile's own (``<Dockerfile>.dockerignore``) before the context's."""
    candidates = (dockerfile.with_name(f"{dockerfile.name}{DOCKERIGNORE}"), context_dir / DOCKERIGNORE)
    return next((path for path in candidates if path.is_file()), None)


def _is_pattern(line: str) -> bool:
    # A comment begins in the first column; "#" after a space is a name.
    return not line.startswith("#") and line.strip() != ""


def _parse_line(text: str, source: str) -> _Pattern:
    is_exception = text.startswith("!")
    name = text.removeprefix("!").strip()
    if not name:
        raise BuildContextError(f"{source} has a '!' without a pattern; write what is to be taken behind it")
    # normpath leaves two leading slashes alone, which Docker takes for one.
    cleaned = posixpath.normpath("/" + name.lstrip("/") if name.startswith("/") else name)
    if len(cleaned) > 1:
        cleaned = cleaned.removeprefix("/")
    try:
        return _Pattern(re.compile(_to_regex(cleaned), re.DOTALL), is_exception)
    except (ValueError, re.error) as error:
        raise BuildContextError(f"{source} has a pattern that Docker cannot read: {text}") from error


def _to_regex(pattern: str) -> str:
    """Translate a pattern as moby/patternmatcher does; ValueError or re.error if it is malformed."""
    regex: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*" and pattern[at : at + 1] == "*":
            at += 1
            if pattern[at : at + 1] == "/":
                at += 1
            regex.append(".*" if at == len(pattern) else "(?:.*/)?")
        elif character == "*":
            regex.append("[^/]*")
        elif character == "?":
            regex.append("[^/]")
        elif character == "[":
            text, at = _character_class(pattern, at)
            regex.append(text)
        elif character == "\\":
            if at == len(pattern):
                raise ValueError("nothing to escape")
            regex.append(re.escape(pattern[at]))
            at += 1
        else:
            regex.append(re.escape(character))
    return "".join(regex)


def _character_class(pattern: str, at: int) -> tuple[str, int]:
    """Translate what is behind a ``[``; only ``^`` negates, as in Go."""
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
