"""Discrete Gaussian noise: the distribution that the source defines, from words that the caller gives.

All tests have fixed words: they hold always or never.
"""

import decimal
import math

import numpy as np
import pytest

from fedtrain.errors import LocalError
from fedtrain.methods.discretegaussian import acceptance, sample, scale_of


def words_of(seed: int):
    """Uniform words from a seeded generator, and how many were taken."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def words(count: int) -> np.ndarray:
        words.taken += count
        return rng.integers(0, 2**64, count, np.uint64)

    words.taken = 0
    return words


def masses(sigma: float, most: int) -> np.ndarray:
    """Exact probabilities of -most to most."""
    weights = np.exp(-(np.arange(-most, most + 1) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def variance(sigma: float) -> float:
    """Of the discrete Gaussian: it is sigma^2 from sigma = 2 on, and less below."""
    most = math.ceil(12 * sigma) + 3
    return float(np.sum(masses(sigma, most) * np.arange(-most, most + 1.0) ** 2))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1, 1.5, 2, 7.3, 100, 1000.7, 2.0**20])
def test_moments_are_those_of_the_distribution(sigma: float) -> None:
    """Mean, variance and fourth moment of 400,000 draws lie within five standard errors."""
    count = 400_000
    drawn = sample(sigma, count, words_of(1))
    assert drawn.dtype == np.int64
    assert len(drawn) == count
    spread = variance(sigma) if sigma < 1000 else sigma**2
    assert abs(drawn.mean()) <= 5 * math.sqrt(spread / count)
    values = drawn.astype(np.float64)
    if sigma >= 0.5:  # for 0.1 anything but 0 comes once in 10^21 draws
        second = np.mean(values**2)
        error = np.std(values**2) / math.sqrt(count)
        assert abs(second - spread) <= 5 * error
    else:
        assert not drawn.any()
    if sigma >= 2:
        fourth = values**4
        assert abs(fourth.mean() - 3 * sigma**4) <= 5 * fourth.std() / math.sqrt(count)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1, 1.4, 1.5, 3, 11.3, 12.7])
def test_frequencies_fit_the_exact_masses(sigma: float) -> None:
    """Chi-square of 500,000 draws against the exact masses, within five deviations of what it should be."""
    count = 500_000
    most = math.ceil(4 * sigma)
    expected = masses(sigma, math.ceil(12 * sigma) + 3) * count
    centre = len(expected) // 2
    bins = expected[centre - most : centre + most + 1].copy()
    bins[0] += expected[: centre - most].sum()
    bins[-1] += expected[centre + most + 1 :].sum()
    drawn = np.clip(sample(sigma, count, words_of(2)), -most, most)
    found = np.bincount(drawn + most, minlength=len(bins))
    usable = bins > 20
    statistic = float(np.sum((found[usable] - bins[usable]) ** 2 / bins[usable]))
    degrees = int(usable.sum()) - 1
    assert abs(statistic - degrees) <= 5 * math.sqrt(2 * max(degrees, 1))


@pytest.mark.parametrize("sigma", [0.1, 0.9, 1.6, 33.3, 1000.7, 2.0**20])
def test_acceptance_has_the_stated_precision(sigma: float) -> None:
    """Against 50 digits: relative error below 2^-46 above 2^-16, absolute below 2^-60 elsewhere."""
    rng = np.random.default_rng(3)
    scale = scale_of(sigma)
    low = rng.integers(0, scale, 300)
    magnitude = low + scale * rng.integers(0, 12, 300)
    found = acceptance(sigma, low.astype(np.float64), magnitude.astype(np.float64))
    with decimal.localcontext(prec=50):
        exact_sigma = decimal.Decimal(sigma)
        for u, y, chance in zip(low.tolist(), magnitude.tolist(), found.tolist(), strict=True):
            distance = y - exact_sigma**2 / scale
            exact = (-(distance**2) / (2 * exact_sigma**2) - decimal.Decimal(u) / scale).exp()
            error = abs(decimal.Decimal(chance) - exact)
            assert error <= (max(exact / 2**46, decimal.Decimal(2) ** -62))


def test_the_same_words_give_the_same_draws() -> None:
    """A repeated stream of words repeats the noise; another stream gives other noise."""
    one, again, other = (sample(50.0, 10_000, words_of(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.9


def test_neighbours_in_a_stream_are_independent() -> None:
    """Consecutive draws have no correlation: within five standard errors of zero."""
    drawn = sample(20.0, 200_000, words_of(6)).astype(np.float64)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / math.sqrt(len(drawn))


def test_few_words_are_used() -> None:
    """Three words a trial; two trials in five succeed, three in ten where sigma is below 1."""
    for sigma in (0.1, 0.8, 1.45, 90.0, 91.0):
        words = words_of(7)
        sample(sigma, 100_000, words)
        assert words.taken < 3 * (2.5 if sigma >= 1 else 3.4) * 100_000 + 3 * 20_000


@pytest.mark.parametrize("sigma", [0.0, 0.09, -1.0, math.nan, math.inf, 2.0**21])
def test_parameters_out_of_range_are_our_mistake(sigma: float) -> None:
    """A sigma that the scale and the integers are not made for is a `LocalError`; no draws are none."""
    with pytest.raises(LocalError, match="sigma"):
        sample(sigma, 1, words_of(8))
    assert len(sample(1.0, 0, words_of(8))) == 0
