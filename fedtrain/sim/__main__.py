"""`python -m fedtrain.sim`: many worlds with a summary line, one in full, or as much of it as fails."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from fedtrain.errors import EXIT_BUG, EXIT_DONE, ConfigError
from fedtrain.sim.choice import EVERYTHING, Choice, read_choice
from fedtrain.sim.malice import Gained, endure_many
from fedtrain.sim.minimise import minimise
from fedtrain.sim.world import Outcome, SeedFailed, World, hold


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every world held, 1 at the first that did not."""
    parser = argparse.ArgumentParser(prog="python -m fedtrain.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many worlds (100)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first world's seed (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="this one world only")
    parser.add_argument("--transcript", action="store_true", help="with --seed: print all that happened")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (one per core)"
    )
    parser.add_argument("--malice", action="store_true", help="worlds whose coordinator lies, without faults")
    _add_choice(parser)
    chosen = parser.parse_args(arguments)
    try:
        if chosen.malice:
            one = chosen.seed is not None
            return _lied_to(range(chosen.seed, chosen.seed + 1) if one else _seeds(chosen))
        choice = read_choice(chosen.only, chosen.without, chosen.sites, chosen.runs, chosen.rounds)
        if chosen.seed is None:
            if chosen.minimise or choice != EVERYTHING:
                parser.error("only one world has parts to choose from: name it with --seed")
            return _many(_seeds(chosen), chosen.jobs)
        if chosen.minimise:
            return _smallest(chosen.seed, choice)
        return _one(chosen.seed, choice, chosen.transcript)
    except ConfigError as error:
        parser.error(str(error))


def _seeds(chosen: argparse.Namespace) -> range:
    return range(chosen.first, chosen.first + chosen.seeds)


def _lied_to(seeds: range) -> int:
    """Worlds with a coordinator that lies, up to the first that gives something away."""
    try:
        tally = endure_many(seeds)
    except Gained as failure:
        print(failure, file=sys.stderr)
        return EXIT_BUG
    for counted in (tally.tried, tally.counts):
        print(", ".join(f"{name} {times:,}" for name, times in sorted(counted.items())))
    print(f"{len(seeds):,} coordinators lied {tally.tried.total():,} times, and gained nothing")
    return EXIT_DONE


def _many(seeds: range, jobs: int) -> int:
    """One world after the other, up to the first that fails."""
    begin_s = time.perf_counter()
    faults: Counter[str] = Counter()
    events = 0
    for outcome in _outcomes(seeds, jobs):
        if isinstance(outcome, str):
            print(outcome, file=sys.stderr)
            return EXIT_BUG
        faults += outcome.faults
        events += outcome.events
    print(_summary(len(seeds), events, faults, time.perf_counter() - begin_s))
    return EXIT_DONE


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome | str]:
    """In the order of the seeds. A world is a few hundredths of a second, so seeds travel in batches."""
    if jobs == 1:
        yield from map(hold, seeds)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(hold, seeds, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Options that repeat a part of one world, or look for the part that matters."""
    faults = "faults, by key as in a transcript: 'crash/site-a/2; message lost/site-a>coordinator/3,7-9'"
    parser.add_argument("--minimise", action="store_true", help="with --seed: the smallest world that fails")
    parser.add_argument("--only", metavar="FAULTS", help=f"with --seed: no other {faults}")
    parser.add_argument("--without", default="", metavar="FAULTS", help="with --seed: none of these")
    parser.add_argument("--sites", default="", metavar="A,B", help="with --seed: only these sites")
    parser.add_argument("--runs", default="", metavar="A,B", help="with --seed: only these runs")
    parser.add_argument("--rounds", type=int, metavar="N", help="with --seed: at most N rounds a run")


def _smallest(seed: int, choice: Choice) -> int:
    """The smallest world of this seed that fails, in full."""
    minimum = minimise(seed, choice)
    if minimum is None:
        print(f"seed {seed}: its world holds, there is nothing to minimise")
        return EXIT_DONE
    print(minimum.text())
    return EXIT_BUG


def _one(seed: int, choice: Choice, transcript: bool) -> int:
    """One world in this process, with everything that happened in it if asked."""
    world = World(seed, choice)
    begin_s = time.perf_counter()
    try:
        outcome: Outcome | None = world.run()
    except SeedFailed as failure:
        outcome = None
        print(failure, file=sys.stderr)
    if transcript:
        print(world.scene.transcript.text())
    if outcome is None:
        return EXIT_BUG
    print(_summary(1, outcome.events, outcome.faults, time.perf_counter() - begin_s))
    return EXIT_DONE


def _summary(count: int, events: int, faults: Counter[str], seconds: float) -> str:
    injected = ", ".join(f"{kind} {times:,}" for kind, times in sorted(faults.items())) or "none"
    return (
        f"{count:,} worlds held: {events:,} events in {seconds:.1f} s ({events / seconds:,.0f} events/s); "
        f"faults: {injected}"
    )


if __name__ == "__main__":
    sys.exit(main())
