"""The key pairs of a provider: who may log in, and which machine is which.

::

    <profile>/providers/<backend>/<provider name>/
    ├── keys/vps_ssh_key                    logs in as root to every VPS of the provider
    │       vps_known_hosts                 the host keys that its VPSes and containers must show
    │       container_known_hosts
    │       host_key, container_host_key,   one pair for all hosts, of hosts that version 0.1.0 made
    │       container_ssh_key
    └── hosts/<host id>/vps_host_key        identifies one host's VPS until it has made a key of its own
                        container_host_key  identifies its container
                        container_ssh_key   logs in to its container

Each key is an OpenSSH file (0600) with its public half in a ``.pub`` file next to it.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.errors import VpsAuthenticationError, VpsDockerError
from imbue.mngr_vps_docker.files import PRIVATE_FILE_MODE, locked, write_atomically

_PUBLIC_FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key pair on this machine."""

    private_key_path: Path

    @property
    def public_key(self) -> str:
        """One line in OpenSSH's form, without a comment; VpsDockerError if the private half is missing or unusable.

        Derived from the private half, so that it is right even where the ``.pub`` file is missing or of another key.
        """
        path = self.private_key_path
        try:
            content = path.read_bytes()
            load = load_ssh_private_key if b"BEGIN OPENSSH PRIVATE KEY" in content else load_pem_private_key
            return _public_line(load(content, password=None).public_key())
        except OSError as error:
            raise VpsDockerError(f"The private key {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # What the parser says may quote the file: it is not passed on.
            raise VpsDockerError(
                f"{path} holds no private key without a passphrase that ssh can use; move it away to get a new one"
            ) from None


def new_key_pair() -> tuple[str, str]:
    """A new pair (ed25519) that is kept nowhere: the private half's file, and one line of the public half."""
    key = Ed25519PrivateKey.generate()
    private_key = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private_key.decode(), _public_line(key.public_key())


def load_or_create_key_pair(path: Path, comment: str = "") -> KeyPair:
    """Return the key pair whose private half is at ``path``, made (ed25519) if there is none yet.

    Safe against other threads and processes that do the same at once. An existing key of any type is kept.
    ``comment`` goes into the public file of a new pair.
    """
    pair, public_path = KeyPair(path), path.with_name(f"{path.name}.pub")
    if not (path.exists() and public_path.exists()):
        with locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_atomically(path, new_key_pair()[0].encode())
            if not public_path.exists():
                public_line = f"{pair.public_key} {comment}".rstrip()
                write_atomically(public_path, f"{public_line}\n".encode(), mode=_PUBLIC_FILE_MODE)
    # ssh refuses a private key that others may read; one that was copied here may be.
    if path.stat().st_mode & 0o077:
        path.chmod(PRIVATE_FILE_MODE)
    return pair


@dataclass(frozen=True, slots=True)
class ProviderKeys:
    """The keys under a provider's folder (``root``: ``<profile>/providers/<backend>/<provider name>``)."""

    root: Path

    @property
    def hosts_folder(self) -> Path:
        """Where each host has a folder of its own, named by its id."""
        return self.root / "hosts"

    @property
    def vps_known_hosts_path(self) -> Path:
        """The known_hosts file for the provider's VPSes."""
        return self._shared_folder / "vps_known_hosts"

    @property
    def container_known_hosts_path(self) -> Path:
        """The known_hosts file for the containers on them."""
        return self._shared_folder / "container_known_hosts"

    def vps_client_key(self) -> KeyPair:
        """The key that logs in as root to every VPS of the provider; made at its first use."""
        return load_or_create_key_pair(self._shared_folder / "vps_ssh_key", comment="mngr-vps")

    def create_vps_host_key(self, host_id: HostId) -> KeyPair:
        """Make the key that a new host's VPS shows at first. The host's other keys follow at their first use."""
        return load_or_create_key_pair(self._vps_host_key_path(host_id), comment=host_id)

    def vps_host_key(self, host_id: HostId) -> KeyPair:
        """The key that a host's VPS shows at first; VpsAuthenticationError if this machine has none of that host."""
        return self._host_key_pair(host_id, "vps_host_key", "host_key")

    def container_host_key(self, host_id: HostId) -> KeyPair:
        """The key that a host's container shows; VpsAuthenticationError if this machine has none of that host."""
        return self._host_key_pair(host_id, "container_host_key", "container_host_key")

    def container_client_key(self, host_id: HostId) -> KeyPair:
        """The key that logs in to a host's container; VpsAuthenticationError if this machine has none of that host."""
        return self._host_key_pair(host_id, "container_ssh_key", "container_ssh_key")

    def _host_key_pair(self, host_id: HostId, name: str, shared_name: str) -> KeyPair:
        path = self.hosts_folder / host_id / name
        if path.exists() or self._vps_host_key_path(host_id).exists():
            return load_or_create_key_pair(path, comment=host_id)
        shared_path = self._shared_folder / shared_name
        if shared_path.exists():
            return load_or_create_key_pair(shared_path)
        raise VpsAuthenticationError(
            f"This machine has no {name} of {host_id}: use the machine that made the host, or copy {path} from it"
        )

    @property
    def _shared_folder(self) -> Path:
        return self.root / "keys"

    def _vps_host_key_path(self, host_id: HostId) -> Path:
        return self.hosts_folder / host_id / "vps_host_key"


def _public_line(key: PublicKeyTypes) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
