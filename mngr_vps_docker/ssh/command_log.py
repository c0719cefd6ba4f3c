"""The log of every ssh command: one JSON line each, from which it can be run again."""

import hashlib
import json
import os
import shlex
import sys
import threading
from datetime import UTC
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from imbue.mngr_vps_docker.files import PRIVATE_FILE_MODE
from imbue.mngr_vps_docker.files import make_private_folder
from imbue.mngr_vps_docker.ssh.outcome import CommandOutcome
from imbue.mngr_vps_docker.ssh.process import StandardInput

TRACE_VARIABLE: Final = "MNGR_VPS_TRACE"
_ROTATE_AT_BYTES: Final = 10 << 20


class CommandLog:
    """Appends to ``path`` (0600), from any number of threads and processes; keeps one older file beside it.

    ``argv`` is a command line of its own, not the one that used the shared connection: it works whenever it is pasted.
    Of what went to stdin, which is where secrets travel, only size and digest are kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, outcome: CommandOutcome, *, stdin: StandardInput) -> None:
        """Add one command; with MNGR_VPS_TRACE=1 show it on stderr as well."""
        if os.environ.get(TRACE_VARIABLE) == "1":
            print(f"+ {shlex.join(outcome.argv)}", file=sys.stderr)  # noqa: T201
        data = stdin if isinstance(stdin, bytes) else None
        line = json.dumps(
            {
                "id": uuid4().hex,
                "time": datetime.now(UTC).isoformat(),
                "host": outcome.host,
                "purpose": outcome.purpose,
                "argv": list(outcome.argv),
                "stdin": "none" if stdin is None else "bytes" if data is not None else "stream",
                "stdin_bytes": None if data is None else len(data),
                "stdin_sha256": None if data is None else hashlib.sha256(data).hexdigest(),
                "outcome": outcome.status.value,
                "reason": None if outcome.reason is None else outcome.reason.value,
                "exit_code": outcome.exit_code,
                "milliseconds": round(outcome.elapsed_seconds * 1000),
                "stdout_bytes": len(outcome.stdout),
                "stderr_bytes": len(outcome.stderr),
            }
        )
        with self._lock:
            self._append(f"{line}\n".encode())

    def _append(self, line: bytes) -> None:
        make_private_folder(self._path.parent)
        # One write to a file opened for appending is one piece, whoever else writes.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE_FILE_MODE)
        try:
            os.write(descriptor, line)
            is_full = os.fstat(descriptor).st_size > _ROTATE_AT_BYTES
        finally:
            os.close(descriptor)
        if is_full:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
