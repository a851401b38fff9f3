"""Epsilon by Renyi differential privacy: a curve a mechanism, and curves add up.

Mironov, Talwar and Zhang, Rényi Differential Privacy of the Sampled Gaussian Mechanism, 2019,
arXiv:1908.10530; the conversion is proposition 12 of Canonne, Kamath and Steinke, The Discrete Gaussian for
Differential Privacy, 2020, arXiv:2004.00010. Both as dp-accounting computes them.

A curve takes about 0.05 s once, and is remembered; a ledger of thousands of charges that share a few
mechanisms is then a sum of a few vectors.
"""

from __future__ import annotations

import functools
import logging
import math

import numpy as np
import numpy.typing as npt

from fedtrain.methods.accounting.composition import Composition, Noise, check_delta, noises
from fedtrain.methods.accounting.discrete import Grid, discrete_curve

ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(64.0, 72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 224.0, 256.0),
    *(320.0, 384.0, 448.0, 512.0, 640.0, 768.0, 896.0, 1024.0),
)
"""Dense where the best order of a usual epsilon lies (2 to 20), sparse to where small epsilons have theirs.

Any set of orders gives a true bound."""

CURVES_MAX = 4_096
"""Remembered curves, 1.4 KB each."""


def epsilon_rdp(composition: Composition, delta: float) -> float:
    """An upper bound of epsilon at `delta`; infinite if a mechanism bounds nothing, 0 for no mechanism."""
    check_delta(delta)
    steps = noises(composition)
    if steps is None:
        return math.inf
    total = np.zeros(len(ORDERS))
    for noise, count in steps.items():
        if count:
            total += count * _curve(noise)
    if not total.any():
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    epsilon, _ = compute_epsilon(ORDERS, total, delta)
    return float(epsilon)


@functools.lru_cache(maxsize=CURVES_MAX)
def _curve(noise: Noise) -> npt.NDArray[np.float64]:
    """Renyi divergence of one step at each order."""
    orders = np.array(ORDERS)
    if noise.grid:
        grid = Grid.read(dict(noise.grid))
        if grid is None:
            return np.full(len(ORDERS), np.inf)
        return discrete_curve(noise.noise_multiplier, grid, orders)
    if noise.sampling_rate == 1:
        return orders / (2 * noise.noise_multiplier**2)
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    # An order whose series does not converge is left out by the library, which is safe and no news.
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant = RdpAccountant(ORDERS)
    gaussian = dp_accounting.GaussianDpEvent(noise.noise_multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(noise.sampling_rate, gaussian))
    curve = np.array(accountant.rdp, dtype=np.float64)
    # Near zero the library's sums can cancel to less than nothing. No divergence is negative.
    return np.maximum(curve, 0.0)
