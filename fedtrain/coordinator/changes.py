"""Tells watchers that something changed, without queues that could grow."""

from __future__ import annotations

import asyncio


class Changes:
    """A counter that can be waited for. A slow watcher misses steps, never the latest one."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something changed."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def after(self, seen: int) -> int:
        """The counter, as soon as it is beyond `seen`."""
        while self.count <= seen:
            await self._event.wait()
        return self.count
