"""The trainer's own mechanisms under attack, each as a `distinguish.Subject`, and whom to attack with them.

In a step the attacker knows the model, the data, the sampling rate and the number of units (which divides
every released mean and is no secret), and sees the gradients that the optimiser is given. Of a site's
update it sees what is handed to the codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedtrain.errors import ConfigError
from fedtrain.methods.vectors import Floats
from fedtrain.storage.mailbox import SiteTerms
from fedtrain.trainer.audit.distinguish import Released
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Indices, Units
from fedtrain.trainer.privacy.site import NoisedUpdate, measure
from fedtrain.trainer.privacy.step import PrivateStep
from fedtrain.trainer.tasks.task import Auditable, Weights

CANDIDATES_MAX = 48
GRADIENT_ELEMENTS_MAX = 1 << 24
"""Of all candidates' gradients together: 64 MiB."""

UPDATE_ELEMENTS = 512


class StepSubject:
    """One private step at weights that stay where they are.

    Args:
        without, within: the step in the two worlds, each on a model of its own with the same weights;
            `within` has one unit more.
        signal: what that unit, the canary, adds to the sum: its clipped gradient `(elements,)`.
    """

    def __init__(self, without: PrivateStep, within: PrivateStep, signal: Tensor) -> None:
        self._worlds = (without, within)
        self._signal: Released = signal.double().cpu().numpy()[None]

    @property
    def signal(self) -> Released:
        """See `distinguish.Subject`."""
        return self._signal

    def release(self, with_canary: bool) -> Released:
        """One step; the sum that its mean stands for."""
        step = self._worlds[with_canary]
        step.run()
        found = torch.cat([_gradient(p).flatten().double() for p in step.coverage.parameters])
        return (found * step.expected_batch).cpu().numpy()[None]

    def detach(self) -> None:
        """Take the hooks off both models."""
        for step in self._worlds:
            step.clipper.detach()


class UpdateSubject:
    """A site's whole update, clipped and noised: with the site's part in it, or with nothing in it.

    Args:
        terms: clip and noise of the order.
        elements: of the update. The mechanism is the same for each, so few are enough.
    """

    def __init__(self, terms: SiteTerms, elements: int = UPDATE_ELEMENTS) -> None:
        self._terms = terms
        direction = np.random.default_rng(elements).standard_normal(elements)
        direction /= np.linalg.norm(direction)
        # Ten times as long as may be: what is not clipped shows.
        self._update = (10 * terms.clip * direction).astype(np.float32)
        self._signal: Released = (terms.clip * direction)[None]

    @property
    def signal(self) -> Released:
        """See `distinguish.Subject`."""
        return self._signal

    def release(self, with_canary: bool) -> Released:
        """One update as the codec would get it."""
        size = len(self._update)

        def fill(start: int, out: Floats) -> None:
            np.multiply(self._update[start : start + len(out)], np.float32(with_canary), out=out)

        noised = NoisedUpdate(fill, size, self._terms, measure(fill, size, self._terms, lambda: None))
        out = np.empty(size, np.float32)
        noised(0, out)
        return out.astype(np.float64)[None]


@dataclass(frozen=True)
class Target:
    """Who is attacked, in which company.

    Attributes:
        canary: number of the unit whose presence is to be found out, the one with the longest gradient
            of those that were looked at; `company`: the one whose gradient points most against it.
        length: of the canary's gradient, in clips; below 1 the attack is weaker than it could be.
        signal: the canary's clipped gradient, float32 `(elements,)`.
    """

    canary: int
    company: int
    length: float
    signal: Tensor


def find_target(task: Auditable, start: Weights, plan: RecordPlan) -> Target:
    """Look through some units of the task's data for the one that is easiest to find."""
    seen: list[Units] = []

    def watch(units: Units) -> Units:
        seen.append(units)
        return units

    step = task.private_step(start, plan, watch)
    units = seen[0]
    most = max(2, min(CANDIDATES_MAX, GRADIENT_ELEMENTS_MAX // step.coverage.elements))
    if units.count < 2:
        raise ConfigError(
            f"the data hold {units.count} {plan.unit}: one to attack and one beside it are needed"
        )
    numbers = np.unique(np.linspace(0, units.count - 1, most).astype(np.int64))
    gradients = torch.stack(
        [step.clipper.explicit(units.records(numbers[i : i + 1])[0]) for i in range(len(numbers))]
    )
    step.clipper.detach()
    norms = torch.linalg.vector_norm(gradients, dim=1)
    norms = torch.where(torch.isfinite(norms), norms, 0.0)
    best = int(norms.argmax())
    if not float(norms[best]):
        raise ConfigError(f"no {plan.unit} of the data has a gradient at the first weights: nothing to find")
    clipped = gradients * (plan.clip / norms.clamp(min=plan.clip)).unsqueeze(1)
    against = clipped @ clipped[best]
    against[best] = torch.inf
    return Target(
        canary=int(numbers[best]),
        company=int(numbers[int(against.argmin())]),
        length=float(norms[best]) / plan.clip,
        signal=clipped[best],
    )


def step_subject(
    tasks: tuple[Auditable, Auditable], start: Weights, plan: RecordPlan, target: Target
) -> StepSubject:
    """The tasks' own step without and with the target; two tasks, because each has one model."""
    without = tasks[0].private_step(start, plan, only(target.company))
    within = tasks[1].private_step(start, plan, only(target.company, target.canary))
    return StepSubject(without, within, target.signal)


def only(*numbers: int) -> Callable[[Units], Units]:
    """A choice of these units, in this order."""

    def choose(units: Units) -> Units:
        records, place = units.records(np.array(numbers, np.int64))
        sizes = np.bincount(place, minlength=len(numbers))
        starts: Indices = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]).astype(np.int64)
        return Units(len(numbers), starts, records)

    return choose


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise ConfigError("a private step left a parameter without a gradient: the task cannot be audited")
    return parameter.grad
