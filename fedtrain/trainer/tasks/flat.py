"""A module's parameters as one flat vector, so that files, clipping and AdamW see one array.

Matrices come first and vectors (gains of norms) last: weight decay is for the former only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedtrain.methods.layout import Entry, Layout


class FlatModule:
    """Rebinds the parameters of `module` to views of `weights`, and their gradients of `gradient`.

    Attributes:
        weights, gradient: float32 `(num_elements,)` on the module's device.
        matrices, vectors: the two parts of `weights` as parameters for an optimiser.
    """

    def __init__(self, module: nn.Module) -> None:
        named = sorted(module.named_parameters(), key=lambda item: item[1].dim() < 2)
        self.layout = Layout(tuple(Entry(name, tuple(p.shape)) for name, p in named))
        self.weights = torch.cat([p.detach().flatten() for _, p in named])
        self.gradient = torch.zeros_like(self.weights)
        start = 0
        for _, parameter in named:
            stop = start + parameter.numel()
            parameter.data = self.weights[start:stop].view(parameter.shape)
            # Autograd adds into a gradient that exists, so this view stays the gradient's place.
            parameter.grad = self.gradient[start:stop].view(parameter.shape)
            start = stop
        border = sum(p.numel() for _, p in named if p.dim() >= 2)
        self.matrices = self._part(0, border)
        self.vectors = self._part(border, start)

    def _part(self, start: int, stop: int) -> Tensor:
        part = nn.Parameter(self.weights[start:stop])
        part.grad = self.gradient[start:stop]
        return part
