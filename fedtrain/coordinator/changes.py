"""Tells watchers that something changed, without queues that could grow."""

from __future__ import annotations

import asyncio


class Changes:
    """A counter that can be waited for. A slow watcher misses steps, never the latest one."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: asyncio.Event | None = None

    def tell(self) -> None:
        """Something changed. Costs next to nothing while nobody watches."""
        self.count += 1
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    async def after(self, seen: int) -> int:
        """The counter, as soon as it is beyond `seen`."""
        while self.count <= seen:
            if self._waiting is None:
                self._waiting = asyncio.Event()
            await self._waiting.wait()
        return self.count
