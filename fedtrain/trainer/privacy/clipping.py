"""The sum of clipped gradients of privacy units, in two ways of Opacus.

    per-example   the gradient of every record is made; units may be groups of records
    ghost         norms only, without the gradients, then one more backward pass over re-weighted losses
                  (Li et al., Large Language Models Can Be Strong Differentially Private Learners, 2022,
                  arXiv 2110.05679; Bu et al., Scalable and Efficient Training of Large Convolutional
                  Neural Networks with Differential Privacy, 2022, arXiv 2205.10683)

Memory is bounded by the microbatch: so many records pass through the model at once, and only the sum
stays. Norms and factors are float32 whatever the forward pass is. A record whose gradient is not finite
contributes zero, which is within the clip: it must not spoil the model, and its absence is a legal part.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedtrain.errors import ConfigError
from fedtrain.trainer.privacy.conditions import Coverage, PrivacyFault
from fedtrain.trainer.privacy.sampling import Indices

Losses = Callable[[Indices], Tensor]
"""From record numbers (n,) to their losses (n,), each of its own record alone, through the model."""

GRADIENT_ELEMENTS_MAX = 1 << 26
"""256 MiB of float32: the gradients of single records that are in memory at once."""

RECORDS_MAX = 320
"""So many records are enough to keep any machine busy, and their activations fit where one's do. A draw of
256 on average rarely has more, which would be another pass for a few."""


@dataclass(frozen=True)
class ClippedSum:
    """What a clipper hands back.

    Attributes:
        total: float64 `(elements,)`, the sum over units of their clipped gradients.
        parts: units that entered it, those with a contribution of zero included.
        broken: records without a finite gradient, which took no part.
    """

    total: Tensor
    parts: int
    broken: int


class Clipper(Protocol):
    """Takes the clipped sum; leaves the gradients of the parameters in no defined state.

    Attributes:
        weighs_losses: whether the sum is a plain gradient of losses times factors, and of nothing else.
    """

    weighs_losses: bool

    def clipped_sum(self, records: Indices, place: Indices, units: int) -> ClippedSum:
        """`records` unit by unit, `place` each one's unit from 0 to units - 1, ascending."""

    def explicit(self, records: Indices) -> Tensor:
        """The gradient of the records' summed losses by plain backpropagation, float32 `(elements,)`."""

    def detach(self) -> None:
        """Leave the model as it was found."""


def build_clipper(model: nn.Module, losses: Losses, coverage: Coverage, plan: ClipPlan) -> Clipper:
    """The clipper of the plan's mode; `ConfigError` with the reason where the model cannot have it."""
    check_layers(model)
    if plan.mode == "per-example":
        return PerExample(model, losses, coverage, plan)
    reason = ghost_reason(model, plan)
    if not reason:
        return Ghost(model, losses, coverage, plan)
    if plan.mode == "ghost":
        raise ConfigError(f"ghost clipping is not right here: {reason}", key="privacy.record.mode")
    return PerExample(model, losses, coverage, plan)


@dataclass(frozen=True)
class ClipPlan:
    """How to clip: the norm, the unit, the mode, records at once (0: by memory), float32 or bfloat16."""

    clip: float
    unit: str = "record"
    mode: str = "auto"
    microbatch: int = 0
    precision: str = "float32"


