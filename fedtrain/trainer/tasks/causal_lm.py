"""Language modelling over bytes: a compact transformer, AdamW, the site's own text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtrain.errors import ConfigError
from fedtrain.methods.layout import Layout
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.settings import Section, TaskSpec
from fedtrain.trainer.tasks.corpus import Bytes, Corpus
from fedtrain.trainer.tasks.flat import FlatModule
from fedtrain.trainer.tasks.model import Shape, Transformer, initialise
from fedtrain.trainer.tasks.task import Context, Outcome, Vector, Weights, Work

EVALUATION_BYTES = 8192
"""Bytes predicted in an evaluation: a few per cent of a round, and an error of the mean near 0.03 nats."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class CausalLanguageModel:
    """`model: {layers, heads, width, context, vocabulary: bytes}`, `training: {optimizer: adamw,
    learning_rate, batch_size, warmup_steps, weight_decay, clip_norm, precision}`.

    The learning rate rises linearly over the first `warmup_steps` that the site takes in the run
    and stays constant after. On a CPU the bits of a result follow from the order, the weights, the
    data and the number of threads.
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
        self._optimiser = self._fresh_optimiser()
        self._data = data
        self._texts: Corpus | None = None

    def _read_training(self, training: Section) -> None:
        training.choice("optimizer", "adamw", ("adamw",))
        self._learning_rate = training.number("learning_rate", low=1e-9)
        self._batch_size = training.integer("batch_size", high=1 << 16)
        self._warmup_steps = training.integer("warmup_steps", 0, low=0)
        self._weight_decay = training.number("weight_decay", 0.01, high=10.0)
        self._clip_norm = training.number("clip_norm", 1.0, low=1e-9)
        self._precision = training.choice("precision", "auto", ("auto", "float32", "bfloat16"))
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
        """AdamW (Loshchilov & Hutter, 2019, arXiv 1711.05101) with gradients clipped by norm."""
        corpus = self.corpus
        self._load(start)
        self._start.copy_(self._flat.weights)
        tokens_per_step = self._batch_size * self._shape.context
        losses = 0.0
        for index in range(work.steps):
            step = work.steps_before + index
            windows = corpus.batch(f"{work.run} {work.seed} {work.site} {step}", self._batch_size)
            loss = self._step(windows, step)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"the loss became {loss} at step {index + 1} of {work.steps} in round {work.round}: the"
                    f" model diverges; lower the learning rate ({self._learning_rate:g}) or warm up longer",
                    key="task.training.learning_rate",
                )
            losses += loss
            context.step_done(index + 1, loss, (index + 1) * tokens_per_step)
        mean = losses / work.steps if work.steps else None
        return Outcome(work.steps * tokens_per_step, work.steps, mean, self._pseudo_gradient)

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
        return {
            f"{part}.{moment}": self._optimiser.state[parameter][moment].detach().cpu().numpy()
            for part, parameter in self._parts()
            if parameter in self._optimiser.state
            for moment in MOMENTS
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the moments back; `ConfigError` if they belong to another model."""
        self._optimiser = self._fresh_optimiser()
        if not state:
            return
        for part, parameter in self._parts():
            names = [f"{part}.{moment}" for moment in MOMENTS]
            if any(name not in state for name in names) or state[names[0]].shape != tuple(parameter.shape):
                raise ConfigError(
                    "the checkpoint holds the optimiser of another model; remove the checkpoint"
                )
            # Copies: the optimiser works in place, and the arrays may be read-only.
            self._optimiser.state[parameter] = {
                moment: torch.tensor(state[name], device=self._device)
                for moment, name in zip(MOMENTS, names, strict=True)
            }

    def _parts(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        return ("matrices", self._flat.matrices), ("vectors", self._flat.vectors)

    def _fresh_optimiser(self) -> torch.optim.AdamW:
        groups = [
            {"params": [self._flat.matrices], "weight_decay": self._weight_decay},
            {"params": [self._flat.vectors], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self._learning_rate, betas=(0.9, 0.99), fused=True)

    def _step(self, windows: Bytes, step: int) -> float:
        """One inner step; `step` counts over the site's life in the run."""
        rate = self._learning_rate * min(1.0, (step + 1) / max(1, self._warmup_steps))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._flat.gradient.zero_()
        with self._autocast():
            loss = self._model.loss(self._tokens(windows))
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = self._flat.gradient
        gradient.mul_(torch.clamp(self._clip_norm / (torch.linalg.vector_norm(gradient) + 1e-6), max=1.0))
        self._optimiser.step()
        return loss.item()

    def _tokens(self, windows: Bytes) -> Tensor:
        return torch.from_numpy(windows).to(self._device).long()

    def _load(self, weights: Weights) -> None:
        host = np.empty(self._flat.weights.numel(), np.float32)
        weights.read(0, host)
        self._flat.weights.copy_(torch.from_numpy(host))

    def _autocast(self) -> torch.autocast:
        kind = self._device.type
        wanted = self._precision == "bfloat16" or (
            self._precision == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(kind, torch.bfloat16, enabled=wanted)


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
