"""One run from start to end, disturbed or not, and what it took."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from benchmarks.chaos.evidence import Evidence, gather
from benchmarks.chaos.schedule import Deed, Harm
from benchmarks.chaos.storm import LOOK_S, Storm, Struck
from benchmarks.consortium import COORDINATOR, Consortium
from fedtrain.cli.session import load_identity, open_client
from fedtrain.config import load_run
from fedtrain.core import events as ev
from fedtrain.core.state import ENDED, RunState
from fedtrain.wire.client import CoordinatorClient

RUN_FILE = """\
run: {run}
seed: 7
task:
  name: synthetic
  model: {{parameters: {parameters}, tensors: 3}}
  training: {{seconds_per_step: {seconds_per_step}}}
sites: {{minimum: {sites}}}
rounds:
  count: {rounds}
  steps: 1
  quorum: {quorum}
  quorum_share: {share}
  deadline_s: 60
  patience_s: {patience_s}
  heartbeat_s: 0.5
  late: {late}
codec: {{up: int8, down: int8}}
evaluate: {{every: 0}}
"""


@dataclass(frozen=True)
class Work:
    """A run. `missing` is how many sites a round may close without."""

    run: str
    rounds: int
    parameters: int
    seconds_per_step: float = 0.5
    patience_s: float = 8.0
    missing: int = 0
    late: str = "drop"


@dataclass(frozen=True)
class Course:
    """How a run went.

    Attributes:
        trouble: why it did not get to its end, "" if it did.
        seconds: from its submission to its end, by the coordinator's journal.
        lost_rounds: attempts at a round that were abandoned.
        recovery_s: seconds from each kill to the moment when all whom it cut off were attached again.
        struck: what was done meanwhile.
    """

    trouble: str
    seconds: float
    lost_rounds: int
    recovery_s: tuple[float, ...] = ()
    struck: tuple[Struck, ...] = ()

    @property
    def recovery_median_s(self) -> float | None:
        """None if nothing was killed."""
        return statistics.median(self.recovery_s) if self.recovery_s else None


async def undergo(storm: Storm, work: Work, seed: str, harms: tuple[Harm, ...], limit_s: float) -> Course:
    """Start the run, disturb it until it ends or the time is over, then let everything calm down."""
    before = len(storm.struck), len(storm.fallen)
    await start(storm.consortium, work)
    raging = asyncio.create_task(storm.rage(seed, harms))
    try:
        trouble = await end_of(storm, work.run, limit_s)
    finally:
        raging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await raging
    unrest = await storm.calm()
    trouble = trouble or (unrest and f"afterwards {unrest}")
    trouble = "; ".join(filter(None, (trouble, *storm.fallen[before[1] :])))
    struck = tuple(storm.struck[before[0] :])
    found = evidence_of(storm.consortium)
    run = storm.follower.look().runs[work.run]
    lost = sum(record.version is None and record.index <= run.spec.rounds for record in run.records)
    return Course(trouble, _seconds(run), lost, tuple(_recoveries(found, struck)), struck)


def evidence_of(consortium: Consortium) -> Evidence:
    """What the consortium's folders hold now."""
    return gather(consortium.home, {name: consortium.site(name) for name in consortium.names})


async def start(consortium: Consortium, work: Work) -> None:
    """Submit the run as an operator does, past the proxy."""
    path = consortium.folder / f"{work.run}.yaml"
    sites = len(consortium.names)
    quorum = sites - work.missing
    share = 1.0 if not work.missing else 0.5
    path.write_text(RUN_FILE.format(**vars(work), sites=quorum, quorum=quorum, share=share))
    async with _operator(consortium) as client:
        await client.start(load_run(path).spec())


async def stop(consortium: Consortium, run: str) -> None:
    """End the run as an operator does."""
    async with _operator(consortium) as client:
        await client.stop(run)


@contextlib.asynccontextmanager
async def _operator(consortium: Consortium) -> AsyncIterator[CoordinatorClient]:
    keys, proxy = load_identity(consortium.home)
    async with open_client(keys, proxy) as client:
        await client.connect()
        yield client


async def end_of(storm: Storm, run: str, limit_s: float) -> str:
    """Wait for the run's end; why it did not come, "" if it did."""
    end = time.monotonic() + limit_s
    found = storm.follower.look().runs[run]
    while time.monotonic() < end:
        if found.phase in ENDED:
            return "" if found.phase == "done" else f"{found.phase}: {found.reason}"
        if found.paused:
            return f"it paused: {found.paused}"
        await asyncio.sleep(LOOK_S)
        found = storm.follower.look().runs[run]
    return f"not done in {limit_s:.0f} s: {found.phase} ({found.reason}), version {found.rounds_done}"


def _seconds(run: RunState) -> float:
    last = run.records[-1].closed_ms if run.records else run.submitted_ms
    return (last - run.submitted_ms) / 1000


def _recoveries(evidence: Evidence, struck: tuple[Struck, ...]) -> Iterator[float]:
    """A killed agent has recovered when it is attached again, a coordinator when all sites are."""
    attaches = [(event.at_ms, event.site) for event in evidence.events if isinstance(event, ev.SiteAttached)]
    for item in struck:
        if item.blow.deed is not Deed.KILL:
            continue
        cut_off = evidence.sites if item.blow.target == COORDINATOR else (item.blow.target,)
        back = [
            min((at for at, who in attaches if who == site and at > item.at_ms), default=None)
            for site in cut_off
        ]
        ends = [at for at in back if at is not None]
        if len(ends) == len(back):
            yield (max(ends) - item.at_ms) / 1000
