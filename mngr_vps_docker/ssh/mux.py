"""Asking the process that holds a shared connection whether it lives, in the words of OpenSSH's PROTOCOL.mux.

``ssh -O check`` asks the same. It costs a process, though, and on a busy machine it may take so long to start that a
master that is well would be taken for wedged, and killed with all that runs over it.
"""

import socket
import struct
from pathlib import Path
from typing import Final

# PROTOCOL.mux, sections 1 (hello) and 4 (health check); every packet is its length in bytes and big-endian words.
_VERSION: Final = 4
_HELLO: Final = 0x00000001
_ALIVE_CHECK: Final = 0x10000004
_ALIVE: Final = 0x80000005
_REQUEST_ID: Final = 0
_LONGEST_PACKET_BYTES: Final = 256 << 10


def master_process_id(control_path: Path, timeout_seconds: float) -> int | None:
    """The process that holds the connection, or None if none answers within ``timeout_seconds`` per packet."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout_seconds)
        try:
            client.connect(str(control_path))
            client.sendall(_packet(_HELLO, _VERSION) + _packet(_ALIVE_CHECK, _REQUEST_ID))
            while True:
                match _words(client):
                    case [kind, _, process_id, *_] if kind == _ALIVE:
                        return process_id
        except (OSError, EOFError):
            return None


def _packet(*words: int) -> bytes:
    return struct.pack(f">{1 + len(words)}I", 4 * len(words), *words)


def _words(client: socket.socket) -> tuple[int, ...]:
    """The whole words of the next packet."""
    (length,) = struct.unpack(">I", _exactly(client, 4))
    if not 4 <= length <= _LONGEST_PACKET_BYTES:
        raise EOFError(f"a packet of {length} bytes")
    body = _exactly(client, length)
    return struct.unpack_from(f">{length // 4}I", body)


def _exactly(client: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        chunk = client.recv(size_bytes - len(data))
        if not chunk:
            raise EOFError("the master hung up")
        data += chunk
    return bytes(data)
