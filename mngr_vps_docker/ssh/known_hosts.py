"""The generated known_hosts files, which pin the host key of each machine."""

from collections.abc import Callable, Iterable
from pathlib import Path

from imbue.mngr_vps_docker.files import locked, write_atomically


class KnownHostsFile:
    """One known_hosts file that only this package writes; locked and atomic, safe across processes.

    Each line pins one name (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"); names are not hashed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pin(self, names: Iterable[str], *public_keys: str) -> None:
        """Make ``public_keys`` ("ssh-ed25519 AAAA…") the only keys of each of ``names``, replacing older ones."""
        keys = [_bare(key) for key in public_keys]
        names = set(names)
        wanted = [f"{name} {key}" for name in sorted(names) for key in keys]
        # Usually there is nothing to change, and no lock is needed to see that.
        if sorted(wanted) != sorted(line for line in self._lines() if line.split(" ")[0] in names):
            self._rewrite(lambda lines: [*_without(lines, lambda name, _key: name in names), *wanted])

    def unpin(self, name: str, addresses: Iterable[str] = (), public_key: str | None = None) -> None:
        """Forget ``name``; idempotent.

        Other machines may have got its ``addresses`` since: only the keys of ``name``, and ``public_key``, are removed
        from them.
        """
        old = set(addresses)

        def change(lines: list[str]) -> list[str]:
            own = {key for line in lines for names, key in [_parsed(line)] if name in names}
            own |= {_bare(public_key or "")}
            return _without(lines, lambda other, key: other == name or (other in old and key in own))

        self._rewrite(change)

    def adopt(self, name: str, other: str) -> None:
        """Pin ``name`` to the keys of ``other``, if only the latter is pinned."""
        keys = self.keys_of(other)
        if keys and not self.keys_of(name):
            self.pin((name,), *keys)

    def keys_of(self, name: str) -> list[str]:
        """The keys that are pinned as ``name``."""
        return [key for names, key in map(_parsed, self._lines()) if name in names]

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            lines = self._lines()
            changed = change(lines)
            if changed != lines:
                write_atomically(self.path, "".join(f"{line}\n" for line in changed).encode())

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().splitlines()
        except FileNotFoundError:
            return []


def _without(lines: list[str], is_removed: Callable[[str, str], bool]) -> list[str]:
    """The lines without the names for which ``is_removed(name, key)`` is true, and without lines left without a name.

    Lines of earlier versions may hold several names.
    """
    left = []
    for line in lines:
        names, key = _parsed(line)
        kept = [name for name in names if not is_removed(name, key)]
        if kept == names:
            left.append(line)
        elif kept:
            left.append(" ".join([",".join(kept), *line.split(" ")[1:]]))
    return left


def _parsed(line: str) -> tuple[list[str], str]:
    """The names and the key of a line; neither, for a comment or an empty line."""
    names, _, key = line.partition(" ")
    return ([], "") if not names or names.startswith("#") else (names.split(","), _bare(key))


def _bare(public_key: str) -> str:
    """A key without a comment."""
    return " ".join(public_key.split()[:2])


def address_name(host: str, port: int) -> str:
    """The name that ssh looks up for ``host`` at ``port``: the bare host at 22, else ``[host]:port``."""
    return host if port == 22 else f"[{host}]:{port}"
