"""Many decoded updates to one, range by range, in the order that the caller gives them.

`mean` is the weighted mean, bounded per site: an update whose norm exceeds `norm_max` is scaled
down to it, and that factor is part of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedtrain.errors import BadUpdate
from fedtrain.methods.vectors import Floats, unknown_name

Combine = Callable[[Iterable[Floats], Sequence[np.float32], Floats], None]


@dataclass(frozen=True)
class Aggregator:
    """One row of `AGGREGATORS`.

    `combine(blocks, weights, out)`: blocks of shape (n,), each used up and asked for only when
    the one before is done with, so that all may share one buffer; their weights; the result (n,).
    """

    name: str
    combine: Combine


def aggregator(name: str) -> Aggregator:
    """The aggregator of this name; `ConfigError` names the valid ones and the nearest."""
    if name not in AGGREGATORS:
        raise unknown_name("aggregator", name, AGGREGATORS)
    return AGGREGATORS[name]


def normalised_weights(
    weights: Sequence[float], norms: Sequence[float], norm_max: float | None
) -> list[np.float32]:
    """fp32(w_i / sum w), times norm_max / norm_i where that is below 1.

    Weights are tokens or examples, already discounted for lateness; they must be positive and
    finite, else `BadUpdate`. Norms are of the decoded updates. One rounding, at the end.
    """
    for weight, norm in zip(weights, norms, strict=True):
        if not 0 < weight < math.inf or not 0 <= norm < math.inf:
            raise BadUpdate(f"an update with weight {weight!r} and norm {norm!r} cannot be averaged")
    total = math.fsum(weights)
    factors = [1.0 if norm_max is None or norm <= norm_max else norm_max / norm for norm in norms]
    return [np.float32(weight / total * factor) for weight, factor in zip(weights, factors, strict=True)]


def _mean(blocks: Iterable[Floats], weights: Sequence[np.float32], out: Floats) -> None:
    """out = sum of w_i x_i, one float32 multiplication and one addition each, in the given order."""
    for index, (block, weight) in enumerate(zip(blocks, weights, strict=True)):
        if index == 0:
            np.multiply(block, weight, out=out)
        else:
            np.multiply(block, weight, out=block)
            np.add(out, block, out=out)


AGGREGATORS: dict[str, Aggregator] = {row.name: row for row in (Aggregator("mean", _mean),)}
