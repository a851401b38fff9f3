"""The distinguishing audit: it lets the right mechanism pass and catches each planted fault."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from audit_reference import (
    BareBlock,
    CountedTwice,
    FreshNoiseEachStep,
    HalfNoise,
    NoClip,
    NoiseOfTheLastStep,
    PrivateSteps,
    SeedOfTheOrder,
    Shuffled,
    StaleBound,
    opposed,
)

from fedtrain.errors import ConfigError
from fedtrain.trainer.audit.distinguish import RUNS_MIN, distinguish

RUNS = 8000
CLAIM = 1.0


@pytest.mark.parametrize(
    ("right", "rate", "least"),
    [
        (lambda: PrivateSteps(1), 1.0, 0.85),
        (lambda: PrivateSteps(2, others=opposed(3)), 1.0, 0.75),
        (lambda: PrivateSteps(3, rate=0.5), 0.5, 0.7),
        (lambda: PrivateSteps(4, rate=0.5, others=opposed(1)), 0.5, 0.2),
        (lambda: PrivateSteps(5, canary_norm=0.5), 1.0, 0.3),
        (lambda: FreshNoiseEachStep(6), 1.0, 0.85),
    ],
    ids=["alone", "in company", "sampled", "sampled in company", "small record", "two steps"],
)
def test_right_mechanism_passes(right: Callable[[], PrivateSteps], rate: float, least: float) -> None:
    """mu = 1 is never refuted, and the attack comes close where nothing hides the record (fixed seeds)."""
    found = distinguish(right(), RUNS, sampling_rate=rate)
    assert least < found.mu_lower <= CLAIM


@pytest.mark.parametrize(
    ("wrong", "rate", "least"),
    [
        (lambda: HalfNoise(1), 1.0, 1.75),
        (lambda: NoClip(2), 1.0, 4.0),
        (lambda: StaleBound(3), 1.0, 1.75),
        (lambda: BareBlock(4), 1.0, 5.0),
        (lambda: SeedOfTheOrder(5), 1.0, 5.0),
        (lambda: NoiseOfTheLastStep(6), 1.0, 5.0),
        (lambda: CountedTwice(7), 1.0, 1.75),
        (lambda: CountedTwice(8, rate=0.5), 0.5, 1.5),
        (lambda: Shuffled(9, rate=0.5, others=opposed(1)), 0.5, 1.5),
    ],
    ids=[
        "half noise",
        "no clip",
        "wrong bound after a change",
        "noise missing in one block",
        "seed of the order",
        "noise of the step before",
        "counted twice",
        "counted twice, sampled",
        "shuffled instead of Poisson",
    ],
)
def test_planted_fault_is_caught(wrong: Callable[[], PrivateSteps], rate: float, least: float) -> None:
    """Each fault is proven to lose more than the claimed mu = 1 (fixed seeds)."""
    found = distinguish(wrong(), RUNS, sampling_rate=rate)
    assert found.mu_lower > max(CLAIM, least)


def test_record_taken_more_often_than_said_is_caught() -> None:
    """Sampling at 0.5 that is accounted as 0.1 is beyond any noise of the claim."""
    found = distinguish(PrivateSteps(1, rate=0.5), RUNS, sampling_rate=0.1)
    assert found.mu_lower > CLAIM


def test_surer_proof_proves_less() -> None:
    """A bound that fails once in 10^9 is well below one that may fail every other time (fixed seed)."""
    strict, lax = (distinguish(PrivateSteps(1), RUNS, failure=failure) for failure in (1e-9, 0.5))
    assert (strict.failure, lax.failure) == (1e-9, 0.5)
    assert 0.4 < strict.mu_lower < 0.8 < lax.mu_lower < 1.05


def test_each_run_is_counted() -> None:
    """The number of runs is kept, reported, and told on the way; each half holds as many of each world."""
    told: list[tuple[int, int]] = []
    found = distinguish(PrivateSteps(1), 1000, done=lambda made, of: told.append((made, of)))
    assert told == [(index + 1, 1000) for index in range(1000)]
    assert found.runs == 1000 and found.errors.without == found.errors.with_record == 250


def test_interruption_passes_through() -> None:
    """What the observer raises ends the audit at once."""

    def stop(made: int, of: int) -> None:
        if made == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distinguish(PrivateSteps(1), 1000, done=stop)


def test_too_few_runs_are_refused() -> None:
    """Neither a low number nor a short time lets an audit pass that could find nothing."""
    with pytest.raises(ConfigError, match=f"at least {RUNS_MIN}"):
        distinguish(PrivateSteps(1), RUNS_MIN - 1)
    assert distinguish(PrivateSteps(1), 10_000, seconds=1e-9).runs == RUNS_MIN


def test_mechanism_without_any_noise_is_the_worst() -> None:
    """Without noise the bound is what the number of runs can prove, and never a claim's."""
    found = distinguish(PrivateSteps(1, noise_multiplier=0.0), 4000)
    assert 5.0 < found.mu_lower < math.inf
    assert (found.errors.false_alarms, found.errors.misses) == (0, 0)


def test_data_set_without_the_canary_in_it_shows_nothing() -> None:
    """If both worlds are the same the bound stays at 0 or close (fixed seed)."""

    class Blind(PrivateSteps):
        def release(self, with_canary: bool) -> np.ndarray:
            return super().release(False)

    assert distinguish(Blind(3), RUNS).mu_lower < 0.05
