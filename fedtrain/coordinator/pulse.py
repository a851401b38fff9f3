"""Leases and progress: feeds `core.liveness` with what sites show, and tells its verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from fedtrain.coordinator.clock import Clock
from fedtrain.core import liveness
from fedtrain.core.orders import Order, Progress
from fedtrain.core.pacing import lease_ms

Verdicts = tuple[liveness.Lost | liveness.Stalled, ...]

OVERSLEPT_MS = 1_000
"""A look that comes so much too late means that this process was stopped or starved, and heard nobody."""

_log = logging.getLogger(__name__)


class PulseWatch:
    """Keeps the pulses of all sites, and the newest progress of every order for watchers.

    A sign of life costs the same however many sites there are: `liveness` gets the one pulse that
    changes, and all of them only when the earliest lease may have ended.

    Args:
        tell: called with the verdicts of one look, on the event loop.
        now_ms: monotonic.
    """

    def __init__(
        self, tell: Callable[[Verdicts], None], now_ms: Callable[[], int] = Clock.monotonic_ms
    ) -> None:
        self.progress: dict[str, Progress] = {}
        self._pulses: dict[str, liveness.Pulse] = {}
        self._tell = tell
        self._now_ms = now_ms
        self._look_ms: int | None = None
        self._sooner = asyncio.Event()

    def hear(self, site: str, progress: Iterable[Progress] = ()) -> None:
        """The site gave a sign of life."""
        items = tuple(item for item in progress if item.order.endswith(f".{site}"))
        now_ms, lease = self._now_ms(), lease_ms(self._patiences_ms(site))
        self._pulses.update(liveness.hear(self._one(site), site, now_ms, lease, items))
        self._look_by(now_ms + lease)
        expected = self._pulses[site].orders
        self.progress.update((item.order, item) for item in items if item.order in expected)

    def expect(self, order: Order) -> None:
        """Work on this order is expected from now on."""
        self.move(order.site, order.id, order.patience_ms)

    def move(self, site: str, order: str, patience_ms: int) -> None:
        """The order moved: bytes of its upload came, or it was handed out again.

        A site's first order begins a lease of the order's patience: it may not have been heard for
        longer than that while it had no work.
        """
        began = not self._patiences_ms(site)
        now_ms = self._now_ms()
        self._pulses.update(liveness.expect(self._one(site), site, order, now_ms, patience_ms))
        if began:
            self.hear(site)
        self._look_by(now_ms + patience_ms)

    def settle(self, site: str, order: str) -> None:
        """The order is answered or called off; without another one its site may be silent for longer."""
        self._pulses.update(liveness.settle(self._one(site), site, order))
        pulse = self._pulses.get(site)
        if pulse is not None and not pulse.orders:
            self._pulses[site] = replace(pulse, patience_ms=lease_ms(()))
        self.progress.pop(order, None)

    def forget(self, site: str) -> None:
        """The site was given up."""
        pulse = self._pulses.pop(site, None)
        for order in pulse.orders if pulse else ():
            self.progress.pop(order, None)

    async def run(self) -> None:
        """Tell verdicts as patience runs out; ends by being cancelled."""
        while True:
            found, self._look_ms = liveness.verdicts(self._pulses, self._now_ms())
            for verdict in found:
                if isinstance(verdict, liveness.Lost):
                    self.forget(verdict.site)
                else:
                    self.settle(verdict.site, verdict.order)
            if found:
                self._tell(found)
                continue
            self._sooner.clear()
            delay_s = None if self._look_ms is None else max(0.001, (self._look_ms - self._now_ms()) / 1000)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sooner.wait(), delay_s)
            late_ms = 0 if self._look_ms is None else self._now_ms() - self._look_ms
            if late_ms >= OVERSLEPT_MS:
                _log.warning("this process stood still for %d s or more: leases begin anew", late_ms // 1000)
                self._pulses = dict(liveness.renew(self._pulses, self._now_ms()))

    def _one(self, site: str) -> liveness.Pulses:
        pulse = self._pulses.get(site)
        return {} if pulse is None else {site: pulse}

    def _patiences_ms(self, site: str) -> list[int]:
        pulse = self._pulses.get(site)
        return [] if pulse is None else [beat.patience_ms for beat in pulse.orders.values()]

    def _look_by(self, end_ms: int) -> None:
        """Wake up sooner than planned, if this may end before anything else does."""
        if self._look_ms is None or end_ms < self._look_ms:
            self._look_ms = end_ms
            self._sooner.set()
