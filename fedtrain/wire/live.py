"""Calls that are under way, and the means to end them.

gRPC in Python judges a certificate once, in the handshake. A call that was admitted then runs for as long
as both sides like, beyond the certificate's end and beyond a revocation. So every call that is admitted is
written down here until it ends, is judged again every `REVIEW_S`, and can be cut.

A call is cut from inside: its handler's task is cancelled where it waits, the cancellation is turned into
the error, and the handler itself aborts the call with that error's status. A handler that is merely
cancelled leaves its client waiting for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fedtrain.core.allowance import REFUSALS, Allowance, spend
from fedtrain.errors import FedtrainError
from fedtrain.wire.values import Caller

REVIEW_S = 2.5
"""Half a heartbeat: a certificate that ends, or a membership, ends its calls within one."""

_log = logging.getLogger(__name__)


class _Open:
    """One call under way. `verdict` is why it is cut, None while it may go on."""

    __slots__ = ("call", "caller", "task", "verdict")

    def __init__(self, caller: Caller, call: str, task: asyncio.Task[object]) -> None:
        self.caller = caller
        self.call = call
        self.task = task
        self.verdict: FedtrainError | None = None


class LiveCalls:
    """The calls that one server has admitted and not yet ended. Lives on the event loop's thread."""

    def __init__(self) -> None:
        self._open: set[_Open] = set()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def holding(self, caller: Caller, call: str) -> AsyncIterator[None]:
        """Around a call's handler, which runs in the current task; raises the error that cuts it."""
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        one = _Open(caller, call, task)
        self._open.add(one)
        try:
            yield
        except asyncio.CancelledError:
            if one.verdict is None or task.uncancel() > 0:
                raise  # the client went away, or the server stops
            raise one.verdict from None
        finally:
            self._open.discard(one)

    def cut(self, name: str, error: FedtrainError) -> int:
        """End every call of this member with the error; returns how many there were."""
        mine = [one for one in self._open if one.caller.name == name]
        for one in mine:
            self._cut(one, error)
        return len(mine)

    def review(self, check: Callable[[Caller], None]) -> None:
        """Ask of every call's caller whether it may still be here; `check` raises if not."""
        for one in list(self._open):
            try:
                check(one.caller)
            except FedtrainError as error:
                self._cut(one, error)

    def _cut(self, one: _Open, error: FedtrainError) -> None:
        if one.verdict is None and one.task is not asyncio.current_task():
            _log.info("%s of %s (%s) is cut: %s", one.call, one.caller.name, one.caller.address, error)
            one.verdict = error
            one.task.cancel()


class RefusalLog:
    """Says whom the judge has turned away, and from where; a crowd of them does not fill the log."""

    def __init__(self) -> None:
        self._allowance = Allowance()

    def log(self, what: str, error: FedtrainError) -> None:
        """One line, unless too many came before; the next line tells how many were left out."""
        skipped = self._allowance.skipped
        self._allowance, written = spend(self._allowance, REFUSALS, time.monotonic_ns() // 1_000_000)
        if written:
            more = f" ({skipped} more were not written down)" if skipped else ""
            _log.warning("%s is refused: %s%s", what, error, more)
