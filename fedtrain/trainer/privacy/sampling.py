"""Which units a step draws: each by itself, with one probability, from the system's randomness.

Accounting with amplification by sampling holds for exactly this (Poisson) sampling, and only while
nobody can foresee the draws: the run's seed, which the coordinator knows, plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedtrain.errors import LocalError

if TYPE_CHECKING:
    from fedtrain.trainer.privacy.noise import KeyStream

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """The privacy units of a data set, and the records of each.

    Attributes:
        count: how many units; they have the numbers 0 to count - 1.
        starts, members: the records of unit i are `members[starts[i] : starts[i + 1]]`; both are None
            where each record is a unit.
    """

    count: int
    starts: Indices | None = None
    members: Indices | None = None

    @classmethod
    def of_groups(cls, groups: Indices) -> Units:
        """From each record's group `(records,)`, any numbers; a group is a unit."""
        names, unit = np.unique(groups, return_inverse=True)
        sizes = np.bincount(unit, minlength=len(names))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        return cls(len(names), starts.astype(np.int64), np.argsort(unit, kind="stable").astype(np.int64))

    def records(self, units: Indices) -> tuple[Indices, Indices]:
        """The records of these units, unit by unit, and for each its place in `units`."""
        if self.starts is None or self.members is None:
            return units, np.arange(len(units))
        sizes = self.starts[units + 1] - self.starts[units]
        place = np.repeat(np.arange(len(units)), sizes)
        before = np.cumsum(sizes) - sizes
        inside = np.arange(len(place)) - before[place]
        return self.members[self.starts[units][place] + inside], place


def poisson_draw(stream: KeyStream, count: int, rate: float) -> Indices:
    """Numbers of the units drawn, ascending: each of `count` with probability `rate`."""
    if not 0 < rate <= 1:
        raise LocalError(f"a sampling rate of {rate} is not a probability above 0")
    drawn: Indices = np.flatnonzero(stream.uniforms(count).numpy() < rate)
    return drawn
