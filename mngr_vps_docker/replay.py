"""The command line of the command log: what ran on which machine, how it ended, and the line to run it again."""

import argparse
import os
import secrets
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from imbue.mngr.errors import BinaryNotInstalledError
from imbue.mngr_vps_docker.ssh.command_log import LoggedCommand, follow_log, read_log
from imbue.mngr_vps_docker.ssh.framing import Framing, OutputReader
from imbue.mngr_vps_docker.ssh.master import login_failure
from imbue.mngr_vps_docker.ssh.outcome import OutcomeStatus
from imbue.mngr_vps_docker.ssh.process import run_process
from imbue.mngr_vps_docker.text import printable

_RUN_TIMEOUT_SECONDS: Final = 120.0
_USAGE_ERROR: Final = 2
_COLUMNS: Final = "{:8}  {:19}  {:28}  {:22}  {:>8}  {:>10}  {}"

_EPILOG: Final = """\
Without --log, the log that was written last is read, of those under $MNGR_HOST_DIR (~/.mngr):
profiles/*/providers/*/*/logs/ssh.jsonl. An ID may be shortened to any unique beginning of it.
Neither secrets nor what commands were given on stdin is in the log; of a command that needs them, it is said.
"""


class ReplayError(Exception):
    """The request cannot be fulfilled; one line for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a command ends otherwise than it did, 2 for bad usage."""
    try:
        options = _parser().parse_args(arguments)
        log = options.log or newest_log(mngr_folder())
        match options.action:
            case "show":
                for command_id in options.ids:
                    _show(find(read_log(log), command_id))
                return 0
            case "run":
                return run_again([find(read_log(log), command_id) for command_id in options.ids])
            case _:
                _list(log, options)
                return 0
    except ReplayError as error:
        _warn(str(error))
        return _USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended; nothing can be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="replay",
        description="Show and repeat the ssh commands that a VPS provider of mngr ran.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="the log to read")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="a table of the commands, oldest first (what happens without an ACTION)")
    listing.add_argument("--failed", action="store_true", help="only those that did not end with exit code 0")
    listing.add_argument("--host", metavar="TEXT", help="only those whose machine or host id contains TEXT")
    listing.add_argument("--last", type=_positive, metavar="N", help="only the last N")
    listing.add_argument("--follow", action="store_true", help="keep showing commands as they end, until Ctrl-C")
    show = actions.add_parser("show", help="each command as one line to paste into a terminal")
    show.add_argument("ids", nargs="+", metavar="ID")
    run = actions.add_parser("run", help="run commands again and compare how they end; only those that change nothing")
    run.add_argument("ids", nargs="+", metavar="ID")
    parser.set_defaults(failed=False, host=None, last=None, follow=False)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def mngr_folder() -> Path:
    """Where mngr keeps its state: $MNGR_HOST_DIR, else ~/.mngr."""
    return Path(os.environ.get("MNGR_HOST_DIR") or "~/.mngr").expanduser()


