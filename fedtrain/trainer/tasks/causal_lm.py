"""Language modelling over bytes: a compact transformer, AdamW, the site's own text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedtrain.errors import ConfigError
from fedtrain.methods.layout import Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Indices, Units
from fedtrain.trainer.settings import Section, TaskSpec
from fedtrain.trainer.tasks.corpus import Bytes, Corpus
from fedtrain.trainer.tasks.flat import FlatModule
from fedtrain.trainer.tasks.inner import InnerOptimiser, InnerSettings
from fedtrain.trainer.tasks.model import Shape, TiedEmbedding, TiedHead, Transformer, initialise
from fedtrain.trainer.tasks.task import Context, Outcome, Vector, Weights, Work

if TYPE_CHECKING:
    from fedtrain.trainer.privacy.step import PrivateStep

EVALUATION_BYTES = 8192
"""Bytes predicted in an evaluation: a few per cent of a round, and an error of the mean near 0.03 nats."""


class CausalLanguageModel:
    """`model: {layers, heads, width, context, vocabulary: bytes}`, `training: {optimizer: adamw,
    learning_rate, batch_size, warmup_steps, weight_decay, clip_norm, precision, microbatch}`.

    The learning rate rises linearly over the first `warmup_steps` that the site takes in the run
    and stays constant after. On a CPU the bits of a result follow from the order, the weights, the
    data and the number of threads.

    With record-level privacy the steps draw from windows that share no byte (`record`), or from
    documents with all their windows (`group`); the gradient has its noise then, and `clip_norm` plays no
    part. `microbatch` bounds the windows in memory at once.
    """

    def __init__(self, spec: TaskSpec, data: DataSource) -> None:
        # Costs nothing here: every operation of this model has a deterministic form, except some on
        # accelerators, which are named in a warning and used all the same.
        torch.use_deterministic_algorithms(True, warn_only=True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - untyped in torch
        self._shape = _read_shape(spec.model_section())
        self._read_training(spec.training_section())
        self._device = _device()
        self._model = Transformer(self._shape).to(self._device)
        self._flat = FlatModule(self._model)
        self._start = torch.empty_like(self._flat.weights)
        self._optimiser = InnerOptimiser(self._flat, self._inner)
        self._data = data
        self._texts: Corpus | None = None

    def _read_training(self, training: Section) -> None:
        self._inner = InnerSettings.read(training, ("adamw",))
        self._batch_size = training.integer("batch_size", high=1 << 16)
        self._precision = training.choice("precision", "auto", ("auto", "float32", "bfloat16"))
        self._microbatch = training.integer("microbatch", 0, low=0, high=1 << 16)
        training.end()

    @property
    def corpus(self) -> Corpus:
        """The site's text, read when it is first needed."""
        if self._texts is None:
            self._texts = Corpus((part.documents() for part in self._data.parts()), self._shape.context)
        return self._texts

    @staticmethod
    def examples_in(document: bytes) -> int:
        """Its weight is in tokens, and its vocabulary is bytes."""
        return len(document)

    def layout(self) -> Layout:
        """Matrices first, then the gains of the norms."""
        return self._flat.layout

    def initial_weights(self, seed: int) -> Iterator[Vector]:
        """Fresh weights, drawn on the CPU so that they are the same everywhere."""
        model = Transformer(self._shape)
        flat = FlatModule(model)
        initialise(model, self._shape.layers, torch.Generator().manual_seed(seed))
        yield flat.weights.numpy()

    def train(self, start: Weights, work: Work, context: Context) -> Outcome:
        """AdamW with gradients clipped by norm, or with private ones."""
        corpus = self.corpus
        self._load(start)
        self._start.copy_(self._flat.weights)
        if work.privacy is not None:
            return self._train_privately(work, work.privacy, context)
        tokens_per_step = self._batch_size * self._shape.context
        losses = 0.0
        for index in range(work.steps):
            step = work.steps_before + index
            windows = corpus.batch(f"{work.run} {work.seed} {work.site} {step}", self._batch_size)
            loss = self._step(windows, step)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"the loss became {loss} at step {index + 1} of {work.steps} in round {work.round}: the"
                    f" model diverges; lower the learning rate ({self._inner.learning_rate:g}) or warm up"
                    " longer",
                    key="task.training.learning_rate",
                )
            losses += loss
            context.step_done(index + 1, loss, (index + 1) * tokens_per_step)
        mean = losses / work.steps if work.steps else None
        return Outcome(work.steps * tokens_per_step, work.steps, mean, self._pseudo_gradient)

    def units(self, unit: str) -> int:
        """Windows that share no byte, or documents that hold at least one whole window."""
        return self._units(unit)[1].count

    def _units(self, unit: str) -> tuple[Indices, Units]:
        """Where the records begin, and the units that they make up."""
        starts, documents = self.corpus.records(within_documents=unit == "group")
        return starts, Units.of_groups(documents) if unit == "group" else Units(len(starts))

    def _train_privately(self, work: Work, plan: RecordPlan, context: Context) -> Outcome:
        """AdamW on noised gradients, without a word on what was drawn."""
        starts, units = self._units(plan.unit)
        private = self._private_step(plan, starts, units)
        tokens_per_step = max(1, round(private.expected_batch * self._shape.context))
        try:
            for index in range(work.steps):
                private.run()
                self._optimiser.step(work.steps_before + index, clip=False)
                context.step_done(index + 1, None, (index + 1) * tokens_per_step)
        finally:
            private.clipper.detach()
        return Outcome(work.steps * tokens_per_step, work.steps, None, self._pseudo_gradient)

    def _private_step(self, plan: RecordPlan, starts: Indices, units: Units) -> PrivateStep:
        # Opacus takes a second to import, and a plain run has no use for it.
        from fedtrain.trainer.privacy.layers import teach
        from fedtrain.trainer.privacy.step import PrivateStep

        teach(TiedEmbedding, nn.Embedding)
        teach(TiedHead, nn.Linear)

        def losses(records: Indices) -> Tensor:
            windows = self._tokens(self.corpus.windows(starts[records]))
            with self._autocast():
                return self._model.losses(windows)

        precision = "bfloat16" if self._reduced() else "float32"
        return PrivateStep(self._model, losses, plan, units, self._microbatch, precision)

    def private_step(self, start: Weights, plan: RecordPlan, choose: Callable[[Units], Units]) -> PrivateStep:
        """See `task.Auditable`."""
        self._load(start)
        starts, units = self._units(plan.unit)
        return self._private_step(plan, starts, choose(units))

    def record_losses(self, weights: Weights) -> npt.NDArray[np.float32]:
        """See `task.Auditable`; the windows that begin with a document, or follow one that did."""
        self._load(weights)
        starts, _ = self.corpus.records(within_documents=True)
        found = np.empty(len(starts), np.float32)
        with torch.inference_mode(), self._autocast():
            for begin in range(0, len(starts), self._batch_size):
                part = slice(begin, begin + self._batch_size)
                windows = self._tokens(self.corpus.windows(starts[part]))
                found[part] = self._model.losses(windows).float().cpu().numpy()
        return found

    def _pseudo_gradient(self, start: int, out: Vector) -> None:
        part = slice(start, start + out.size)
        torch.from_numpy(out).copy_(self._start[part] - self._flat.weights[part])

    def evaluate(self, weights: Weights) -> tuple[float, int]:
        """Mean loss over a fixed set of held-out windows, in nats per byte."""
        windows = self.corpus.held_out(max(1, EVALUATION_BYTES // self._shape.context))
        self._load(weights)
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(windows), self._batch_size):
                part = windows[start : start + self._batch_size]
                with self._autocast():
                    total += self._model.loss(self._tokens(part)).item() * len(part)
        loss = total / len(windows)
        if not math.isfinite(loss):
            raise ConfigError(
                f"the held-out loss of the public model is {loss}: it has diverged; lower the learning rate",
                key="task.training.learning_rate",
            )
        return loss, len(windows) * self._shape.context

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """AdamW's moments of matrices and vectors, and its step counts; empty before the first step."""
        return self._optimiser.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the moments back; `ConfigError` if they belong to another model."""
        self._optimiser.restore(state)

    def _step(self, windows: Bytes, step: int) -> float:
        """One inner step; `step` counts over the site's life in the run."""
        self._flat.gradient.zero_()
        with self._autocast():
            loss = self._model.loss(self._tokens(windows))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step(step)
        return loss.item()

    def _tokens(self, windows: Bytes) -> Tensor:
        return torch.from_numpy(windows).to(self._device).long()

    def _load(self, weights: Weights) -> None:
        host = np.empty(self._flat.weights.numel(), np.float32)
        weights.read(0, host)
        self._flat.weights.copy_(torch.from_numpy(host))

    def _reduced(self) -> bool:
        """Whether the forward pass is in bfloat16."""
        return self._precision == "bfloat16" or (
            self._precision == "auto" and self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._reduced())


def _read_shape(model: Section) -> Shape:
    model.choice("vocabulary", "bytes", ("bytes",))
    shape = Shape(
        layers=model.integer("layers", high=1000),
        heads=model.integer("heads", high=1000),
        width=model.integer("width", high=1 << 16),
        context=model.integer("context", high=1 << 16),
    )
    model.end()
    if shape.width % (2 * shape.heads):
        raise ConfigError(
            f"{shape.width} is not a multiple of twice the heads ({shape.heads}): each needs an even width",
            key="task.model.width",
        )
    return shape


def _device() -> torch.device:
    """The accelerator of this machine if it has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
