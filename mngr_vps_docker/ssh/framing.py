"""Telling a command's own output and end from everything around it.

ssh's exit code 255 is also a command's, a login shell may print before the command runs, and a connection that breaks
leaves no trace. So the machine prints a line with a nonce on both streams when the command starts, and one with its
exit code when it has ended: without the second on both, the end was not seen. Output after that comes from processes
that the command has left running.
"""

import codecs
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from imbue.mngr_vps_docker.ssh.process import OnChunk, Stream
from imbue.mngr_vps_docker.ssh.shell import as_stdin, quote, run_from_stdin

type OnLine = Callable[[str, Stream], None]

# ASCII's record separator: rarely printed, so that output is rarely held back to see what follows.
_RECORD_SEPARATOR: Final = b"\x1e"
_LONGEST_MARKER_BYTES: Final = 80
# What is kept of each stream from before the command's start: enough to say why it does not start.
_NOISE_TAIL_BYTES: Final = 4 << 10
# More than any login shell's greeting.
_NOISE_LIMIT_BYTES: Final = 1 << 20
# A line that is longer is handed on in pieces of about this length.
_LONGEST_LINE: Final = 1 << 20
# From TERM to KILL, for a command that has reached its deadline.
_KILL_AFTER_SECONDS: Final = 5
# How often, every tenth of a second, processes that were told to end are looked for.
_ENDING_POLLS: Final = 20
# timeout(1) exits with 124 when TERM ended the command (busybox's with 143), 137 when KILL had to.
TIMED_OUT_CODES: Final = frozenset({124, 137, 143})
# The machine's clock says hundredths of seconds, rounded down.
_CLOCK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Framing:
    """The markers of one attempt, made unforgeable by ``nonce``."""

    nonce: str

    @property
    def marker(self) -> bytes:
        """What both lines begin with."""
        return _RECORD_SEPARATOR + self.nonce.encode()

    def script(self, command: str, *, is_watched: bool = False) -> bytes:
        """What stdin begins with, so that the text of ``wrap`` runs ``command``.

        If it ``is_watched``, it has an empty stdin, and the end of ours ends it: we were killed, or the connection was
        lost.
        """
        if not is_watched:
            return as_stdin(command)
        # In the background, and not a child of the command's shell, whose `wait` would wait for it. It ends
        # timeout(1), which ends all that it runs; the nonce tells that process from a later one with its pid.
        end = f"read -r _ <&3; trap '' TERM; grep -q {self.nonce} /proc/$PPID/cmdline && kill -TERM $PPID $$"
        return f"exec 3<&0 </dev/null; ({{ {end}; }} >/dev/null 2>&1 &); exec 3<&-; ".encode() + as_stdin(command)

    def wrap(self, script_bytes: int, timeout_seconds: float) -> str:
        """Shell text that runs a ``script`` of that size between its markers, ended by the machine at its deadline.

        It does not depend on the command, since every user of this machine can see it in a list of processes. Quoted,
        it is one word to any login shell.
        """
        start = f"printf '\\036%s:%d\\n' {self.nonce} $$"
        end = f"printf '\\036%s %d %s %s\\n' {self.nonce} $rc ${{began:-0}} ${{ended:-0}}"
        # The nonce tells whose processes these are.
        run = f"{run_from_stdin(script_bytes)} # {self.nonce}"
        script = (
            f'command -v timeout >/dev/null || timeout() {{ shift 3; "$@"; }}; {start}; {start} >&2;'
            " read -r began _ 2>/dev/null </proc/uptime;"
            f" timeout -k {_KILL_AFTER_SECONDS} {timeout_seconds:g} sh -c {quote(run)}; rc=$?;"
            f" read -r ended _ 2>/dev/null </proc/uptime; {end}; {end} >&2; exit $rc"
        )
        return f"sh -c {quote(script)}"

    def end_command(self, process_id: int) -> str:
        """Shell text that ends what ``process_id``, of the start line, is running, as its deadline would.

        Then it ends that process itself, which would wait for a reader of its output. It does so last: sshd closes the
        command's stdin once that process or our ssh has ended, and to the command this would be the end of its input.
        Where the pid belongs to another process by now, that one has no nonce in its command line.
        """
        is_there = f"grep -q {self.nonce} /proc/{process_id}/cmdline 2>/dev/null"
        return (
            # timeout(1) passes the signal on to its whole group; without it, each process is told.
            "under() { for child in $(cat /proc/$1/task/$1/children); do echo $child;"
            " grep -q ^timeout /proc/$child/cmdline || (under $child); done; };"
            f' {is_there} || exit; set -- $(under {process_id}); kill -TERM "$@";'
            # A zombie has an empty command line.
            f" for _ in {' '.join('.' * _ENDING_POLLS)}; do for child; do"
            " grep -q . /proc/$child/cmdline 2>/dev/null && sleep 0.1 && continue 2; done; break; done;"
            f" {is_there} && kill -TERM {process_id}"
        )


