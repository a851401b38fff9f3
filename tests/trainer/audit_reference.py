"""Differentially private gradient descent in twenty lines of numpy, and the ways in which it goes wrong.

The gradient of a record is fixed, so whatever scatters is sampling and noise. Each planted fault
overrides one part of `PrivateSteps`; nothing here is used by the product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ELEMENTS = 48
BLOCKS = (slice(0, 16), slice(16, 32), slice(32, 48))
CLIP = 1.0


class PrivateSteps:
    """`steps` noisy sums over the records that Poisson sampling picks, each clipped to `clip`.

    `others` are the records of both worlds, (count, ELEMENTS); the canary's gradient is the same in
    all elements, and as long as `canary_norm`.
    """

    steps = 1
    clip_now = CLIP

    def __init__(
        self,
        seed: int,
        *,
        noise_multiplier: float = 1.0,
        rate: float = 1.0,
        others: Sequence[np.ndarray] = (),
        canary_norm: float = 5.0,
    ) -> None:
        self.chance = np.random.default_rng(seed)
        self.noise_multiplier = noise_multiplier
        self.rate = rate
        self.others = list(others)
        self.direction = np.full(ELEMENTS, ELEMENTS**-0.5)
        self.canary = canary_norm * self.direction

    @property
    def signal(self) -> np.ndarray:
        return np.tile(self.clip_now * self.direction, (self.steps, 1))

    def release(self, with_canary: bool) -> np.ndarray:
        records = [*self.others, self.canary] if with_canary else self.others
        return np.stack([self.step(index, records) for index in range(self.steps)])

    def step(self, index: int, records: list[np.ndarray]) -> np.ndarray:
        total = np.zeros(ELEMENTS)
        for record in self.sample(records):
            total += self.clip(record)
        return total + self.noise(index)

    def sample(self, records: list[np.ndarray]) -> list[np.ndarray]:
        return [record for record in records if self.chance.random() < self.rate]

    def clip(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * min(1.0, self.clip_now / (np.linalg.norm(gradient) + 1e-12))

    def noise(self, index: int) -> np.ndarray:
        return self.chance.standard_normal(ELEMENTS) * self.noise_multiplier * self.clip_now


class HalfNoise(PrivateSteps):
    def noise(self, index: int) -> np.ndarray:
        return super().noise(index) / 2


class NoClip(PrivateSteps):
    def clip(self, gradient: np.ndarray) -> np.ndarray:
        return gradient


class StaleBound(PrivateSteps):
    """The bound was halved; noise and account follow it, the clipping does not."""

    clip_now = CLIP / 2

    def clip(self, gradient: np.ndarray) -> np.ndarray:
        return gradient * min(1.0, CLIP / np.linalg.norm(gradient))


class BareBlock(PrivateSteps):
    """One of three blocks gets no noise."""

    def noise(self, index: int) -> np.ndarray:
        noise = super().noise(index)
        noise[BLOCKS[1]] = 0.0
        return noise


class SeedOfTheOrder(PrivateSteps):
    """Noise from a seed that whoever sent the order knows: the same whenever the order is repeated."""

    def noise(self, index: int) -> np.ndarray:
        return np.random.default_rng(7).standard_normal(ELEMENTS) * self.noise_multiplier


class NoiseOfTheLastStep(PrivateSteps):
    """Two steps with one noise; the weights of the second are such that the canary's gradient vanishes."""

    steps = 2

    @property
    def signal(self) -> np.ndarray:
        return np.stack([self.clip_now * self.direction, np.zeros(ELEMENTS)])

    def step(self, index: int, records: list[np.ndarray]) -> np.ndarray:
        return super().step(index, records if index == 0 else self.others)

    def noise(self, index: int) -> np.ndarray:
        if index == 0:
            self.kept = super().noise(index)
        return self.kept


class FreshNoiseEachStep(NoiseOfTheLastStep):
    """The same two steps, done right."""

    def noise(self, index: int) -> np.ndarray:
        return PrivateSteps.noise(self, index)


class CountedTwice(PrivateSteps):
    """A record stands in the batch twice, as when two views of it are clipped one by one."""

    def sample(self, records: list[np.ndarray]) -> list[np.ndarray]:
        return [record for record in super().sample(records) for _ in range(2)]


class Shuffled(PrivateSteps):
    """Batches of one fixed size from a shuffled order, accounted as Poisson sampling."""

    batch = 1

    def sample(self, records: list[np.ndarray]) -> list[np.ndarray]:
        order = self.chance.permutation(len(records))
        return [records[i] for i in order[: self.batch]]


def opposed(count: int) -> list[np.ndarray]:
    """Records whose gradients point against the canary's: the worst company for batches of fixed size."""
    return [np.full(ELEMENTS, -(ELEMENTS**-0.5)) for _ in range(count)]
