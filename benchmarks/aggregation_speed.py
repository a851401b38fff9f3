"""P7: how fast a round of N updates is aggregated, against the memory's speed in the same run.

    python benchmarks/aggregation_speed.py [--quick] [--folder DIR]

The limit is N + 2 passes over the vector at the speed of a copy between touched buffers: N inputs
read, the model read and written. The real work does more: it decodes, takes the outer step, encodes
the delta, takes two SHA-256 digests, and reads and writes files. GB/s count N float32 vectors per
round. Median of alternating repetitions; one JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.aggregation import Aggregation, Contribution, aggregate, init_exact
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.layout import Entry, Layout
from fedtrain.methods.modelfile import ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter

BLOCK_ELEMENTS = 1 << 20
GOAL = 0.5


def prepare(folder: Path, num_elements: int, sites: int, name: str) -> Aggregation:
    """Version 0 and `sites` updates on disk."""
    layout = Layout((Entry("w", (num_elements,)),))
    values = np.random.default_rng(0).standard_normal(BLOCK_ELEMENTS).astype(np.float32)
    model = ModelWriter(folder / "model", layout, "benchmark", 0)
    for start in range(0, num_elements, BLOCK_ELEMENTS):
        model.write(values[: num_elements - start])
    model.close()
    init_exact(folder / "model", folder / "exact")
    contributions = []
    for index in range(sites):
        site = f"site-{index}"
        header = UpdateHeader(
            "benchmark", 0, site, "up", 0, layout.digest, name, BLOCK_ELEMENTS, num_elements, None
        )
        writer = UpdateWriter(folder / site, header)
        for block, start in enumerate(range(0, num_elements, BLOCK_ELEMENTS)):
            seed = block_seed("benchmark", 1, 0, site, "up", block)
            writer.write_block(codec(name).encode(values[: num_elements - start], seed))
        writer.close()
        contributions.append(Contribution(site, f"benchmark.0.0.{site}", folder / site, 1.0, 1.0))
    (folder / "next").mkdir()
    return Aggregation(
        run="benchmark",
        seed=1,
        round_index=0,
        version=0,
        layout=layout,
        contributions=tuple(contributions),
        outer_name="nesterov",
        outer_params={},
        aggregator="mean",
        norm_max=None,
        codec_down=name,
        block_elements=BLOCK_ELEMENTS,
        exact_path=folder / "exact",
        public_path=folder / "model",
        state_dir_in=None,
        target=folder / "next",
    )


def copy_seconds(source: np.ndarray, target: np.ndarray) -> float:
    """Seconds for one pass: a copy of a vector of the model's size."""
    begin = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - begin


def measure(job: Aggregation, threads: int, repetitions: int) -> dict[str, object]:
    """One line: speed, the limit's speed, and their ratio."""
    vector_bytes = 4 * job.layout.num_elements
    source = np.ones(job.layout.num_elements, np.float32)
    target = np.zeros_like(source)
    aggregate(job, threads)
    rounds, copies = [], []
    for _ in range(repetitions):
        copies.append(copy_seconds(source, target))
        begin = time.perf_counter()
        aggregate(job, threads)
        rounds.append(time.perf_counter() - begin)
    sites = len(job.contributions)
    limit_s = (sites + 2) * statistics.median(copies)
    round_s = statistics.median(rounds)
    return {
        "benchmark": "aggregation_speed",
        "codec": job.codec_down,
        "sites": sites,
        "elements": job.layout.num_elements,
        "threads": threads,
        "round_s": round(round_s, 4),
        "gb_per_s": round(sites * vector_bytes / round_s / 1e9, 3),
        "limit_gb_per_s": round(sites * vector_bytes / limit_s / 1e9, 3),
        "ratio": round(limit_s / round_s, 3),
        "repetitions": repetitions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Aggregation speed against memory bandwidth (P7).")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer cases")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to put the files (default: temporary)"
    )
    options = parser.parse_args()
    num_elements = 4_000_000 if options.quick else 25_000_000
    cases = itertools.product(("int8", "float32"), (2, 8), (1, 2)) if not options.quick else [("int8", 4, 2)]
    rows = []
    for name, sites, threads in cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            line = measure(prepare(Path(folder), num_elements, sites, name), threads, 5)
        rows.append(line)
        print(json.dumps(line), flush=True)
    print(
        f"\n{'codec':9} {'sites':>5} {'threads':>7} {'seconds':>8} {'GB/s':>6} {'limit':>8}  goal {GOAL:.0%}"
    )
    for line in rows:
        print(
            f"{line['codec']:9} {line['sites']:5} {line['threads']:7} {line['round_s']:8.3f} "
            f"{line['gb_per_s']:6.2f} {line['ratio']:8.0%}"
        )


if __name__ == "__main__":
    main()
