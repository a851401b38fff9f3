"""Small models and data for the tests of private training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Units
from fedtrain.trainer.privacy.step import PrivateStep

RECORDS, FEATURES, CLASSES = 40, 12, 3


def perceptron(seed: int = 3) -> nn.Module:
    """Two layers with a norm between them; gradients of some records are above, of others below 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def records(seed: int = 4) -> tuple[Tensor, Tensor]:
    """Features of growing size, and classes."""
    chance = torch.Generator().manual_seed(seed)
    features = torch.randn(RECORDS, FEATURES, generator=chance)
    features *= torch.linspace(0.1, 5, RECORDS)[:, None]
    return features, torch.randint(0, CLASSES, (RECORDS,), generator=chance)


def losses_of(model: nn.Module, features: Tensor, labels: Tensor) -> Callable[[np.ndarray], Tensor]:
    """Each record's cross-entropy."""

    def losses(chosen: np.ndarray) -> Tensor:
        return functional.cross_entropy(model(features[chosen]), labels[chosen], reduction="none")

    return losses


def plan(mode: str = "auto", unit: str = "record", rate: float = 0.5, **changes: float) -> RecordPlan:
    """Clip 0.7, noise 1.1 times that."""
    numbers = {"clip": 0.7, "noise_multiplier": 1.1, **changes}
    return RecordPlan(**numbers, sampling_rate=rate, unit=unit, mode=mode)


def private_step(
    mode: str = "auto",
    unit: str = "record",
    model: nn.Module | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    microbatch: int = 0,
    **changes: float,
) -> PrivateStep:
    """A step on the small model; groups are of 1, 2, 3, ... records."""
    model = model or perceptron()
    features, labels = data or records()
    groups = np.repeat(np.arange(RECORDS), np.arange(RECORDS) + 1)[:RECORDS]
    units = Units.of_groups(groups) if unit == "group" else Units(RECORDS)
    losses = losses_of(model, features, labels)
    return PrivateStep(model, losses, plan(mode, unit, **changes), units, microbatch)


def own_gradients(model: nn.Module, losses: Callable[[np.ndarray], Tensor], chosen: np.ndarray) -> Tensor:
    """The gradient of each record by plain backpropagation, one after another, (n, elements)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for record in chosen:
        found = torch.autograd.grad(losses(np.array([record])).sum(), trained, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()) if g is None else g.flatten()
                    for g, p in zip(found, trained, strict=True)
                ]
            )
        )
    return torch.stack(rows)
