"""Telling runs with a record from runs without it, as well as anybody could who sees all that leaves.

The attacker knows everything but the noise and the sampling: the data, the weights, what the record (the
canary) would add. It sees the released vectors, learns from runs without the canary how each of their
coordinates scatters, and scores a run by the likelihood ratio that follows. So noise that is missing
anywhere, is the same in two steps, or follows from a seed, counts with the weight of its absence.

One half of the runs teaches the weights (a quarter of it) and chooses the threshold; the other half, never
looked at before, counts the errors that `bounds` turns into a proof (Nasr et al., 2023, arXiv 2302.07956).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedtrain.errors import ConfigError
from fedtrain.trainer.audit.bounds import Errors, mu_lower

Released = npt.NDArray[np.float64]
"""What leaves in one run: (steps, elements)."""

RUNS_MIN = 400
"""With fewer, even a mechanism without noise would prove little; so many are made whatever time they take."""

TRIAL_RUNS = 8
"""Runs by which the time of one is measured."""

RIDGE = 1e-6
"""Share of the mean variance below which a coordinate counts as free of noise."""

CANDIDATES = 150


class Subject(Protocol):
    """A mechanism under attack, and what the attacker knows of it."""

    @property
    def signal(self) -> Released:
        """What the canary adds to each released step if all is right."""

    def release(self, with_canary: bool) -> Released:
        """Run the mechanism once, with fresh chance, and give out what would leave the site."""


@dataclass(frozen=True)
class Finding:
    """What an attack has proven.

    Attributes:
        runs: made in all; `errors` counts those of the second half.
        mu_lower: at least so much is lost per step, in units of Gaussian differential privacy.
        failure: probability that this bound is wrong although the mechanism is right.
    """

    runs: int
    errors: Errors
    mu_lower: float
    failure: float


def distinguish(
    subject: Subject,
    runs: int,
    *,
    sampling_rate: float = 1.0,
    failure: float = 0.05,
    seconds: float | None = None,
    done: Callable[[int, int], None] = lambda made, of: None,
) -> Finding:
    """Attack `subject` with `runs` runs, or with as many as fit into `seconds`, but never with too few.

    Args:
        sampling_rate: with which the mechanism says that it takes a record into a step.
        done: told how many of how many runs are made; what it raises passes through.

    Raises `ConfigError` where `runs` are too few to prove anything.
    """
    if runs < RUNS_MIN:
        raise ConfigError(f"{runs} runs prove nothing; at least {RUNS_MIN} are needed")
    if seconds is not None:
        runs = max(RUNS_MIN, min(runs, int(seconds / _seconds_each(subject))))
    counter = _Counter(subject, runs, done)
    teaching, choosing = runs // 8, runs // 2 - runs // 8
    weights = _weights(counter, teaching, subject.signal)
    threshold = _threshold(*_scores(counter, weights, choosing), failure, sampling_rate)
    without, with_record = _scores(counter, weights, runs - teaching - choosing)
    errors = _errors(without, with_record, threshold)
    return Finding(runs, errors, mu_lower(errors, failure, sampling_rate), failure)


def _seconds_each(subject: Subject) -> float:
    """Of a run, measured on a few of which the first is slower than all others."""
    found = []
    for index in range(TRIAL_RUNS):
        began = time.monotonic()
        subject.release(index % 2 == 0)
        found.append(time.monotonic() - began)
    return max(min(found), 1e-9)


class _Counter:
    """Runs of a subject, counted aloud."""

    def __init__(self, subject: Subject, runs: int, done: Callable[[int, int], None]) -> None:
        self._subject = subject
        self._runs = runs
        self._done = done
        self._made = 0

    def release(self, with_canary: bool) -> Released:
        released = self._subject.release(with_canary)
        self._made += 1
        self._done(self._made, self._runs)
        return released


def _weights(counter: _Counter, runs: int, signal: Released) -> Released:
    """Per coordinate the discriminant over the steps: (covariance of the steps)^-1 signal.

    Coordinates count as independent of one another, which costs power where others' records join them,
    and never the validity of the bound. Memory: a few vectors, whatever the number of runs.
    """
    first = counter.release(False)
    total = np.zeros_like(first)
    products = np.zeros((first.shape[1], first.shape[0], first.shape[0]))
    for _ in range(runs - 1):
        # Shifted by the first run: sums of squares of small differences lose nothing to rounding.
        values = counter.release(False) - first
        total += values
        products += np.einsum("se,te->est", values, values)
    covariance = (products - np.einsum("se,te->est", total, total) / runs) / (runs - 1)
    scatter = float(np.einsum("ess->", covariance)) / signal.size
    ridge = RIDGE * (scatter or float(np.square(signal).mean()) or 1.0)
    covariance += ridge * np.eye(signal.shape[0])
    solved: Released = np.linalg.solve(covariance, signal.T[:, :, None])[:, :, 0].T
    return solved


def _scores(
    counter: _Counter, weights: Released, runs: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scores of runs without and with the canary, turn by turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for index in range(runs):
        with_canary = index % 2 == 1
        found[with_canary].append(float(np.vdot(weights, counter.release(with_canary))))
    return np.array(found[0]), np.array(found[1])


def _threshold(
    without: npt.NDArray[np.float64], with_record: npt.NDArray[np.float64], failure: float, rate: float
) -> float:
    """The cut that proves most on these runs: tried are quantiles, the tails more densely, and wide gaps."""
    scores = np.unique(np.concatenate([without, with_record]))
    if len(scores) == 1:
        return float(scores[0])
    cuts = (scores[1:] + scores[:-1]) / 2
    tails = np.geomspace(1, len(cuts), CANDIDATES // 3).astype(int) - 1
    even = np.linspace(0, len(cuts) - 1, CANDIDATES // 3).astype(int)
    gaps = np.argsort(np.diff(scores))[-CANDIDATES // 10 :]
    tried = np.unique(np.concatenate([even, tails, len(cuts) - 1 - tails, gaps]))
    proven = [mu_lower(_errors(without, with_record, cuts[i]), failure, rate) for i in tried]
    best = max(proven)
    # Between equally good ones the middle: furthest from what chance may do to the other half.
    equal = [i for i, mu in zip(tried, proven, strict=True) if mu == best]
    return float(cuts[equal[len(equal) // 2]])


def _errors(
    without: npt.NDArray[np.float64], with_record: npt.NDArray[np.float64], threshold: float
) -> Errors:
    return Errors(
        int((without > threshold).sum()),
        len(without),
        int((with_record <= threshold).sum()),
        len(with_record),
    )
