"""Numbers that tell a tensor from noise: right for noise, far off for what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.methods.likeness import BINS, Extent, Measure, measure

RNG = np.random.default_rng(7)


def test_small_numbers_by_hand() -> None:
    """Of 0, 0, 3, -1: norm, extent, moments, zeros and histogram as anybody can reckon them."""
    found = measure(np.array([0, 0, 3, -1], np.float32))
    assert (found.count, found.low, found.high, found.mean, found.zeros) == (4, -1, 3, 0.5, 0.5)
    assert found.norm == pytest.approx(np.sqrt(10))
    assert found.deviation == pytest.approx(np.sqrt(2.25))
    # Deviations -0.5, -0.5, 2.5, -1.5: fourth powers 0.0625, 0.0625, 39.0625, 5.0625.
    assert found.kurtosis == pytest.approx(44.25 / 4 / 2.25**2 - 3)
    assert found.lag == pytest.approx((0.25 - 1.25 - 3.75) / 9)
    assert sum(found.histogram) == 4 and found.histogram[BINS // 2] == 2 and found.histogram[-1] == 1
    assert found.flatness is None and found.flatness_sigmas is None


@pytest.mark.parametrize("count", [64, 1000, 50_000])
def test_noise_lies_within_its_own_spread(count: int) -> None:
    """Over many draws every measure stays within 5 of its standard deviations, and spreads as it says."""
    draws = [
        measure(RNG.standard_normal(count).astype(np.float32)) for _ in range(100 if count < 9999 else 20)
    ]
    for name in ("kurtosis_sigmas", "lag_sigmas", "flatness_sigmas"):
        sigmas = np.array([getattr(found, name) for found in draws])
        assert np.abs(sigmas).max() < 6 and 0.5 < sigmas.std() < 1.7, name
    assert np.mean([found.like_noise for found in draws]) > 0.9
    assert np.mean([found.entropy - found.entropy_noise for found in draws]) == pytest.approx(0, abs=0.02)


def test_bytes_a_pattern_and_a_needle_are_not_noise() -> None:
    """Evenly spread values, a wave, a ramp, sparse values and a constant are all told apart from noise."""
    count = 20_000
    spread = RNG.uniform(-1, 1, count)
    wave = np.sin(np.arange(count) / 9)
    sparse = np.where(RNG.random(count) < 0.01, RNG.standard_normal(count), 0)
    for values in (spread, wave, np.arange(count), sparse, np.full(count, 0.25)):
        assert not measure(values.astype(np.float32)).like_noise
    assert measure(spread.astype(np.float32)).kurtosis == pytest.approx(-1.2, abs=0.05)
    assert measure(spread.astype(np.float32)).entropy > 0.99
    wavy = measure(wave.astype(np.float32))
    assert wavy.lag > 0.9 and wavy.flatness is not None and wavy.flatness < 0.01
    assert measure(sparse.astype(np.float32)).kurtosis > 50


def test_zeros_and_extremes_are_measured() -> None:
    """Nothing but zeros, one value, and the largest float32 give finite numbers."""
    for values in ([0.0] * 5, [3.0], [3.4e38, -3.4e38], [1e-45, 0.0]):
        found = measure(np.array(values, np.float32))
        assert np.isfinite([found.norm, found.deviation, found.kurtosis, found.lag, found.entropy]).all()
        assert sum(found.histogram) == len(values)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_pieces_make_no_difference(sizes: list[int], seed: int) -> None:
    """However the values come in pieces, the numbers are those of the whole."""
    values = np.random.default_rng(seed).standard_normal(sum(sizes)).astype(np.float32)
    pieces = np.split(values, np.cumsum(sizes)[:-1])
    extent = Extent()
    for piece in pieces:
        extent.take(piece)
    second = Measure(extent)
    for piece in pieces:
        second.take(piece)
    ours, whole = second.done(), measure(values)
    assert ours.histogram == whole.histogram and ours.count == whole.count
    for name in ("norm", "mean", "deviation", "kurtosis", "lag", "entropy"):
        assert getattr(ours, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-9)
    assert (ours.flatness is None) == (whole.flatness is None)
    assert ours.flatness is None or ours.flatness == pytest.approx(whole.flatness)
