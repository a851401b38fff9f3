"""Classes of records with numbers: a perceptron with one or more hidden layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedtrain.errors import ConfigError
from fedtrain.methods.layout import Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Indices, Units
from fedtrain.trainer.settings import Section, TaskSpec
from fedtrain.trainer.tasks.flat import FlatModule
from fedtrain.trainer.tasks.inner import InnerOptimiser, InnerSettings
from fedtrain.trainer.tasks.records import Features, Labels, Table
from fedtrain.trainer.tasks.task import Context, Outcome, Vector, Weights, Work

if TYPE_CHECKING:
    from fedtrain.trainer.privacy.step import PrivateStep

GROUPS_MAX = 32
"""As many as the paper on group normalisation found best (Wu & He, 2018, arXiv 1803.08494)."""

GROUP_FEATURES_MIN = 8
"""The paper's groups are of channels, each an image; here a feature is one number. A group of one or two of
them has no scatter to be measured by: what Opacus' replacement makes of 32 features is zero."""


@dataclass(frozen=True)
class Form:
    """Sizes of a perceptron; `norm` is `none`, `batch` or `group`."""

    features: int
    classes: int
    hidden: tuple[int, ...]
    norm: str


class Perceptron(nn.Module):
    """Features (batch, features) -> logits (batch, classes)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = form.features
        for width in form.hidden:
            layers += [nn.Linear(before, width), *_norm(form.norm, width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, form.classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.layers(features)
        return logits

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Each record's cross-entropy in nats, (batch,)."""
        return functional.cross_entropy(self(features).float(), labels, reduction="none")


