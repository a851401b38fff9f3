"""Where the unit is the site: its whole update is clipped and noised before it is encoded.

    pass 1   the norm of the pseudo-gradient, and with adaptive clipping the noised bit
    pass 2   clip -> noise -> (weight under masks); what follows (residual, codec) is post-processing

The noise is Gaussian on the grid of `noise`. With error feedback the residual holds what the codec lost of
the noised values, so nothing un-noised is carried into a later update. `distributed` noise is another
way, in which the levels of the codec get their noise: see `distributed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedtrain.errors import BadUpdate
from fedtrain.methods.vectors import Floats
from fedtrain.storage.mailbox import SiteTerms
from fedtrain.trainer.privacy import noise
from fedtrain.trainer.privacy.conditions import PrivacyFault, mean_square_band
from fedtrain.trainer.privacy.noise import CLIP_TOLERANCE, KeyStream

Fill = Callable[[int, Floats], None]
"""Fills its second argument with the elements from the first on."""

RANGE_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Measured:
    """The first pass.

    Attributes:
        factor: what the pseudo-gradient is multiplied by, so that its norm is at most the clip.
        within: with adaptive clipping, 1 if the norm was within the clip and 0 if not, plus noise.
    """

    factor: float
    within: float | None


def measure(fill: Fill, num_elements: int, terms: SiteTerms, alive: Callable[[], None]) -> Measured:
    """Take the norm; `BadUpdate` where it is not finite."""
    buffer = np.empty(min(num_elements, RANGE_ELEMENTS), np.float32)
    squares = 0.0
    for start in range(0, num_elements, RANGE_ELEMENTS):
        alive()
        part = buffer[: min(RANGE_ELEMENTS, num_elements - start)]
        fill(start, part)
        wide = part.astype(np.float64)
        squares += float(np.dot(wide, wide))
    norm = math.sqrt(squares) if squares >= 0 else math.nan
    if not math.isfinite(norm):
        raise BadUpdate("the update is not finite: the training diverged; lower the learning rate")
    within = None
    if terms.adaptive is not None:
        within = _noised_bit(norm <= terms.clip, terms.adaptive.noise)
    return Measured(min(1.0, terms.clip / norm) if norm > 0 else 1.0, within)


def _noised_bit(bit: bool, deviation: float) -> float:
    """Centred on 1 or 0; the grid is that of the noise."""
    grid = noise.grid_of(deviation)
    drawn = noise.grid_noise(KeyStream(noise.fresh_key()), 1, deviation, grid)
    return (round(float(bit) / grid) + float(drawn[0])) * grid


class NoisedUpdate:
    """The second pass, a `Fill`: each element once, in order. A second time would give other noise.

    Raises `PrivacyFault` where a range's noise, or at the end the norm, is not what was planned.
    """

    def __init__(self, fill: Fill, num_elements: int, terms: SiteTerms, measured: Measured) -> None:
        self._fill = fill
        self._num_elements = num_elements
        self._clip = terms.clip
        self._factor = np.float32(measured.factor)
        reach = noise.sensitivity(terms.clip, terms.noise_multiplier, num_elements)
        self._deviation = terms.noise_multiplier * reach
        self._grid = noise.grid_of(terms.noise_multiplier * terms.clip)
        self._stream = KeyStream(noise.fresh_key())
        self._next = 0
        self._squares = 0.0

    def __call__(self, start: int, out: Floats) -> None:
        if start != self._next:
            raise PrivacyFault("a part of the noised update was asked for twice, or out of order")
        self._next = start + len(out)
        self._fill(start, out)
        np.multiply(out, self._factor, out=out)
        clipped = torch.from_numpy(out).double()
        self._squares += float(torch.dot(clipped, clipped))
        exact = noise.on_grid(clipped.clone(), self._grid)
        added = noise.grid_noise(self._stream, len(out), self._deviation, self._grid)
        torch.from_numpy(out).copy_(exact.add_(added).mul_(self._grid))
        self._check(out, clipped)

    def _check(self, released: Floats, clipped: torch.Tensor) -> None:
        """By what leaves, not by what was drawn."""
        seen = torch.from_numpy(released).double().sub_(clipped)
        check_scatter(float(torch.dot(seen, seen)), len(released), self._deviation)
        norm = math.sqrt(self._squares)
        if not norm <= self._clip * (1 + CLIP_TOLERANCE):
            raise PrivacyFault("the update is not within the clip after clipping")


def check_scatter(squares: float, count: int, deviation: float) -> None:
    """`PrivacyFault` unless noise with this sum of squares may have this standard deviation."""
    mean_square = squares / (deviation**2 * count)
    low, high = mean_square_band(count)
    if not low <= mean_square <= high:
        raise PrivacyFault(
            f"the noise on the update has {math.sqrt(mean_square):.3g} of the planned standard deviation"
            f" (possible by chance: {math.sqrt(low):.3g} to {math.sqrt(high):.3g})"
        )


def weighted(fill: Fill, weight: int, weight_max: int) -> Fill:
    """The update times its weight over the largest one: under masks a sum is all that is seen, so the
    weight goes into the numbers. Above the largest it counts as that. Post-processing of what is noised.
    """
    factor = np.float32(min(weight, weight_max) / weight_max)

    def scaled(start: int, out: Floats) -> None:
        fill(start, out)
        np.multiply(out, factor, out=out)

    return scaled
