"""Virtual time: nothing waits, the clock jumps to whatever is due next. And what machines show of it."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]

START_MS = 1_700_000_000_000
"""Like today's clocks: a machine that is a year behind still shows a time, and an unset one looks wrong."""

JUMPS_MS = (5_000, 600_000, 3_600_000, 365 * 86_400_000)
"""By how much a wall clock may be off, or jump."""


class Clock:
    """Integer milliseconds and a queue. What is due at the same time happens in the order asked for."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self._queue: list[tuple[int, int, Action]] = []
        self._asked = 0

    def at(self, at_ms: int, action: Action) -> None:
        """Call `action` once the clock reads `at_ms`, or next if that is past."""
        self._asked += 1
        heapq.heappush(self._queue, (max(at_ms, self.now_ms), self._asked, action))

    def after(self, delay_ms: int, action: Action) -> None:
        """Call `action` in `delay_ms`."""
        self.at(self.now_ms + delay_ms, action)

    def advance(self) -> None:
        """Jump to what is due next and do it. `IndexError` if nothing ever happens again."""
        self.now_ms, _, action = heapq.heappop(self._queue)
        action()


@dataclass
class WallClock:
    """What the clock on one machine's wall shows: off by so much, and by something else after a jump."""

    clock: Clock
    offset_ms: int = 0

    @property
    def now_ms(self) -> int:
        """UTC, as this machine believes."""
        return self.clock.now_ms + self.offset_ms


class LifeClock:
    """Wall-clock milliseconds of one life: read once, at its start, then monotonic.

    As `coordinator.clock`: a jump during a life moves no deadline, and a life never begins before the
    last event of the one before it, or its timers would wait for a time that the wall has left behind.
    """

    def __init__(self, wall: WallClock, at_least_ms: int) -> None:
        self._clock = wall.clock
        self._offset_ms = max(wall.now_ms, at_least_ms) - wall.clock.now_ms
        self._born_ms = wall.clock.now_ms

    @property
    def now_ms(self) -> int:
        """UTC, for events."""
        return self._clock.now_ms + self._offset_ms

    @property
    def monotonic_ms(self) -> int:
        """Since this life began, for leases: only differences mean something."""
        return self._clock.now_ms - self._born_ms
