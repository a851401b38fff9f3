"""Sizes, durations and rates as people write them: `10GB`, `64MiB`, `24h`, `100Mbit/s`.

Each parser takes what the YAML file holds and returns a number in one base unit, or raises
`ValueError` with a sentence. A bare number has no unit, so it is accepted only where the name of
the key gives it one (`deadline_s`), which is the caller's business.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SIZES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_DURATIONS_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATES = {"bit/s": 1, "kbit/s": 10**3, "Mbit/s": 10**6, "Gbit/s": 10**9, "Tbit/s": 10**12}

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z/]*)")
_DIGITS_MAX = 18
"""Longer numbers are a slip of the hand, and would cost time to multiply out."""


def parse_size(value: object) -> int:
    """Bytes from `10GB` (powers of ten) or `64MiB` (powers of two)."""
    return _parse(value, "a size", _SIZES, example="10GB or 64MiB")


def parse_duration_ms(value: object) -> int:
    """Milliseconds from `24h`, `5m`, `300s`, `250ms`."""
    return _parse(value, "a duration", _DURATIONS_MS, example="24h, 5m or 300s")


def parse_rate(value: object) -> int:
    """Bits per second from `100Mbit/s`."""
    return _parse(value, "a rate", _RATES, example="100Mbit/s")


def parse_seconds_ms(value: object) -> int:
    """Milliseconds for a key that ends in `_s`: a bare number of seconds, or a duration with its unit."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return parse_duration_ms(value)
    if not math.isfinite(value) or value < 0 or value >= 10**_DIGITS_MAX:
        raise ValueError(f"found {value!r}, but it must be a number of seconds, or a duration such as 5m")
    return round(Fraction(value) * 1000)


def _parse(value: object, noun: str, units: dict[str, int], example: str) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"found {value!r} without a unit, but it must be {noun} such as {example}")
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[1]) > _DIGITS_MAX:
        raise ValueError(f"found {_short(value)}, but it must be {noun} such as {example}")
    number, unit = match.groups()
    if unit not in units:
        found = f"the unit {unit!r}" if unit else "no unit"
        raise ValueError(f"found {_short(value)} with {found}, but the units are {', '.join(units)}")
    return round(Fraction(number) * units[unit])


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
