"""Mechanisms counted: what the accountants are asked about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from fedtrain.core.charges import DISCRETE_GAUSSIAN, GAUSSIAN, POISSON_GAUSSIAN, Mechanism
from fedtrain.errors import LocalError

Composition: TypeAlias = Sequence[tuple[Mechanism, int]]
"""Each mechanism, and how often it was charged."""


class Noise(NamedTuple):
    """What decides a mechanism's curve; units and names do not.

    `grid` is empty where the noise is continuous, else the sorted details of the sum and its clip.
    """

    noise_multiplier: float
    sampling_rate: float
    grid: tuple[tuple[str, float], ...]


def grouped(mechanisms: Iterable[Mechanism]) -> Composition:
    """Equal mechanisms counted together, in order of appearance. Ledgers are long, and their kinds few."""
    seen: dict[int, int] = {}
    counts: list[int] = []
    found: list[Mechanism] = []
    places: dict[tuple[object, ...], int] = {}
    for mechanism in mechanisms:
        # The ledger hands out one object for equal rows; `found` keeps it alive, so its number stays its own.
        place = seen.get(id(mechanism))
        if place is None:
            key = _key(mechanism)
            place = places.setdefault(key, len(found))
            if place == len(found):
                found.append(mechanism)
                counts.append(0)
                seen[id(mechanism)] = place
        counts[place] += 1
    return tuple(zip(found, counts, strict=True))


def noises(composition: Composition) -> dict[Noise, int] | None:
    """Steps of each noise; None if one mechanism bounds nothing."""
    steps: dict[Noise, int] = {}
    for mechanism, count in composition:
        noise = _noise(mechanism)
        if noise is None or mechanism.steps < 0 or count < 0:
            return None
        steps[noise] = steps.get(noise, 0) + mechanism.steps * count
    return steps


def check_delta(delta: float) -> None:
    """Hold that it is a probability at which a finite epsilon exists."""
    if not 0 < delta < 1:
        raise LocalError(f"delta is {delta}, and has to lie between 0 and 1")


def _key(mechanism: Mechanism) -> tuple[object, ...]:
    return (
        mechanism.kind,
        mechanism.unit,
        mechanism.clip,
        mechanism.noise_multiplier,
        mechanism.sampling_rate,
        mechanism.steps,
        tuple(sorted(mechanism.detail.items())) if mechanism.detail else (),
    )


def _noise(mechanism: Mechanism) -> Noise | None:
    rate = mechanism.sampling_rate
    if not (mechanism.noise_multiplier > 0 and mechanism.clip > 0 and 0 < rate <= 1):
        return None
    if mechanism.kind == POISSON_GAUSSIAN or (mechanism.kind == GAUSSIAN and rate == 1):
        return Noise(mechanism.noise_multiplier, rate, ())
    if mechanism.kind == DISCRETE_GAUSSIAN and rate == 1:
        grid = {**mechanism.detail, "clip": mechanism.clip}
        return Noise(mechanism.noise_multiplier, rate, tuple(sorted(grid.items())))
    return None
