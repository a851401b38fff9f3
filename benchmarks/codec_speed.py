"""P6: how fast codecs encode and decode, against copying the same floats in the same run.

    python benchmarks/codec_speed.py [--quick]

One thread, blocks of 2^20 elements out of a vector larger than the caches, reused buffers, median
of alternating repetitions. GB/s count the float32 side. One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.codecs import CODECS, Codec, block_seed

BLOCK_ELEMENTS = 1 << 20
GOAL = 0.25


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def pieces_of(
    row: Codec, values: np.ndarray, target: np.ndarray
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(encode everything, decode everything) for one codec, block by block."""
    starts = range(0, len(values), BLOCK_ELEMENTS)
    seeds = [block_seed("benchmark", 1, 1, "site", "up", block) for block in range(len(starts))]
    encoded = [np.zeros(row.encoded_bytes(BLOCK_ELEMENTS), np.uint8) for _ in starts]

    def encode() -> None:
        for seed, start, out in zip(seeds, starts, encoded, strict=True):
            row.encode(values[start : start + BLOCK_ELEMENTS], seed, 0, out)

    def decode() -> None:
        for start, data in zip(starts, encoded, strict=True):
            row.decode(data, target[start : start + BLOCK_ELEMENTS])

    return encode, decode


def main() -> None:
    parser = argparse.ArgumentParser(description="Codec speed against memcpy (P6).")
    parser.add_argument("--quick", action="store_true", help="a smaller vector and fewer repetitions")
    quick = parser.parse_args().quick
    blocks, repetitions = (8, 5) if quick else (32, 9)
    values = np.random.default_rng(0).standard_normal(blocks * BLOCK_ELEMENTS).astype(np.float32)
    target = np.zeros_like(values)
    gigabytes = values.nbytes / 1e9
    rows = []
    for name, row in CODECS.items():
        encode, decode = pieces_of(row, values, target)
        encode()
        decode()
        times: dict[str, list[float]] = {"memcpy": [], "encode": [], "decode": []}
        for _ in range(repetitions):
            times["memcpy"].append(seconds(lambda: np.copyto(target, values)))
            times["encode"].append(seconds(encode))
            times["decode"].append(seconds(decode))
        speed = {what: gigabytes / statistics.median(found) for what, found in times.items()}
        for what in ("encode", "decode"):
            line = {
                "benchmark": "codec_speed",
                "codec": name,
                "what": what,
                "gb_per_s": round(speed[what], 3),
                "memcpy_gb_per_s": round(speed["memcpy"], 3),
                "ratio": round(speed[what] / speed["memcpy"], 3),
                "elements": len(values),
                "repetitions": repetitions,
            }
            rows.append(line)
            print(json.dumps(line), flush=True)
    print(f"\n{'codec':10} {'what':7} {'GB/s':>7} {'of memcpy':>10}   goal for int8: {GOAL:.0%}")
    for line in rows:
        print(f"{line['codec']:10} {line['what']:7} {line['gb_per_s']:7.2f} {line['ratio']:10.0%}")


if __name__ == "__main__":
    main()
