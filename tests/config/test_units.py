"""Sizes, durations and rates as people write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from fedtrain.config.units import parse_duration_ms, parse_rate, parse_seconds_ms, parse_size

COUNTS = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_size, "10GB", 10 * 10**9),
        (parse_size, "64MiB", 64 << 20),
        (parse_size, "1.5 GB", 1_500_000_000),
        (parse_size, "0B", 0),
        (parse_duration_ms, "24h", 86_400_000),
        (parse_duration_ms, "300s", 300_000),
        (parse_duration_ms, "5m", 300_000),
        (parse_duration_ms, "0.5s", 500),
        (parse_duration_ms, "2d", 172_800_000),
        (parse_rate, "100Mbit/s", 10**8),
        (parse_seconds_ms, 5, 5000),
        (parse_seconds_ms, 0.1, 100),
        (parse_seconds_ms, "2m", 120_000),
    ],
)
def test_documented_quantities(parse: Callable[[object], int], text: object, value: int) -> None:
    """The documented spellings mean the documented numbers."""
    assert parse(text) == value


@given(COUNTS, st.sampled_from([("kB", 10**3), ("MiB", 1 << 20), ("TB", 10**12), ("B", 1)]))
def test_sizes_multiply_exactly(count: int, unit: tuple[str, int]) -> None:
    """A size is its number times its unit, exactly, with or without a space."""
    assert parse_size(f"{count}{unit[0]}") == parse_size(f"{count} {unit[0]}") == count * unit[1]


@given(st.integers(0, 10**6), st.integers(0, 999))
def test_decimal_seconds_are_exact(whole: int, thousandths: int) -> None:
    """Decimal fractions of a second do not pass through binary floating point."""
    assert parse_duration_ms(f"{whole}.{thousandths:03d}s") == whole * 1000 + thousandths


@pytest.mark.parametrize("parse", [parse_size, parse_duration_ms, parse_rate])
@pytest.mark.parametrize(
    "value", [5, 5.0, True, None, "", "GB", "-1GB", "1e9s", "5 parsecs", "5", [], "9" * 400 + "s"]
)
def test_what_is_no_quantity_is_refused(parse: Callable[[object], int], value: object) -> None:
    """A number without a unit, a sign, an unknown unit or another type is refused with what is valid."""
    with pytest.raises(ValueError, match=r"such as|the units are"):
        parse(value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e300, True, None, "5", [1]])
def test_what_is_no_number_of_seconds_is_refused(value: object) -> None:
    """A key in seconds takes no negative or endless number and no bare number in quotes."""
    with pytest.raises(ValueError, match=r"must be|the units are"):
        parse_seconds_ms(value)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """No text makes a parser fail in another way than with a sentence."""
    for parse in (parse_size, parse_duration_ms, parse_rate):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "found" in str(error)
