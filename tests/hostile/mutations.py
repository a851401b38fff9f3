"""Bytes that were right once: how fuzzers spoil them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings, strategies as st

T = TypeVar("T", bound=Callable[..., Any])

SPLICES = (
    b"",
    b"\0",
    b"\xff",
    b"\xff" * 9 + b"\x01",
    b"\x80" * 10,
    b"{}",
    b"[",
    b'"',
    b"..",
    b"\\ud800",
    b"1e999",
)
"""Extremes of varints, of JSON and of YAML, which chance would take long to find."""

Edit = tuple[int, int, bytes]
"""(place, bytes taken away there, bytes put there)"""


def fuzzed(examples: int) -> Callable[[T], T]:
    """The settings of every fuzzer: the same examples on every machine, so many of them, and no clock."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def edits() -> st.SearchStrategy[list[Edit]]:
    """A few changes."""
    piece = st.one_of(st.sampled_from(SPLICES), st.binary(max_size=12))
    return st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 12), piece), min_size=1, max_size=6)


def spoil(data: bytes, changes: list[Edit]) -> bytes:
    """The bytes with the changes; places beyond the end wrap around."""
    for place, taken, put in changes:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + taken :]
    return data
