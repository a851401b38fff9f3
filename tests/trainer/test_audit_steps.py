"""The trainer's own private step under attack: it passes, and what is broken in it is caught twice.

Each fault is planted in one part of `PrivateStep`. The conditions that the product checks in every step
stop it; and with those conditions taken away, by a subclass that exists only here, the audit proves it.
Keys come from a counter, so every run has the same numbers each time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedtrain.trainer.audit.distinguish import distinguish
from fedtrain.trainer.audit.subjects import StepSubject
from fedtrain.trainer.privacy.clipping import Ghost
from fedtrain.trainer.privacy.conditions import Conditions, PrivacyFault
from fedtrain.trainer.privacy.noise import KeyStream, grid_noise
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Indices, Units, poisson_draw
from fedtrain.trainer.privacy.step import PrivateStep

torch.set_num_threads(1)

CLIP = 0.5
OTHERS = 2


class Features(nn.Module):
    """Two layers, a bend between them; the larger matrix is large enough to show half a noise by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 40)
        self.second = nn.Linear(40, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


RECORDS = torch.tensor([[0.9, 2.8, -1.9], [1.1, 2.9, -2.0], [1.0, 3.0, -2.0]])
LABELS = torch.tensor([0, 0, 1])
"""The last record is the canary. The others are its like with the other label, so that their gradients point
the other way: the worst company for batches of fixed size."""


def losses(model: nn.Module, records: Indices) -> Tensor:
    chosen = torch.from_numpy(records)
    return nn.functional.cross_entropy(model(RECORDS[chosen]), LABELS[chosen], reduction="none")


def _unseen(self: Conditions, *found: object) -> None:
    """Looks away."""


Unwatched = type(
    "Unwatched", (Conditions,), {name: _unseen for name in vars(Conditions) if not name.startswith("_")}
)
"""The conditions of a product that checks nothing."""


class PlainBackward(Ghost):
    """Ghost clipping with an ordinary criterion: one backward pass, no norms, nothing clipped."""

    def _backward(self, records: Indices) -> np.ndarray:
        self._clear()
        self._losses(records).sum().backward()
        return np.ones(len(records), bool)


def counter_keys(start: int) -> Callable[[], bytes]:
    """A key each time, the same ones for the same start."""
    count = iter(range(start * 1_000_000, (start + 1) * 1_000_000))
    return lambda: hashlib.sha256(str(next(count)).encode()).digest()


def right(step: PrivateStep) -> None:
    """Nothing is planted."""


def half_noise(step: PrivateStep) -> None:
    step.add_noise = lambda stream, n, deviation, grid: grid_noise(stream, n, deviation / 2, grid)


def no_clip(step: PrivateStep) -> None:
    step.clipper._clip = 1e6


def stale_bound(step: PrivateStep) -> None:
    """The step is set up for a bound of a half, and the clipping goes on with the old bound."""
    step.clipper._clip = 2 * CLIP


def bare_block(step: PrivateStep) -> None:
    def noise(stream: KeyStream, count: int, deviation: float, grid: float) -> Tensor:
        drawn = grid_noise(stream, count, deviation, grid)
        drawn[step.coverage.slices[2]] = 0.0
        return drawn

    step.add_noise = noise


def seed_of_the_order(step: PrivateStep) -> None:
    step.key = lambda: hashlib.sha256(b"run.1.1.site").digest()


def plain_criterion(step: PrivateStep) -> None:
    assert isinstance(step.clipper, Ghost)
    step.clipper.__class__ = PlainBackward


def counted_twice(step: PrivateStep) -> None:
    step.draw = lambda stream, count, rate: np.repeat(poisson_draw(stream, count, rate), 2)


def shuffled(step: PrivateStep) -> None:
    """Two units of a shuffled order, always two."""
    step.draw = lambda stream, count, rate: np.sort(stream.uniforms(count).argsort().numpy()[:2])


def subject(plant: Callable[[PrivateStep], None], *, rate: float, mode: str, watched: bool) -> StepSubject:
    """The step of a small model in both worlds, with a fault."""
    plan = RecordPlan(CLIP, 1.0, rate, mode=mode)
    worlds = []
    for place, count in enumerate((OTHERS, OTHERS + 1)):
        torch.manual_seed(1)
        model = Features()
        step = PrivateStep(model, functools.partial(losses, model), plan, Units(count))
        step.key = counter_keys(place)
        if not watched:
            step.conditions = Unwatched(step.coverage, CLIP, OTHERS, rate)
        worlds.append(step)
    gradient = worlds[1].clipper.explicit(np.array([OTHERS]))
    for step in worlds:
        plant(step)
    return StepSubject(worlds[0], worlds[1], gradient * min(1.0, CLIP / float(gradient.norm())))


FAULTS = [
    pytest.param(half_noise, "per-example", 1.0, 800, id="half noise"),
    pytest.param(no_clip, "per-example", 1.0, 400, id="no clip"),
    pytest.param(stale_bound, "per-example", 1.0, 800, id="wrong bound after a change"),
    pytest.param(bare_block, "per-example", 1.0, 400, id="noise missing in one block"),
    pytest.param(seed_of_the_order, "per-example", 1.0, 400, id="seed reused"),
    pytest.param(plain_criterion, "ghost", 1.0, 400, id="ghost mode with a plain criterion"),
    pytest.param(counted_twice, "per-example", 1.0, 800, id="double-counted record"),
    pytest.param(shuffled, "per-example", 0.66, 1200, id="shuffle instead of Poisson"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "rate", "least"), [("per-example", 1.0, 0.2), ("ghost", 1.0, 0.2), ("per-example", 0.5, 0.0)]
)
def test_right_step_passes(mode: str, rate: float, least: float) -> None:
    """With all conditions on, no run is stopped, and the audit proves less than the claim (fixed keys)."""
    found = distinguish(subject(right, rate=rate, mode=mode, watched=True), 400, sampling_rate=rate)
    assert least <= found.mu_lower < 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "mode", "rate", "runs"), FAULTS)
def test_audit_catches_what_no_condition_stops(
    plant: Callable[[PrivateStep], None], mode: str, rate: float, runs: int
) -> None:
    """Planted below the conditions, each fault is proven to lose more than the claim, mu = 1 (fixed keys)."""
    found = distinguish(subject(plant, rate=rate, mode=mode, watched=False), runs, sampling_rate=rate)
    assert found.mu_lower > 1.0


@pytest.mark.parametrize(("plant", "mode", "rate", "runs"), FAULTS)
def test_condition_stops_the_fault(
    plant: Callable[[PrivateStep], None], mode: str, rate: float, runs: int
) -> None:
    """The product's own conditions end the training within 60 steps, before the weights change."""
    broken = subject(plant, rate=rate, mode=mode, watched=True)
    with pytest.raises(PrivacyFault):
        for _ in range(60):
            broken.release(True)


def test_release_is_the_sum_with_and_without_the_canary() -> None:
    """Without noise the two worlds differ by the canary's clipped gradient, and by nothing else."""

    def silent(step: PrivateStep) -> None:
        step.add_noise = lambda stream, count, deviation, grid: torch.zeros(count, dtype=torch.float64)

    built = subject(silent, rate=1.0, mode="per-example", watched=False)
    assert np.linalg.norm(built.signal) == pytest.approx(CLIP)
    np.testing.assert_allclose(built.release(True) - built.release(False), built.signal, atol=1e-5)
