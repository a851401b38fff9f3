"""Uploads under way: what has come of each, how it moves, and its pieces on their way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fedtrain.core.liveness import Passage
from fedtrain.core.orders import Order
from fedtrain.errors import RemoteError
from fedtrain.storage.blobs import Upload

JOIN_BYTES = 256 << 10
"""Smaller pieces are joined up to here: a write is a turn of a thread and of the disk, whatever its size."""

SMALL_WRITES_MAX = 64
"""Writes below `JOIN_BYTES` of one stream. A stream that goes on from where it broke needs one."""


@dataclass
class Incoming:
    """One upload under way. The lock keeps an old and a new stream of one site apart."""

    upload: Upload
    order: Order
    passage: Passage
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Intake:
    """The pieces of one stream, hashed and written while the next ones come.

    Args:
        incoming: the upload that the stream belongs to.
        wrote: called after each write.
    """

    def __init__(self, incoming: Incoming, wrote: Callable[[], None]) -> None:
        self._incoming = incoming
        self._wrote: Callable[[], None] | None = wrote
        self._offset = 0
        self._joined = bytearray()
        self._small_writes = 0
        self._writing: asyncio.Task[None] | None = None

    async def take(self, offset: int, data: memoryview) -> None:
        """The next piece; raises what the write of an earlier one raised."""
        if self._joined and offset != self._offset + len(self._joined):
            await self._write_joined()
        if not self._joined:
            if len(data) >= JOIN_BYTES:
                await self._write(offset, data)
                return
            self._offset = offset
        self._joined += data
        if len(self._joined) >= JOIN_BYTES:
            await self._write_joined()

    async def end(self) -> None:
        """Write what was joined, and wait for the disk: however the stream ended, its bytes count."""
        try:
            await self._write_joined()
        finally:
            if self._writing is not None:
                await self._writing
            self._wrote = None

    async def _write_joined(self) -> None:
        data, self._joined = self._joined, bytearray()
        if not data:
            return
        if len(data) < JOIN_BYTES:
            self._small_writes += 1
            if self._small_writes > SMALL_WRITES_MAX:
                raise RemoteError(
                    f"an upload came in {self._small_writes} scattered pieces below {JOIN_BYTES} bytes: "
                    "send its bytes one after the other"
                )
        await self._write(self._offset, memoryview(data))

    async def _write(self, offset: int, data: memoryview) -> None:
        if self._writing is not None:
            await self._writing
        self._writing = asyncio.create_task(self._store(offset, data))

    async def _store(self, offset: int, data: memoryview) -> None:
        async with self._incoming.lock:
            await asyncio.to_thread(self._incoming.upload.write, offset, data)
        if self._wrote is not None:
            self._wrote()
