"""Leases and progress: feeds `core.liveness` with what sites show, and tells its verdicts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from fedtrain.coordinator.clock import Clock
from fedtrain.core import liveness
from fedtrain.core.orders import Order, Progress


class PulseWatch:
    """Keeps the pulses of all sites, and the newest progress of every order for watchers.

    Args:
        patience_ms: site -> how long it may be silent.
        tell: called with each verdict, on the event loop.
    """

    def __init__(
        self,
        patience_ms: Callable[[str], int],
        tell: Callable[[liveness.Lost | liveness.Stalled], None],
    ) -> None:
        self.progress: dict[str, Progress] = {}
        self._pulses: liveness.Pulses = {}
        self._patience_ms = patience_ms
        self._tell = tell
        self._changed = asyncio.Event()

    def hear(self, site: str, progress: Iterable[Progress] = ()) -> None:
        """The site gave a sign of life."""
        items = tuple(item for item in progress if item.order.endswith(f".{site}"))
        self._wake_if(site not in self._pulses)
        self._pulses = liveness.hear(self._pulses, site, Clock.monotonic_ms(), self._patience_ms(site), items)
        self.progress.update((item.order, item) for item in items)

    def expect(self, order: Order) -> None:
        """Work on this order is expected from now on."""
        self.move(order.site, order.id, order.patience_ms)

    def move(self, site: str, order: str, patience_ms: int) -> None:
        """The order moved: bytes of its upload came, or it was handed out again."""
        known = self._pulses.get(site)
        self._wake_if(known is None or order not in known.orders)
        self._pulses = liveness.expect(self._pulses, site, order, Clock.monotonic_ms(), patience_ms)

    def settle(self, site: str, order: str) -> None:
        """The order is answered or called off."""
        self._pulses = liveness.settle(self._pulses, site, order)
        self.progress.pop(order, None)

    def forget(self, site: str) -> None:
        """The site was given up."""
        self._pulses = liveness.forget(self._pulses, site)

    async def run(self) -> None:
        """Tell verdicts as patience runs out; ends by being cancelled."""
        while True:
            found, next_ms = liveness.verdicts(self._pulses, Clock.monotonic_ms())
            for verdict in found:
                if isinstance(verdict, liveness.Lost):
                    self.forget(verdict.site)
                else:
                    self.settle(verdict.site, verdict.order)
                self._tell(verdict)
            if found:
                continue
            self._changed.clear()
            delay_s = None if next_ms is None else max(0.001, (next_ms - Clock.monotonic_ms()) / 1000)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay_s)

    def _wake_if(self, something_new: bool) -> None:
        """Look again at once for a new site or order; a sign of life only pushes verdicts back."""
        if something_new:
            self._changed.set()
