"""The agent's two clocks."""

from __future__ import annotations

import time


def now_ms() -> int:
    """UTC, for events: told, never decided from."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> int:
    """For leases: only differences mean something."""
    return time.monotonic_ns() // 1_000_000
