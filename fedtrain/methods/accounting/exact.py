"""The Gaussian mechanism without sampling, in closed form.

With mu = sqrt(steps) / noise_multiplier, and Phi the normal distribution,
delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): Balle and Wang, Improving the
Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal Denoising, 2018,
arXiv:1805.06530, theorem 8.
"""

from __future__ import annotations

import math

from fedtrain.errors import LocalError
from fedtrain.methods.accounting.composition import check_delta

TAIL = -30.0
"""Below this, the complementary error function comes near the smallest double, and the series takes over."""


def exact_gaussian_delta(mu: float, epsilon: float) -> float:
    """The smallest delta at `epsilon`; `mu` is sensitivity over standard deviation, over all steps."""
    if not (mu > 0 and math.isfinite(mu)):
        raise LocalError(f"mu is {mu}, and has to be a positive number")
    kept = _log_normal(mu / 2 - epsilon / mu)
    lost = epsilon + _log_normal(-mu / 2 - epsilon / mu)
    return max(0.0, -math.exp(kept) * math.expm1(lost - kept))


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon at `delta`, from above: delta at what is returned is never larger."""
    check_delta(delta)
    if exact_gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while exact_gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        if exact_gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def _log_normal(x: float) -> float:
    """Logarithm of the normal distribution function."""
    if x > TAIL:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    # Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.2.12; here it is good to 1e-8.
    square = x * x
    series = 1 - 1 / square + 3 / square**2 - 15 / square**3 + 105 / square**4
    return -square / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)
