"""`python -m fedtrain.sim`: many worlds with a summary line, or one in full."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from fedtrain.errors import EXIT_BUG, EXIT_DONE
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
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return _one(chosen.seed, chosen.transcript)
    begin_s = time.perf_counter()
    faults: Counter[str] = Counter()
    events = 0
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    # A world is a few hundredths of a second: seeds travel in batches, and results keep their order.
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        for outcome in pool.map(hold, seeds, chunksize=8):
            if isinstance(outcome, str):
                print(outcome, file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                return EXIT_BUG
            faults += outcome.faults
            events += outcome.events
    print(_summary(chosen.seeds, events, faults, time.perf_counter() - begin_s))
    return EXIT_DONE


def _one(seed: int, transcript: bool) -> int:
    """One world in this process, with everything that happened in it if asked."""
    world = World(seed)
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
