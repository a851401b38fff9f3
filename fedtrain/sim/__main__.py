"""`python -m fedtrain.sim`: many worlds, one after the other, with a summary line; or one in full."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from fedtrain.errors import EXIT_BUG, EXIT_DONE
from fedtrain.sim.world import SeedFailed, World


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every world held, 1 at the first that did not."""
    parser = argparse.ArgumentParser(prog="python -m fedtrain.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many worlds (100)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first world's seed (1)")
    parser.add_argument("--seed", type=int, metavar="N", help="this one world only")
    parser.add_argument("--transcript", action="store_true", help="print everything that happened")
    chosen = parser.parse_args(arguments)
    first, count = (chosen.first, chosen.seeds) if chosen.seed is None else (chosen.seed, 1)
    faults: Counter[str] = Counter()
    events = 0
    begin_s = time.perf_counter()
    for seed in range(first, first + count):
        world = World(seed)
        try:
            outcome = world.run()
        except SeedFailed as failure:
            if chosen.transcript:
                print(world.scene.transcript.text())
            print(failure, file=sys.stderr)
            return EXIT_BUG
        if chosen.transcript:
            print(world.scene.transcript.text())
        faults += outcome.faults
        events += outcome.events
    seconds = time.perf_counter() - begin_s
    print(_summary(count, events, faults, seconds))
    return EXIT_DONE


def _summary(count: int, events: int, faults: Counter[str], seconds: float) -> str:
    injected = ", ".join(f"{kind} {times:,}" for kind, times in sorted(faults.items())) or "none"
    return (
        f"{count:,} worlds held: {events:,} events in {seconds:.1f} s ({events / seconds:,.0f} events/s); "
        f"faults: {injected}"
    )


if __name__ == "__main__":
    sys.exit(main())
