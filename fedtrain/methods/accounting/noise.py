"""The noise that a target epsilon needs: the accountants, asked backwards, and rounded to the safe side."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from fedtrain.core.charges import GAUSSIAN, POISSON_GAUSSIAN, Mechanism
from fedtrain.errors import ConfigError, LocalError
from fedtrain.methods.accounting.composition import check_delta
from fedtrain.methods.accounting.exact import exact_gaussian_epsilon
from fedtrain.methods.accounting.rdp import epsilon_rdp

NOISE_MIN = 0.2
"""Less is no protection: one step at this noise costs an epsilon of about 20."""

NOISE_MAX = 1e6

WIDTH = 1e-4
"""Relative width of the interval in which a search ends."""

DIGITS = 6
"""Of the result, which is rounded up, so that everybody writes the same number down."""

EXACT_MARGIN = 1e-6
"""Relative, and larger than what PLD adds to the closed form, so that PLD also finds the epsilon kept."""

LIMIT_S = 30.0


@functools.lru_cache(maxsize=256)
def solve_noise(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "pld",
    limit_s: float = LIMIT_S,
) -> float:
    """The noise multiplier with which `steps` steps spend no more than `epsilon` at `delta`.

    It is the smallest by `accountant` (`pld` or `rdp`) to a thousandth. Where PLD has no answer within
    `limit_s` seconds, it is the one by RDP, which is larger, so the promise holds all the same.

    Raises:
        ConfigError: no noise that is representable is enough.
    """
    from fedtrain.methods.accounting.pld import NoAnswer, ask

    check_delta(delta)
    if not (0 < sampling_rate <= 1 and steps >= 1 and epsilon > 0):
        raise LocalError(f"epsilon {epsilon}, rate {sampling_rate} and {steps} steps are no mechanism")
    if accountant not in ("pld", "rdp"):
        raise LocalError(f"there is no accountant {accountant!r}; there are pld and rdp")
    kind = POISSON_GAUSSIAN if sampling_rate < 1 else GAUSSIAN

    def by_rdp(noise_multiplier: float) -> float:
        mechanism = Mechanism(kind, "record", 1.0, noise_multiplier, sampling_rate, steps)
        return epsilon_rdp([(mechanism, 1)], delta)

    enough = smallest_noise(by_rdp, epsilon)
    if accountant == "rdp" or enough == NOISE_MIN:
        return enough
    if sampling_rate == 1:
        # What PLD approaches from above, to nine digits, is known in closed form.
        return smallest_noise(
            lambda z: exact_gaussian_epsilon(math.sqrt(steps) / z, delta) * (1 + EXACT_MARGIN),
            epsilon,
            enough,
        )
    question = {"epsilon": epsilon, "delta": delta, "sampling_rate": sampling_rate, "steps": steps}
    try:
        return min(enough, ask({**question, "enough": enough}, limit_s))
    except NoAnswer:
        return enough


def smallest_noise(spent: Callable[[float], float], epsilon: float, guess: float = 1.0) -> float:
    """The smallest noise multiplier, rounded up, for which `spent` is no more than `epsilon`.

    `spent` falls with the noise. It may be slow, so the search goes along the chord of the logarithms
    (regula falsi in the Illinois form), and bisects where a value has no logarithm.
    """
    low, high, over, under = _bracket(spent, epsilon, guess)
    if low == high:
        return high
    side = 0
    while high > low * (1 + WIDTH):
        middle = math.sqrt(low * high)
        if math.isfinite(over) and math.isfinite(under):
            # Never nearer to an end than half the width, so that the last step closes the interval.
            margin = min(0.5, WIDTH / 2 / math.log(high / low))
            middle = low * (high / low) ** min(max(over / (over - under), margin), 1 - margin)
        value = _excess(spent(middle), epsilon)
        if value > 0:
            low, over, under = middle, value, under / 2 if side > 0 else under
            side = 1
        else:
            high, under, over = middle, value, over / 2 if side < 0 else over
            side = -1
    found = _rounded_up(high)
    while spent(found) > epsilon:  # the last digits of an accountant need not fall with the noise
        found = _rounded_up(found * (1 + WIDTH))
    return found


def _bracket(
    spent: Callable[[float], float], epsilon: float, guess: float
) -> tuple[float, float, float, float]:
    """(low, high, excess at low > 0, excess at high <= 0); low = high where the least noise is enough."""
    value = _excess(spent(guess), epsilon)
    low = high = guess
    over = under = value
    factor = 1.25
    while over <= 0:
        if low == NOISE_MIN:
            return NOISE_MIN, NOISE_MIN, over, over
        high, under = low, over
        low = max(NOISE_MIN, low / factor)
        over = _excess(spent(low), epsilon)
        factor = min(2.0, factor * factor)
    while under > 0:
        if high >= NOISE_MAX:
            raise ConfigError(
                f"no noise up to {NOISE_MAX:g} brings the accountant down to epsilon {epsilon:g}: ask for a "
                "larger epsilon or delta, or for fewer steps"
            )
        low, over = high, under
        high = min(NOISE_MAX, high * factor)
        under = _excess(spent(high), epsilon)
        factor = min(10.0, factor * factor)
    return low, high, over, under


def _excess(value: float, epsilon: float) -> float:
    """Positive where too much is spent."""
    if value == 0:
        return -math.inf
    return math.log(value / epsilon) if math.isfinite(value) else math.inf


def _rounded_up(value: float) -> float:
    digits = DIGITS - 1 - math.floor(math.log10(value))
    scale = 10.0**digits
    return math.ceil(value * scale) / scale
