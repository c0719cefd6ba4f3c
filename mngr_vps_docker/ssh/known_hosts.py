"""The generated known_hosts files: which host key each machine must show."""

from collections.abc import Iterable
from pathlib import Path


class KnownHostsFile:
    """One known_hosts file that only this package writes; locked and atomic, safe across processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pin(self, names: Iterable[str], public_key: str) -> None:
        """Make ``public_key`` ("ssh-ed25519 AAAA…") the only key of each of ``names``, replacing older ones."""
        raise NotImplementedError

    def unpin(self, names: Iterable[str]) -> None:
        """Forget each of ``names``; a name that is not there is no error."""
        raise NotImplementedError


def address_name(host: str, port: int) -> str:
    """The name that ssh looks up for ``host`` at ``port``: the bare host at 22, else ``[host]:port``."""
    return host if port == 22 else f"[{host}]:{port}"
