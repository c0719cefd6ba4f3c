"""Telling a command's own output and end from everything around it.

ssh's exit code 255 is also a command's, a login shell may print before the command runs, and a connection that breaks
leaves no trace. So the machine prints a line with a nonce on both streams when the command starts, and one with its
exit code when it has ended: without the second on both, the end was not seen. What comes after that is of processes
that the command has left running.
"""

import codecs
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from imbue.mngr_vps_docker.ssh.shell import as_stdin, quote, run_from_stdin

# ASCII's record separator: hardly ever printed, so that a stream is hardly ever held back to see what follows.
_RECORD_SEPARATOR: Final = b"\x1e"
_LONGEST_MARKER_BYTES: Final = 80
# What is kept of each stream of what comes before the command starts: enough to say why it does not.
_NOISE_TAIL_BYTES: Final = 4 << 10
# More than any login shell's greeting.
_NOISE_LIMIT_BYTES: Final = 1 << 20
# A line that is longer is handed on in pieces of about this length.
_LONGEST_LINE: Final = 1 << 20
# From TERM to KILL, for a command that has reached its deadline.
_KILL_AFTER_SECONDS: Final = 5
# How often, every tenth of a second, what was told to end is looked for.
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

    def start_line(self, process_id: int) -> bytes:
        """The line that says that the command starts, as a child of the machine's process ``process_id``."""
        return b"%s:%d\n" % (self.marker, process_id)

    def end_line(self, exit_code: int, began_at: str = "0", ended_at: str = "0") -> bytes:
        """The line that says how and when the command ended, by the machine's clock."""
        return f"{self.marker.decode()} {exit_code} {began_at} {ended_at}\n".encode()

    def script(self, command: str, *, is_watched: bool = False) -> bytes:
        """What stdin begins with, so that the text of ``wrap`` runs ``command``.

        If it ``is_watched``, it has an empty stdin, and the end of ours ends it: that comes when we are killed, or the
        connection is lost.
        """
        if not is_watched:
            return as_stdin(command)
        # In the background, and not a child of the command's shell, whose `wait` would wait for it. It ends
        # timeout(1), which ends all that it runs; once that is gone, another process may have its pid.
        end = f"read -r _ <&3; trap '' TERM; grep -q {self.nonce} /proc/$PPID/cmdline && kill -TERM $PPID $$"
        return f"exec 3<&0 </dev/null; ({{ {end}; }} >/dev/null 2>&1 &); exec 3<&-; ".encode() + as_stdin(command)

    def wrap(self, script_bytes: int, timeout_seconds: float) -> str:
        """Shell text that runs a ``script`` of that size between its markers, ended by the machine at its deadline.

        It is the same for all commands, since everybody on this machine can see it in a list of processes, and one
        word that every login shell reads alike.
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
        """Shell text that ends what ``process_id``, of the start line, is running, just as its deadline would.

        It itself ends as well: nobody reads any more what it would have to say, and it would wait for that for ever.
        But after the others, if they end at all: sshd closes the command's input once this process has gone, and so it
        does when our ssh goes, which must wait for the end of this text. To the command, that would be the end of its
        input. A pid may be somebody else's by then, but nobody else has the nonce in his command line.
        """
        is_there = f"grep -q {self.nonce} /proc/{process_id}/cmdline 2>/dev/null"
        return (
            # timeout(1) passes the signal on to its whole group; where there is none, nobody does.
            "under() { for child in $(cat /proc/$1/task/$1/children); do echo $child;"
            " grep -q ^timeout /proc/$child/cmdline || (under $child); done; };"
            f' {is_there} || exit; set -- $(under {process_id}); kill -TERM "$@";'
            # What has ended and is not yet reaped has no command line.
            f" for _ in {' '.join('.' * _ENDING_POLLS)}; do for child; do"
            " grep -q . /proc/$child/cmdline 2>/dev/null && sleep 0.1 && continue 2; done; break; done;"
            f" {is_there} && kill -TERM {process_id}"
        )


def is_time_out(exit_code: int, ran_seconds: float, timeout_seconds: float) -> bool:
    """Whether an exit code is that of the deadline and not the command's own."""
    return exit_code in TIMED_OUT_CODES and ran_seconds >= timeout_seconds - _CLOCK_SECONDS


class OutputLimitError(Exception):
    """More was printed than is taken: whatever prints it is to be ended."""