def check_layers(model: nn.Module) -> None:
    """`ConfigError` for layers whose output for one record depends on others, or that keep statistics."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{name or type(model).__name__} is a {type(module).__name__}, which mixes the records of a"
                " batch, so no record has a gradient of its own: use GroupNorm or LayerNorm",
                key="task.model",
            )
    faults = [str(fault) for fault in ModuleValidator.validate(model, strict=False)]
    faults += [str(fault) for fault in GradSampleHooks.validate(model, strict=False)]
    if faults:
        raise ConfigError(f"the model cannot be trained privately: {'; '.join(faults)}", key="task.model")


def ghost_reason(model: nn.Module, plan: ClipPlan) -> str:
    """Why norms without gradients would not be right, "" if they are."""
    if plan.unit != "record":
        return "it has no gradients of groups"
    if plan.precision != "float32":
        return f"norms would be rounded to {plan.precision}"
    sharing: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        if own and type(module) not in GradSampleHooks.GRAD_SAMPLERS:
            return f"{name} ({type(module).__name__}) has no known gradients of single records"
        # Opacus takes norms of such layers without their gradients, each by itself.
        by_norm = type(module) in GradSampleHooksFastGradientClipping.NORM_SAMPLERS
        for parameter in own:
            sharing.setdefault(parameter, []).append(name if by_norm else "")
    for names in sharing.values():
        if len(names) > 1 and any(names):
            return f"{max(names)} shares a parameter with another layer"
    return ""


class _Clipper:
    """What both modes share. `hooks` are Opacus' on the model, which stays the task's own."""

    def __init__(
        self, losses: Losses, coverage: Coverage, plan: ClipPlan, hooks: GradSampleHooks, records_max: int
    ) -> None:
        self._losses = losses
        self._coverage = coverage
        self._clip = plan.clip
        self._hooks = hooks
        self._records_max = plan.microbatch or records_max
        # torch remarks that no input asks for a gradient, which is so by nature in a first layer.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")

    def detach(self) -> None:
        """Leave the model as it was found."""
        self._hooks.cleanup()

    def explicit(self, records: Indices) -> Tensor:
        """The gradient of the records' summed losses by plain backpropagation."""
        self._hooks.disable_hooks()
        try:
            total: Tensor | None = None
            for start in range(0, len(records), self._records_max):
                part = records[start : start + self._records_max]
                found = self._plain_gradient(part)
                if not _is_finite(found):
                    # A broken record among them: it takes no part, the others do.
                    alone = (self._plain_gradient(record[None]) for record in part)
                    found = sum((each for each in alone if _is_finite(each)), torch.zeros_like(found))
                total = found if total is None else total.add_(found)
            return torch.zeros(self._coverage.elements) if total is None else total
        finally:
            self._hooks.enable_hooks()

    def _plain_gradient(self, records: Indices) -> Tensor:
        parameters = self._coverage.parameters
        found = torch.autograd.grad(self._losses(records).sum(), parameters, allow_unused=True)
        flat = [
            torch.zeros(parameter.numel()) if gradient is None else gradient.flatten().float().cpu()
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        return torch.cat(flat)

    def _clear(self) -> None:
        """Forget the gradients, in place: they may be views of a flat vector."""
        for parameter in self._coverage.parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
            if parameter.grad is not None:
                parameter.grad.zero_()


class PerExample(_Clipper):
    """The gradient of every record in the microbatch is made, summed over its unit, clipped."""

    weighs_losses = False

    def __init__(self, model: nn.Module, losses: Losses, coverage: Coverage, plan: ClipPlan) -> None:
        by_memory = max(1, GRADIENT_ELEMENTS_MAX // coverage.elements)
        hooks = GradSampleHooks(model, loss_reduction="sum")
        super().__init__(losses, coverage, plan, hooks, min(by_memory, RECORDS_MAX))

    def clipped_sum(self, records: Indices, place: Indices, units: int) -> ClippedSum:
        total = torch.zeros(self._coverage.elements, dtype=torch.float64)
        parts = broken = 0
        open_unit: list[Tensor] | None = None  # the sum of a unit whose records go on behind the border
        for start in range(0, len(records), self._records_max):
            stop = min(start + self._records_max, len(records))
            gradients, norms, lost = self._gradients(records[start:stop])
            broken += lost
            if units < len(records):
                gradients = _unit_sums(gradients, place[start:stop])
                if open_unit is not None:
                    for rows, kept in zip(gradients, open_unit, strict=True):
                        rows[0] += kept
                open_unit = None
                if stop < len(records) and place[stop] == place[stop - 1]:
                    open_unit = [rows[-1].clone() for rows in gradients]
                    gradients = [rows[:-1] for rows in gradients]
                norms = _norms(gradients)
            parts += len(norms)
            self._add(gradients, norms, total)
            self._clear()
        return ClippedSum(total, parts, broken)

    def _gradients(self, records: Indices) -> tuple[list[Tensor], Tensor, int]:
        """Each record's gradient, per parameter float32 `(records, elements)`, the norms `(records,)`, and
        how many were broken."""
        self._clear()
        self._losses(records).sum().backward()  # type: ignore[no-untyped-call]
        gradients = []
        for name, parameter in zip(self._coverage.names, self._coverage.parameters, strict=True):
            found = getattr(parameter, "grad_sample", None)
            if not isinstance(found, Tensor) or found.shape != (len(records), *parameter.shape):
                raise PrivacyFault(f"{name} has no gradient of each single record, so it cannot be clipped")
            gradients.append(found.reshape(len(records), -1).float())
        norms = _norms(gradients)
        finite = torch.isfinite(norms)
        lost = int((~finite).sum())
        if lost:
            # Not multiplied by zero: that leaves what is not a number as it is.
            for rows in gradients:
                rows[~finite] = 0.0
            norms = torch.where(finite, norms, torch.zeros_like(norms))
        return gradients, norms, lost

    def _add(self, gradients: list[Tensor], norms: Tensor, total: Tensor) -> None:
        factors = clip_factors(norms, self._clip)
        for part, rows in zip(self._coverage.slices, gradients, strict=True):
            total[part].add_((factors @ rows).cpu())


class Ghost(_Clipper):
    """Norms of the records' gradients first, then the gradient of the sum of re-weighted losses."""

    weighs_losses = True

    def __init__(self, model: nn.Module, losses: Losses, coverage: Coverage, plan: ClipPlan) -> None:
        hooks = GradSampleHooksFastGradientClipping(model, loss_reduction="sum", max_grad_norm=plan.clip)
        super().__init__(losses, coverage, plan, hooks, RECORDS_MAX)
        self._ghost = hooks
        self.criterion: Callable[[Tensor], _TwoPasses] = functools.partial(
            _TwoPasses, hooks, _probes(model), self._between
        )

    def clipped_sum(self, records: Indices, place: Indices, units: int) -> ClippedSum:
        if units != len(records):
            raise PrivacyFault("ghost clipping was given units of several records")
        total = torch.zeros(self._coverage.elements, dtype=torch.float64)
        broken = 0
        for start in range(0, len(records), self._records_max):
            rest = records[start : start + self._records_max]
            while len(rest):
                finite = self._backward(rest)
                if finite.all():
                    self._add(total)
                    break
                # A loss times zero still has a gradient that is no number: once more, without it.
                broken += int((~finite).sum())
                rest = rest[finite]
            self._clear()
        return ClippedSum(total, len(records), broken)

    def _backward(self, records: Indices) -> Indices:
        """Both passes; which of the records have a finite gradient, bool `(records,)`."""
        self._clear()
        self._ghost._per_sample_gradient_norms = None
        for parameter in self._coverage.parameters:
            parameter._norm_sample = None  # type: ignore[attr-defined]
        self.criterion(self._losses(records)).backward()
        norms = self._ghost._per_sample_gradient_norms
        if norms is None or norms.shape != (len(records),):
            raise PrivacyFault(
                "the backward pass took no norms of single records: the criterion is not the private one"
            )
        return torch.isfinite(norms).cpu().numpy()

    def _between(self) -> None:
        """Each parameter has norms of this very pass: old ones would clip to anything. No gradients stay."""
        for name, parameter in zip(self._coverage.names, self._coverage.parameters, strict=True):
            if getattr(parameter, "_norm_sample", None) is None:
                raise PrivacyFault(
                    f"{name} has no norm of each single record's gradient, so it cannot be clipped"
                )
        self._clear()

    def _add(self, total: Tensor) -> None:
        for part, parameter in zip(self._coverage.slices, self._coverage.parameters, strict=True):
            if parameter.grad is not None:
                total[part].add_(parameter.grad.flatten().cpu())


class _TwoPasses:
    """What ghost clipping makes of the losses of single records: something that can be gone back through.

    Norms need what reaches each layer, not the gradient of its weight, so the first pass is for one small
    parameter of each layer, and the large products are left out; Opacus' own criterion makes them.
    """

    def __init__(
        self,
        hooks: GradSampleHooksFastGradientClipping,
        probes: list[nn.Parameter],
        between: Callable[[], None],
        losses: Tensor,
    ) -> None:
        self._hooks = hooks
        self._probes = probes
        self._between = between
        self._losses = losses

    def backward(self) -> None:
        """Norms, then the gradient of the sum of losses times factors."""
        self._losses.sum().backward(retain_graph=True, inputs=self._probes)  # type: ignore[no-untyped-call]
        self._between()
        factors = self._hooks.get_clipping_coef().to(self._losses.device)
        self._hooks.disable_hooks()
        try:
            (factors * self._losses).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self._hooks.enable_hooks()


def _probes(model: nn.Module) -> list[nn.Parameter]:
    """The smallest trainable parameter of each layer that has one."""
    found: dict[nn.Parameter, None] = {}
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        if own:
            found[min(own, key=nn.Parameter.numel)] = None
    return list(found)


def _is_finite(gradient: Tensor) -> bool:
    """Whether all of it is, by one pass: a norm of finite float32 is finite in float64, if not in itself."""
    if math.isfinite(float(torch.linalg.vector_norm(gradient))):
        return True
    return bool(torch.isfinite(torch.linalg.vector_norm(gradient, dtype=torch.float64)))


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """What each unit's gradient is multiplied by, so that its norm is at most `clip`."""
    factors: Tensor = clip / norms.clamp(min=clip * 1e-12)
    return factors.clamp_(max=1.0)


def _norms(gradients: list[Tensor]) -> Tensor:
    """L2 norm of each row over all parameters."""
    per_parameter = [torch.linalg.vector_norm(rows, dim=1) for rows in gradients]
    return torch.linalg.vector_norm(torch.stack(per_parameter), dim=0)


def _unit_sums(gradients: list[Tensor], place: Indices) -> list[Tensor]:
    """Sums over records of equal place, which stand side by side; the first place is row 0."""
    row = torch.from_numpy(place - place[0]).to(gradients[0].device)
    count = int(place[-1] - place[0]) + 1
    return [rows.new_zeros(count, rows.shape[1]).index_add_(0, row, rows) for rows in gradients]
