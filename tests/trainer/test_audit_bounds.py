"""Counted errors become bounds: limits of a rate, of mu, of epsilon."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import beta

from fedtrain.trainer.audit.bounds import Errors, epsilon_lower, mu_lower, rate_upper

NORMAL = NormalDist()


@pytest.mark.parametrize("failure", [0.05, 1e-3, 1e-10])
@pytest.mark.parametrize(("count", "trials"), [(0, 10), (3, 10), (9, 10), (10, 10), (310, 1000), (0, 4000)])
def test_limit_is_the_quantile_of_a_beta_distribution(count: int, trials: int, failure: float) -> None:
    """The limit is Clopper's and Pearson's: the upper quantile of Beta(count + 1, trials - count)."""
    wanted = 1.0 if count == trials else float(beta.ppf(1 - failure, count + 1, trials - count))
    assert rate_upper(count, trials, failure) == pytest.approx(wanted, rel=1e-6)


def test_limit_is_exceeded_as_rarely_as_it_says() -> None:
    """Over 2,000 draws with a fixed seed, a limit of 5 % fails in about 5 % and not in more than 7 %."""
    drawn = np.random.default_rng(0).binomial(200, 0.3, 2000)
    limits = {count: rate_upper(count, 200, 0.05) for count in set(drawn.tolist())}
    failed = np.mean([limits[count] < 0.3 for count in drawn.tolist()])
    assert 0.02 < failed < 0.07


def test_known_rates_give_back_their_mu() -> None:
    """200,000 runs of the best test against mu = 1 prove nearly 1, sampled or not."""
    trials = 200_000
    for rate, cut in ((1.0, 0.5), (0.25, 1.5)):
        alarms = round(trials * (1 - NORMAL.cdf(cut)))
        misses = round(trials * ((1 - rate) * NORMAL.cdf(cut) + rate * NORMAL.cdf(cut - 1.0)))
        found = mu_lower(Errors(alarms, trials, misses, trials), 0.05, rate)
        assert 0.94 < found < 1.0


def test_perfect_attack_on_few_runs_proves_little() -> None:
    """Without a single error the bound grows with the number of runs alone."""
    few, many = (mu_lower(Errors(0, n, 0, n), 0.05) for n in (20, 2000))
    assert few < 2.0 < 5.0 < many < 7.0


def test_blind_attack_proves_nothing() -> None:
    """A coin, an attack that always cries, and one that never does, prove a mu and an epsilon of 0."""
    for errors in (Errors(500, 1000, 500, 1000), Errors(1000, 1000, 0, 1000), Errors(0, 1000, 1000, 1000)):
        assert mu_lower(errors, 0.05) == 0.0
        assert epsilon_lower(errors, 0.05, 1e-5) == 0.0


def test_more_hits_than_the_sampling_allows_refute_any_noise() -> None:
    """A record said to be in every tenth step and found in every one is explained by no mu."""
    assert mu_lower(Errors(0, 1000, 0, 1000), 0.05, 0.1) == math.inf


def test_epsilon_of_randomised_response() -> None:
    """The truth told with probability 3/4 has epsilon log 3; 200,000 answers prove nearly that."""
    found = epsilon_lower(Errors(50_000, 200_000, 50_000, 200_000), 0.05, 0.0)
    assert math.log(3) - 0.02 < found < math.log(3)