class OutputReader:
    """Takes ssh's output piece by piece and keeps what is the command's own.

    Each piece goes to ``on_chunk(chunk, is_stdout)`` as it comes, if given; ``on_begin`` is called before each further
    attempt. All output is kept, or the last ``tail_bytes`` of each stream. Raises OutputLimitError once both streams
    together have more than ``limit_bytes``, if given, or what comes before the command starts has no end.
    """

    def __init__(
        self,
        *,
        on_chunk: Callable[[bytes, bool], None] | None = None,
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
        self._framing = framing
        marker = re.escape(framing.marker)
        self._start_line = re.compile(marker + rb":(\d{1,10})\n")
        self._end_line = re.compile(marker + rb" (\d{1,3}) (\d{1,12}(?:\.\d{1,2})?) (\d{1,12}(?:\.\d{1,2})?)\n")
        self._kept = {True: bytearray(), False: bytearray()}
        self._held = {True: b"", False: b""}
        self._is_started = {True: False, False: False}
        self._ends: dict[bool, int] = {}
        self._before = {True: bytearray(), False: bytearray()}
        self._noise_bytes = 0
        self.byte_counts = {True: 0, False: 0}
        """How many bytes of stdout (True) and of stderr the command wrote."""
        self.ran_seconds: float | None = None
        """How long the command ran, by the machine's own clock, once its end was seen; None if it did not say."""
        self.process_id: int | None = None
        """The machine's process that runs the command and waits for it, once the command was seen to start."""
        self.excess: str | None = None
        """What there was too much of, once OutputLimitError was raised."""

    @property
    def has_started(self) -> bool:
        """Whether the command was seen to start."""
        return any(self._is_started.values())

    @property
    def exit_code(self) -> int | None:
        """The command's exit code, once its end was seen on both streams: nothing of its own can come any more."""
        return self._ends[False] if len(self._ends) == len(self._is_started) else None

    @property
    def messages(self) -> str:
        """The end of what came on stderr before the command started: ssh's own words, and those of a login shell."""
        return bytes(self._before[False]).decode("utf-8", "replace")

    @property
    def greeting(self) -> str:
        """The end of what came on stdout before the command started: from the start-up files of a login shell."""
        return bytes(self._before[True]).decode("utf-8", "replace")

    @property
    def noise(self) -> str:
        """The end of what came before the command started, on stderr or else on stdout."""
        return self.messages.strip() or self.greeting.strip()

    @property
    def stdout(self) -> bytes:
        """The command's standard output, as far as it was kept."""
        return bytes(self._kept[True])

    @property
    def stderr(self) -> bytes:
        """The command's standard error, as far as it was kept."""
        return bytes(self._kept[False])

    def __call__(self, chunk: bytes, is_stdout: bool) -> None:
        """Take the next piece of one stream."""
        data = self._held[is_stdout] + chunk
        self._held[is_stdout] = b""
        if not self._is_started[is_stdout]:
            start = self._start_line.search(data)
            if start is None:
                self._note_before(self._without_possible_marker(data, is_stdout), is_stdout)
                return
            self._is_started[is_stdout] = True
            self.process_id = int(start[1])
            self._note_before(data[: start.start()], is_stdout)
            data = data[start.end() :]
        if is_stdout not in self._ends:
            end = self._end_line.search(data)
            if end is None:
                data = self._without_possible_marker(data, is_stdout)
            else:
                self._keep(data[: end.start()], is_stdout)
                self._note_end(end, is_stdout)
                # What follows comes from what the command has left running.
                data = data[end.end() :]
        self._keep(data, is_stdout)

    def finish(self) -> None:
        """Nothing more will come: judge what was held back."""
        for is_stdout in (True, False):
            held, self._held[is_stdout] = self._held[is_stdout], b""
            if self._is_started[is_stdout]:
                self._keep(held, is_stdout)
            else:
                self._note_before(held, is_stdout)

    def _note_end(self, end: re.Match[bytes], is_stdout: bool) -> None:
        code, began_at, ended_at = end.groups()
        self._ends[is_stdout] = int(code)
        # A machine without such a clock says 0.
        self.ran_seconds = float(ended_at) - float(began_at) if float(ended_at) else None

    def _without_possible_marker(self, data: bytes, is_stdout: bool) -> bytes:
        marker = self._framing.marker
        possible = data.rfind(_RECORD_SEPARATOR, max(0, len(data) - _LONGEST_MARKER_BYTES))
        if possible < 0 or not marker.startswith(data[possible : possible + len(marker)]):
            return data
        self._held[is_stdout] = data[possible:]
        return data[:possible]

    def _note_before(self, noise: bytes, is_stdout: bool) -> None:
        self._noise_bytes += len(noise)
        if self._noise_bytes > _NOISE_LIMIT_BYTES:
            self._refuse(f"more than {_NOISE_LIMIT_BYTES} bytes came before it started")
        before = self._before[is_stdout]
        before += noise
        del before[:-_NOISE_TAIL_BYTES]

    def _refuse(self, excess: str) -> NoReturn:
        self.excess = excess
        raise OutputLimitError(excess)

    def _keep(self, data: bytes, is_stdout: bool) -> None:
        if not data:
            return
        if self._limit_bytes is not None and sum(self.byte_counts.values()) + len(data) > self._limit_bytes:
            if self.exit_code is not None:
                # Of what was left running nothing is wanted.
                return
            self._refuse(f"it printed more than {self._limit_bytes} bytes")
        self.byte_counts[is_stdout] += len(data)
        kept = self._kept[is_stdout]
        kept += data
        if self._tail_bytes is not None and len(kept) > 2 * self._tail_bytes:
            del kept[: -self._tail_bytes]
        if self._on_chunk is not None:
            self._on_chunk(data, is_stdout)


class LineSplitter:
    """Turns pieces of two streams into whole lines of text, without their ends; what is not UTF-8 is replaced.

    A line without end is handed on in pieces.
    """

    def __init__(self, on_line: Callable[[str, bool], None]) -> None:
        self._on_line = on_line
        self._decoders = {is_stdout: codecs.getincrementaldecoder("utf-8")("replace") for is_stdout in (True, False)}
        self._begun = {True: io.StringIO(), False: io.StringIO()}

    def __call__(self, chunk: bytes, is_stdout: bool) -> None:
        """Take the next piece of one stream."""
        begun = self._begun[is_stdout]
        first, *others = self._decoders[is_stdout].decode(chunk).split("\n")
        begun.write(first)
        for other in others:
            self._hand_on(is_stdout)
            begun.write(other)
        if begun.tell() > _LONGEST_LINE:
            self._hand_on(is_stdout)

    def flush(self) -> None:
        """Hand on last lines that have no end, and begin anew."""
        for is_stdout, begun in self._begun.items():
            begun.write(self._decoders[is_stdout].decode(b"", final=True))
            if begun.tell():
                self._hand_on(is_stdout)

    def _hand_on(self, is_stdout: bool) -> None:
        begun = self._begun[is_stdout]
        line = begun.getvalue()
        begun.seek(0)
        begun.truncate()
        self._on_line(line.removesuffix("\r"), is_stdout)
