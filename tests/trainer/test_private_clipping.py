"""Clipped sums: against plain backpropagation, Opacus itself, and one mode against the other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from private_models import (
    CLASSES,
    FEATURES,
    RECORDS,
    losses_of,
    own_gradients,
    perceptron,
    private_step,
    records,
)
from torch import Tensor, nn
from torch.nn import functional

from fedtrain.errors import ConfigError
from fedtrain.trainer.privacy.clipping import ClipPlan, Ghost, PerExample, build_clipper, ghost_reason
from fedtrain.trainer.privacy.conditions import Coverage, PrivacyFault
from fedtrain.trainer.privacy.layers import teach
from fedtrain.trainer.tasks.model import Shape, TiedEmbedding, TiedHead, Transformer

CLIP = 3.0
ALL = np.arange(RECORDS)


def clipped(mode: str, model: nn.Module, losses, chosen=ALL, place=None, microbatch: int = 0) -> Tensor:
    """The clipped sum, without the hooks that took it."""
    unit = "record" if place is None else "group"
    place = np.arange(len(chosen)) if place is None else place
    clipper = build_clipper(model, losses, Coverage(model), ClipPlan(CLIP, unit, mode, microbatch))
    assert isinstance(clipper, Ghost if mode == "ghost" else PerExample)
    found = clipper.clipped_sum(chosen, place, int(place[-1]) + 1)
    clipper.detach()
    return found.total


def expected_sum(gradients: Tensor) -> Tensor:
    """By the definition, in float64."""
    wide = gradients.double()
    return (wide * (CLIP / wide.norm(dim=1, keepdim=True)).clamp(max=1)).sum(dim=0)


@pytest.mark.parametrize("mode", ["ghost", "per-example"])
@pytest.mark.parametrize("microbatch", [0, 1, 7, RECORDS])
def test_the_sum_is_that_of_clipped_gradients(mode, microbatch):
    """Both modes and any microbatch give the sum of gradients that were taken and clipped one by one."""
    model = perceptron()
    losses = losses_of(model, *records())
    gradients = own_gradients(model, losses, ALL)
    norms = gradients.norm(dim=1)
    assert (norms < CLIP).any() and (norms > 1.5 * CLIP).any()
    found = clipped(mode, model, losses, microbatch=microbatch)
    torch.testing.assert_close(found, expected_sum(gradients), atol=1e-5, rtol=1e-5)


def test_the_sum_is_that_of_bare_opacus():
    """Opacus' own optimiser, given the same batch, sums to the same within 10^-5."""
    model = perceptron()
    features, labels = records()
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    optimiser = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    functional.cross_entropy(wrapped(features), labels, reduction="sum").backward()
    optimiser.clip_and_accumulate()
    bare = torch.cat([parameter.summed_grad.flatten() for parameter in wrapped.parameters()])
    for mode in ("ghost", "per-example"):
        found = clipped(mode, model, losses_of(model, features, labels))
        torch.testing.assert_close(found.float(), bare, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("microbatch", [0, 1, 4, 9])
def test_a_group_is_clipped_as_one(microbatch):
    """The gradients of a group are added up before the clip, also across borders of microbatches."""
    model = perceptron()
    losses = losses_of(model, *records())
    place = np.repeat([0, 1, 2, 3], [1, 12, 2, RECORDS - 15])
    gradients = own_gradients(model, losses, ALL)
    groups = torch.stack([gradients[place == index].sum(dim=0) for index in range(4)])
    found = clipped("per-example", model, losses, place=place, microbatch=microbatch)
    torch.testing.assert_close(found, expected_sum(groups), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["ghost", "per-example"])
@pytest.mark.parametrize("broken", [float("inf"), float("nan"), 1e30])
def test_a_broken_record_takes_no_part(mode, broken):
    """A record whose gradient is not finite contributes zero, and the others what they did without it."""
    model = perceptron()
    features, labels = records()
    rest = np.delete(ALL, 11)
    without = clipped(mode, model, losses_of(model, features, labels), chosen=rest)
    features[11] = broken
    found = clipped(mode, model, losses_of(model, features, labels), microbatch=16)
    assert torch.isfinite(found).all()
    if not np.isfinite(broken):
        torch.testing.assert_close(found, without, atol=1e-5, rtol=1e-5)
    else:
        assert float((found - without).norm()) <= CLIP * 1.0001


def test_both_modes_agree_on_the_language_model():
    """The transformer, whose head shares the embedding's weight, gives the same sum in both modes."""
    teach(TiedEmbedding, nn.Embedding)
    teach(TiedHead, nn.Linear)
    torch.manual_seed(1)
    model = Transformer(Shape(layers=2, heads=2, width=16, context=12))
    windows = torch.randint(0, 256, (9, 13))
    windows[:, 4:8] = 65  # repeated bytes, so that the embedding's rows add up

    def losses(chosen):
        return model.losses(windows[chosen])

    chosen = np.arange(9)
    expected = expected_sum(own_gradients(model, losses, chosen))
    for mode in ("ghost", "per-example"):
        found = clipped(mode, model, losses, chosen=chosen)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_head_as_a_layer_computes_what_a_call_did():
    """Logits and gradients have the bits of the embedding's weight applied by a plain call."""
    torch.manual_seed(1)
    model = Transformer(Shape(layers=1, heads=2, width=16, context=12))
    windows = torch.randint(0, 256, (4, 13))
    model.loss(windows).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.head.forward = lambda x: functional.linear(x, model.embedding.weight)
    model.loss(windows).backward()
    for kept, parameter in zip(found, model.parameters(), strict=True):
        assert torch.equal(kept, parameter.grad)
    assert next(name for name, _ in model.named_parameters()) == "embedding.weight"


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter (Hu et al., LoRA, 2021, arXiv 2106.09685) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, 16)
        self.base.requires_grad_(False)
        self.down = nn.Linear(FEATURES, 2, bias=False)
        self.up = nn.Linear(2, 16, bias=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(features) + self.up(self.down(features))))


