"""The distributed discrete Gaussian: each site adds a share of integer noise, and only the sum is seen.

Kairouz, Liu and Steinke, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, 2021, arXiv:2102.06387: theorem 1 and proposition 14. A sum of discrete Gaussians is not one,
and `tau` bounds the difference; rounding to the grid may lengthen a vector, and conditional rounding (again
until it is short enough) bounds by how much.

It is assumed that everybody whose share is counted on adds it: a site that colludes takes its share away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtrain.core.charges import DISCRETE_GAUSSIAN, Mechanism
from fedtrain.core.privacy import SITE_UNIT
from fedtrain.methods.accounting.composition import check_delta

BETA = math.exp(-0.5)
"""Bias of conditional rounding: the paper's choice, a fair trade of norm against repetitions."""


@dataclass(frozen=True)
class Grid:
    """A noised integer sum.

    Attributes:
        step: spacing of the grid, in the units of `clip`.
        elements: numbers in a vector.
        shares: noise shares that are added at most; at least `shares - dropouts_max` are.
        dropouts_max: shares that may be missing. The noise multiplier is that of the sum without them.
        clip: L2 bound of what one unit changes before rounding.
        parts: 1 where one vector is added or left out; 2 where one takes another's place, each up to
            `clip / 2`, each rounded.
    """

    step: float
    elements: float
    shares: float
    dropouts_max: float
    clip: float
    parts: float

    @classmethod
    def read(cls, detail: Mapping[str, float]) -> Grid | None:
        """From a mechanism's details and its clip; None if they are not those of a sum."""
        grid = cls(
            step=detail.get("step", 0.0),
            elements=detail.get("elements", 0.0),
            shares=detail.get("sites", 0.0),
            dropouts_max=detail.get("dropouts_max", 0.0),
            clip=detail.get("clip", 0.0),
            parts=detail.get("parts", 1.0),
        )
        sound = grid.step > 0 and grid.elements >= 1 and grid.clip > 0 and grid.parts >= 1
        return grid if sound and 0 <= grid.dropouts_max < grid.shares else None

    @property
    def norm(self) -> float:
        """L2 bound of the change, in steps of the grid, after rounding."""
        one = self.clip / self.parts / self.step
        plain = (one + math.sqrt(self.elements)) ** 2
        conditional = one * one + self.elements / 4
        conditional += math.sqrt(2 * math.log(1 / BETA)) * (one + math.sqrt(self.elements) / 2)
        return self.parts * math.sqrt(min(plain, conditional))

    def tau(self, deviation: float) -> float:
        """How far the sum is from a discrete Gaussian, for one share's deviation in steps of the grid."""
        shares = np.arange(1, min(self.shares, 1e7))
        terms = np.exp(-2 * (math.pi * deviation) ** 2 * shares / (shares + 1))
        return 10 * (float(terms.sum()) + max(0.0, self.shares - 1e7))


def discrete_curve(
    noise_multiplier: float, grid: Grid, orders: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Renyi divergence of one step at these orders."""
    deviation = noise_multiplier * grid.clip / grid.step  # of the sum without `dropouts_max` shares
    tau = grid.tau(deviation / math.sqrt(grid.shares - grid.dropouts_max))
    across = math.sqrt(grid.elements) * tau
    norm = grid.norm
    # Integers: no coordinate's part of the L1 norm is larger than its square.
    longest = norm * min(math.sqrt(grid.elements), norm)
    scale, longest_scale = norm / deviation, longest / deviation
    by_sum = orders / 2 * (scale**2 + 2 * longest_scale * tau + across**2)
    by_norm = orders / 2 * (scale + across) ** 2
    by_density = orders / 2 * scale**2 + tau * grid.elements
    return np.minimum(np.minimum(by_sum, by_norm), by_density)


def discrete_gaussian_epsilon(
    noise_multiplier: float,
    steps: int,
    delta: float,
    *,
    elements: int,
    step: float,
    sites: int,
    dropouts_max: int = 0,
) -> float:
    """Epsilon for one site that is in the sum or not, by Renyi curves.

    Args:
        noise_multiplier: deviation of the sum's noise over the clip, with `dropouts_max` shares missing.
        elements: numbers in an update.
        step: spacing of the grid over the clip.
        sites: shares of noise.
    """
    from fedtrain.methods.accounting.rdp import epsilon_rdp

    check_delta(delta)
    detail = {
        "step": step,
        "elements": float(elements),
        "sites": float(sites),
        "dropouts_max": float(dropouts_max),
    }
    mechanism = Mechanism(DISCRETE_GAUSSIAN, SITE_UNIT, 1.0, noise_multiplier, 1.0, steps, detail)
    return epsilon_rdp([(mechanism, 1)], delta)
