"""One stream to a command over several sessions of one login.

A session has at most 2 MiB on the way (OpenSSH's channel window), so that over a distance of 100 ms it moves 16 MB/s
however fast the network is. The stream is cut into blocks that take turns over the sessions, each after a line with
its size in bytes; a size of 0 ends it. So what was cut off is never taken for whole, and the command that it was for
is ended before it sees an end.
"""

import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import cycle
from threading import Event
from typing import Final

from imbue.mngr_vps_docker.ssh.chunk_queue import AbandonedError, ChunkQueue
from imbue.mngr_vps_docker.ssh.connection import SshConnection
from imbue.mngr_vps_docker.ssh.file_scripts import CUT_OFF
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome, Effect
from imbue.mngr_vps_docker.ssh.shell import quote

# Below sshd's own limit and ours, with room for what else is asked of the machine meanwhile.
_SESSIONS: Final = 5
_BLOCK_BYTES: Final = 1 << 20
_QUEUED_BLOCKS: Final = 4
_FIRST_DESCRIPTOR: Final = 3
_CLEANING_SECONDS: Final = 5.0
# How long a command may take to end by itself once one of its streams has.
_LAST_WORDS_SECONDS: Final = 2.0


def upload_tars(
    connection: SshConnection, command: str, chunks: Iterable[bytes], *, purpose: str, timeout_seconds: float
) -> CommandOutcome:
    """Run shell text ``command`` with ``chunks`` as its stdin, and return its outcome, as SshConnection.run does.

    It must read all of them, and what it read counts only if its outcome is a success. What ``chunks`` raises ends the
    command, and is raised. A stream that is short goes over one session, as SshConnection.run has it.
    """
    blocks = _blocks(chunks)
    first, second = next(blocks, b""), next(blocks, None)
    if second is None:
        return connection.run(command, purpose=purpose, timeout_seconds=timeout_seconds, stdin=first)
    queues = [ChunkQueue(_QUEUED_BLOCKS) for _ in range(_SESSIONS)]
    folder = f"/tmp/mngr-stream-{secrets.token_hex(16)}"
    scripts = (_merging(folder, command), *(_feeding(folder, number) for number in range(1, _SESSIONS)))

    has_command_ended = Event()

    def run(script: str, stripe: ChunkQueue) -> CommandOutcome | None:
        outcome = None
        try:
            outcome = connection.run(script, purpose=purpose, timeout_seconds=timeout_seconds, stdin=stripe.arriving())
        except AbandonedError:
            # Another session, or what is to be sent, has failed: this one has been ended because of that.
            pass
        finally:
            if stripe is queues[0]:
                has_command_ended.set()
            if outcome is None or not outcome.is_success:
                for queue in queues[1:]:
                    queue.abandon()
                # The others fail when the command does: it may just be telling why.
                has_command_ended.wait(_LAST_WORDS_SECONDS)
                queues[0].abandon()
        return outcome

    outcome: CommandOutcome | None = None
    try:
        with ThreadPoolExecutor(_SESSIONS, thread_name_prefix="stream") as pool:
            running = [
                pool.submit(copy_context().run, run, script, queue)
                for script, queue in zip(scripts, queues, strict=True)
            ]
            try:
                _deal([first, second], blocks, queues)
            except AbandonedError:
                # A session has ended before its time; its outcome says why.
                pass
            except BaseException:
                for queue in queues:
                    queue.abandon()
                raise
        outcome = _decisive(running)
        return outcome
    finally:
        if outcome is None or outcome.exit_code not in (0, None):
            # A shell that is killed, or begins when the others have ended, removes nothing.
            connection.run(
                f"rm -rf {folder}",
                purpose="remove what a broken stream left",
                timeout_seconds=_CLEANING_SECONDS,
                effect=Effect.IDEMPOTENT,
            )


def _deal(begun: Iterable[bytes], blocks: Iterator[bytes], queues: list[ChunkQueue]) -> None:
    """Give each queue a block in turn, then the end of the stream to the one whose turn it is, and end them all."""
    turns = cycle(queues)
    for part in (begun, blocks):
        for block in part:
            queue = next(turns)
            queue.put(b"%d\n" % len(block))
            queue.put(block)
    next(turns).put(b"0\n")
    for queue in queues:
        queue.finish()


def _decisive(running: list[Future[CommandOutcome | None]]) -> CommandOutcome:
    """The outcome of the command itself if that ended by itself, else that of the session which broke."""
    command, *others = (future.result() for future in running)
    if command is not None and command.exit_code not in (0, CUT_OFF, None):
        return command
    ended = [outcome for outcome in (*others, command) if outcome is not None]
    return next((outcome for outcome in ended if not outcome.is_success), ended[-1])


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ``_BLOCK_BYTES`` bytes, the last one shorter."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        while len(gathered) >= _BLOCK_BYTES:
            yield bytes(gathered[:_BLOCK_BYTES])
            del gathered[:_BLOCK_BYTES]
    if gathered:
        yield bytes(gathered)


def _meeting_point(folder: str, number: int) -> str:
    """Shell text that makes the FIFO over which a session hands its blocks on, whoever comes first."""
    fifo = f"{folder}/{number}"
    return f"{{ [ -p {fifo} ] || mkfifo {fifo} 2>/dev/null || [ -p {fifo} ]; }}"


def _feeding(folder: str, number: int) -> str:
    return f"""\
umask 077
trap 'rm -rf {folder}; exit 143' HUP INT TERM
mkdir -p {folder} && {_meeting_point(folder, number)} && cat >{folder}/{number}
"""


def _merging(folder: str, command: str) -> str:
    """Shell text that runs ``command`` with the blocks of all sessions, in order, as its stdin."""
    descriptors = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + _SESSIONS)
    fifos = range(1, _SESSIONS)
    meet = " && ".join(_meeting_point(folder, number) for number in (*fifos, _SESSIONS))
    opened = " ".join(f"{_FIRST_DESCRIPTOR + number}<{folder}/{number}" for number in fifos)
    closed = " ".join(f"{descriptor}<&-" for descriptor in descriptors)
    block = "\n".join(
        f"read -r size <&{descriptor} || return {CUT_OFF}\n"
        f'[ "$size" != 0 ] || return 0\n'
        f'head -c "$size" <&{descriptor} >&9 || return'
        for descriptor in descriptors
    )
    # The trap for signals comes after the fork: a child that has not reset it yet would drop one, and wait for ever.
    return f"""\
umask 077
trap 'rm -rf {folder}' EXIT
mkdir -p {folder} && {meet} || exit
sh -c {quote(command)} <{folder}/{_SESSIONS} &
trap 'kill $! 2>/dev/null; exit 143' HUP INT TERM
exec {_FIRST_DESCRIPTOR}<&0 {opened} 9>{folder}/{_SESSIONS}
rm -rf {folder}
merge() {{
while :; do
{block}
done
}}
merge
merged=$?
[ $merged -eq 0 ] || kill $! 2>/dev/null
exec {closed} 9>&-
wait $! || exit
exit $merged
"""
