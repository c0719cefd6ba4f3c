import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr_vps_docker.builds.dockerignore import IgnorePatterns, ignore_file_for
from imbue.mngr_vps_docker.errors import BuildContextError


# What moby/patternmatcher answers: most of these are cases of its own tests or of Docker's documentation.
@pytest.mark.parametrize(
    ("patterns", "path", "is_ignored"),
    [
        (["*"], "a", True),
        (["*"], "a/b", True),
        (["*.md"], "README.md", True),
        (["*.md"], "README.MD", False),
        (["*.md"], "docs/README.md", False),
        (["**/*.md"], "README.md", True),
        (["**/*.md"], "docs/deep/README.md", True),
        (["*/temp*"], "somedir/temporary.txt", True),
        (["*/temp*"], "temp", False),
        (["*/*/temp*"], "a/b/temporary.txt", True),
        (["temp?"], "tempa", True),
        (["temp?"], "temp", False),
        (["temp?"], "temp/", False),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["*.md", "README-secret.md", "!README*.md"], "README-secret.md", False),
        (["docs", "!docs/README.md"], "docs/README.md", False),
        (["docs", "!docs/README.md"], "docs/other.md", True),
        (["docs/README.md", "!docs"], "docs/README.md", False),
        (["*", "!**/keep"], "a/b/keep", False),
        (["*", "!**/keep"], "a/b/lose", True),
        (["**", "!util/docker/web"], "util/docker/web/foo", False),
        (["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", True),
        (["**/dir2/*"], "dir/dir2/file", True),
        (["**/dir2/*"], "dir/dir2", False),
        (["**/file"], "dir/file/below", True),
        (["**file"], "dir/afile", True),
        (["**file"], "file", True),
        (["**.env"], "dir/prod.env", True),
        (["*", "!**.md"], "docs/README.md", False),
        (["**.e?v"], "prod.env", False),
        (["**a/b"], "xa/b", True),
        (["**/**"], "dir/file/", True),
        (["dir/**"], "dir", False),
        (["dir/**"], "dir/a/b", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a/**/b"], "ab", False),
        (["/a"], "a", True),
        (["a/"], "a", True),
        (["./a"], "a", True),
        (["x/../a"], "a", True),
        (["/../a"], "a", True),
        (["../a"], "a", False),
        (["."], "a", False),
        (["/"], "a", False),
        (["  a  "], "a", True),
        (["a\r"], "a", True),
        (["# a"], "# a", False),
        ([" #a"], "#a", True),
        (["! a", ""], "a", False),
        (["*", "! a"], "a", False),
        (["a.c"], "abc", False),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["[^a-c]x"], "dx", True),
        (["[!a]x"], "!x", True),
        (["[!a]x"], "bx", False),
        ([r"a\*b"], "a*b", True),
        ([r"a\*b"], "axb", False),
        (["a$(b)"], "a$(b)", True),
        (["h\u00e4*"], "h\u00e4user", True),
        (["a b"], "a b", True),
        ([".git"], ".gitignore", False),
        (["abc"], "abcd", False),
    ],
)
def test_a_pattern_means_what_it_means_to_docker(patterns: list[str], path: str, is_ignored: bool) -> None:
    assert IgnorePatterns.parse(patterns).ignores(path.rstrip("/") if path != "temp/" else path) is is_ignored


# Python's own syntax for what each part of a pattern means to moby, whose matcher is a regular expression, too.
_REGEX_OF = {"/**/": "/(?:.*/)?", "**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_PART = re.compile(r"/\*\*/|\*\*/|/\*\*$|\*\*$|\*|\?|\[[^\]]*\]|.")


def regex_of(pattern: str) -> str:
    return "".join(_REGEX_OF.get(part, part) for part in _PART.findall(pattern))


