"""A TCP proxy that puts any distance between two machines: bytes arrive late, stall, or never arrive at all.

For measuring, and for testing, what a network's latency does where the kernel has no netem. It imports the standard
library only, so that this file is also a program for any machine with a python3 (3.11 or newer):
``python3 delaying_proxy.py ROUND_TRIP_MS LISTEN_PORT:HOST:PORT …``.
"""

import argparse
import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

_READ_BYTES: Final = 1 << 16
# In one direction of one connection: 64 MiB, more than any window of ssh's, so that it is ssh and never this proxy
# that limits how fast data flows over a distance.
_CHUNKS_ON_THE_WAY: Final = 1024
_START_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Route:
    """Connections to ``listen_port`` of ``listen_address`` lead to ``port`` of ``host``; port 0 is any free one."""

    listen_port: int
    host: str
    port: int
    listen_address: str = "127.0.0.1"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``LISTEN_PORT:HOST:PORT``, of any address of this machine; raises ValueError for anything else."""
        listen_port, rest = text.split(":", 1)
        host, port = rest.rsplit(":", 1)
        return cls(int(listen_port), host, int(port), listen_address="0.0.0.0")


class DelayingProxy:
    """The routes, open from ``with`` to its end, in a thread of their own.

    ``round_trip_seconds`` is the time from sending something to having its answer; it may be changed at any moment. As
    on a real network, connecting takes a round trip as well. ``connection_count`` counts connections ever accepted.
    """

    def __init__(self, routes: Sequence[Route], round_trip_seconds: float = 0.0) -> None:
        self.round_trip_seconds = round_trip_seconds
        self.connection_count = 0
        self.ports: tuple[int, ...] = ()
        self._routes = tuple(routes)
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="delaying-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._do(self._open())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()
        self._end()

    def reset(self) -> None:
        """Break every connection there is, as a network does that forgets them; new ones can be made."""
        self._do(self._break_connections())

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Let nothing through for a while, in neither direction; nothing is lost, and it flows on afterwards."""
        self._loop.call_soon_threadsafe(self._flowing.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._flowing.set)

    async def _open(self) -> None:
        self._flowing.set()
        servers = []
        for route in self._routes:

            def accept(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: Route = route
            ) -> Coroutine[Any, Any, None]:
                return self._carry(reader, writer, route)

            place = (route.listen_address, route.listen_port)
            servers.append(await asyncio.start_server(accept, *place, limit=_READ_BYTES))
        self._servers = tuple(servers)
        self.ports = tuple(server.sockets[0].getsockname()[1] for server in servers)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: Route) -> None:
        carrying = asyncio.ensure_future(self._carry_through(reader, writer, route))
        self._connections.add(carrying)
        self.connection_count += 1
        # A connection that `reset` breaks is at its end as much as any other.
        with contextlib.suppress(asyncio.CancelledError):
            await carrying
        self._connections.discard(carrying)

    async def _carry_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: Route) -> None:
        # The client has "connected" at once, where it should have taken a round trip, and the machine hears of that
        # half a one later.
        handshake_seconds = 1.5 * self.round_trip_seconds
        far_writer = None
        try:
            earliest = time.monotonic() + handshake_seconds
            await asyncio.sleep(handshake_seconds)
            far_reader, far_writer = await asyncio.open_connection(route.host, route.port, limit=_READ_BYTES)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._deliver(reader, far_writer, earliest))
                both.create_task(self._deliver(far_reader, writer, earliest))
        except* OSError:
            # The other end refuses or has gone: this end sees the connection close, which is all that a proxy can say.
            pass
        finally:
            for end in (writer, far_writer):
                if end is not None:
                    end.transport.abort()

    async def _deliver(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, earliest: float) -> None:
        """Hand on what comes, each piece half a round trip after it came, until the end of it."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_ON_THE_WAY)

        async def take() -> None:
            chunk = b"some"
            while chunk:
                chunk = await source.read(_READ_BYTES)
                await on_the_way.put((max(earliest, time.monotonic() + self.round_trip_seconds / 2), chunk))

        async def give() -> None:
            while True:
                due, chunk = await on_the_way.get()
                if (left_seconds := due - time.monotonic()) > 0:
                    await asyncio.sleep(left_seconds)
                await self._flowing.wait()
                if not chunk:
                    sink.write_eof()
                    return
                sink.write(chunk)
                await sink.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(take())
            both.create_task(give())

    async def _break_connections(self) -> None:
        tasks = tuple(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    def _end(self) -> None:
        for server in getattr(self, "_servers", ()):
            self._loop.call_soon_threadsafe(server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._loop.close()


def main() -> None:
    """The program: serves until it is ended."""
    parser = argparse.ArgumentParser(description="Put a distance between this machine and others.")
    parser.add_argument("round_trip_ms", type=float)
    parser.add_argument("routes", nargs="+", type=Route.parse, metavar="LISTEN_PORT:HOST:PORT")
    options = parser.parse_args()
    with (
        DelayingProxy(options.routes, options.round_trip_ms / 1000),
        contextlib.suppress(KeyboardInterrupt),
    ):
        threading.Event().wait()


if __name__ == "__main__":
    main()
