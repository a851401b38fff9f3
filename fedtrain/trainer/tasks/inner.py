"""The inner optimiser of a flat module: its settings, its steps, and its state in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from fedtrain.errors import ConfigError
from fedtrain.trainer.settings import Section
from fedtrain.trainer.tasks.flat import FlatModule

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq", "step"), "sgd": ("momentum_buffer",)}


@dataclass(frozen=True)
class InnerSettings:
    """What a run's `training` says of the optimiser.

    Attributes:
        warmup_steps: steps of the site's life in the run over which the rate rises linearly.
        clip_norm: bound on the gradient's norm in plain steps.
        momentum: of `sgd`; `adamw` has its own.
    """

    optimizer: str
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    momentum: float = 0.0

    @classmethod
    def read(cls, training: Section, optimizers: tuple[str, ...]) -> InnerSettings:
        """The keys of the optimiser; the first of `optimizers` is the default."""
        optimizer = training.choice("optimizer", optimizers[0], optimizers)
        return cls(
            optimizer=optimizer,
            learning_rate=training.number("learning_rate", low=1e-9),
            warmup_steps=training.integer("warmup_steps", 0, low=0),
            weight_decay=training.number("weight_decay", 0.01 if optimizer == "adamw" else 0.0, high=10.0),
            clip_norm=training.number("clip_norm", 1.0, low=1e-9),
            momentum=training.number("momentum", 0.9, high=0.9999) if optimizer == "sgd" else 0.0,
        )


class InnerOptimiser:
    """AdamW (Loshchilov & Hutter, 2019, arXiv 1711.05101) or SGD with momentum over a flat module."""

    def __init__(self, flat: FlatModule, settings: InnerSettings) -> None:
        self._flat = flat
        self._settings = settings
        self._optimiser = self._fresh()

    def _fresh(self) -> torch.optim.Optimizer:
        settings = self._settings
        groups = [
            {"params": [self._flat.matrices], "weight_decay": settings.weight_decay},
            {"params": [self._flat.vectors], "weight_decay": 0.0},
        ]
        if settings.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)

    def step(self, index: int, *, clip: bool = True) -> None:
        """Go along the flat gradient; `index` counts over the site's life in the run.

        Args:
            clip: bound the gradient's norm first; a private step's has its bound already.
        """
        settings = self._settings
        if clip:
            gradient = self._flat.gradient
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_(torch.clamp(settings.clip_norm / (norm + 1e-6), max=1.0))
        rate = settings.learning_rate * min(1.0, (index + 1) / max(1, settings.warmup_steps))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """The moments of matrices and vectors, and step counts; empty before the first step."""
        return {
            f"{part}.{moment}": self._optimiser.state[parameter][moment].detach().cpu().numpy()
            for part, parameter in self._parts()
            if parameter in self._optimiser.state
            for moment in self._moments()
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the moments back; `ConfigError` if they belong to another model."""
        self._optimiser = self._fresh()
        if not state:
            return
        for part, parameter in self._parts():
            names = [f"{part}.{moment}" for moment in self._moments()]
            if any(name not in state for name in names) or any(
                state[name].shape not in ((), tuple(parameter.shape)) for name in names
            ):
                raise ConfigError(
                    "the checkpoint holds the optimiser of another model; remove the checkpoint"
                )
            # Copies: the optimiser works in place, and the arrays may be read-only.
            self._optimiser.state[parameter] = {
                moment: torch.tensor(state[name], device=parameter.device)
                for moment, name in zip(self._moments(), names, strict=True)
            }

    def _moments(self) -> tuple[str, ...]:
        if self._settings.optimizer == "sgd" and not self._settings.momentum:
            return ()
        return MOMENTS[self._settings.optimizer]

    def _parts(self) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
        return ("matrices", self._flat.matrices), ("vectors", self._flat.vectors)
