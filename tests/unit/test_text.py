"""What other machines say cannot do anything to the terminal that it is shown on."""

from collections.abc import Iterator
from pathlib import Path

import loguru
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbue.mngr_vps_docker.docker_over_ssh import BuildSpec, DockerOverSsh
from imbue.mngr_vps_docker.errors import VpsApiError, VpsDockerError
from imbue.mngr_vps_docker.lifecycle.image import _log_build_line
from imbue.mngr_vps_docker.ssh.connection import Stream
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, OutcomeStatus
from imbue.mngr_vps_docker.text import logger, printable, printable_data, without_passwords
from support.local_machine import LocalMachine

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\b\u202e\udcff"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def outcome(stdout: str = "", stderr: str = "", exit_code: int = 1) -> CommandOutcome:
    return CommandOutcome(
        OutcomeStatus.COMPLETED,
        argv=(),
        host="the VPS",
        purpose=f"read {NASTY}",
        elapsed_seconds=1,
        exit_code=exit_code,
        stdout=stdout.encode("utf-8", "surrogateescape"),
        stderr=stderr.encode("utf-8", "surrogateescape"),
    )


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = loguru.logger.add(lines.append, level=0, format="{message}")
    yield lines
    loguru.logger.remove(sink)


@given(st.text())
def test_text_stays_as_it_is_where_it_can_be_shown_and_is_written_out_where_not(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


@given(JSON)
def test_all_text_in_data_is_made_so(data: object) -> None:
    def texts(part: object) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        for inner in part if isinstance(part, list) else (*part, *part.values()) if isinstance(part, dict) else ():
            yield from texts(inner)

    assert all(text.isprintable() for text in texts(printable_data(data)))


@pytest.mark.parametrize(
    "error",
    [
        VpsDockerError(NASTY),
        VpsApiError(500, NASTY),
        outcome(stderr=NASTY).error(),
        outcome(stdout=f"a\n{NASTY}").error(),
    ],
)
def test_no_error_carries_an_escape_sequence(error: VpsDockerError) -> None:
    assert error.format_message().isprintable()
    assert error.message.isprintable()


def test_no_message_is_longer_than_anybody_reads(logged: list[str]) -> None:
    error = outcome(stderr=f"begin{'x' * 100_000}end").error()
    assert "begin" in error.message and error.message.endswith("end")
    logger.warning("Left out {}", "x" * 100_000)
    for message in (error.message, *logged):
        assert message.count("x") <= 16 << 10
    # Each character of these is written out as several.
    assert len(outcome(stderr=NASTY * 100_000).error().message) < 200_000


def test_a_failed_build_is_shown_in_lines_of_plain_text(tmp_path: Path) -> None:
    machine = LocalMachine(tmp_path)
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nprintf 'one\\n\\033[2Jtwo\\n'; exit 1\n")
    with pytest.raises(VpsDockerError) as failure:
        DockerOverSsh(machine).build(BuildSpec("t", "/"))
    assert str(failure.value).splitlines()[-2:] == ["one", r"\x1b[2Jtwo"]


def test_no_line_of_the_log_carries_an_escape_sequence_or_passes_for_two(logged: list[str]) -> None:
    logger.warning("Left out {} on {}", NASTY, "a\nERROR forged")
    _log_build_line(NASTY, Stream.STDOUT)
    assert len(logged) == 2
    assert all(line.removesuffix("\n").isprintable() for line in logged)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://user:hunter2@example.org/x.git", "https://***@example.org/x.git"),
        ("git clone HTTPS://hunter2@example.org:8080/x", "git clone HTTPS://***@example.org:8080/x"),
        ("ssh://git:hunter2@example.org/x and http://a:hunter2@b", "ssh://git:***@example.org/x and http://***@b"),
        ("https://user:p@ss@example.org", "https://***@example.org"),
        (f"https://user:{'x' * 5000}@example.org", "https://***@example.org"),
        ("ssh://git@example.org/x, git@example.org:x, https://example.org/a@b", None),
    ],
)
def test_no_password_of_a_url_is_in_a_message_or_the_log(url: str, masked: str | None, logged: list[str]) -> None:
    logger.info("{}", url)
    expected = masked or url
    assert (without_passwords(url), str(VpsDockerError(url)), logged) == (expected, expected, [f"{expected}\n"])
