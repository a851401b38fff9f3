"""Known epsilons, for neighbours with one unit more or less."""

from __future__ import annotations

from typing import NamedTuple

from fedtrain.core.charges import Mechanism
from fedtrain.methods.accounting import Composition


class Oracle(NamedTuple):
    """`rdp` and `pld`: epsilon at `delta` after `steps` steps, to five digits behind the point."""

    rate: float
    noise_multiplier: float
    steps: int
    delta: float
    rdp: float
    pld: float


ORACLES = (
    Oracle(0.01, 1.1, 1000, 1e-5, 1.71177, 1.51537),
    Oracle(256 / 60000, 1.1, 14062, 1e-5, 2.59656, 2.38169),
    Oracle(1, 2, 100, 1e-5, 35.08175, 33.10373),
    Oracle(1, 10, 100, 1e-5, 4.72851, 4.37718),
    Oracle(0.001, 0.7, 10000, 1e-6, 2.47304, 1.63697),
    Oracle(0.1, 1, 100, 1e-5, 7.89926, 7.04660),
    Oracle(0.02, 2, 5000, 1e-6, 3.87262, 3.60924),
    Oracle(0.01, 4, 10000, 1e-5, 1.03549, 0.94700),
)

BY_RATE = {rate: [one for one in ORACLES if one.rate == rate] for rate in {one.rate for one in ORACLES}}


def steps_of(oracle: Oracle) -> Composition:
    """The oracle's question."""
    mechanism = Mechanism(
        "poisson-gaussian", "record", 1.0, oracle.noise_multiplier, oracle.rate, oracle.steps
    )
    return [(mechanism, 1)]
