"""What a task is: the one class that a researcher writes to have other work done at the sites.

A task is built once per run, as `Task(spec, data)`, and stays in memory between orders. It knows
its model and its data, and nothing of rounds, codecs, files or the network. All vectors are flat,
one-dimensional float32 arrays over the layout's shared entries, in layout order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fedtrain.errors import FedtrainError
from fedtrain.methods.layout import Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec

if TYPE_CHECKING:
    from fedtrain.trainer.privacy.sampling import Units
    from fedtrain.trainer.privacy.step import PrivateStep

Vector = npt.NDArray[np.float32]


class Abandoned(FedtrainError):
    """The order is no longer to be done: the process was told to stop, or the agent withdrew it."""

    code = "abandoned"


class Weights(Protocol):
    """Readable weights of one model; `methods.modelfile.ModelReader` is one."""

    @property
    def num_elements(self) -> int: ...

    def read(self, start: int, out: Vector) -> object:
        """Fill `out` with the elements from `start` on."""


class Context(Protocol):
    """A task's line to the process around it."""

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Report progress: steps and weight (tokens, examples) done so far in this order.

        Cheap enough to be called after every step. Raises `Abandoned`, which a task lets through.
        """

    def pause(self, seconds: float) -> None:
        """Sleep, but raise `Abandoned` as soon as the process is told to stop."""


@dataclass(frozen=True)
class Work:
    """What one order asks of the task.

    Attributes:
        run, seed, round, site: all chance derives from these and from step numbers.
        steps: inner steps to take.
        steps_before: inner steps that this site has taken in this run's counted rounds.
        privacy: record-level privacy that the steps have to keep, None for none.
    """

    run: str
    seed: int
    round: int
    site: str
    steps: int
    steps_before: int
    privacy: RecordPlan | None = None


@dataclass(frozen=True)
class Outcome:
    """What `Task.train` hands back.

    Attributes:
        weight: tokens or examples trained on: the update's weight in the mean.
        steps: inner steps really taken.
        loss: mean training loss in nats per token (or example), None if the task has none.
        pseudo_gradient: called as `pseudo_gradient(start, out)`, fills `out` with start weights
            minus end weights from element `start` on. It is called in order, once per element or
            (to measure before encoding) several times from the first on with the same answers, before
            anything else is asked of the task.
    """

    weight: int
    steps: int
    loss: float | None
    pseudo_gradient: Callable[[int, Vector], None]


class Private(Protocol):
    """What a task has besides if it can train with record-level privacy.

    A `train` with `work.privacy` is not repeatable: its chance is the operating system's. What it hands
    back depends on no record but through the noised gradients: the weight is the expected one, and
    there is no training loss.
    """

    def units(self, unit: str) -> int:
        """How many `record` or `group` the training data hold."""


class Auditable(Private, Protocol):
    """What a private task has besides if it can be attacked by `trainer.audit`."""

    def private_step(self, start: Weights, plan: RecordPlan, choose: Callable[[Units], Units]) -> PrivateStep:
        """The step that `train` takes with `plan`, at the weights `start`, on the units that are chosen."""

    def record_losses(self, weights: Weights) -> npt.NDArray[np.float32]:
        """The loss of each training record by itself, in the order of the data's documents, `(records,)`."""


class Task(Protocol):
    """One kind of local work. Errors that a person can correct are raised as `ConfigError`."""

    def __init__(self, spec: TaskSpec, data: DataSource) -> None: ...

    def layout(self) -> Layout:
        """Names and shapes of the weights; the same at all sites for equal specs."""

    def initial_weights(self, seed: int) -> Iterator[Vector]:
        """The run's first weights, in consecutive pieces of any size."""

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """Take `work.steps` inner steps from the weights `start`.

        The result must follow from the arguments, the restored state and the data alone, but for the
        system's chance where `work.privacy` is set.
        """

    def evaluate(self, weights: Weights) -> tuple[float, int]:
        """(mean loss on held-out data, tokens or examples behind it); must not touch the state."""

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """What stays at the site between rounds, such as optimiser moments; may be empty."""

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take back what `state` gave; an empty mapping means a fresh start."""
