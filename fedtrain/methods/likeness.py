"""What a tensor's numbers look like, beside noise: for a person who decides whether an update may leave.

Each measure has a known value for Gaussian noise and a known spread of it, so "how far from noise" is a
number of standard deviations and needs no threshold of taste. The measures see one tensor at a time, in
one pass over its values after its extent is known, and hold one window in memory.

None of them can show what an update *means*: data that was compressed or encrypted into it looks like noise,
and so may an honest update late in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedtrain.methods.vectors import Floats

LEVELS = 255
"""Equal steps from -|max| to |max| in which values are counted, as the `int8` codec has them."""

BINS = 15
"""Of the histogram that is shown; a divisor of `LEVELS`."""

WINDOW = 4096
"""Values of one spectrum."""

SPECTRUM_VALUES_MIN = 64

_FLATNESS_NOISE = math.exp(-np.euler_gamma)
"""Expected geometric over arithmetic mean of a white periodogram, whose powers are exponential: 0.5615."""

_FLATNESS_SPREAD = _FLATNESS_NOISE * math.sqrt(math.pi**2 / 6 - 1)
"""Times 1/sqrt(powers): standard deviation, from the variance of log and mean of an exponential variable."""


@dataclass(frozen=True)
class Likeness:
    """One tensor.

    Attributes:
        count: of values.
        norm: L2.
        low, high, mean, deviation: in the values' own unit.
        zeros: share of values that are exactly 0.
        histogram: counts in `BINS` equal parts from -|max| to |max|.
        entropy: of the values in `LEVELS` steps, over the largest possible: 0 for one value, 1 for all alike.
        entropy_noise: what a draw of as many values from a Gaussian, cut off as far out, has.
        kurtosis: fourth moment less that of a Gaussian: 0 for noise, -1.2 for uniform bytes, large for few
            large values.
        lag: correlation of each value with the next: 0 for noise.
        flatness: geometric over arithmetic mean of the spectrum: 0.56 for noise, near 0 for a pattern; None
            for fewer than 64 values.
        kurtosis_sigmas, lag_sigmas, flatness_sigmas: how far from noise, in standard deviations of noise.
    """

    count: int
    norm: float
    low: float
    high: float
    mean: float
    deviation: float
    zeros: float
    histogram: tuple[int, ...]
    entropy: float
    entropy_noise: float
    kurtosis: float
    lag: float
    flatness: float | None
    kurtosis_sigmas: float
    lag_sigmas: float
    flatness_sigmas: float | None

    @property
    def like_noise(self) -> bool:
        """Whether nothing here tells it from Gaussian noise, at four standard deviations."""
        sigmas = (self.kurtosis_sigmas, self.lag_sigmas, self.flatness_sigmas or 0.0)
        return self.deviation > 0 and all(abs(value) < 4 for value in sigmas)


@dataclass
class Extent:
    """First pass: where the values lie. Windows in any sizes."""

    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    squares: float = 0.0

    def take(self, values: Floats) -> None:
        """The next values (n,)."""
        wide = values.astype(np.float64)
        self.count += len(values)
        self.low = min(self.low, float(wide.min()))
        self.high = max(self.high, float(wide.max()))
        self.total += float(wide.sum())
        self.squares += float(np.dot(wide, wide))

    @property
    def mean(self) -> float:
        """Of all values."""
        return self.total / self.count

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(-self.low, self.high)


class Measure:
    """Second pass, over the same values in the same order.

    Args:
        extent: what the first pass found, of at least one value.
    """

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._moments = np.zeros(2)
        self._zeros = 0
        self._levels = np.zeros(LEVELS, np.int64)
        self._products = 0.0
        self._before: float | None = None
        self._window = np.empty(0, np.float64)
        self._logs = self._means = 0.0
        self._windows = self._powers = 0

    def take(self, values: Floats) -> None:
        """The next values (n,)."""
        centred = values.astype(np.float64) - self._extent.mean
        squares = np.square(centred)
        self._moments += squares.sum(), np.dot(squares, squares)
        self._zeros += int(np.count_nonzero(values == 0))
        self._count_levels(values)
        if self._before is not None:
            self._products += self._before * float(centred[0])
        self._products += float(np.dot(centred[:-1], centred[1:]))
        self._before = float(centred[-1])
        self._window = np.concatenate((self._window, centred))
        whole = len(self._window) // WINDOW * WINDOW
        for start in range(0, whole, WINDOW):
            self._spectrum(self._window[start : start + WINDOW])
        self._window = self._window[whole:].copy()

    def _count_levels(self, values: Floats) -> None:
        absmax = self._extent.absmax
        if absmax == 0:
            self._levels[LEVELS // 2] += len(values)
            return
        # Halves first: the sum of two large values may not be finite.
        places = (values.astype(np.float64) / absmax / 2 + 0.5) * LEVELS
        index = np.clip(places.astype(np.int64), 0, LEVELS - 1)
        self._levels += np.bincount(index, minlength=LEVELS)

    def _spectrum(self, window: NDArray[np.float64]) -> None:
        # Without the constant part, and without the last of an even count, which is not exponential.
        power = np.square(np.abs(np.fft.rfft(window)))[1 : (len(window) - 1) // 2 + 1]
        mean = float(power.mean())
        if mean > 0:
            floor = mean * 1e-12  # a pattern leaves frequencies empty but for rounding
            self._logs += float(np.log(np.maximum(power, floor) / mean).mean())
            self._windows += 1
            self._powers += len(power)

    def done(self) -> Likeness:
        """What was measured, when all values were taken."""
        extent = self._extent
        count = extent.count
        if not self._windows and len(self._window) >= SPECTRUM_VALUES_MIN:
            self._spectrum(self._window)
        variance = float(self._moments[0]) / count
        kurtosis = float(self._moments[1]) / count / variance**2 - 3 if variance > 0 else 0.0
        lag = self._products / float(self._moments[0]) if variance > 0 else 0.0
        flatness = math.exp(self._logs / self._windows) if self._windows else None
        off = None
        if flatness is not None:
            off = (flatness - _FLATNESS_NOISE) / (_FLATNESS_SPREAD / math.sqrt(self._powers))
        return Likeness(
            count=count,
            norm=math.sqrt(extent.squares),
            low=extent.low,
            high=extent.high,
            mean=extent.mean,
            deviation=math.sqrt(variance),
            zeros=self._zeros / count,
            histogram=tuple(int(part.sum()) for part in self._levels.reshape(BINS, -1)),
            entropy=_entropy(self._levels / count),
            entropy_noise=_noise_entropy(extent, math.sqrt(variance)),
            kurtosis=kurtosis,
            lag=lag,
            flatness=flatness,
            kurtosis_sigmas=kurtosis / math.sqrt(24 / count),
            lag_sigmas=lag * math.sqrt(count),
            flatness_sigmas=off,
        )


def measure(values: Floats) -> Likeness:
    """Of a tensor that is in memory, (n,), n at least 1."""
    extent = Extent()
    extent.take(values)
    second = Measure(extent)
    second.take(values)
    return second.done()


def _entropy(shares: NDArray[np.float64]) -> float:
    """Of shares that sum to 1, over that of equal shares."""
    some = shares[shares > 0]
    return max(0.0, float(-(some * np.log(some)).sum()) / math.log(LEVELS))


def _noise_entropy(extent: Extent, deviation: float) -> float:
    """Of one draw: few values leave most levels empty, so the shares alone would tell too much."""
    absmax = extent.absmax
    if deviation == 0 or absmax == 0:
        return 0.0
    edges = (np.linspace(-absmax, absmax, LEVELS + 1) - extent.mean) / (deviation * math.sqrt(2))
    shares = np.diff(np.array([math.erf(edge) for edge in edges]))
    drawn = np.random.default_rng(0).multinomial(extent.count, shares / shares.sum())
    return _entropy(drawn / extent.count)
