"""Tiny vectors that stand for models and updates, and one round's arithmetic by `methods`.

Shapes are (num_elements,), float32. A blob is a vector's bytes, little endian, and its digest is
SHA-256, as in the real store.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedtrain.core.effects import Aggregate
from fedtrain.core.orders import Order
from fedtrain.core.spec import RunSpec
from fedtrain.methods.aggregators import aggregator, normalised_weights
from fedtrain.methods.outer import outer
from fedtrain.methods.vectors import Floats

LAYOUT = "tiny"


def digest_of(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def to_vector(data: bytes) -> Floats:
    """A blob's values, read-only."""
    return np.frombuffer(data, np.float32)


def norm_of(values: Floats) -> float:
    """L2 norm; not finite if a value is not."""
    return math.sqrt(sum(float(value) ** 2 for value in values))


def drawn(num_elements: int, *facts: object) -> Floats:
    """Values in [-1, 1) that follow from the facts and nothing else."""
    octets = hashlib.shake_256(repr(facts).encode()).digest(4 * num_elements)
    words = np.frombuffer(octets, np.uint32).astype(np.float64)
    return (words / (1 << 31) - 1.0).astype(np.float32)


def initial_weights(order: Order, num_elements: int) -> Floats:
    """Version 0: a function of the run's seed, whichever site makes it."""
    return drawn(num_elements, order.run, order.seed)


def update_of(order: Order, num_elements: int) -> Floats:
    """What the site's work on this order leads to, however often it is repeated."""
    model = order.model
    base = model.digest if model else ""
    return drawn(num_elements, order.run, order.seed, order.round, order.site, order.parent, base)


@dataclass(frozen=True)
class Version:
    """One version at the coordinator: its own exact model, what sites hold, the outer state."""

    exact: Floats
    public: Floats
    outer_state: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A new version with the blobs that lead to it."""

    version: Version
    delta: bytes
    update_norm: float


def aggregate(
    spec: RunSpec, effect: Aggregate, base: Version, blobs: Mapping[str, bytes], order: Sequence[int]
) -> Made:
    """Combine, take the outer step, and cut the downlink delta, as `methods.aggregation` does on files.

    `order` is in which order the contributions' blobs are read: it must not matter.
    """
    combined = np.empty_like(base.exact)
    read = {index: to_vector(blobs[effect.contributions[index].blob]) for index in order}
    weights = normalised_weights(
        [item.weight for item in effect.contributions],
        [item.norm for item in effect.contributions],
        spec.norm_max,
    )
    blocks = (read[index].copy() for index in range(len(read)))
    aggregator(spec.aggregator).combine(blocks, weights, combined)
    return stepped(spec, effect, base, combined)


def stepped(spec: RunSpec, effect: Aggregate, base: Version, combined: Floats) -> Made:
    """The version behind this mean of updates."""
    update_norm = norm_of(combined)
    optimiser = outer(effect.outer)
    settings = optimiser.settings(spec.outer_params if effect.outer == spec.outer else {})
    state = {
        name: base.outer_state[name].copy()
        if name in base.outer_state
        else np.full_like(base.exact, optimiser.initial(name, settings))
        for name in optimiser.state
    }
    exact = base.exact.copy()
    optimiser.step(exact, combined, state, settings)
    delta = exact - base.public
    return Made(Version(exact, base.public + delta, state), delta.tobytes(), update_norm)
