"""How Opacus takes the gradients of single records in layers that are kin of ones it knows.

It looks a layer up by its exact type. A subclass that computes the same is told it here; it is then
*not* among the layers whose norms are had without gradients, which is right for layers that share a
parameter: their two gradients have to be added up before a norm is taken.
"""

from __future__ import annotations

from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import nn


def teach(kind: type[nn.Module], like: type[nn.Module]) -> None:
    """Layers of type `kind` have the gradients of `like`, of which it is a subclass."""
    assert issubclass(kind, like)
    register_grad_sampler(kind)(GradSampleHooks.GRAD_SAMPLERS[like])
