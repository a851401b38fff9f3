"""What people decide in a world, at the coordinator and at the sites, beside runs and their pauses.

Drawn from a source of its own, so that it shifts nothing else of a seed's plan. Who is needed for a quorum
comes back before faults end; a spare site may stay away for good.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fedtrain.core.contract import Approval, Contract, Hours
from fedtrain.sim.clock import START_MS

MINUTE_MS = 60_000
OPEN_MINUTES = 600


@dataclass(frozen=True)
class Span:
    """From then on, until then; None for good."""

    begin_ms: int
    end_ms: int | None

    def holds(self, now_ms: int) -> bool:
        """Whether it is now."""
        return self.begin_ms <= now_ms and (self.end_ms is None or now_ms < self.end_ms)


@dataclass(frozen=True)
class SiteActs:
    """What is decided about one site, and in it.

    Attributes:
        revoked, quarantined: by an operator.
        withdrawn: by its own people, who deny what they have not begun and withdraw from the rest.
        approves_ms: its contract asks a person, who says yes then.
        holds: its contract lets no update leave before a person has looked at it.
        opens_ms: before this hour its contract accepts nothing.
    """

    revoked: Span | None = None
    quarantined: Span | None = None
    withdrawn: Span | None = None
    approves_ms: int | None = None
    holds: bool = False
    opens_ms: int | None = None

    def contract(self, contract: Contract, clear: bool) -> Contract:
        """The site's contract with these clauses; `clear` once faults are over."""
        if self.holds:
            contract = replace(contract, approval=Approval.HOLD)
        if self.approves_ms is not None:
            contract = replace(contract, approval=Approval.MANUAL)
        if self.opens_ms is not None and not clear:
            start = self.opens_ms // MINUTE_MS
            hours = Hours(start % 1_440, (start + OPEN_MINUTES) % 1_440, "UTC")
            contract = replace(contract, hours=hours)
        return contract


@dataclass(frozen=True)
class WayBack:
    """An operator takes a run back by so many versions; 0 asks for a version that never was."""

    at_ms: int
    versions: int


NOTHING = SiteActs()


def draw_acts(
    seed: int, names: Sequence[str], spare: Collection[str], runs: Sequence[str], clear_ms: int
) -> tuple[dict[str, SiteActs], dict[str, tuple[WayBack, ...]]]:
    """In half of the worlds nobody decides anything; in the others people of some sites and runs do."""
    chance = random.Random(f"acts.{seed}")
    if chance.random() < 0.5:
        return {}, {}
    acts = {name: _of_site(chance, name in spare, clear_ms) for name in names}
    back = {run: _ways_back(chance, clear_ms) for run in runs if chance.random() < 0.5}
    return {name: found for name, found in acts.items() if found != NOTHING}, back


def _of_site(chance: random.Random, spare: bool, clear_ms: int) -> SiteActs:
    """Mostly one thing, sometimes several."""

    def maybe(probability: float) -> Span | None:
        return _span(chance, spare, clear_ms) if chance.random() < probability else None

    manual, holds, hours = (chance.random() < 0.12 for _ in range(3))
    return SiteActs(
        revoked=maybe(0.1),
        quarantined=maybe(0.1),
        withdrawn=maybe(0.15),
        approves_ms=chance.randint(START_MS, clear_ms) if manual else None,
        holds=holds and not manual,
        opens_ms=START_MS + chance.randint(5_000, 90_000) if hours else None,
    )


def _span(chance: random.Random, spare: bool, clear_ms: int) -> Span:
    begin_ms = START_MS + chance.randint(1_000, 60_000)
    if spare and chance.random() < 0.3:
        return Span(begin_ms, None)
    return Span(begin_ms, min(begin_ms + chance.choice((500, 5_000, 30_000)), max(begin_ms, clear_ms)))


def _ways_back(chance: random.Random, clear_ms: int) -> tuple[WayBack, ...]:
    times = sorted(chance.randint(START_MS + 3_000, clear_ms) for _ in range(chance.choice((1, 1, 2))))
    return tuple(WayBack(at_ms, chance.choice((0, 1, 1, 1, 2, 3))) for at_ms in times)
