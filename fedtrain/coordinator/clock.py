"""The one place where the coordinator reads clocks, and its timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Clock:
    """Wall-clock milliseconds that advance with the monotonic clock.

    The wall clock is read once, at the start. A jump of the machine's clock during a run then moves
    no deadline; a restart takes up the new time, unless it lies before `at_least_ms`, the time of the
    journal's last event: deadlines are set from that one, and a clock that was set back by a year
    would let every round wait a year for its own.
    """

    def __init__(self, at_least_ms: int = 0) -> None:
        self._offset_ms = max(time.time_ns() // 1_000_000, at_least_ms) - self.monotonic_ms()

    @staticmethod
    def monotonic_ms() -> int:
        """For leases: only differences mean something."""
        return time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """UTC, for events."""
        return self._offset_ms + self.monotonic_ms()

    def call_at(self, at_ms: int, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back once `now_ms` has reached `at_ms`."""
        delay_s = max(0, at_ms - self.now_ms()) / 1000
        # A timer may fire a hair early by the loop's resolution; the core would then ask again in vain.
        return asyncio.get_running_loop().call_later(delay_s + 0.002, call)
