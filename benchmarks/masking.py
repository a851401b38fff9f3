"""P8's parts: what masks cost on one core, in nanoseconds per parameter, against copying the same floats.

    python benchmarks/masking.py [--quick]

Client: from the plain integer update to the masked file, with the streams of a complete graph (n - 1 pairs
and its own). Server: from n masked files to the float32 mean, per survivor. Both with one thread, files and
digests included, median of alternating repetitions; memcpy copies the parameters as float32. Noise is drawn
from AES words. One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.codecs import block_seed
from fedtrain.methods.discretegaussian import sample
from fedtrain.methods.maskedfile import MaskedHeader
from fedtrain.methods.masking import Masking, Unmasking, mask, unmask
from fedtrain.methods.ring import pack, ring_bits, unpack
from fedtrain.methods.summable import summable
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.trust.masking import CtrStream

BLOCK_ELEMENTS = 1 << 20
GOALS_NS = {"client": 60.0, "server per survivor": 80.0}
SITES = 10
WEIGHT_MAX = 1_000_000


def median_ns(works: dict[str, Callable[[], object]], count: int, repetitions: int) -> dict[str, float]:
    """Nanoseconds per element of each work, all in turn, once to warm up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(repetitions + 1):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            if repetition:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(found) / count * 1e9 for name, found in times.items()}


def round_of(folder: Path, codec: str, count: int, threads: int) -> dict[str, Callable[[], object]]:
    """The works of one codec: encode, mask and unmask, on files in `folder`."""
    row = summable(codec)
    block = np.random.default_rng(0).standard_normal(BLOCK_ELEMENTS).astype(np.float32) * np.float32(0.1)
    ring = ring_bits(row.bits, SITES)
    header = MaskedHeader("run", 0, "s0", "ab" * 32, codec, count, BLOCK_ELEMENTS, ring, WEIGHT_MAX)
    streams = [(CtrStream(bytes([number]) * 32), 1) for number in range(SITES)]
    names = [f"s{number}" for number in range(SITES)]
    out = np.empty(row.encoded_bytes(BLOCK_ELEMENTS), np.uint8)
    starts = range(0, count, BLOCK_ELEMENTS)
    seeds = [block_seed("run", 1, 0, "s0", "up", number) for number in range(len(starts))]
    for number, name in enumerate(names):
        plain = UpdateHeader("run", 0, name, "up", 0, "ab" * 32, codec, BLOCK_ELEMENTS, count, None)
        writer = UpdateWriter(folder / name, plain)
        for start, seed in zip(starts, seeds, strict=True):
            writer.write_block(row.encode(block[: count - start], seed, 0, out))
        writer.close()
        own = MaskedHeader(**{**vars(header), "site": name})
        mask(Masking(folder / name, own, 1, 7, [streams[number]], folder / f"{name}.masked"), threads=threads)
    mean = UpdateHeader("run", 0, "mean", "up", 0, "ab" * 32, "float32", BLOCK_ELEMENTS, count, None)
    client = Masking(folder / "s0", header, 1, 7, streams, folder / "client.masked")
    files = [folder / f"{name}.masked" for name in names]
    server = Unmasking(files, header, 1, streams, mean, folder / "mean")
    source, target = np.ones(count, np.float32), np.zeros(count, np.float32)

    def encode() -> None:
        for start, seed in zip(starts, seeds, strict=True):
            row.encode(block[: count - start], seed, 0, out)

    return {
        "memcpy": lambda: np.copyto(target, source),
        "encode": encode,
        "client": lambda: mask(client, threads=threads),
        "server per survivor": lambda: unmask(server, threads=threads),
    }


def pieces(count: int) -> dict[str, Callable[[], object]]:
    """What the jobs are made of: packing at two widths, one stream, and noise."""
    words = np.random.default_rng(0).integers(0, 2**32, count, np.uint32)
    octets = {bits: np.zeros(4 * count, np.uint8)[: count * bits // 8] for bits in (13, 16)}
    for bits, target in octets.items():
        pack(words, bits, target)
    out = np.zeros(count, "<u4")
    stream = CtrStream(bytes(32))

    def fresh(number: int) -> np.ndarray:
        drawn = np.empty(number, np.uint64)
        stream.words(0, drawn.view(np.uint32))
        return drawn

    works: dict[str, Callable[[], object]] = {
        f"pack {bits}": lambda bits=bits: pack(words, bits, octets[bits]) for bits in octets
    }
    works |= {f"unpack {bits}": lambda bits=bits: unpack(octets[bits], bits, out) for bits in octets}
    works["one stream"] = lambda: stream.words(0, out)
    works["noise sigma 100"] = lambda: sample(100.0, count, fresh)
    works["noise sigma 1"] = lambda: sample(1.0, count, fresh)
    return works


def main() -> None:
    parser = argparse.ArgumentParser(description="Masks on and off, per parameter (P8).")
    parser.add_argument("--quick", action="store_true", help="a smaller vector and fewer repetitions")
    parser.add_argument("--threads", type=int, default=1, help="of the jobs (1)")
    chosen = parser.parse_args()
    count, repetitions = (2 * BLOCK_ELEMENTS, 5) if chosen.quick else (24 * BLOCK_ELEMENTS, 7)
    lines = []
    for codec in ("fixed12s11", "fixed16s12", "randk8s8k10"):
        with tempfile.TemporaryDirectory() as folder:
            found = median_ns(round_of(Path(folder), codec, count, chosen.threads), count, repetitions)
        found["server per survivor"] /= SITES
        lines += [(codec, what, nanoseconds, found["memcpy"]) for what, nanoseconds in found.items()]
    found = median_ns(pieces(BLOCK_ELEMENTS), BLOCK_ELEMENTS, repetitions)
    lines += [("", what, nanoseconds, lines[0][3]) for what, nanoseconds in found.items()]
    for codec, what, nanoseconds, memcpy in lines:
        line = {
            "benchmark": "masking",
            "codec": codec,
            "what": what,
            "ns_per_value": round(nanoseconds, 3),
            "of_memcpy": round(nanoseconds / memcpy, 2),
            "values": count if codec else BLOCK_ELEMENTS,
            "sites": SITES,
            "threads": chosen.threads,
            "goal_ns": GOALS_NS.get(what),
        }
        print(json.dumps(line), flush=True)
    print(f"\n{'codec':12} {'what':20} {'ns/value':>9} {'x memcpy':>9}  goal")
    for codec, what, nanoseconds, memcpy in lines:
        goal = GOALS_NS.get(what)
        verdict = "" if goal is None else f"{goal:.0f} ns, {'met' if nanoseconds <= goal else 'missed'}"
        print(f"{codec:12} {what:20} {nanoseconds:9.2f} {nanoseconds / memcpy:9.1f}  {verdict}")


if __name__ == "__main__":
    main()
