"""The matrix: every combination of what is killed, what the network loses, and how fast it is.

One consortium goes through all cells, a run each; another one does the same runs in peace, and says
which bits they should have. A quorum of all sites makes the bits a matter of the run alone.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.auditor import Finding, differing, judge
from benchmarks.chaos.link import Weather
from benchmarks.chaos.schedule import COORDINATOR_DEEDS, LINK_DEEDS, PROCESS_DEEDS, Harm
from benchmarks.chaos.storm import Storm, agents, storm_over
from benchmarks.chaos.trial import Course, Work, evidence_of, undergo
from benchmarks.consortium import COORDINATOR

SITES = 3
ROUNDS = 6
PARAMETERS = 60_000
"""An update of 60 kB: half a second of the slowest link, so that a cell takes a minute at most."""

LIMIT_S = 240.0
"""For one cell; far beyond what any took."""

MEGABIT_PER_S = 1_000_000 / 8
LATENCY_S = 0.01

SPEEDS = {
    "fast": Weather(),
    "20mbit": Weather(LATENCY_S, 20 * MEGABIT_PER_S),
    "1mbit": Weather(LATENCY_S, MEGABIT_PER_S),
}
KILLS = ("none", "peers", "coordinator", "both")
LOSSES = ("none", "resets", "partitions")

CUT_CHANCE = 0.02
"""Of every piece of up to 16 KiB that a link carries."""

PAUSE_S = (0.2, 2.0)
"""Between two blows of one kind: they fall while something is under way, or while it comes back."""

PEER_BLOWS, COORDINATOR_BLOWS, LINK_BLOWS = 4, 2, 3
"""In one cell. A coordinator that is killed faster than it starts gets nowhere, and proves nothing."""


@dataclass(frozen=True)
class Cell:
    """One combination. Its name is its run's."""

    kills: str
    loss: str
    speed: str

    @property
    def name(self) -> str:
        """E.g. `both-resets-1mbit`: what is killed, what is lost, how fast."""
        return f"{self.kills}-{self.loss}-{self.speed}"

    def harms(self, sites: tuple[str, ...]) -> tuple[Harm, ...]:
        """What is done meanwhile."""
        found = []
        if self.kills in ("peers", "both"):
            found.append(Harm(sites, PROCESS_DEEDS, PAUSE_S, PEER_BLOWS))
        if self.kills in ("coordinator", "both"):
            found.append(Harm((COORDINATOR,), COORDINATOR_DEEDS, PAUSE_S, COORDINATOR_BLOWS))
        if self.loss == "partitions":
            found.append(Harm(sites, LINK_DEEDS, PAUSE_S, LINK_BLOWS))
        return tuple(found)

    @property
    def weather(self) -> Weather:
        """How the links are."""
        fair = SPEEDS[self.speed]
        cut = CUT_CHANCE if self.loss == "resets" else 0.0
        return Weather(fair.latency_s, fair.rate_bytes_per_s, cut)


CELLS = tuple(itertools.starmap(Cell, itertools.product(KILLS, LOSSES, SPEEDS)))
"""All 36."""


@dataclass(frozen=True)
class Verdict:
    """What a cell came to.

    Attributes:
        quiet_s: seconds of the same run in peace.
        cuts: connections that the link broke by chance.
        findings: invariants that do not hold.
    """

    cell: Cell
    course: Course
    quiet_s: float
    cuts: int
    findings: tuple[Finding, ...]

    @property
    def held(self) -> bool:
        """Whether the run got to its end with every invariant intact."""
        return not self.course.trouble and not self.findings


def choose(patterns: Sequence[str], count: int | None, seed: int) -> list[Cell]:
    """Cells whose name has one of the patterns in it, all if there is none; `count` of them at random.

    Raises `ValueError` for a pattern that fits no cell.
    """
    for pattern in patterns:
        if not any(re.search(pattern, cell.name) for cell in CELLS):
            raise ValueError(f"no cell's name matches {pattern!r}; one is {CELLS[-1].name}")
    found = [c for c in CELLS if not patterns or any(re.search(p, c.name) for p in patterns)]
    if count is None or count >= len(found):
        return found
    chosen = set(random.Random(f"cells {seed}").sample(found, count))
    return [cell for cell in found if cell in chosen]


def run_matrix(
    folder: Path, cells: Sequence[Cell], seed: int, tell: Callable[[Verdict], None]
) -> list[Verdict]:
    """Go through the cells; `tell` hears of each as soon as it is judged."""
    works = {cell: Work(cell.name, ROUNDS, PARAMETERS) for cell in cells}
    verdicts = []
    with storm_over(folder / "quiet", SITES, seed) as storm:
        quiet = {c: asyncio.run(undergo(storm, work, "", (), LIMIT_S)) for c, work in works.items()}
        peace = evidence_of(storm.consortium)
    for cell, course in quiet.items():
        if course.trouble:
            raise RuntimeError(f"{cell.name} failed though nothing was done to it: {course.trouble}")
    with storm_over(folder / "stormy", SITES, seed) as storm:
        sites = agents(storm.consortium)
        for cell, work in works.items():
            storm.set_weather(cell.weather)
            before = _cuts(storm)
            course = asyncio.run(undergo(storm, work, f"{seed} {cell.name}", cell.harms(sites), LIMIT_S))
            cuts = _cuts(storm) - before
            found = evidence_of(storm.consortium)
            findings = (*judge(found, cell.name), *differing(found, peace, cell.name, all_sites=True))
            verdicts.append(Verdict(cell, course, quiet[cell].seconds, cuts, findings))
            tell(verdicts[-1])
    return verdicts


def _cuts(storm: Storm) -> int:
    """Connections that were cut by chance so far, on all links."""
    found = (storm.proxy.counters(site) for site in storm.consortium.names)
    return sum(counters.resets + counters.truncations for counters in found)
