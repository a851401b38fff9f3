"""The soak: blows at random for as long as asked, and a look at what grows.

One run goes on and on, with one site fewer than all as quorum and late updates counted in the next
round, so that rounds go on while somebody is down. Memory, descriptors and disk are sampled; after a
warm-up they have to be flat. History is the one thing that grows, by design (journals, signed heads,
logs): the coordinator's journal is told in bytes per round.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.chaos.auditor import Finding, judge
from benchmarks.chaos.link import Weather
from benchmarks.chaos.schedule import COORDINATOR_DEEDS, LINK_DEEDS, PROCESS_DEEDS, Deed, Harm
from benchmarks.chaos.storm import Storm, agents, storm_over
from benchmarks.chaos.trial import Work, evidence_of, start, stop
from benchmarks.consortium import COORDINATOR
from fedtrain.core.state import ENDED
from fedtrain.storage.journal import Journal

SITES = 3
PARAMETERS = 200_000
RUN = "soak"
ROUNDS = 1_000_000
"""More than any soak gets to; the run is stopped at the end."""

STILL_S = 120.0
"""Without a new version for so long, rounds do not go on."""

PAUSE_S = (5.0, 20.0)
"""Between two blows against processes; half as often against links."""

SAMPLE_S = 10.0
YOUNG_S = 6.0
"""A process that is younger than this still grows by starting."""

WARM_UP_SHARE = 0.25
"""Of the samples, not counted."""

CUT_CHANCE = 0.002

RELENTLESS = Harm((COORDINATOR,), {Deed.KILL: 1}, (5.0, 5.0))
"""Row 11 of the list of faults."""

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Bound:
    """What may be added between the end of the warm-up and the last sample, by the trend."""

    share: float
    slack: float


BOUNDS = {
    "rss_bytes": Bound(0.1, 8 * MEGABYTE),
    "descriptors": Bound(0.1, 6),
    "disk_bytes": Bound(0.1, 2 * MEGABYTE),
}
"""Quantity -> how flat it has to be. The slack is above what a sawtooth of rounds and restarts makes."""


@dataclass
class Series:
    """Samples of one quantity of one process or folder: (seconds since the start, value)."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def settled(self) -> list[tuple[float, float]]:
        """Without the warm-up."""
        return self.points[int(len(self.points) * WARM_UP_SHARE) :]

    def median(self) -> float:
        """Of what counts, 0 if nothing was sampled."""
        return statistics.median(value for _, value in self.settled()) if self.points else 0.0

    def growth(self) -> float:
        """How much the trend adds from the end of the warm-up to the end.

        The trend is the median of the slopes between all pairs of samples, which single outliers do
        not move (Theil, "A rank-invariant method of linear and polynomial regression analysis",
        1950; Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968,
        doi:10.1080/01621459.1968.10480934).
        """
        found = self.settled()
        slopes = [(y - v) / (x - u) for i, (u, v) in enumerate(found) for x, y in found[i + 1 :] if x > u]
        return statistics.median(slopes) * (found[-1][0] - found[0][0]) if slopes else 0.0

    def fault(self, bound: Bound) -> str:
        """Why it is not flat, "" if it is."""
        allowed = bound.share * self.median() + bound.slack
        if self.growth() <= allowed:
            return ""
        return f"grew by {self.growth():.0f} on a median of {self.median():.0f} (allowed {allowed:.0f})"


