"""Work in the background: one piece at a time per order, and disk work off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a thread. If cancelled, wait for its end all the same.

    A thread cannot be stopped, and whatever comes next for the same order must not meet it half-way.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at here, because nobody else will
        raise


@contextlib.asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """The stream, ended when the block is left, however it is left."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


@dataclass(frozen=True)
class _Job:
    kind: str
    task: asyncio.Task[None]
    to_end: bool

    def cancel(self) -> None:
        if not self.to_end:
            self.task.cancel()


class Jobs:
    """The pieces of work under way, by the order that they are for.

    Args:
        broke: called with what escaped from a piece of work: a bug of ours, or a journal that failed.
        ended: called when a piece has ended, however.
    """

    def __init__(
        self, broke: Callable[[BaseException], None], ended: Callable[[], None] | None = None
    ) -> None:
        self._broke = broke
        self._told = ended
        self._jobs: dict[str, _Job] = {}

    def start(
        self, order: str, kind: str, work: Callable[[], Coroutine[Any, Any, None]], *, to_end: bool = False
    ) -> None:
        """Begin `work`, unless the same kind is under way for this order already.

        Work of another kind replaces what is under way: that is cancelled, and has ended before the
        new work begins. Brief work that must not be left half done is never cancelled (`to_end`).
        """
        current = self._jobs.get(order)
        if current is not None and current.kind == kind:
            return
        before = current.task if current is not None else None
        if current is not None:
            current.cancel()
        task = asyncio.get_running_loop().create_task(_after(before, work), name=f"{kind} {order}")
        self._jobs[order] = _Job(kind, task, to_end)
        task.add_done_callback(lambda done: self._ended(order, done))

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._jobs)

    def busy_with(self, order: str) -> bool:
        """Whether anything is under way for this order."""
        return order in self._jobs

    async def stop(self) -> None:
        """Cancel what can be cancelled, and wait for the end of all."""
        jobs = tuple(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*(job.task for job in jobs), return_exceptions=True)

    def _ended(self, order: str, task: asyncio.Task[None]) -> None:
        current = self._jobs.get(order)
        if current is not None and current.task is task:
            del self._jobs[order]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broke(error)
        if self._told is not None:
            self._told()


async def _after(before: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if before is not None:
        await asyncio.wait([before])
    await work()
