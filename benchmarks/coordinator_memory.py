"""P2: the coordinator's peak resident memory, with models that do not fit into it.

    python benchmarks/coordinator_memory.py [--quick]

All sites upload at once. The peak is VmHWM of /proc/PID/status at the end of the run: the start,
every transfer and every aggregation are in it. The same consortium at rest tells what of it the
program itself takes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from consortium import Consortium, Work, emit, median_seconds, peak_resident_bytes

MILLION = 1_000_000
GOAL_BYTES = 250_000_000 + 64_000_000
QUICK = ((8, 25, "float32"),)
FULL = ((2, 25, "float32"), (8, 25, "float32"), (8, 124, "float32"), (2, 1000, "int8"))
"""(sites, millions of parameters, codec both ways)."""

ROUNDS = 4


def measure(sites: int, millions: int, codec: str) -> dict[str, Any]:
    """Peak resident bytes after `ROUNDS` rounds, and before the first."""
    with (
        tempfile.TemporaryDirectory(prefix="coordinator-memory-") as name,
        Consortium(Path(name), sites) as consortium,
    ):
        at_rest = peak_resident_bytes(consortium.coordinator_pid)
        outcome = consortium.measure(Work("memory", millions * MILLION, ROUNDS, codec, codec))
        peak = peak_resident_bytes(consortium.coordinator_pid)
    return {
        "benchmark": "coordinator_memory",
        "sites": sites,
        "parameters": millions * MILLION,
        "codec": codec,
        "model_bytes": 4 * millions * MILLION,
        "rest_bytes": at_rest,
        "peak_bytes": peak,
        "goal_bytes": GOAL_BYTES,
        "round_s": round(median_seconds(outcome.rounds), 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Peak resident memory of the coordinator (P2).")
    parser.add_argument("--quick", action="store_true", help="25M parameters at 8 sites only")
    options = parser.parse_args()
    rows = []
    for case in QUICK if options.quick else FULL:
        rows.append(measure(*case))
        emit(rows[-1])
    columns = f"{'sites':>5} {'params':>7} {'codec':>8} {'model MB':>9} {'at rest MB':>10} {'peak MB':>8}"
    print(f"\n{columns}  goal <= {GOAL_BYTES / 1e6:.0f} MB")
    for row in rows:
        met = "met" if row["peak_bytes"] <= GOAL_BYTES else "MISSED"
        sizes = [row[key] / 1e6 for key in ("model_bytes", "rest_bytes", "peak_bytes")]
        print(
            f"{row['sites']:>5} {row['parameters'] / MILLION:>6.0f}M {row['codec']:>8} "
            f"{sizes[0]:>9.0f} {sizes[1]:>10.0f} {sizes[2]:>8.0f}  {met}"
        )


if __name__ == "__main__":
    main()
