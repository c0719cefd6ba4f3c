"""Fifty hosts at once: more VPSes than one machine can hold, so each is an sshd with a stand-in for docker."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from socket import create_server
from typing import Final

from bench.lab import Lab
from bench.report import Row, Series
from imbue.mngr.primitives import HostId
from imbue.mngr_vps_docker.state.local_store import HostPhase, LocalHostRecord
from imbue.mngr_vps_docker.state.record import encode_record
from support.builders import container_of, record_of
from support.delaying_proxy import DelayingProxy, Route
from support.local_machine import LocalMachine
from support.local_provider import LocalProvider, local_provider
from support.loopback_sshd import LoopbackSshd
from support.memory_provider import MemoryCloud

_HOSTS: Final = 50
_SILENT: Final = 5
_CORRUPT: Final = 2
# A free port on each of the addresses 127.0.9.1 to 127.0.9.50.
_PORT: Final = 22922
_CONNECT_TIMEOUT_SECONDS: Final = 5.0
_ROUND_TRIP_MS: Final = 100
_MOST_MEMORY_BYTES: Final = 150 << 20


def discovery(lab: Lab) -> Iterator[Row]:
    """Discovery of fifty hosts by a new process, without logins and with a login to each VPS that answers."""
    folder = lab.folder / "fifty"
    folder.mkdir()
    with _fleet(folder):
        for case in ("discover 50 hosts, 5 silent, first time", "the same, logged in"):
            found = [_discover(folder) for _ in range(lab.rounds if "same" in case else 1)]
            assert all((answer["hosts"], answer["read"]) == (_HOSTS, _HOSTS - _SILENT) for answer in found), found
            memory_bytes = int(max(answer["memory_bytes"] for answer in found))
            assert memory_bytes < _MOST_MEMORY_BYTES, memory_bytes
            yield Row(
                case,
                _ROUND_TRIP_MS,
                Series(tuple(answer["seconds"] for answer in found)),
                limit_seconds=3.0 + _CONNECT_TIMEOUT_SECONDS,
                notes=f"{_HOSTS} listed, {memory_bytes >> 20} MiB",
            )


def _discover(folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.many_hosts", folder], check=True, capture_output=True, text=True, timeout=300
    )
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _address(number: int) -> str:
    return f"127.0.9.{number + 1}"


def _provider(folder: Path) -> LocalProvider:
    """The provider of the fleet, by what is in ``folder``."""
    cloud = MemoryCloud()
    for number, host_id in enumerate(json.loads((folder / "hosts.json").read_text())):
        cloud.add_vps(HostId(host_id), _address(number), datetime.now(UTC))
    return local_provider(
        folder / "profile",
        "fifty",
        cloud,
        ssh_options=(f"Port={_PORT}",),
        ssh_connect_timeout=_CONNECT_TIMEOUT_SECONDS,
    )


@contextmanager
def _fleet(folder: Path) -> Iterator[None]:
    host_ids = [HostId.generate() for _ in range(_HOSTS)]
    (folder / "hosts.json").write_text(json.dumps(host_ids))
    context = _provider(folder).context
    routes = []
    with ExitStack() as stack:
        for number, host_id in enumerate(host_ids):
            context.local_store.write(
                LocalHostRecord(
                    host_id=host_id,
                    host_name=f"h{number}",
                    phase=HostPhase.READY,
                    created_at=datetime.now(UTC),
                    vps_ip=_address(number),
                    record=record_of(host_id),
                )
            )
            context.keys.create_vps_host_key(host_id)
            if number < _SILENT:
                # The kernel accepts the connection, and no server answers.
                stack.enter_context(create_server((_address(number), _PORT)))
                continue
            sshd = stack.enter_context(_vps(folder / f"vps{number}", host_id, context.state_volume_name, number))
            context.pin_vps(host_id, _address(number), sshd.host_public_key)
            routes.append(Route(_PORT, "127.0.0.1", sshd.port, listen_address=_address(number)))
        stack.enter_context(DelayingProxy(routes, _ROUND_TRIP_MS / 1000))
        yield
        for number, host_id in enumerate(host_ids):
            context.vps(_address(number), host_id).close()


def _vps(folder: Path, host_id: HostId, state_volume: str, number: int) -> LoopbackSshd:
    folder.mkdir()
    machine = LocalMachine(folder)
    host_state = machine.volume(state_volume) / "host_state"
    host_state.mkdir()
    is_corrupt = number < _SILENT + _CORRUPT
    (host_state / f"{host_id}.json").write_bytes(b"{" if is_corrupt else encode_record(record_of(host_id)))
    (machine.volumes / ".container-ids").write_text("c1\n")
    (machine.volumes / ".containers").write_text(json.dumps([container_of(host_id, "exited")]))
    client_key = folder.parent / "profile" / "providers" / "local-vps" / "local-vps" / "keys" / "vps_ssh_key.pub"
    path = machine.environment["PATH"]
    return LoopbackSshd(folder, (f"AuthorizedKeysFile {client_key}", f"SetEnv HOME={folder} PATH={path}"))


def main() -> None:
    """Discover the fleet of a folder once, and print what that took."""
    provider = _provider(Path(sys.argv[1]))
    provider.context.keys.vps_client_key()
    began = time.monotonic()
    with provider.mngr_ctx.concurrency_group as group:
        hosts = provider.discover_hosts(group)
    seconds = time.monotonic() - began
    # Not by getrusage(2), which counts the program in whose place this one was started, too.
    (memory_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    read = [observed for observed in provider.hosts.seen() if observed.is_read]
    answer = {"seconds": seconds, "hosts": len(hosts), "read": len(read), "memory_bytes": int(memory_kib) << 10}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