@pytest.mark.parametrize("mode", ["ghost", "per-example"])
def test_frozen_parameters_stay_out(mode):
    """With an adapter only its own parameters and the head are clipped, noised and given gradients."""
    torch.manual_seed(2)
    model = Adapted()
    losses = losses_of(model, *records())
    expected = expected_sum(own_gradients(model, losses, ALL))
    torch.testing.assert_close(clipped(mode, model, losses), expected, atol=1e-5, rtol=1e-5)
    step = private_step(mode, model=model)
    assert step.coverage.names == ("down.weight", "up.weight", "head.weight", "head.bias")
    step.run()
    assert model.base.weight.grad is None and model.up.weight.grad is not None


@pytest.mark.parametrize("mode", ["auto", "ghost", "per-example"])
def test_batch_normalisation_is_refused_with_the_reason(mode):
    """A layer that mixes the records of a batch has no gradients of single records."""
    for layer in (nn.BatchNorm1d(16), nn.BatchNorm1d(16, track_running_stats=False)):
        model = nn.Sequential(nn.Linear(FEATURES, 16), layer, nn.Linear(16, CLASSES))
        with pytest.raises(ConfigError, match="1 is a BatchNorm1d, which mixes the records of a batch"):
            private_step(mode, model=model)


def test_auto_takes_ghost_only_where_it_is_right():
    """Groups, reduced precision, unknown layers and layers that share a weight are not for ghost clipping."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    assert isinstance(private_step("auto").clipper, Ghost)
    assert isinstance(private_step("auto", "group").clipper, PerExample)
    assert "bfloat16" in ghost_reason(perceptron(), ClipPlan(1.0, precision="bfloat16"))
    with_own = nn.Sequential(nn.Linear(FEATURES, CLASSES), Own())
    assert isinstance(private_step("auto", model=with_own).clipper, PerExample)
    tied = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
    tied[1].weight = tied[0].weight
    assert isinstance(private_step("auto", model=tied).clipper, PerExample)
    for model, unit in ((tied, "record"), (with_own, "record"), (perceptron(), "group")):
        with pytest.raises(ConfigError, match="ghost clipping is not right here"):
            private_step("ghost", unit, model=model)


def test_layers_without_known_gradients_are_right_in_per_example_mode():
    """A layer of one's own, a tied layer and a convolution have the gradients of plain backpropagation."""
    tied = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES))
    tied[2].weight = tied[0].weight
    folded = nn.Sequential(
        nn.Unflatten(1, (1, FEATURES)),
        nn.Conv1d(1, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * (FEATURES - 2), CLASSES),
    )
    for model in (tied, folded):
        losses = losses_of(model, *records())
        expected = expected_sum(own_gradients(model, losses, ALL))
        found = clipped("per-example", model, losses, microbatch=9)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_norms_are_float32_under_a_bfloat16_forward_pass():
    """With a forward pass in bfloat16 each unit's part keeps within the clip, and the step passes."""
    model = perceptron()
    features, labels = records()

    def losses(chosen):
        with torch.autocast("cpu", torch.bfloat16):
            return functional.cross_entropy(model(features[chosen]).float(), labels[chosen], reduction="none")

    clipper = build_clipper(model, losses, Coverage(model), ClipPlan(CLIP, precision="bfloat16"))
    assert isinstance(clipper, PerExample)
    for record in ALL:
        part = clipper.clipped_sum(ALL[record : record + 1], np.zeros(1, np.int64), 1).total
        assert float(part.norm()) <= CLIP * 1.0001
    total = clipper.clipped_sum(ALL, ALL, RECORDS).total
    exact = expected_sum(own_gradients(model, losses, ALL))
    assert float((total - exact).norm()) < 0.05 * CLIP * RECORDS**0.5


def test_group_norm_stands_where_opacus_would_put_it():
    """Opacus' own fixer replaces batch normalisation by the same kind of layer with the same parameters; ours
    has groups large enough for single numbers."""
    from fedtrain.trainer.tasks.classifier import Form, Perceptron

    for width in (48, 64, 7):
        batch = Perceptron(Form(FEATURES, CLASSES, (width,), "batch"))
        fixed = ModuleValidator.fix(batch).layers[1]
        ours = Perceptron(Form(FEATURES, CLASSES, (width,), "group"))
        assert isinstance(fixed, nn.GroupNorm) and isinstance(ours.layers[1], nn.GroupNorm)
        assert width // ours.layers[1].num_groups >= min(8, width)
        shapes = [[(name, p.shape) for name, p in model.named_parameters()] for model in (batch, ours)]
        assert shapes[0] == shapes[1]


def test_the_model_is_left_as_it_was_found():
    """After the training no hook stays: a plain step has the bits of one on an untouched model."""
    model, untouched = perceptron(), perceptron()
    features, labels = records()
    for mode in ("ghost", "per-example"):
        step = private_step(mode, model=model)
        step.run()
        step.clipper.detach()
    for each in (model, untouched):
        each.zero_grad()
        functional.cross_entropy(each(features), labels).backward()
    for ours, bare in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(ours.grad, bare.grad)
        assert not hasattr(ours, "grad_sample")


def test_a_model_with_nothing_to_train_is_refused():
    """Where everything is frozen there is nothing to protect, and a mistake to be told."""
    with pytest.raises(PrivacyFault, match="no trainable parameter"):
        private_step(model=perceptron().requires_grad_(False))
