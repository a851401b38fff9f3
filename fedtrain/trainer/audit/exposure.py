"""How much of a planted secret a trained model remembers, in bits.

Random secrets of one form are put into the training data a few times each. After the training every
secret is ranked, by the model's loss on it, among other secrets of the same form that were never shown:

    exposure = log2(candidates) - log2(rank)

(Carlini et al., The Secret Sharer, 2019, arXiv 1802.08232.) A model that remembers nothing has a mean
of 1 / ln 2 = 1.44 bits, by chance alone; one that would complete the secret before any other has all bits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedtrain.errors import ConfigError
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tables import Record, write_record
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.task import Auditable, Task, Vector, Weights, Work

CHANCE_BITS = 1 / math.log(2)
CANARIES = 8
CANDIDATES = 1024
_TEXT = "The key of room 12 is "
_CORPUS_BYTES_MIN = 45_056
"""Of candidates: a corpus needs 40 KiB to hold some out."""


@dataclass(frozen=True)
class Exposure:
    """What a model remembers of the planted secrets.

    Attributes:
        mean_bits, most_bits: over the canaries; `candidates`: others that each was ranked among.
    """

    mean_bits: float
    most_bits: float
    candidates: int


class Form(Protocol):
    """The form of a secret in one kind of data."""

    candidates: int

    def draw(self, chance: random.Random) -> bytes:
        """A document with a fresh secret."""

    def mix(self, planted: Sequence[bytes], documents: Iterator[bytes]) -> Iterator[bytes]:
        """Both, so that the planted ones, in their order, are all among the training records."""


class TextForm:
    """A sentence with digits, as long as a window; `model.context` says how long that is."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._size = int(model["context"])
        self.candidates = max(CANDIDATES, _CORPUS_BYTES_MIN // (self._size + 1) + 1)

    def draw(self, chance: random.Random) -> bytes:
        head = _TEXT if self._size > 2 * len(_TEXT) else ""
        digits = "".join(chance.choice("0123456789") for _ in range(self._size - len(head)))
        return (head + digits).encode()

    def mix(self, planted: Sequence[bytes], documents: Iterator[bytes]) -> Iterator[bytes]:
        # The first blocks of a corpus are never held out.
        yield from planted
        yield from documents


class RecordForm:
    """A record with features drawn uniformly from the model's bounds, and a class drawn likewise."""

    candidates = CANDIDATES

    def __init__(self, model: dict[str, Any]) -> None:
        self._classes = int(model["classes"])
        features = int(model["features"])
        self._bounds = [
            np.broadcast_to(np.float64(model.get(k, d)), features) for k, d in (("low", -1), ("high", 1))
        ]

    def draw(self, chance: random.Random) -> bytes:
        low, high = self._bounds
        values = tuple(chance.uniform(float(a), float(b)) for a, b in zip(low, high, strict=True))
        return write_record(Record(chance.randrange(self._classes), "", values))

    def mix(self, planted: Sequence[bytes], documents: Iterator[bytes]) -> Iterator[bytes]:
        # Every fifth document is held out.
        for index, document in enumerate(planted):
            if index and index % 4 == 0:
                yield next(documents, document)
            yield document
        yield from documents


FORMS: dict[str, Callable[[dict[str, Any]], Form]] = {"causal_lm": TextForm, "classifier": RecordForm}


class Planted(DataSource):
    """A data set with documents planted into it."""

    def __init__(self, source: DataSource, form: Form, planted: Sequence[bytes]) -> None:
        super().__init__(source.name, "", {})
        self._source = source
        self._form = form
        self._planted = planted

    def documents(self) -> Iterator[bytes]:
        return self._form.mix(self._planted, iter(self._source.documents()))


class Extraction:
    """One set of secrets, planted `repeats` times each; trainings that are to be compared share it."""

    def __init__(self, spec: TaskSpec, source: DataSource, repeats: int, seed: int) -> None:
        if spec.name not in FORMS:
            raise ConfigError(
                f"no secret can be planted into the data of the task {spec.name!r}; it can be for"
                f" {', '.join(FORMS)}",
                key="task.name",
            )
        self._spec = spec
        form = FORMS[spec.name](dict(spec.model))
        chance = random.Random(f"canary {seed}")
        drawn = [form.draw(chance) for _ in range(form.candidates)]
        planted = [secret for secret in drawn[:CANARIES] for _ in range(repeats)]
        self.source: DataSource = Planted(source, form, planted)
        spare = [form.draw(chance) for _ in range(form.candidates)]
        self._judge = build_task(spec, Planted(_Only(spare), form, drawn))
        if not hasattr(self._judge, "record_losses"):
            raise ConfigError(
                f"the task {spec.name!r} does not tell the losses of single records", key="task.name"
            )

    def exposure(self, weights: Weights) -> Exposure:
        """Of the canaries to a model that was trained on `source`."""
        judge: Auditable = self._judge  # type: ignore[assignment]
        return exposure_of(judge.record_losses(weights))


def exposure_of(losses: npt.NDArray[np.float32]) -> Exposure:
    """From the losses of the canaries and, behind them, of candidates that were never shown."""
    canaries, others = losses[:CANARIES], losses[CANARIES:]
    # Equal losses count against memory.
    ranks = 1 + (others[None, :] <= canaries[:, None]).sum(axis=1)
    bits = np.log2(len(others) + 1) - np.log2(ranks)
    return Exposure(float(bits.mean()), float(bits.max()), len(others))


class _Held:
    """Weights in memory."""

    _values: Vector

    @property
    def num_elements(self) -> int:
        """How many."""
        return len(self._values)

    def read(self, start: int, out: Vector) -> None:
        """See `task.Weights`."""
        np.copyto(out, self._values[start : start + len(out)])


class Drawn(_Held):
    """The first weights of a run with this seed."""

    def __init__(self, task: Task | Auditable, seed: int) -> None:
        self._values = np.concatenate(list(task.initial_weights(seed)))  # type: ignore[union-attr]


class Trained(_Held):
    """The weights that a training ends with: start less pseudo-gradient."""

    def __init__(self, task: Task, start: Weights, work: Work, alive: Callable[[int], None]) -> None:
        outcome = task.train(start, work, _Watched(alive))
        values, change = (np.empty(start.num_elements, np.float32) for _ in range(2))
        start.read(0, values)
        outcome.pseudo_gradient(0, change)
        self._values = values - change


class _Watched:
    """A context that passes on the number of steps done."""

    def __init__(self, alive: Callable[[int], None]) -> None:
        self._alive = alive

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        self._alive(steps)

    def pause(self, seconds: float) -> None:
        """Nothing here waits."""


class _Only(DataSource):
    """These documents and no others."""

    def __init__(self, documents: Sequence[bytes]) -> None:
        super().__init__("canaries", "", {})
        self._documents = documents

    def documents(self) -> Iterator[bytes]:
        return iter(self._documents)
