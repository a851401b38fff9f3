"""Planted faults in every part of a private step, and the condition that stops each of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from private_models import CLASSES, FEATURES, RECORDS, perceptron, private_step, records
from torch import nn

from fedtrain.trainer.privacy import clipping, noise
from fedtrain.trainer.privacy.conditions import PrivacyFault
from fedtrain.trainer.privacy.sampling import poisson_draw

MODES = ["ghost", "per-example"]


def wide_step(mode: str = "auto", **changes: float):
    """A step on a model large enough to tell half of the noise by one draw."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    return private_step(mode, model=model, **changes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", ["record", "group"])
def test_a_right_step_passes_and_leaves_noised_means(mode, unit):
    """Over many steps no condition stops a right implementation, and gradients scatter as planned."""
    if (mode, unit) == ("ghost", "group"):
        pytest.skip("ghost clipping has no groups")
    step = private_step(mode, unit)
    found = []
    for _ in range(30):
        step.run()
        found.append(torch.cat([p.grad.flatten() for p in step.coverage.parameters]).double())
    scatter = torch.stack(found).var(dim=0).mean().sqrt() * step.expected_batch
    # The noise and, on top of it, the draw: a fifth at most at this clip.
    assert step.deviation * 0.9 < float(scatter) < step.deviation * 1.4


def test_an_empty_draw_is_noise_only():
    """Where no unit is drawn the gradient is the noise, and the step is a step like any other."""
    step = private_step(rate=1e-9)
    assert step.run().drawn == 0
    seen = torch.cat([p.grad.flatten() for p in step.coverage.parameters]) * step.expected_batch
    assert float(seen.std()) == pytest.approx(step.deviation, rel=0.2)


@pytest.mark.parametrize("mode", MODES)
def test_one_broken_record_does_not_touch_the_model(mode):
    """With an infinite record in the data the steps go on, and every gradient is finite."""
    features, labels = records()
    features[7] = float("inf")
    step = private_step(mode, data=(features, labels), rate=1.0)
    facts = step.run()
    assert (facts.drawn, facts.broken) == (RECORDS, 1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in step.coverage.parameters)


@pytest.mark.parametrize("mode", MODES)
def test_half_the_noise_is_noticed(mode):
    """Noise of half the planned deviation stops the first step."""
    step = wide_step(mode)
    step.add_noise = lambda stream, count, deviation, grid: noise.grid_noise(
        stream, count, deviation / 2, grid
    )
    with pytest.raises(PrivacyFault, match=r"noise in 0\.weight has 0\.[45]"):
        step.run()


def test_noise_that_misses_one_parameter_is_noticed():
    """A parameter without noise stops the step, however small it is."""
    for name in wide_step().coverage.names:
        step = wide_step()
        part = step.coverage.slices[step.coverage.names.index(name)]

        def partial(stream, count, deviation, grid, part=part):
            drawn = noise.grid_noise(stream, count, deviation, grid)
            drawn[part] = 0
            return drawn

        step.add_noise = partial
        with pytest.raises(PrivacyFault, match=f"noise in {name}"):
            step.run()


def test_too_much_noise_is_noticed():
    """Noise of twice the deviation is no breach of privacy, but not what was planned either."""
    step = wide_step()
    step.add_noise = lambda stream, count, deviation, grid: noise.grid_noise(
        stream, count, deviation * 2, grid
    )
    with pytest.raises(PrivacyFault, match="noise in"):
        step.run()


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_clip_is_noticed(mode, monkeypatch):
    """Gradients that enter the sum unclipped stop the step, in either mode."""
    step = wide_step(mode, clip=0.01)
    if mode == "ghost":
        step.clipper._hooks.get_clipping_coef = lambda: torch.ones_like(step.clipper._hooks.get_norm_sample())
    else:
        monkeypatch.setattr(clipping, "clip_factors", lambda norms, clip: torch.ones_like(norms))
    with pytest.raises(PrivacyFault, match="not clipped"):
        step.run()


@pytest.mark.parametrize("mode", MODES)
def test_another_bound_than_planned_is_noticed(mode):
    """A clipper that clips to a larger norm than the noise was made for stops the step."""
    step = wide_step(mode)
    if mode == "ghost":
        step.clipper._hooks.max_grad_norm = 1.4
    else:
        step.clipper._clip = 1.4
    with pytest.raises(PrivacyFault, match="not clipped"):
        step.run()


def test_a_reused_key_is_noticed():
    """A key that comes again stops the step, and so does noise that comes again from anywhere else."""
    step = wide_step()
    step.key = lambda: b"k" * 32
    with pytest.raises(PrivacyFault, match="key was given out twice"):
        step.run()
    step = wide_step()
    step.add_noise = lambda stream, count, deviation, grid: noise.grid_noise(
        noise.KeyStream(bytes(32)), count, deviation, grid
    )
    step.run()
    with pytest.raises(PrivacyFault, match="noise of this step was used before"):
        step.run()


def test_ghost_clipping_with_a_plain_criterion_is_noticed():
    """A loss that is not Opacus' private one takes no norms, trains as if all were well, and is stopped."""
    step = wide_step("ghost")
    step.clipper.criterion = lambda losses: losses.sum()
    with pytest.raises(PrivacyFault, match="criterion is not the private one"):
        step.run()


