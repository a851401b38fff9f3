"""P11: what a thousand attached peers without work cost the coordinator.

    python benchmarks/idle_peers.py [--peers 1000] [--quick]

A real `fedtrain coordinator serve`, and a crowd of light sites (`crowd.py`): each a session of its own
over mutual TLS, beating at the pace that its welcome names. Measured at the coordinator: core time
over a minute, resident memory and descriptors per peer. Then the same crowd attends at a bare grpc.aio
server with the same certificates and options; what it takes is gRPC's own and is subtracted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from consortium import REPOSITORY, emit, end_all, free_port, listens
from crowd import Crowd, allow_descriptors, bare_server, enrol_crowd

GOAL_SHARE = 0.05
GOAL_BYTES = 10_000
START_S = 60.0
SETTLE_S = 5.0
"""After the last one is in: buffers of the handshakes are given back, first beats are over."""

PACE_MS = 20_000
"""Of the bare server's welcome; the coordinator names the same to a site without work."""


def measure(peers: int, seconds: float) -> dict[str, Any]:
    """The coordinator's figures, and the bare server's, with the same crowd."""
    with tempfile.TemporaryDirectory(prefix="idle-peers-") as name:
        folder = Path(name)
        home, log = folder / "coordinator", folder / "log"
        port = free_port()
        address = f"127.0.0.1:{port}"
        _command("coordinator", "init", str(home), "--name", "crowd", "--address", address)
        file = enrol_crowd(home, peers)
        try:
            with serving(home, log) as coordinator:
                ours = _observe(coordinator, port, lambda: Crowd(file, peers, log), peers, seconds)
            with bare_server(home, port, PACE_MS, log) as server:
                bare = _observe(server, port, lambda: Crowd(file, peers, log), peers, seconds)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
    return {
        "benchmark": "idle_peers",
        "peers": peers,
        "seconds": seconds,
        **{f"coordinator_{key}": value for key, value in ours.items()},
        **{f"bare_{key}": value for key, value in bare.items()},
        "own_bytes_per_peer": ours["bytes_per_peer"] - bare["bytes_per_peer"],
    }


@contextmanager
def serving(home: Path, log: Path) -> Iterator[psutil.Process]:
    """`fedtrain coordinator serve` as a process."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "fedtrain.cli", "coordinator", "serve", str(home)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield psutil.Process(child.pid)
    finally:
        end_all([child])


def _observe(
    process: psutil.Process, port: int, gather: Callable[[], Crowd], peers: int, seconds: float
) -> dict[str, Any]:
    if not listens(port, START_S):
        raise RuntimeError(f"nobody listens on port {port}")
    time.sleep(SETTLE_S)
    empty_bytes, empty_files = process.memory_info().rss, process.num_fds()
    before_s = core_seconds(process)
    with gather() as crowd:
        attach_s = crowd.wait()
        attach_core_s = core_seconds(process) - before_s
        time.sleep(SETTLE_S)
        full_bytes, full_files = process.memory_info().rss, process.num_fds()
        before_s, began = core_seconds(process), time.monotonic()
        time.sleep(seconds)
        share = (core_seconds(process) - before_s) / (time.monotonic() - began)
        told = crowd.tell()
    if told["attached"] != peers:
        raise RuntimeError(f"only {told['attached']} of {peers} peers stayed")
    return {
        "core_share": round(share, 4),
        "bytes_per_peer": round((full_bytes - empty_bytes) / peers),
        "rest_bytes": empty_bytes,
        "descriptors_per_peer": round((full_files - empty_files) / peers, 3),
        "attach_s": round(attach_s, 2),
        "attach_core_s": round(attach_core_s, 2),
    }


def core_seconds(process: psutil.Process) -> float:
    """User and system time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _command(*arguments: str) -> None:
    command = [sys.executable, "-m", "fedtrain.cli", *arguments]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Cost of idle peers at the coordinator (P11).")
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="200 peers, watched for 20 s")
    options = parser.parse_args()
    peers, seconds = (200, 20.0) if options.quick else (options.peers, 60.0)
    allow_descriptors(peers)
    found = measure(peers, seconds)
    emit(found)
    print(f"\n{peers} peers, watched for {seconds:.0f} s   coordinator   bare gRPC    own   goal")
    rows = (
        ("share of a core, %", "core_share", 100, 100 * GOAL_SHARE),
        ("resident KB per peer", "bytes_per_peer", 1e-3, GOAL_BYTES / 1000),
        ("descriptors per peer", "descriptors_per_peer", 1, None),
        ("seconds to attach all", "attach_s", 1, None),
        ("core-seconds for that", "attach_core_s", 1, None),
    )
    for title, key, scale, goal in rows:
        ours, bare = found[f"coordinator_{key}"] * scale, found[f"bare_{key}"] * scale
        aim = "" if goal is None else f"< {goal:g}"
        print(f"{title:<31} {ours:>11.2f} {bare:>11.2f} {ours - bare:>6.2f}   {aim}")


if __name__ == "__main__":
    main()