@dataclass
class Soak:
    """What a soak came to. `series` has a key (process, quantity)."""

    minutes: float
    rounds: int = 0
    blows: int = 0
    lost_rounds: int = 0
    journal_bytes_per_round: float = 0.0
    series: dict[tuple[str, str], Series] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All that is wrong."""
        grown = [
            f"{name}: {quantity} {fault}"
            for (name, quantity), series in sorted(self.series.items())
            if (fault := series.fault(BOUNDS[quantity]))
        ]
        return [*self.troubles, *map(str, self.findings), *grown]


def run_soak(
    folder: Path, minutes: float, seed: int, tell: Callable[[str], None], relentless: bool = False
) -> Soak:
    """Soak for so many minutes; `tell` hears how it goes.

    `relentless` kills nobody but the coordinator, every five seconds, whether it is up again or not.
    """
    soak = Soak(minutes)
    with storm_over(folder / "soak", SITES, seed) as storm:
        if relentless:
            harms: tuple[Harm, ...] = (RELENTLESS,)
        else:
            sites = agents(storm.consortium)
            harms = (
                Harm((*sites, COORDINATOR), {**PROCESS_DEEDS, **COORDINATOR_DEEDS}, PAUSE_S),
                Harm(sites, LINK_DEEDS, (PAUSE_S[0] * 2, PAUSE_S[1] * 2)),
            )
            storm.set_weather(Weather(cut_chance=CUT_CHANCE))
        asyncio.run(_soak(storm, soak, f"soak {seed}", harms, tell))
    return soak


async def _soak(
    storm: Storm, soak: Soak, seed: str, harms: tuple[Harm, ...], tell: Callable[[str], None]
) -> None:
    began = time.monotonic()
    end = began + soak.minutes * 60
    beside = [
        asyncio.create_task(storm.rage(seed, harms)),
        asyncio.create_task(_sample(storm, soak, began)),
    ]
    await start(storm.consortium, Work(RUN, ROUNDS, PARAMETERS, missing=1, late="next_round"))
    try:
        while time.monotonic() < end and not soak.troubles:
            soak.troubles += await _advance(storm, min(end, time.monotonic() + STILL_S), end)
            version = storm.follower.state.runs[RUN].rounds_done
            tell(f"{(time.monotonic() - began) / 60:.1f} min: version {version}, {len(storm.struck)} blows")
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    await stop(storm.consortium, RUN)  # first, or there would be work in hand for ever
    unrest = await storm.calm()
    soak.troubles += [*([f"afterwards {unrest}"] if unrest else []), *storm.fallen]
    _count(storm, soak)


async def _advance(storm: Storm, until: float, end: float) -> list[str]:
    """Look for a while; what is wrong if no version came, or the run went no further."""
    before = storm.follower.look().runs[RUN].rounds_done
    while time.monotonic() < until:
        await asyncio.sleep(1.0)
        run = storm.follower.look().runs[RUN]
        if run.paused or run.phase in ENDED:
            return [f"{run.phase}: {run.paused or run.reason}"]
    stuck = run.rounds_done == before and until < end
    return [f"no version in {STILL_S:.0f} s: {run.phase} ({run.reason})"] if stuck else []


def _count(storm: Storm, soak: Soak) -> None:
    """Rounds, blows, and the auditor's verdict."""
    run = storm.follower.look().runs[RUN]
    soak.findings += judge(evidence_of(storm.consortium), RUN)
    soak.blows, soak.rounds = len(storm.struck), run.rounds_done
    soak.lost_rounds = sum(record.version is None for record in run.records)
    with closing(Journal.open(storm.consortium.home / "state" / "journal.db", writer=False)) as journal:
        size_bytes = sum(len(str(value)) for row in journal.read() for value in row)
    soak.journal_bytes_per_round = size_bytes / max(1, soak.rounds)


async def _sample(storm: Storm, soak: Soak, began: float) -> None:
    """Every `SAMPLE_S`: processes that are not young, and folders without their journals."""
    while True:
        await asyncio.sleep(min(SAMPLE_S, soak.minutes * 60 / 20))
        at_s = time.monotonic() - began
        for name, quantity, value in _look(storm):
            soak.series.setdefault((name, quantity), Series()).points.append((at_s, value))


def _look(storm: Storm) -> Iterator[tuple[str, str, float]]:
    consortium = storm.consortium
    for name, child in consortium.children.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            if time.time() - process.create_time() > YOUNG_S:
                yield name, "rss_bytes", process.memory_info().rss
                yield name, "descriptors", process.num_fds()
        folder = consortium.home if name == COORDINATOR else consortium.site(name)
        yield name, "disk_bytes", _size(folder, lambda path: not _is_history(path))


def _is_history(path: Path) -> bool:
    """Journals, the heads that a site keeps of the coordinator's, and logs: they stay."""
    return path.name.startswith("journal.db") or path.parent.name == "heads" or path.suffix == ".log"


def _size(folder: Path, wanted: Callable[[Path], bool]) -> int:
    """Bytes of the files below a folder, some of which may vanish under the look."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and wanted(path):
                total += path.stat().st_size
    return total