def test_gradients_left_over_from_the_first_pass_are_noticed():
    """What the pass for the norms left in the gradients would enter the sum unclipped."""
    step = wide_step("ghost")
    step.clipper._clear = lambda: None
    with pytest.raises(PrivacyFault, match="gradients held something before the clipped sum"):
        step.run()


def test_norms_of_another_batch_are_noticed(monkeypatch):
    """A layer whose norms are not taken any more would be clipped by those of an earlier batch."""
    step = wide_step("ghost")
    step.run()
    monkeypatch.setitem(step.clipper._ghost.NORM_SAMPLERS, nn.Linear, lambda layer, inputs, outputs: {})
    with pytest.raises(PrivacyFault, match=r"0\.weight has no norm of each single record"):
        step.run()


def test_a_record_that_is_left_out_is_noticed():
    """A clipper that drops one record and says otherwise stops the step, once that record is looked at."""
    step = wide_step("ghost", rate=1.0)
    honest = step.clipper.clipped_sum

    def fewer(chosen, place, units):
        found = honest(chosen[1:], place[1:] - 1, units - 1)
        return clipping.ClippedSum(found.total, units, found.broken)

    step.clipper.clipped_sum = fewer
    with pytest.raises(PrivacyFault, match="left it out"):
        # One of 40 is looked at: missed by chance in e^-27 of all tests.
        for _ in range(1080):
            step.run()


def test_a_weight_above_the_clip_is_noticed():
    """One record that is weighed twice in the batch it is trained in stops the step when it is looked at."""
    step = wide_step("ghost", rate=1.0)
    factors = step.clipper._hooks.get_clipping_coef
    step.clipper._hooks.get_clipping_coef = lambda: factors() * 2
    with pytest.raises(PrivacyFault, match=r"not clipped|clipped to another length"):
        step.run()


def test_a_parameter_unfrozen_later_is_noticed():
    """What was frozen when the training was set up has no clip; trained all the same, it is found."""
    model = perceptron()
    model[0].bias.requires_grad_(False)
    step = private_step(model=model)
    step.run()
    model[0].bias.requires_grad_(True)
    with pytest.raises(PrivacyFault, match=r"now also: 0\.bias"):
        step.run()
    model[0].bias.requires_grad_(False)
    model[3].weight.requires_grad_(False)
    with pytest.raises(PrivacyFault, match=r"no longer: 3\.weight"):
        step.run()


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_used_behind_the_librarys_back_is_noticed(mode):
    """A weight that is used outside of its layer has a part that no hook sees: the step says where."""

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)
            self.out = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.out(nn.functional.linear(torch.relu(self.layer(x)), self.layer.weight))

    torch.manual_seed(1)
    clip, fault = (100.0, r"differ most in layer\.weight") if mode == "per-example" else (0.7, "clip")
    with pytest.raises(PrivacyFault, match=fault):
        private_step(mode, model=Sly(), clip=clip).run()


def test_records_that_mix_are_noticed():
    """A layer of one's own that takes the batch's mean has no gradients of single records."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 8), Centred(), nn.Linear(8, CLASSES))
    with pytest.raises(PrivacyFault, match="depends on the records beside it"):
        private_step("per-example", model=model).run()


@pytest.mark.parametrize("mode", MODES)
def test_dropout_passes(mode):
    """A layer that draws for itself is no mixture: the step compares equal draws."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    step = private_step(mode, model=model)
    for _ in range(10):
        step.run()


def test_a_unit_that_is_counted_twice_is_noticed():
    """A draw with a repeated unit, and a clipper that adds one twice, both stop the step."""
    step = wide_step(rate=1.0)
    step.draw = lambda stream, count, rate: np.array([0, 0, *range(2, count)])
    with pytest.raises(PrivacyFault, match="drawn twice"):
        step.run()
    step = wide_step("per-example", rate=1.0, clip=100.0)
    honest = step.clipper.clipped_sum

    def doubled(chosen, place, units):
        return honest(np.append(chosen, chosen[-1]), np.append(place, units), units + 1)

    step.clipper.clipped_sum = doubled
    with pytest.raises(PrivacyFault, match=r"entered the sum|clipped gradient is not its gradient"):
        step.run()


def test_a_shuffle_instead_of_independent_draws_is_noticed():
    """Batches of equal size, step after step, stop the training before long."""
    step = wide_step()
    order = np.random.default_rng(1)

    def shuffled(stream, count, rate):
        return np.sort(order.permutation(count)[: int(count * rate)])

    step.draw = shuffled
    with pytest.raises(PrivacyFault, match="that is a shuffle in batches"):
        for _ in range(40):
            step.run()


def test_another_rate_than_planned_is_noticed():
    """Twice as many units as the rate allows stop the step."""
    features, labels = (part.repeat(10, *[1] * (part.dim() - 1)) for part in records())
    from private_models import losses_of, plan

    from fedtrain.trainer.privacy.sampling import Units
    from fedtrain.trainer.privacy.step import PrivateStep

    model = perceptron()
    step = PrivateStep(model, losses_of(model, features, labels), plan(rate=0.2), Units(400))
    step.draw = lambda stream, count, rate: poisson_draw(stream, count, 2 * rate)
    with pytest.raises(PrivacyFault, match="does not fit a rate"):
        step.run()


def test_a_layer_without_gradients_of_single_records_is_noticed():
    """A parameter that takes no part in the loss has no gradient to be clipped."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(FEATURES, CLASSES)
            self.idle = nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(PrivacyFault, match=r"idle\.weight has no gradient of each single record"):
        private_step("per-example", model=Idle()).run()
