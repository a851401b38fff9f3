"""What a permit allows one order to do, as the numbers that a step works with."""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.errors import ConfigError, LocalError

MODES = ("auto", "ghost", "per-example")


@dataclass(frozen=True)
class RecordPlan:
    """Record- or group-level privacy of one order.

    Attributes:
        clip: largest L2 norm of one unit's part in the sum of a step.
        noise_multiplier: standard deviation of the noise divided by that.
        sampling_rate: each step draws each unit with this probability.
        unit: `record` or `group`.
        mode: how gradients of single units are had; `auto` takes `ghost` where it is right.
        units: the least number of units that the rate was reckoned with, 0 for any.
    """

    clip: float
    noise_multiplier: float
    sampling_rate: float
    unit: str = "record"
    mode: str = "auto"
    units: int = 0

    def __post_init__(self) -> None:
        if not (self.clip > 0 and self.noise_multiplier > 0 and 0 < self.sampling_rate <= 1):
            raise LocalError(f"{self} is no private training: clip, noise and rate must be above 0")
        if self.unit not in ("record", "group") or self.mode not in MODES:
            raise LocalError(f"{self} names a unit or a mode that does not exist")

    def check_units(self, found: int) -> None:
        """`ConfigError` where the data set is empty, or smaller than the one that was charged for."""
        if found < 1:
            raise ConfigError(
                f"the data set holds no {self.unit} to train on: private training needs at least one",
                key="task.data",
            )
        if found < self.units:
            raise ConfigError(
                f"the data set holds {found} units ({self.unit}), and the permit was reckoned with"
                f" {self.units}: the sampling rate would be larger than what was charged. Restore the data,"
                " or let the agent count again",
                key="task.data",
            )
