"""A task that learns nothing, for benchmarks and chaos tests: real bytes, no torch, no data.

The pseudo-gradient is one pattern of block size, scaled anew for every round, site and position,
so that what travels changes each round and no rival is flattered by caching. Everything is made
piece by piece: a billion parameters need the memory of one pattern.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtrain.errors import LocalError
from fedtrain.methods.layout import Entry, Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks.task import Context, Outcome, Vector, Weights, Work

PATTERN_ELEMENTS = 1 << 16
"""256 KiB: stays in the cache while it is scaled into larger buffers."""


class Synthetic:
    """`model: {parameters, tensors}`, `training: {tokens_per_step, seconds_per_step}`.

    The parameters are spread evenly over the tensors; the seconds are slept, for tests that need
    work which takes time.
    """

    def __init__(self, spec: TaskSpec, data: DataSource) -> None:
        model, training = spec.model_section(), spec.training_section()
        self._parameters = model.integer("parameters", high=1 << 36)
        self._tensors = model.integer("tensors", 1, high=10_000)
        self._tokens_per_step = training.integer("tokens_per_step", 1024)
        self._seconds_per_step = training.number("seconds_per_step", 0.0, high=3600.0)
        model.end()
        training.end()

    def layout(self) -> Layout:
        """One-dimensional tensors, the first ones an element longer where it does not come out even."""
        count = min(self._tensors, self._parameters)
        even, rest = divmod(self._parameters, count)
        return Layout(tuple(Entry(f"tensor.{i:05d}", (even + (i < rest),)) for i in range(count)))

    def initial_weights(self, seed: int) -> Iterator[Vector]:
        """The pattern of the seed, scaled by position, with a root mean square of about 0.02."""
        pattern = _pattern(seed, 0.02)
        for start in range(0, self._parameters, PATTERN_ELEMENTS):
            piece = pattern[: self._parameters - start]
            yield piece * _scale("initial", seed, start)

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """No work, as many steps of it as asked; the pseudo-gradient's norm is about 1."""
        for step in range(1, work.steps + 1):
            if self._seconds_per_step:
                context.pause(self._seconds_per_step)
            context.step_done(step, None, step * self._tokens_per_step)
        pattern = _pattern(work.seed, self._parameters**-0.5)
        key = f"{work.run} {work.seed} {work.round} {work.site}"

        def pseudo_gradient(start: int, out: Vector) -> None:
            first = start - start % PATTERN_ELEMENTS
            for position in range(first, start + out.size, PATTERN_ELEMENTS):
                low, high = max(position, start), min(position + PATTERN_ELEMENTS, start + out.size)
                source = pattern[low - position : high - position]
                np.multiply(source, _scale("update", key, position), out=out[low - start : high - start])

        return Outcome(work.steps * self._tokens_per_step, work.steps, None, pseudo_gradient)

    def evaluate(self, weights: Weights) -> tuple[float, int]:
        """(mean square of the first weights, their number): changes with the model, costs nothing."""
        first = np.empty(min(PATTERN_ELEMENTS, weights.num_elements), np.float32)
        weights.read(0, first)
        return float(np.dot(first, first)) / first.size, first.size

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Nothing stays between rounds."""
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """There is nothing to take back."""
        if state:
            raise LocalError(f"the synthetic task keeps no state, but was given {', '.join(state)}")


def _pattern(seed: int, root_mean_square: float) -> Vector:
    """Uniform noise of mean 0, float32 `(PATTERN_ELEMENTS,)`."""
    noise = np.random.Generator(np.random.Philox(seed)).random(PATTERN_ELEMENTS, np.float32)
    return (noise - np.float32(0.5)) * np.float32(12**0.5 * root_mean_square)


def _scale(*key: object) -> np.float32:
    """A factor of [0.5, 1.5) by a hash of the key."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return np.float32(0.5 + int.from_bytes(digest[:3], "little") / (1 << 24))
