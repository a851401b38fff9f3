"""Virtual time: nothing waits, the clock jumps to whatever is due next."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]

START_MS = 1_000_000
"""Not zero: an unset time should look wrong."""


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
