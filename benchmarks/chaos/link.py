"""One site's link to the coordinator, as bad as wanted: slow, late, cut, half dead.

A link listens on a port of its own and carries every connection to the coordinator. It understands
nothing of what it carries, so a cut comes wherever it comes: between two TLS records or within one.
Latency and rate are of the link, not of a connection: two transfers share them, as they would.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
from dataclasses import dataclass, field

PIECE_BYTES = 16 << 10
"""What is read at once: small, so that a slow link holds little and a cut loses little."""

PIPE_PIECES = 8
"""What may be under way between the two ends, in pieces."""

SOCKET_BYTES = 64 << 10
"""The kernel's own buffers, which would else take megabytes at once and hide a slow link."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Gate(enum.StrEnum):
    """Whether bytes pass."""

    OPEN = "open"
    HELD = "held"  # a partition: nothing moves, nothing is lost; it goes on where it was
    SWALLOW = "swallow"  # a black hole: connections are accepted, their bytes vanish


@dataclass(frozen=True)
class Weather:
    """How a link behaves. Zero means no such trouble.

    Attributes:
        latency_s: one way.
        rate_bytes_per_s: each way.
        cut_chance: for every piece carried, that the connection ends there: half of the times by a
            reset, half of the times in the middle of the piece and with a proper close.
    """

    latency_s: float = 0.0
    rate_bytes_per_s: float = 0.0
    cut_chance: float = 0.0


@dataclass
class Counters:
    """What has happened on a link so far."""

    connections: int = 0
    carried_bytes: int = 0
    swallowed_bytes: int = 0
    resets: int = 0
    truncations: int = 0


class Truncated(Exception):
    """The connection was cut in the middle of a piece."""


@dataclass(eq=False)
class Connection:
    """Both ends of one connection; `dead` ones are only read from."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    dead: bool = False

    def reset(self) -> None:
        """RST to both ends."""
        for writer in self.writers:
            with contextlib.suppress(OSError, AttributeError):
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    def close(self) -> None:
        """FIN to both ends, behind whatever was written."""
        for writer in self.writers:
            writer.close()


@dataclass
class Pace:
    """One direction's rate: when the wire is free again, on the loop's clock."""

    free_at_s: float = 0.0

    async def take(self, size_bytes: int, rate_bytes_per_s: float) -> None:
        """Returns when so many bytes have passed."""
        if rate_bytes_per_s <= 0:
            return
        now = asyncio.get_running_loop().time()
        self.free_at_s = max(now, self.free_at_s) + size_bytes / rate_bytes_per_s
        await asyncio.sleep(self.free_at_s - now)


@dataclass
class Link:
    """Listens from `open` on, until `close`.

    Args:
        chance: draws the cuts.
        target: host and port of the coordinator.
    """

    chance: random.Random
    target: tuple[str, int]
    weather: Weather = Weather()
    counters: Counters = field(default_factory=Counters)
    gate: Gate = Gate.OPEN
    _opened: asyncio.Event = field(default_factory=asyncio.Event)
    _connections: set[Connection] = field(default_factory=set)
    _paces: tuple[Pace, Pace] = field(default_factory=lambda: (Pace(), Pace()))
    _server: asyncio.Server | None = None

    async def open(self) -> int:
        """Accept from now on; returns the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._server = await asyncio.start_server(self._carry, sock=listener, limit=PIECE_BYTES)
        self.turn(Gate.OPEN)
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Accept nothing more and reset what is open."""
        if self._server is not None:
            self._server.close()
        self.reset()

    def reset(self) -> None:
        """RST to every open connection."""
        for connection in tuple(self._connections):
            self.counters.resets += 1
            connection.reset()

    def turn(self, gate: Gate, mend: bool = True) -> None:
        """Open or shut. A black hole leaves dead connections: `mend` resets them at its end, else
        they stay as they are, as behind a router that has forgotten them."""
        if gate is Gate.SWALLOW:
            for connection in self._connections:
                connection.dead = True
        elif mend:
            for connection in [c for c in self._connections if c.dead]:
                connection.reset()
        self.gate = gate
        if gate is Gate.HELD:
            self._opened.clear()
        else:
            self._opened.set()

    async def _carry(self, near: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from its first byte to its last."""
        self.counters.connections += 1
        await self._opened.wait()
        try:
            far, far_writer = await asyncio.open_connection(*self.target, limit=PIECE_BYTES)
        except OSError:  # the coordinator is down: the site is refused as it would be without us
            Connection((writer, writer)).reset()
            return
        connection = Connection((writer, far_writer), dead=self.gate is Gate.SWALLOW)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._way(connection, near, far_writer, self._paces[0]))
                ways.create_task(self._way(connection, far, writer, self._paces[1]))
        except* OSError:
            connection.reset()
        except* Truncated:
            connection.close()  # what was written still leaves
        finally:
            self._connections.discard(connection)
            connection.close()

    async def _way(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pace: Pace
    ) -> None:
        """One direction: what comes in goes out `latency_s` later, no faster than the rate."""
        pipe: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(PIPE_PIECES)
        reading = asyncio.create_task(self._read(reader, pipe))
        loop = asyncio.get_running_loop()
        try:
            while True:
                due_s, data = await pipe.get()
                if data is None:
                    raise ConnectionResetError("the other end broke it")
                if not data:
                    break
                await asyncio.sleep(due_s - loop.time())
                await self._deliver(connection, writer, data, pace)
        finally:
            reading.cancel()
        if writer.can_write_eof() and not connection.dead:
            writer.write_eof()

    async def _read(
        self, reader: asyncio.StreamReader, pipe: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        """Into the pipe with the time when each piece is due: b"" for the end, None for a break."""
        data: bytes | None = b"-"
        while data:
            try:
                data = await reader.read(PIECE_BYTES)
            except OSError:
                data = None
            await pipe.put((asyncio.get_running_loop().time() + self.weather.latency_s, data))

    async def _deliver(
        self, connection: Connection, writer: asyncio.StreamWriter, data: bytes, pace: Pace
    ) -> None:
        await pace.take(len(data), self.weather.rate_bytes_per_s)
        await self._opened.wait()
        if connection.dead:
            self.counters.swallowed_bytes += len(data)
            return
        cut = self.chance.random() < self.weather.cut_chance
        if cut and self.chance.random() < 0.5:
            self.counters.resets += 1
            connection.reset()
            raise ConnectionResetError("cut by the schedule")
        if cut:
            self.counters.truncations += 1
            writer.write(data[: len(data) // 2])
            raise Truncated
        writer.write(data)
        await writer.drain()
        self.counters.carried_bytes += len(data)