@given(
    st.lists(st.sampled_from(["a", "b", "*", "?", "[^a]", "a*", "*b", "*a*b", "**"]), min_size=1, max_size=5),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_a_pattern_matches_what_its_regular_expression_matches(pattern: list[str], path: list[str]) -> None:
    expected = any(
        re.fullmatch(regex_of("/".join(pattern)), "/".join(path[:length])) for length in range(1, len(path) + 1)
    )
    assert IgnorePatterns.parse(["/".join(pattern)]).ignores("/".join(path)) is expected


@pytest.mark.parametrize(
    ("pattern", "path"),
    [("**/a/" * 12 + "b", "a/" * 60 + "c"), ("*a" * 30 + "b", "a" * 250), ("**/*a*a*a*a/" * 12 + "b", "aaaaaa/" * 60)],
)
def test_no_pattern_makes_the_matcher_backtrack(pattern: str, path: str) -> None:
    # In a process of its own, since a regular expression that backtracks would not end.
    code = (
        "import sys; from imbue.mngr_vps_docker.builds.dockerignore import IgnorePatterns as I;"
        "print(I.parse(sys.argv[1:2]).ignores(sys.argv[2]))"
    )
    done = subprocess.run((sys.executable, "-c", code, pattern, path), capture_output=True, timeout=60, check=True)
    assert done.stdout == b"False\n"


@pytest.mark.parametrize(
    ("patterns", "is_looked_into"),
    [
        (["a"], False),
        (["!b", "a"], False),
        (["!a/b", "a"], False),
        (["a", "!b"], False),
        (["a", "!ab"], False),
        (["a", "!b/a/c"], False),
        (["a", "!?b/c"], False),
        (["**", "!b", "a/x"], False),
        (["a", "!a/b"], True),
        (["a", "!a/b/c"], True),
        (["*", "!*/b"], True),
        (["a", "!**/b"], True),
        (["a", "![a-c]/b"], True),
        (["a", "!a/**"], True),
    ],
)
def test_an_excluded_folder_is_searched_if_an_exception_may_match_in_it(
    patterns: list[str], is_looked_into: bool
) -> None:
    ignore = IgnorePatterns.parse(patterns)
    folder = ignore.match("a", ignore.root)
    assert folder.is_ignored
    assert folder.may_have_exceptions is is_looked_into


@given(
    st.lists(st.sampled_from(["a", "!a", "!a/b", "a/b", "!**/b", "!*/a", "**", "!b*", "a/**"]), min_size=1),
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3),
)
def test_nothing_is_taken_of_a_folder_that_is_not_looked_into(patterns: list[str], below: list[str]) -> None:
    ignore = IgnorePatterns.parse(patterns)
    folder = ignore.match("a", ignore.root)
    if folder.is_ignored and not folder.may_have_exceptions:
        assert ignore.ignores("/".join(["a", *below]))


@pytest.mark.parametrize("pattern", ["!", "!  ", "[", "a[b", "[]", "[a-]", "[-x]", "a\\", "[b-a]"])
def test_a_pattern_that_docker_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(BuildContextError, match=r"\.dockerignore has"):
        IgnorePatterns.parse([pattern])


def test_a_byte_order_mark_is_not_part_of_the_first_pattern(tmp_path: Path) -> None:
    path = tmp_path / ".dockerignore"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\xff\n")
    patterns = IgnorePatterns.read(path)
    assert patterns.ignores("a")
    assert patterns.ignores("\udcff")


def test_the_dockerfile_s_own_ignore_file_counts_before_the_context_s(tmp_path: Path) -> None:
    context_dir, dockerfile = tmp_path / "context", tmp_path / "docker" / "app.Dockerfile"
    context_dir.mkdir()
    dockerfile.parent.mkdir()
    assert ignore_file_for(context_dir, dockerfile) is None
    (context_dir / ".dockerignore").touch()
    assert ignore_file_for(context_dir, dockerfile) == context_dir / ".dockerignore"
    own = tmp_path / "docker" / "app.Dockerfile.dockerignore"
    own.touch()
    assert ignore_file_for(context_dir, dockerfile) == own
