"""By what a clipping code multiplied one record's loss, seen from the loss itself.

Ghost clipping weighs losses, and plain backpropagation does the rest: what reaches the gradients is the sum
of the records' gradients, each times the gradient that its loss was given. So a hook on the losses tells
the weight of a record in the very batch that it is trained in, whatever the code calls it, and with the
record's own gradient its part in the sum is known, without a pass for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedtrain.trainer.privacy.sampling import Indices


@dataclass(frozen=True)
class SeenWeight:
    """Of the last backward pass through the watched record's loss.

    Attributes:
        weight: what its loss was multiplied by in the sum.
        clean: whether the gradients held nothing when that pass began, so that nothing else is in them.
    """

    weight: float
    clean: bool


class WatchedLosses:
    """The losses of a step as a clipper is given them; they can be told to watch one record.

    Args:
        losses: from record numbers `(n,)` to losses `(n,)`.
        parameters: those whose gradients are summed up.
    """

    def __init__(self, losses: Callable[[Indices], Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self._losses = losses
        self._parameters = parameters
        self._record: int | None = None
        self._seen: SeenWeight | None = None

    def __call__(self, records: Indices) -> Tensor:
        losses = self._losses(records)
        if self._record is not None and losses.requires_grad:
            places = np.flatnonzero(records == self._record)
            if len(places):
                chosen = torch.from_numpy(places).to(losses.device)
                losses.register_hook(lambda gradient: self._see(gradient[chosen]))
        return losses

    def watch(self, record: int) -> None:
        """From now on."""
        self._record, self._seen = record, None

    def taken(self) -> SeenWeight | None:
        """What was seen since `watch`, which ends by this; None where no backward pass came by."""
        self._record = None
        return self._seen

    def _see(self, weights: Tensor) -> None:
        held = [torch.linalg.vector_norm(p.grad) for p in self._parameters if p.grad is not None]
        clean = not held or float(torch.stack([each.cpu() for each in held]).abs().max()) == 0.0
        self._seen = SeenWeight(float(weights.sum()), clean)
