"""From counted errors of an attack to a lower bound on the privacy that was lost.

A mechanism that is mu-Gaussian-private (Dong, Roth & Su, Gaussian differential privacy, 2022, arXiv
1905.02383) lets no test tell two neighbouring data sets apart better than N(0, 1) from N(mu, 1). So an
attack with few false alarms (rate a) and few misses (rate b) proves a mu:

    q = 1:  mu >= Phi^-1(1 - a) - Phi^-1(b)
    q < 1:  mu >= t - Phi^-1((b - (1 - q)(1 - a)) / q)   with t = Phi^-1(1 - a)

where a step takes the record up with probability q (Nasr et al., Tight auditing of differentially
private machine learning, 2023, arXiv 2302.07956). The rates are not known but counted, so their exact
upper confidence limits are used (Clopper & Pearson, Biometrika 26, 1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_NORMAL = NormalDist()
_HALVINGS = 60
"""Of [0, 1]: to the last bit of a float."""


@dataclass(frozen=True)
class Errors:
    """What an attack got wrong.

    Attributes:
        false_alarms: runs without the record that were taken for runs with it, of `without`.
        misses: runs with the record that were taken for runs without, of `with_record`.
    """

    false_alarms: int
    without: int
    misses: int
    with_record: int


def rate_upper(count: int, trials: int, failure: float) -> float:
    """Clopper-Pearson: the true rate is above this with probability at most `failure`.

    The largest p for which `count` or fewer of `trials` have probability `failure` or more.
    """
    if not 0 <= count <= trials or trials < 1:
        raise ValueError(f"{count} of {trials} is no count")
    if count == trials:
        return 1.0
    coefficients = _log_binomials(trials, count)
    indices = np.arange(count + 1)
    low, high, wanted = count / trials, 1.0, math.log(failure)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        logs = coefficients + indices * math.log(middle) + (trials - indices) * math.log1p(-middle)
        highest = float(logs.max())
        tail = highest + math.log(float(np.exp(logs - highest).sum()))
        low, high = (middle, high) if tail >= wanted else (low, middle)
    return high


def mu_lower(errors: Errors, failure: float, sampling_rate: float = 1.0) -> float:
    """The least mu of the underlying Gaussian that these errors allow, at least 0.

    Wrong with probability at most `failure`, half of it for each of the two rates. `math.inf` says
    that no noise explains it: the record takes part more often than `sampling_rate`.
    """
    alarm = rate_upper(errors.false_alarms, errors.without, failure / 2)
    miss = rate_upper(errors.misses, errors.with_record, failure / 2)
    if alarm >= 1.0 or miss >= 1.0:
        return 0.0
    inner = (miss - (1.0 - sampling_rate) * (1.0 - alarm)) / sampling_rate
    if inner >= 1.0:
        return 0.0
    if inner <= 0.0:
        return math.inf
    return max(0.0, _NORMAL.inv_cdf(1.0 - alarm) - _NORMAL.inv_cdf(inner))


def epsilon_lower(errors: Errors, failure: float, delta: float) -> float:
    """The least epsilon at `delta` that these errors allow, whatever the mechanism; at least 0.

    Every (epsilon, delta)-private mechanism has 1 - b <= e^epsilon a + delta, and the same with the
    two worlds exchanged (Kairouz, Oh & Viswanath, 2015, arXiv 1311.0776). It never exceeds the
    logarithm of the number of runs, so a large claim cannot be refuted by it; `mu_lower` can.
    """
    alarm = rate_upper(errors.false_alarms, errors.without, failure / 2)
    miss = rate_upper(errors.misses, errors.with_record, failure / 2)
    found = [(1.0 - miss - delta, alarm), (1.0 - alarm - delta, miss)]
    return max([0.0, *(math.log(hits / wrong) for hits, wrong in found if hits > 0.0)])


def _log_binomials(trials: int, last: int) -> npt.NDArray[np.float64]:
    """log(trials choose k) for k of 0 to `last`."""
    k = np.arange(1, last + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((trials - k + 1) / k))])
