"""Shell text that reads and writes files of a machine, and fails where only a part of the data arrives.

To ``cat``, a lost connection looks like the end of its data: only the size tells.
"""

from pathlib import PurePosixPath
from typing import Final

from imbue.mngr_vps_docker.ssh.shell import ShellText, quote

# Exit codes of our own, apart from those of the tools.
NO_SUCH_FILE: Final = 44
CUT_OFF: Final = 83


def read_script(path: str, most_bytes: int) -> ShellText:
    """Print a file, or the first ``most_bytes`` of it; a missing one exits with NO_SUCH_FILE."""
    word = quote(path)
    return ShellText(f"[ -e {word} ] || exit {NO_SUCH_FILE}; exec head -c {most_bytes} <{word}")


def write_script(path: str, size_bytes: int, mode: int | None) -> ShellText:
    """Write stdin, ``size_bytes`` of it, to a file in place; exits with CUT_OFF if less than that arrives.

    A mode is set before the content is there, which may be a secret.
    """
    word = quote(path)
    steps = [f"mkdir -p -- {quote(PurePosixPath(path).parent)}"]
    if mode is not None:
        steps += [f"(umask 077; : >>{word})", f"chmod {mode | 0o600:o} {word}"]
    steps += [f"cat >{word}", f"{{ [ ! -f {word} ] || {_is_whole(word, size_bytes)}; }}"]
    if mode is not None:
        steps.append(f"chmod {mode:o} {word}")
    return ShellText(" && ".join(steps))


def replace_script(path: str, size_bytes: int, mode: int | None) -> ShellText:
    """Replace a file by stdin in one step, or leave it as it was, without temporary files however it ends.

    Without ``mode`` the new file has that of the old one. Of a symbolic link, the target is replaced.
    """
    # The mask begins with 0, so that the shell's arithmetic reads it as octal.
    kept = 'stat -c %a -- "$path" 2>/dev/null || printf %o $((0666 & ~$(umask)))'
    return ShellText(f"""\
path={quote(path)}
[ ! -L "$path" ] || path=$(readlink -f -- "$path") || exit
mkdir -p -- {quote(PurePosixPath(path).parent)} || exit
trap 'rm -f -- "$new"' EXIT
trap 'exit 143' HUP INT TERM
new=$(mktemp -- "$path.XXXXXXXX") || exit
cat >"$new" || exit
{_is_whole('"$new"', size_bytes)} || exit
chmod {f"{mode:o}" if mode is not None else f'"$({kept})"'} "$new" && sync "$new" && mv -fT -- "$new" "$path"
""")


def _is_whole(word: str, size_bytes: int) -> str:
    arrived = f'[ "$(stat -Lc %s -- {word})" = {size_bytes} ]'
    return f"{{ {arrived} || {{ echo 'not all {size_bytes} bytes arrived' >&2; exit {CUT_OFF}; }}; }}"