class Classifier:
    """`model: {features, classes, hidden, norm, low, high}`, `training: {optimizer: adamw | sgd,
    learning_rate, batch_size, warmup_steps, weight_decay, clip_norm, momentum, microbatch}`.

    Features are brought from [low, high] (a number, or one for each feature) to [-1, 1], and what is
    beyond is cut off. The bounds stand in the run's configuration and not in the data: a mean or a
    deviation taken from private records would have to be noised as well, and be the same at all sites.

    `norm: batch` takes its statistics from the batch at hand, so that nothing but weights has to travel.
    In a run with record-level privacy it is replaced by group normalisation, whose weights have the same
    names and shapes, because a record has no gradient of its own where the batch is mixed.
    """

    def __init__(self, spec: TaskSpec, data: DataSource) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        model, training = spec.model_section(), spec.training_section()
        self._form = _read_form(model, spec.private)
        self._low, self._high = _read_bounds(model, self._form.features)
        self._inner = InnerSettings.read(training, ("adamw", "sgd"))
        self._batch_size = training.integer("batch_size", low=2 if self._form.norm == "batch" else 1)
        self._microbatch = training.integer("microbatch", 0, low=0)
        training.end()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = Perceptron(self._form).to(self._device)
        self._flat = FlatModule(self._model)
        self._start = torch.empty_like(self._flat.weights)
        self._optimiser = InnerOptimiser(self._flat, self._inner)
        self._data = data
        self._records: Table | None = None

    @property
    def table(self) -> Table:
        """The site's records, read when they are first needed."""
        if self._records is None:
            parts = (part.documents() for part in self._data.parts())
            self._records = Table(parts, self._form.features, self._form.classes)
        return self._records

    @staticmethod
    def examples_in(document: bytes) -> int:
        """A document is one record."""
        return 1

    def layout(self) -> Layout:
        """Matrices first, then biases and gains."""
        return self._flat.layout

    def initial_weights(self, seed: int) -> Iterator[Vector]:
        """Uniform within 1 / sqrt(inputs), biases zero, gains one; drawn on the CPU."""
        model = Perceptron(self._form)
        flat = FlatModule(model)
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2:
                    bound = 1 / math.sqrt(weight.shape[1])
                    weight.uniform_(-bound, bound, generator=chance)
                else:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
        yield flat.weights.numpy()

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """Steps on records drawn by a hash of the step, or private ones."""
        table = self.table
        self._load(start)
        self._start.copy_(self._flat.weights)
        if work.privacy is not None:
            return self._train_privately(work, work.privacy, context)
        losses = 0.0
        for index in range(work.steps):
            step = work.steps_before + index
            drawn = table.batch(f"{work.run} {work.seed} {work.site} {step}", self._batch_size)
            self._flat.gradient.zero_()
            loss = self._losses(drawn).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step(step)
            _check_finite(loss.item(), f"in step {index + 1} of {work.steps} of round {work.round}")
            losses += loss.item()
            context.step_done(index + 1, loss.item(), (index + 1) * self._batch_size)
        mean = losses / work.steps if work.steps else None
        return Outcome(work.steps * self._batch_size, work.steps, mean, self._pseudo_gradient)

    def units(self, unit: str) -> int:
        """Training records, or groups of them; a record without a group is one by itself."""
        return self._units(unit).count

    def _units(self, unit: str) -> Units:
        groups = self.table.groups
        return Units.of_groups(groups) if unit == "group" else Units(len(groups))

    def _train_privately(self, work: Work, plan: RecordPlan, context: Context) -> Outcome:
        """Steps on noised gradients, without a word on what was drawn."""
        private = self._private_step(plan, self._units(plan.unit))
        per_step = max(1, round(private.expected_batch))
        try:
            for index in range(work.steps):
                private.run()
                self._optimiser.step(work.steps_before + index, clip=False)
                context.step_done(index + 1, None, (index + 1) * per_step)
        finally:
            private.clipper.detach()
        return Outcome(work.steps * per_step, work.steps, None, self._pseudo_gradient)

    def _private_step(self, plan: RecordPlan, units: Units) -> PrivateStep:
        # Opacus takes a second to import, and a plain run has no use for it.
        from fedtrain.trainer.privacy.step import PrivateStep

        return PrivateStep(self._model, self._losses, plan, units, self._microbatch)

    def private_step(self, start: Weights, plan: RecordPlan, choose: Callable[[Units], Units]) -> PrivateStep:
        """See `task.Auditable`."""
        self._load(start)
        return self._private_step(plan, choose(self._units(plan.unit)))

    def record_losses(self, weights: Weights) -> npt.NDArray[np.float32]:
        """See `task.Auditable`."""
        self._load(weights)
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self._losses(np.arange(len(self.table.groups))).cpu().numpy()
        return found

    def _losses(self, records: Indices) -> Tensor:
        features, labels = self.table.train
        return self._model.losses(self._scaled(features[records]), self._labels(labels[records]))

    def _pseudo_gradient(self, start: int, out: Vector) -> None:
        part = slice(start, start + out.size)
        torch.from_numpy(out).copy_(self._start[part] - self._flat.weights[part])

    def evaluate(self, weights: Weights) -> tuple[float, int]:
        """Mean cross-entropy over the held-out records, in nats, and their number."""
        loss, _ = self._held_out(weights)
        _check_finite(loss, "of the public model on held-out records")
        return loss, len(self.table.held_out[1])

    def accuracy(self, weights: Weights) -> tuple[float, int]:
        """Share of the held-out records whose class is the likeliest, and their number."""
        return self._held_out(weights)[1], len(self.table.held_out[1])

    def _held_out(self, weights: Weights) -> tuple[float, float]:
        """(cross-entropy, accuracy)."""
        self._load(weights)
        features, labels = self.table.held_out
        target = self._labels(labels)
        with torch.inference_mode():
            logits = self._model(self._scaled(features))
            right = (logits.argmax(dim=1) == target).float().mean()
            return functional.cross_entropy(logits, target).item(), right.item()

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The optimiser's moments; empty before the first step."""
        return self._optimiser.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the moments back; `ConfigError` if they belong to another model."""
        self._optimiser.restore(state)

    def _scaled(self, features: Features) -> Tensor:
        scaled = (features - self._low) / (self._high - self._low) * 2 - 1
        return torch.from_numpy(np.clip(scaled, -1, 1).astype(np.float32)).to(self._device)

    def _labels(self, labels: Labels) -> Tensor:
        return torch.from_numpy(labels).to(self._device)

    def _load(self, weights: Weights) -> None:
        host = np.empty(self._flat.weights.numel(), np.float32)
        weights.read(0, host)
        self._flat.weights.copy_(torch.from_numpy(host))


def _norm(kind: str, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(width, track_running_stats=False)]
    if kind == "group":
        most = max(1, min(GROUPS_MAX, width // GROUP_FEATURES_MIN))
        return [nn.GroupNorm(next(count for count in range(most, 0, -1) if width % count == 0), width)]
    return []


def _read_form(model: Section, private: bool) -> Form:
    hidden = model.numbers("hidden", ())
    if any(width != int(width) or not 1 <= width <= 1 << 16 for width in hidden):
        raise ConfigError(
            "the widths of hidden layers are whole numbers up to 65536", key="task.model.hidden"
        )
    norm = model.choice("norm", "none", ("none", "batch", "group"))
    return Form(
        features=model.integer("features", high=1 << 20),
        classes=model.integer("classes", low=2, high=1 << 16),
        hidden=tuple(int(width) for width in hidden),
        norm="group" if private and norm == "batch" else norm,
    )


def _read_bounds(model: Section, features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    low = np.array(model.numbers("low", (-1.0,)), np.float32)
    high = np.array(model.numbers("high", (1.0,)), np.float32)
    model.end()
    for name, values in (("low", low), ("high", high)):
        if len(values) not in (1, features):
            raise ConfigError(
                f"has {len(values)} numbers; give one for all features or {features}",
                key=f"task.model.{name}",
            )
    if not np.all(low < high):
        raise ConfigError("every feature's `high` has to be above its `low`", key="task.model.high")
    return low, high


def _check_finite(loss: float, place: str) -> None:
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss became {loss} {place}: the model diverges; lower the learning rate",
            key="task.training.learning_rate",
        )
