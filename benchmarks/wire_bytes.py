"""P3: bytes on the wire per round against the payload, and how often the coordinator reads a model.

    python benchmarks/wire_bytes.py [--quick]

A relay between agents and coordinator counts every byte of every connection. A short run and a longer
one are measured on the same consortium; their difference is that many plain rounds, without first
weights, certificates and last evaluation. Payload is what the rounds' records name: updates and
deltas as files. The coordinator's reads are `rchar` of /proc/PID/io, taken the same way.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

from consortium import Consortium, Work, emit
from relay import Relay

MILLION = 1_000_000
GOAL = 0.01
SHORT_ROUNDS = 2
UPDATE_READS = 2
"""An update is read once to look at every value before it counts, and once to aggregate it."""

SETTLE_S = 1.0
"""After a run, for the last acknowledgements to pass."""


def measure(sites: int, parameters: int, up: str, down: str, rounds: int) -> dict[str, Any]:
    """Bytes per round of `rounds` rounds, each way, beside their payload."""
    relay = Relay()
    relayed = functools.cache(relay.start)  # one relay for all sites
    with (
        tempfile.TemporaryDirectory(prefix="wire-bytes-") as name,
        Consortium(Path(name), sites, through=lambda port, _: relayed(port)) as consortium,
    ):
        counts = []
        for run, extra in (("warm", 0), ("short", 0), ("long", rounds)):
            before = _counters(relay, consortium.coordinator_pid)
            records = consortium.measure(Work(run, parameters, SHORT_ROUNDS + extra, up, down)).rounds
            time.sleep(SETTLE_S)
            after = _counters(relay, consortium.coordinator_pid)
            wire = [a - b for a, b in zip(after, before, strict=True)]
            payload = [sum(record[key] for record in records) for key in ("bytes_up", "bytes_down")]
            counts.append([*wire, *payload])
    relay.stop()
    up_wire, down_wire, read, up_payload, down_payload = (
        (long - short) / rounds for long, short in zip(counts[2], counts[1], strict=True)
    )
    return {
        "benchmark": "wire_bytes",
        "sites": sites,
        "parameters": parameters,
        "codec_up": up,
        "codec_down": down,
        "rounds": rounds,
        "up_bytes": round(up_wire),
        "up_payload": round(up_payload),
        "down_bytes": round(down_wire),
        "down_payload": round(down_payload),
        "overhead": round((up_wire + down_wire) / (up_payload + down_payload) - 1, 5),
        "coordinator_read_bytes": round(read),
    }


def _counters(relay: Relay, pid: int) -> tuple[int, int, int]:
    """(bytes up, bytes down, bytes that the process has read from files) so far."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return relay.up_bytes, relay.down_bytes, int(fields["rchar"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Bytes on the wire against payload (P3).")
    parser.add_argument("--quick", action="store_true", help="smaller models, two consortia")
    options = parser.parse_args()
    small = [(2, 4 * MILLION, "int8", "float32", 4), (6, 4 * MILLION, "int8", "float32", 4)]
    large = [
        (2, 25 * MILLION, "int8", "float32", 5),
        (8, 25 * MILLION, "int8", "float32", 5),
        (2, 124 * MILLION, "float32", "float32", 4),
        (2, 124 * MILLION, "int8", "int8", 4),
    ]
    rows = []
    for case in small if options.quick else large:
        rows.append(measure(*case))
        emit(rows[-1])
    columns = f"{'sites':>5} {'params':>7} {'up/down':>16} {'wire MB':>9} {'payload MB':>10} {'overhead':>9}"
    print(f"\n{columns}  goal <= {GOAL:.0%}")
    for row in rows:
        wire, payload = row["up_bytes"] + row["down_bytes"], row["up_payload"] + row["down_payload"]
        met = "met" if row["overhead"] <= GOAL else "MISSED"
        codecs = f"{row['codec_up']}/{row['codec_down']}"
        print(
            f"{row['sites']:>5} {row['parameters'] / MILLION:>6.0f}M {codecs:>16} {wire / 1e6:>9.2f} "
            f"{payload / 1e6:>10.2f} {row['overhead']:>9.3%}  {met}"
        )
    _print_reads(rows)


def _print_reads(rows: list[dict[str, Any]]) -> None:
    """Deltas read per further site: 0 if a model goes to all of them from one read."""
    few, many = rows[:2]
    sites = many["sites"] - few["sites"]
    update, delta = many["up_payload"] / many["sites"], many["down_payload"] / many["sites"]
    slope = (many["coordinator_read_bytes"] - few["coordinator_read_bytes"]) / sites
    beyond = slope - UPDATE_READS * update
    print(
        f"\neach further site makes the coordinator read {slope / 1e6:.2f} MB more a round: "
        f"{UPDATE_READS} times its update of {update / 1e6:.2f} MB, and {beyond / delta:.2f} times the delta "
        f"of {delta / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
