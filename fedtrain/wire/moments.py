"""The coordinator's clock on every answer, so that a site can compare its own. Since 1.1.

    fedtrain-time: <UTC milliseconds>

It is told and not signed: nothing is decided by it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

KEY = "fedtrain-time"

_SPELLING = re.compile(r"[0-9]{1,15}")


def write() -> tuple[tuple[str, str], ...]:
    """The metadata that says what time it is here."""
    return ((KEY, str(time.time_ns() // 1_000_000)),)


def read(metadata: Iterable[Any] | None) -> int | None:
    """The other side's clock, UTC milliseconds; None if it does not tell, or not in this way."""
    for key, value in metadata or ():
        if key == KEY and isinstance(value, str) and _SPELLING.fullmatch(value):
            return int(value)
    return None
