"""The generated known_hosts files: which host key each machine must show."""

from collections.abc import Iterable
from pathlib import Path

from imbue.mngr_vps_docker.files import locked
from imbue.mngr_vps_docker.files import write_atomically


class KnownHostsFile:
    """One known_hosts file that only this package writes; locked and atomic, safe across processes.

    Each line pins one name (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"); names are not hashed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pin(self, names: Iterable[str], *public_keys: str) -> None:
        """Make ``public_keys`` ("ssh-ed25519 AAAA…") the only keys of each of ``names``, replacing older ones."""
        keys = [" ".join(key.split()[:2]) for key in public_keys]
        names = set(names)
        wanted = [f"{name} {key}" for name in sorted(names) for key in keys]
        # Reading alone tells whether there is anything to do, which there hardly ever is.
        if sorted(wanted) != sorted(line for line in self._lines() if line.split(" ")[0] in names):
            self._rewrite(remove=names, add=wanted)

    def unpin(self, names: Iterable[str]) -> None:
        """Forget each of ``names``; a name that is not there is no error."""
        self._rewrite(remove=set(names), add=())

    def _rewrite(self, *, remove: set[str], add: Iterable[str]) -> None:
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            lines = self._lines()
            kept = [kept for line in lines if (kept := _without(line, remove))]
            changed = [*kept, *add]
            if changed != lines:
                write_atomically(self.path, "".join(f"{line}\n" for line in changed).encode())

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().splitlines()
        except FileNotFoundError:
            return []


def _without(line: str, names: set[str]) -> str | None:
    """The line without ``names``; None if no name is left. Lines of earlier versions may hold several names."""
    if not line.strip() or line.startswith("#"):
        return line
    listed, *rest = line.split(" ")
    kept = [name for name in listed.split(",") if name not in names]
    return " ".join([",".join(kept), *rest]) if kept else None


def address_name(host: str, port: int) -> str:
    """The name that ssh looks up for ``host`` at ``port``: the bare host at 22, else ``[host]:port``."""
    return host if port == 22 else f"[{host}]:{port}"
