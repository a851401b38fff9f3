"""`python -m benchmarks.chaos`: the matrix, or a soak; a table, and JSON for machines.

The exit code is 0 only if every run got to its end, every invariant held, and no trend is above its bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.chaos.matrix import CELLS, ROUNDS, SITES, Verdict, choose, run_matrix
from benchmarks.chaos.soak import Soak, run_soak

QUICK_CELLS = 6

COLUMNS = (
    "kills",
    "loss",
    "link",
    "done",
    "blows",
    "cuts",
    "lost rounds",
    "seconds",
    "in peace",
    "recovery",
    "held",
)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="of every schedule (1)")
    parser.add_argument(
        "--cells",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help=f"only cells whose name matches one, e.g. both- resets-1mbit; one is {CELLS[-1].name}",
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CELLS} cells, drawn by the seed")
    parser.add_argument("--count", type=int, metavar="N", help="N cells, drawn by the seed")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="a soak instead of the matrix")
    parser.add_argument(
        "--relentless", action="store_true", help="soak with kill -9 of the coordinator every 5 s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all folders and logs in DIR")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        return run(options, options.keep)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        return run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> int:
    """Do what the options say below `folder`; the exit code."""
    if options.soak:
        soak = run_soak(folder, options.soak, options.seed, tell, options.relentless)
        document = soak_document(soak, options.seed)
        print_soak(soak)
        good = not soak.faults
    else:
        count = QUICK_CELLS if options.quick else options.count
        cells = choose(options.cells, count, options.seed)
        began = time.monotonic()
        verdicts = run_matrix(folder, cells, options.seed, tell_cell)
        document = {"seed": options.seed, "cells": [cell_document(verdict) for verdict in verdicts]}
        print_matrix(verdicts, options.seed, time.monotonic() - began)
        good = all(verdict.held for verdict in verdicts)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if good else 1


def tell(line: str) -> None:
    """What happens, for who waits; the table goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def tell_cell(verdict: Verdict) -> None:
    """One cell as soon as it is over, with all that is wrong."""
    course = verdict.course
    tell(f"{verdict.cell.name}: {'held' if verdict.held else 'FAILED'}, {course.seconds:.1f} s")
    for wrong in (*filter(None, (course.trouble,)), *map(str, verdict.findings)):
        tell(f"  {wrong}")


def cells_of(verdict: Verdict) -> tuple[str, ...]:
    """A cell's line in the table, as in `COLUMNS`."""
    cell, course = verdict.cell, verdict.course
    recovery = course.recovery_median_s
    return (
        cell.kills,
        cell.loss,
        cell.speed,
        "no" if course.trouble else "yes",
        str(len(course.struck)),
        str(verdict.cuts),
        str(course.lost_rounds),
        f"{course.seconds:.1f}",
        f"{verdict.quiet_s:.1f}",
        "-" if recovery is None else f"{recovery:.1f}",
        "yes" if verdict.held else "NO",
    )


def print_matrix(verdicts: Iterable[Verdict], seed: int, took_s: float) -> None:
    """A Markdown table and a sum."""
    verdicts = list(verdicts)
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for verdict in verdicts:
        print(f"| {' | '.join(cells_of(verdict))} |")
    done = sum(not verdict.course.trouble for verdict in verdicts)
    broken = Counter(finding.invariant for verdict in verdicts for finding in verdict.findings)
    print(
        f"\n{done} of {len(verdicts)} runs of {ROUNDS} rounds at {SITES} sites completed, seed {seed}, "
        f"{took_s / 60:.1f} minutes; "
        + (f"invariants broken: {dict(broken)}" if broken else "every invariant held")
    )


def cell_document(verdict: Verdict) -> dict[str, Any]:
    """A cell for machines, with the blows that fell."""
    course = verdict.course
    return {
        "cell": verdict.cell.name,
        "held": verdict.held,
        "trouble": course.trouble,
        "findings": [str(finding) for finding in verdict.findings],
        "seconds": course.seconds,
        "quiet_seconds": verdict.quiet_s,
        "lost_rounds": course.lost_rounds,
        "cuts": verdict.cuts,
        "recovery_seconds": list(course.recovery_s),
        "blows": [
            {"at_ms": s.at_ms, "deed": s.blow.deed.value, "target": s.blow.target, "lasts_s": s.blow.lasts_s}
            for s in course.struck
        ],
    }


def soak_document(soak: Soak, seed: int) -> dict[str, Any]:
    """A soak for machines."""
    return {
        "seed": seed,
        "minutes": soak.minutes,
        "rounds": soak.rounds,
        "lost_rounds": soak.lost_rounds,
        "blows": soak.blows,
        "journal_bytes_per_round": soak.journal_bytes_per_round,
        "faults": soak.faults,
        "series": {f"{name} {quantity}": s.points for (name, quantity), s in soak.series.items()},
    }


def print_soak(soak: Soak) -> None:
    """What it did, what grew, what is wrong."""
    print(
        f"{soak.minutes:g} minutes, {soak.blows} blows, {soak.rounds} rounds published, "
        f"{soak.lost_rounds} attempts abandoned, {soak.journal_bytes_per_round:.0f} journal bytes a round\n"
    )
    print("| process | quantity | median | trend adds |\n|---|---|---|---|")
    for (name, quantity), series in sorted(soak.series.items()):
        print(f"| {name} | {quantity} | {series.median():.0f} | {series.growth():+.0f} |")
    good = "journals verify, every invariant held, no trend is above its bound"
    print("\n" + ("\n".join(soak.faults) or good))


if __name__ == "__main__":
    sys.exit(main())