def newest_log(folder: Path) -> Path:
    """The command log under ``folder`` that was written last; raises ReplayError if there is none."""
    logs = sorted(folder.glob("profiles/*/providers/*/*/logs/ssh.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise ReplayError(f"there is no command log under {folder}: set MNGR_HOST_DIR, or give one by --log")
    return logs[-1]


def find(commands: Iterable[LoggedCommand], command_id: str) -> LoggedCommand:
    """The command whose id begins with ``command_id``; raises ReplayError unless there is exactly one."""
    found = {command.id: command for command in commands if command.id.startswith(command_id)}
    if len(found) != 1:
        raise ReplayError(f"{len(found) or 'no'} logged commands have an id that begins with '{command_id}'")
    return found.popitem()[1]


def table_row(command: LoggedCommand) -> str:
    """One command as one line of a table, without control characters."""
    return printable(
        _COLUMNS.format(
            command.id,
            command.time[:19].replace("T", " "),
            command.machine[:28],
            command.result[:22],
            f"{command.milliseconds} ms",
            _size(command.stdout_bytes + command.stderr_bytes),
            f"{command.purpose} ({command.operation})",
        ).rstrip()
    )


def run_again(commands: Sequence[LoggedCommand]) -> int:
    """Run read-only commands and compare how each ends; return 1 if one ends differently.

    Raises ReplayError, before anything is run, if one of them may change something or had an input.
    """
    for command in commands:
        if not command.is_read_only:
            raise ReplayError(f"{command.id} may change something, so it is not run: 'replay show {command.id}'")
        if command.secrets:
            raise ReplayError(f"{command.id} needs secrets, which are not in the log: 'replay show {command.id}'")
        if command.stdin_bytes:
            raise ReplayError(f"{command.id} was given {command.stdin_bytes} bytes on stdin, which are not in the log")
    differing = 0
    for command in commands:
        print(table_row(command))  # noqa: T201
        before = command.result
        now = _run(command)
        differing += now != before
        print(f"{'':8}  {'the same' if now == before else 'now otherwise'}: {before} then, {now} now")  # noqa: T201
    return 1 if differing else 0


def _run(command: LoggedCommand) -> str:
    """Run the command line with a login of its own, and return how it ended, as ``LoggedCommand.result`` does."""
    *login, remote = command.argv
    framing = Framing(secrets.token_hex(8))
    script = framing.script(remote if command.script is None else command.script)
    reader = OutputReader()
    reader.begin(framing)
    try:
        stop = run_process(
            (*login, framing.wrap(len(script), _RUN_TIMEOUT_SECONDS)),
            timeout_seconds=_RUN_TIMEOUT_SECONDS,
            stdin=script,
            on_chunk=reader,
        ).stop
    except BinaryNotInstalledError as error:
        raise ReplayError(f"{command.argv[0]} is not installed") from error
    reader.finish()
    said = reader.stderr.decode(errors="replace") if reader.has_started else reader.messages
    for line in said.splitlines()[-3:]:
        print(f"{'':8}  {printable(line)}", file=sys.stderr)  # noqa: T201
    if reader.exit_code is not None:
        return f"{OutcomeStatus.COMPLETED} {reader.exit_code}"
    if stop is not None:
        return OutcomeStatus.TIMED_OUT
    return (
        OutcomeStatus.LOST
        if reader.has_started
        else f"{OutcomeStatus.NEVER_STARTED} {login_failure(reader.messages).reason}"
    )


def _show(command: LoggedCommand) -> None:
    if command.secrets:
        names = ", ".join(command.secrets)
        _warn(f"{command.id} needs secrets, which are not in the log: set {names} in it")
    if command.stdin_bytes:
        _warn(f"{command.id} was given {command.stdin_bytes} bytes on stdin, which are not in the log")
    print(command.command_line)  # noqa: T201


def _warn(text: str) -> None:
    print(f"replay: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _list(log: Path, options: argparse.Namespace) -> None:
    def is_wanted(command: LoggedCommand) -> bool:
        is_of_host = options.host is None or options.host in command.machine or options.host in command.host_id
        return is_of_host and not (options.failed and command.exit_code == 0)

    print(_COLUMNS.format("ID", "BEGAN (UTC)", "MACHINE", "ENDED", "TOOK", "OUTPUT", "FOR (PART OF)"))  # noqa: T201
    commands = list(read_log(log))
    wanted = [command for command in commands if is_wanted(command)]
    for command in wanted if options.last is None else wanted[-options.last :]:
        print(table_row(command), flush=options.follow)  # noqa: T201
    if options.follow:
        shown = {command.id for command in commands}
        for command in follow_log(log):
            if command.id not in shown and is_wanted(command):
                print(table_row(command), flush=True)  # noqa: T201


def _size(size_bytes: int) -> str:
    size: float = size_bytes
    for unit in islice(("B", "kB", "MB", "GB"), 3):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