def is_time_out(exit_code: int, ran_seconds: float, timeout_seconds: float) -> bool:
    """Whether an exit code is timeout(1)'s at the deadline, and not the command's own."""
    return exit_code in TIMED_OUT_CODES and ran_seconds >= timeout_seconds - _CLOCK_SECONDS


class OutputLimitError(Exception):
    """More was printed than is taken: the program that prints it is to be ended."""


@dataclass(slots=True)
class _StreamState:
    """One stream of one attempt; ``held`` may be the beginning of a marker, ``noise`` came before the start."""

    stream: Stream
    has_started: bool = False
    exit_code: int | None = None
    held: bytes = b""
    noise: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    byte_count: int = 0


class OutputReader:
    """Takes ssh's output piece by piece and keeps what is the command's own.

    Each piece goes to ``on_chunk`` as it comes, if given; ``on_begin`` is called before each further attempt. All
    output is kept, or the last ``tail_bytes`` of each stream. Raises OutputLimitError once both streams together have
    more than ``limit_bytes``, if given, or more than a mebibyte comes before the command starts.
    """

    def __init__(
        self,
        *,
        on_chunk: OnChunk | None = None,
        on_begin: Callable[[], None] | None = None,
        tail_bytes: int | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        self._on_chunk = on_chunk
        self._on_begin = on_begin
        self._tail_bytes = tail_bytes
        self._limit_bytes = limit_bytes
        self.begin(Framing(""))

    def begin(self, framing: Framing) -> None:
        """Start over, for an attempt with other markers."""
        if self._on_begin is not None:
            self._on_begin()
        self._marker = framing.marker
        marker = re.escape(framing.marker)
        self._start_line = re.compile(marker + rb":(\d{1,10})\n")
        self._end_line = re.compile(marker + rb" (\d{1,3}) (\d{1,12}(?:\.\d{1,2})?) (\d{1,12}(?:\.\d{1,2})?)\n")
        self._stdout, self._stderr = _StreamState(Stream.STDOUT), _StreamState(Stream.STDERR)
        self._noise_bytes = 0
        self.ran_seconds: float | None = None
        """How long the command ran, by the machine's own clock, once its end was seen; None if it did not say."""
        self.process_id: int | None = None
        """The machine's process that runs the command and waits for it, once the command was seen to start."""
        self.excess: str | None = None
        """What there was too much of, once OutputLimitError was raised."""

    @property
    def has_started(self) -> bool:
        """Whether the command was seen to start."""
        return self._stdout.has_started or self._stderr.has_started

    @property
    def exit_code(self) -> int | None:
        """The command's exit code, once its end was seen on both streams: nothing of its own can come any more."""
        return None if self._stdout.exit_code is None else self._stderr.exit_code

    @property
    def messages(self) -> str:
        """The end of what came on stderr before the command started: ssh's own words, and those of a login shell."""
        return self._stderr.noise.decode("utf-8", "replace")

    @property
    def greeting(self) -> str:
        """The end of what came on stdout before the command started: from the start-up files of a login shell."""
        return self._stdout.noise.decode("utf-8", "replace")

    @property
    def stdout(self) -> bytes:
        """The command's standard output, as far as it was kept."""
        return bytes(self._stdout.kept)

    @property
    def stderr(self) -> bytes:
        """The command's standard error, as far as it was kept."""
        return bytes(self._stderr.kept)

    @property
    def byte_counts(self) -> tuple[int, int]:
        """How many bytes the command wrote to stdout and to stderr."""
        return self._stdout.byte_count, self._stderr.byte_count

    def __call__(self, chunk: bytes, stream: Stream) -> None:
        """Take the next piece of one stream."""
        state = self._stdout if stream is Stream.STDOUT else self._stderr
        data, state.held = state.held + chunk, b""
        if not state.has_started:
            start = self._start_line.search(data)
            if start is None:
                self._keep_noise(self._without_possible_marker(data, state), state)
                return
            state.has_started = True
            self.process_id = int(start[1])
            self._keep_noise(data[: start.start()], state)
            data = data[start.end() :]
        if state.exit_code is None:
            end = self._end_line.search(data)
            if end is None:
                data = self._without_possible_marker(data, state)
            else:
                self._keep(data[: end.start()], state)
                code, began_at, ended_at = end.groups()
                state.exit_code = int(code)
                # A machine without such a clock says 0.
                self.ran_seconds = float(ended_at) - float(began_at) if float(ended_at) else None
                # What follows comes from processes that the command has left running.
                data = data[end.end() :]
        self._keep(data, state)

    def finish(self) -> None:
        """Nothing more will come: bytes that were held back are not a marker."""
        for state in (self._stdout, self._stderr):
            held, state.held = state.held, b""
            (self._keep if state.has_started else self._keep_noise)(held, state)

    def _without_possible_marker(self, data: bytes, state: _StreamState) -> bytes:
        possible = data.rfind(_RECORD_SEPARATOR, max(0, len(data) - _LONGEST_MARKER_BYTES))
        if possible < 0 or not self._marker.startswith(data[possible : possible + len(self._marker)]):
            return data
        state.held = data[possible:]
        return data[:possible]

    def _keep_noise(self, noise: bytes, state: _StreamState) -> None:
        self._noise_bytes += len(noise)
        if self._noise_bytes > _NOISE_LIMIT_BYTES:
            self._refuse(f"more than {_NOISE_LIMIT_BYTES} bytes came before it started")
        state.noise += noise
        del state.noise[:-_NOISE_TAIL_BYTES]

    def _refuse(self, excess: str) -> NoReturn:
        self.excess = excess
        raise OutputLimitError(excess)

    def _keep(self, data: bytes, state: _StreamState) -> None:
        if not data:
            return
        if self._limit_bytes is not None and sum(self.byte_counts) + len(data) > self._limit_bytes:
            if self.exit_code is not None:
                # It comes from processes that were left running.
                return
            self._refuse(f"it printed more than {self._limit_bytes} bytes")
        state.byte_count += len(data)
        state.kept += data
        if self._tail_bytes is not None and len(state.kept) > 2 * self._tail_bytes:
            del state.kept[: -self._tail_bytes]
        if self._on_chunk is not None:
            self._on_chunk(data, state.stream)


class LineSplitter:
    """Turns pieces of two streams into whole lines of text, without their ends; bytes that are not UTF-8 are replaced.

    A line without end is handed on in pieces of about a mebibyte.
    """

    def __init__(self, on_line: OnLine) -> None:
        self._lines = {stream: _Lines(stream, on_line) for stream in Stream}

    def __call__(self, chunk: bytes, stream: Stream) -> None:
        """Take the next piece of one stream."""
        self._lines[stream].add(chunk)

    def flush(self) -> None:
        """Hand on last lines that have no end, and start over."""
        for lines in self._lines.values():
            lines.flush()


class _Lines:
    """The lines of one stream; ``_line`` holds the beginning of the next."""

    def __init__(self, stream: Stream, on_line: OnLine) -> None:
        self._stream = stream
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = io.StringIO()

    def add(self, chunk: bytes) -> None:
        first, *others = self._decoder.decode(chunk).split("\n")
        self._line.write(first)
        for other in others:
            self._hand_on()
            self._line.write(other)
        if self._line.tell() > _LONGEST_LINE:
            self._hand_on()

    def flush(self) -> None:
        self._line.write(self._decoder.decode(b"", final=True))
        if self._line.tell():
            self._hand_on()

    def _hand_on(self) -> None:
        line = self._line.getvalue()
        self._line = io.StringIO()
        self._on_line(line.removesuffix("\r"), self._stream)
