"""What is done to whom and when: drawn from a seed, so that a bad day can be had again.

The draw is the same for a seed; what it meets is not, since processes run as they run.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class Deed(enum.StrEnum):
    """One kind of harm."""

    KILL = "kill"  # kill -9, and a new start when the time is over
    STOP = "stop"  # SIGSTOP, and SIGCONT when the time is over
    KILL_TRAINER = "kill trainer"
    STOP_TRAINER = "stop trainer"
    PARTITION = "partition"  # nothing moves on the link; afterwards it goes on
    BLACK_HOLE = "black hole"  # bytes vanish; afterwards the dead connections are reset
    HALF_OPEN = "half open"  # bytes vanish; afterwards the dead connections stay dead, unnoticed
    RESET = "reset"  # RST to every connection of the site


PROCESS_DEEDS = {Deed.KILL: 5, Deed.STOP: 2, Deed.KILL_TRAINER: 2, Deed.STOP_TRAINER: 1}
COORDINATOR_DEEDS = {Deed.KILL: 4, Deed.STOP: 1}
LINK_DEEDS = {Deed.PARTITION: 4, Deed.BLACK_HOLE: 3, Deed.RESET: 2, Deed.HALF_OPEN: 1}
"""Deed -> how often, against the others of its table."""

SPANS_S = {
    Deed.KILL: (0.0, 1.5),
    Deed.STOP: (0.5, 12.0),  # beyond the patience of a run, too
    Deed.KILL_TRAINER: (0.0, 0.0),
    Deed.STOP_TRAINER: (0.5, 6.0),
    Deed.PARTITION: (0.5, 6.0),
    Deed.BLACK_HOLE: (0.5, 6.0),
    Deed.HALF_OPEN: (0.5, 2.0),
    Deed.RESET: (0.0, 0.0),
}
"""Deed -> the shortest and longest that it lasts."""


@dataclass(frozen=True)
class Blow:
    """One deed: `after_s` behind the one before, done to `target`, for `lasts_s`."""

    after_s: float
    deed: Deed
    target: str
    lasts_s: float


@dataclass(frozen=True)
class Harm:
    """Who is hurt in one schedule, with what, and how often.

    Attributes:
        targets: names of processes or, for `LINK_DEEDS`, of sites.
        deeds: deed -> weight.
        pause_s: shortest and longest time between two blows.
        most: how many blows, None for no end.
    """

    targets: tuple[str, ...]
    deeds: dict[Deed, int]
    pause_s: tuple[float, float]
    most: int | None = None


def blows(seed: str, harm: Harm) -> Iterator[Blow]:
    """The schedule: the same for the same seed and harm."""
    chance = random.Random(seed)
    kinds: Sequence[Deed] = sorted(harm.deeds)
    weights = [harm.deeds[kind] for kind in kinds]
    for _ in itertools.count() if harm.most is None else range(harm.most):
        deed = chance.choices(kinds, weights)[0]
        yield Blow(
            after_s=chance.uniform(*harm.pause_s),
            deed=deed,
            target=chance.choice(harm.targets),
            lasts_s=chance.uniform(*SPANS_S[deed]),
        )
