"""What privacy accounting costs an agent: a charge behind a long ledger, and the tight bound's time.

    python benchmarks/ledger.py [--quick] [--folder DIR]

A charge is what the agent does between the acceptance of an order and its way to the trainer: read what
others have appended, epsilon by Renyi curves with the coming charge, append, sync. It is timed behind
ledgers of 10, 1,000 and 10,000 rows of 8 runs, whose noise differs, with site-level rows among them; the
first charge of a process, which computes the curves, is told apart. The disk's part is a plain file of the
same disk that is written and synced. Then the tight bound, process and imports included, against its limit.

One JSON line a measurement, then a table. Goal: less than 50 ms a charge.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.core.charges import Charge, Mechanism, serving
from fedtrain.methods.accounting import Composition, epsilon_pld, epsilon_rdp, grouped
from fedtrain.storage.ledger import Ledger

GOAL_MS = 50.0
RUNS = 8
SITE_EVERY = 10
"""One row in so many is of a site's update."""

BATCH_ROWS = 500
DELTA = 1e-6
SYNC_BYTES = 16_384

NOISES = tuple(
    Mechanism("poisson-gaussian", "record", 1.0, 1.0 + 0.1 * run, 0.01 * (1 + run % 3), 20)
    for run in range(RUNS)
)
UPDATE = Mechanism("gaussian", "site", 1.0, 4.0)


def charge_of(index: int) -> Charge:
    """A row of the ledger as a site's agents write it."""
    run = index % RUNS
    mechanism = UPDATE if index % SITE_EVERY == 0 else NOISES[run]
    return Charge(f"run-{run}.{index}.1.north", 1, f"run-{run}", "consortium", "corpus", mechanism)


def one_charge(ledger: Ledger, index: int) -> dict[str, float]:
    """Milliseconds of each part of one charge."""
    marks, busy = [time.perf_counter()], time.process_time()
    past = ledger.spending("corpus")
    marks.append(time.perf_counter())
    counted, _ = serving("record", [*past, charge_of(index)])
    epsilon_rdp(grouped(counted), DELTA)
    marks.append(time.perf_counter())
    ledger.charge([charge_of(index)])
    marks.append(time.perf_counter())
    read, reckon, append = (1e3 * (end - begin) for begin, end in pairwise(marks))
    busy_ms = 1e3 * (time.process_time() - busy)
    whole = read + reckon + append
    return {"read_ms": read, "epsilon_ms": reckon, "append_ms": append, "all_ms": whole, "core_ms": busy_ms}


def behind(path: Path, rows: int, repetitions: int) -> None:
    """Charges behind a ledger of so many rows, in this process, which must be new. Prints its line."""
    begin = time.perf_counter()
    with Ledger(path) as ledger:
        opened_ms = 1e3 * (time.perf_counter() - begin)
        first = one_charge(ledger, rows + 1)
        found = [one_charge(ledger, rows + 2 + index) for index in range(repetitions)]
    syncs = [sync_ms(path.parent) for _ in range(repetitions)]
    line: dict[str, Any] = {"benchmark": "ledger", "what": "charge", "rows": rows}
    line |= {key: round(statistics.median(one[key] for one in found), 2) for key in first}
    line["slowest_ms"] = round(max(one["all_ms"] for one in found), 2)
    line["first_ms"] = round(first["all_ms"], 1)
    line["open_ms"] = round(opened_ms, 1)
    line["disk_ms"] = round(statistics.median(syncs), 2)
    line["repetitions"] = repetitions
    line["goal_met"] = line["all_ms"] < GOAL_MS
    print(json.dumps(line), flush=True)


def sync_ms(folder: Path) -> float:
    """Writing and syncing as much as one append does, to a plain file."""
    with open(folder / "sync", "ab", buffering=0) as file:
        begin = time.perf_counter()
        file.write(os.urandom(SYNC_BYTES))
        os.fsync(file.fileno())
        return 1e3 * (time.perf_counter() - begin)


def fill(path: Path, rows: int) -> None:
    """A ledger of so many rows."""
    with Ledger(path) as ledger:
        while (have := ledger.head.sequence) < rows:
            batch = range(have, min(rows, have + BATCH_ROWS))
            ledger.charge([charge_of(index) for index in batch])


def tight(what: str, composition: Composition, limit_s: float) -> dict[str, Any]:
    """One question for the tight bound, in a process of its own."""
    begin = time.perf_counter()
    by_rdp = epsilon_rdp(composition, DELTA)
    rdp_s = time.perf_counter() - begin
    begin = time.perf_counter()
    bound = epsilon_pld(composition, DELTA, limit_s)
    line = {
        "benchmark": "ledger",
        "what": what,
        "limit_s": limit_s,
        "seconds": round(time.perf_counter() - begin, 2),
        "epsilon": round(bound.epsilon, 4),
        "by": bound.by,
        "rdp": round(by_rdp, 4),
        "rdp_first_s": round(rdp_s, 2),
    }
    print(json.dumps(line), flush=True)
    return line


def questions() -> dict[str, Composition]:
    """From one run to more different mechanisms than can be composed in time."""
    many = [
        Mechanism("poisson-gaussian", "record", 1.0, 0.8 + 0.01 * index, 0.002 * (1 + index % 7), 50)
        for index in range(40)
    ]
    return {
        "one run": [(NOISES[0], 100)],
        "8 runs": [(noise, 50) for noise in NOISES],
        "40 noises": [(noise, 1) for noise in many],
    }


def table(charges: list[dict[str, Any]], bounds: list[dict[str, Any]]) -> str:
    """What a person reads."""
    columns = (
        "rows",
        "all_ms",
        "core_ms",
        "read_ms",
        "epsilon_ms",
        "append_ms",
        "disk_ms",
        "slowest_ms",
        "first_ms",
        "open_ms",
    )
    lines = [" ".join(f"{column:>10}" for column in columns) + f"   goal: {GOAL_MS:g} ms"]
    lines += [" ".join(f"{line[column]:>10}" for column in columns) for line in charges]
    lines += [
        "",
        f"{'tight bound':12} {'limit':>6} {'seconds':>8} {'by':>4} {'epsilon':>9} {'RDP':>9} {'curves':>10}",
    ]
    lines += [
        f"{line['what']:12} {line['limit_s']:>6g} {line['seconds']:>8} {line['by']:>4} "
        f"{line['epsilon']:>9} {line['rdp']:>9} {line['rdp_first_s']:>8} s"
        for line in bounds
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--folder", type=Path, help="where to write; the disk under it is measured too")
    parser.add_argument("--behind", nargs=3, metavar=("FILE", "ROWS", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.behind:
        behind(Path(options.behind[0]), int(options.behind[1]), int(options.behind[2]))
        return 0
    repetitions = 20 if options.quick else 100
    charges = []
    with tempfile.TemporaryDirectory(prefix="ledger-", dir=options.folder) as name:
        for rows in (10, 1_000, 10_000):
            path = Path(name) / f"{rows}.sqlite"
            fill(path, rows)
            command = [sys.executable, __file__, "--behind", str(path), str(rows), str(repetitions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(done.stdout, end="", flush=True)
            charges.append(json.loads(done.stdout))
    bounds = [tight(what, composition, 10.0) for what, composition in questions().items()]
    bounds.append(tight("one run, 1 s", [(NOISES[1], 100)], 1.0))
    print(table(charges, bounds), file=sys.stderr)
    in_time = all(line["seconds"] < line["limit_s"] + 1 for line in bounds)
    return 0 if all(line["goal_met"] for line in charges) and in_time else 1


if __name__ == "__main__":
    sys.exit(main())
