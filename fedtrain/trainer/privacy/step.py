"""One private step: draw, clip, sum, noise, check; the gradients are then ready for any optimiser.

    drawn units ─▶ clipped sum (clipping) ─▶ rounded to the grid ─▶ + noise ─▶ / expected batch ─▶ p.grad

Everything behind the noise is post-processing: optimiser, residual, codec. The divisor is the expected
number of units, never the drawn one, which is secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedtrain.trainer.privacy import noise, ranks
from fedtrain.trainer.privacy.clipping import Clipper, ClipPlan, Losses, build_clipper
from fedtrain.trainer.privacy.conditions import (
    AGREEMENT_BFLOAT16,
    AGREEMENT_FLOAT32,
    Conditions,
    Coverage,
    PrivacyFault,
)
from fedtrain.trainer.privacy.noise import KeyStream
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Indices, Units, poisson_draw
from fedtrain.trainer.privacy.weights import WatchedLosses

_RECORDS_COMPARED = 8

NoiseSource = Callable[[KeyStream, int, float, float], Tensor]
DrawSource = Callable[[KeyStream, int, float], Indices]


@dataclass(frozen=True)
class StepFacts:
    """What a step did. Nothing of it may leave the site: it depends on the draw.

    Attributes:
        drawn: units in the sum; `broken`: records whose gradient was not finite.
    """

    drawn: int
    broken: int


class PrivateStep:
    """Fills the gradients of `model`'s trainable parameters with the noised mean of a step.

    Args:
        losses: from record numbers (n,) to the losses (n,) of each of them alone, through `model`.
        units: the privacy units of the data and their records.
        microbatch: records at once, 0 for as many as fit into the bounds of `clipping`.
        precision: of the forward pass, `float32` or `bfloat16`; clipping is float32.

    `draw`, `clipper`, `add_noise` and `key` are the four parts of a step; an audit replaces them one by
    one, to see that the conditions or its own statistics notice.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        plan: RecordPlan,
        units: Units,
        microbatch: int = 0,
        precision: str = "float32",
    ) -> None:
        plan.check_units(units.count)
        self._model = model
        self._independent = self._draws = False
        self._plan = plan
        self._units = units
        self._agreement = AGREEMENT_FLOAT32 if precision == "float32" else AGREEMENT_BFLOAT16
        self.coverage = Coverage(model)
        self._losses = WatchedLosses(losses, self.coverage.parameters)
        self.conditions = Conditions(self.coverage, plan.clip, units.count, plan.sampling_rate)
        self.expected_batch = plan.sampling_rate * units.count
        reach = noise.sensitivity(plan.clip, plan.noise_multiplier, self.coverage.elements)
        self.deviation = plan.noise_multiplier * reach
        self.grid = noise.grid_of(plan.noise_multiplier * plan.clip)
        self.key: Callable[[], bytes] = ranks.shared_key
        self.draw: DrawSource = poisson_draw
        self.add_noise: NoiseSource = noise.grid_noise
        clip_plan = ClipPlan(plan.clip, plan.unit, plan.mode, microbatch, precision)
        self.clipper: Clipper = build_clipper(model, self._losses, self.coverage, clip_plan)

    def run(self) -> StepFacts:
        """One step. `PrivacyFault` where a condition does not hold; the gradients are then not to be used."""
        self.coverage.check()
        self._check_independence()
        # Draw and noise have a key each, so the places of one do not shift with the size of the other.
        drawn = self.draw(self._stream(), self._units.count, self._plan.sampling_rate)
        self.conditions.draw(drawn)
        total, broken = self._clipped(drawn)
        exact = noise.on_grid(total, self.grid)
        added = self.add_noise(self._stream(), self.coverage.elements, self.deviation, self.grid)
        self._release(added.add_(exact))
        self._check_released(exact, added)
        return StepFacts(len(drawn), broken)

    def _check_independence(self) -> None:
        """Once: a record's loss is the same alone and beside others, or it has no gradient of its own."""
        if self._independent:
            return
        self._independent = True
        some = np.arange(min(_RECORDS_COMPARED, self._units.count))
        records, _ = self._units.records(some)
        records = records[:_RECORDS_COMPARED]
        training = self._model.training
        self._model.eval()  # no dropout: its draws depend on the place in the batch
        try:
            with torch.no_grad():
                together = self._losses(records).double().cpu()
                alone = torch.cat([self._losses(record[None]).double().cpu() for record in records])
        finally:
            self._model.train(training)
        self.conditions.independent(together, alone, self._agreement)

    def _stream(self) -> KeyStream:
        key = self.key()
        self.conditions.key(key)
        return KeyStream(key)

    def _clipped(self, drawn: Indices) -> tuple[Tensor, int]:
        """The clipped sum over all ranks, float64 `(elements,)`, and this rank's broken records.

        One unit of each step, by chance, is held against its own gradient by plain backpropagation.
        """
        rank, count = ranks.world()
        mine = drawn[rank::count]
        with ranks.together():
            if not len(mine):
                total, broken = torch.zeros(self.coverage.elements, dtype=torch.float64), 0
            # Which one need not be secret: nothing of it is released.
            elif self.clipper.weighs_losses and not self._draws:
                total, broken = self._watched_sum(mine, int(np.random.default_rng().integers(len(mine))))
            else:
                total, broken = self._parted_sum(mine, int(np.random.default_rng().integers(len(mine))))
        ranks.summed(total)
        self.conditions.total(total, len(drawn))
        return total, broken

    def _watched_sum(self, mine: Indices, chosen: int) -> tuple[Tensor, int]:
        """All units at once; the weight of the chosen one's loss tells what its part is."""
        unit = mine[chosen : chosen + 1]
        record, _ = self._units.records(unit)
        chance = _chance(self.coverage.parameters[0])
        records, place = self._units.records(mine)
        self._losses.watch(int(record[0]))
        found = self.clipper.clipped_sum(records, place, len(mine))
        seen = self._losses.taken()
        self.conditions.counted(found.parts, len(mine))
        if _same(chance, _chance(self.coverage.parameters[0])):
            self.conditions.weight(seen, self.clipper.explicit(record), self._agreement)
        else:
            # Layers that draw (dropout) draw otherwise for a record alone, so it is taken alone both times.
            self._draws = True
            self._alone(unit)
        return found.total, found.broken

    def _parted_sum(self, mine: Indices, chosen: int) -> tuple[Tensor, int]:
        """The chosen unit alone, which shows its part, and the others."""
        total, parts, broken = self._alone(mine[chosen : chosen + 1])
        others = np.delete(mine, chosen)
        if len(others):
            records, place = self._units.records(others)
            found = self.clipper.clipped_sum(records, place, len(others))
            total, parts, broken = found.total.add_(total), parts + found.parts, broken + found.broken
        self.conditions.counted(parts, len(mine))
        return total, broken

    def _alone(self, unit: Indices) -> tuple[Tensor, int, int]:
        """One unit's clipped gradient, compared with its own gradient; parts and broken records."""
        records, place = self._units.records(unit)
        chance = _chance(self.coverage.parameters[0])
        found = self.clipper.clipped_sum(records, place, 1)
        # Layers that draw (dropout) draw alike in both.
        _set_chance(chance)
        self.conditions.unit(found.total, self.clipper.explicit(records), self._agreement)
        return found.total, found.parts, found.broken

    def _release(self, released: Tensor) -> None:
        """Into the gradients, in place where they exist: they may be views of a flat vector."""
        released.mul_(self.grid / self.expected_batch)
        for part, parameter in zip(self.coverage.slices, self.coverage.parameters, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(released[part].view(parameter.shape))
            parameter.grad_sample = None  # type: ignore[attr-defined]

    def _check_released(self, exact: Tensor, seen: Tensor) -> None:
        """The noise is taken from where the optimiser will look, not from where it was drawn.

        Args:
            exact: the sum in units of the grid; `seen`: memory for what is seen; both float64 `(elements,)`.
        """
        for part, parameter in zip(self.coverage.slices, self.coverage.parameters, strict=True):
            seen[part].copy_(_gradient(parameter).flatten())
        # What is not finite has no mean square, so it is found there.
        self.conditions.noise(seen.mul_(self.expected_batch).sub_(exact, alpha=self.grid), self.deviation)


def _chance(parameter: nn.Parameter) -> tuple[Tensor, Tensor | None]:
    """torch's generators, on the CPU and on the parameter's device."""
    device = torch.cuda.get_rng_state(parameter.device) if parameter.is_cuda else None
    return torch.get_rng_state(), device


def _same(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    if one[1] is not None and other[1] is not None and not torch.equal(one[1], other[1]):
        return False
    return torch.equal(one[0], other[0])


def _set_chance(chance: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(chance[0])
    if chance[1] is not None:
        torch.cuda.set_rng_state(chance[1])


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise PrivacyFault("a trainable parameter has no gradient after the noise was added")
    return parameter.grad
