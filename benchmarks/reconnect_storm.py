"""A thousand sites lose their coordinator at once: how they come back, and what a run notices.

    python benchmarks/reconnect_storm.py [--peers 1000] [--quick]

Three whole sites (agents, trainers) work on a run of short rounds while a crowd of light sites
(`crowd.py`) is attached. The coordinator is killed (-9) and started again after a pause. Measured: the
seconds until the first new version and until everybody is back, the coordinator's core time for that,
second by second, and what became of the run's rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from consortium import COORDINATOR, START_S, Consortium, emit, listens
from crowd import CROWD_S, Crowd, allow_descriptors, enrol_crowd
from idle_peers import core_seconds

from fedtrain.cli.session import ask
from fedtrain.config import load_run
from fedtrain.trust.folders import load_coordinator

SITES = 3
RUN = "storm"

OUTAGE_S = 3.0
"""Between kill and start, as a process that is watched over would be started again."""

CALM_S = 10.0
"""Before the kill and after the return: rounds to compare with."""

RUN_FILE = f"""\
run: {RUN}
task: {{name: synthetic, model: {{parameters: 100000, tensors: 4}}}}
sites: {{include: [{", ".join(f"site-{index}" for index in range(SITES))}], minimum: {SITES}}}
rounds: {{count: 100000, steps: 1, quorum_share: 1.0, deadline_s: 300, patience_s: 60}}
codec: {{up: float32, down: float32}}
evaluate: {{every: 0}}
"""


def measure(peers: int) -> dict[str, Any]:
    """One storm."""
    with tempfile.TemporaryDirectory(prefix="reconnect-storm-") as name:
        folder = Path(name)
        with Consortium(folder / "consortium", SITES) as consortium:
            consortium.kill(COORDINATOR)
            file = enrol_crowd(consortium.home, peers)
            _start(consortium)
            path = folder / "run.yaml"
            path.write_text(RUN_FILE)
            ask(consortium.home, lambda client: client.start(load_run(path).spec()))
            with Crowd(file, peers, folder / "crowd.log") as crowd:
                crowd.wait()
                calm = psutil.Process(consortium.coordinator_pid)
                before_s = core_seconds(calm)
                time.sleep(CALM_S)
                calm_share = (core_seconds(calm) - before_s) / CALM_S
                consortium.kill(COORDINATOR)
                killed_at_ms = time.time() * 1000
                time.sleep(OUTAGE_S)
                _start(consortium)
                storm = _watch(consortium, crowd, peers, killed_at_ms)
                time.sleep(CALM_S)
            ask(consortium.home, lambda client: client.stop(RUN))
            records = ask(consortium.home, lambda client: client.rounds(RUN))["rounds"]
    found = {"benchmark": "reconnect_storm", "peers": peers, "calm_share": round(calm_share, 2)}
    return {**found, **storm, **_account(records, killed_at_ms)}


def _start(consortium: Consortium) -> None:
    consortium.launch(COORDINATOR)
    port = int(load_coordinator(consortium.home / "state").membership.address.rpartition(":")[2])
    if not listens(port, START_S):
        raise RuntimeError(f"the coordinator does not listen\n{consortium.last_words()}")


def _watch(consortium: Consortium, crowd: Crowd, peers: int, killed_at_ms: float) -> dict[str, Any]:
    """From the moment that the coordinator listens until all sites are back."""
    process = psutil.Process(consortium.coordinator_pid)
    shares: list[float] = []
    began = moment = time.monotonic()
    start_s = spent_s = core_seconds(process)
    attached = 0
    # At the kill all were attached once, so the second session of each is the one that counts.
    while attached < peers or crowd.tell()["sessions"] < 2 * peers:
        time.sleep(max(0.0, moment + 1.0 - time.monotonic()))
        now, now_spent_s = time.monotonic(), core_seconds(process)
        shares.append(round((now_spent_s - spent_s) / (now - moment), 2))
        moment, spent_s = now, now_spent_s
        attached = crowd.tell()["attached"]
        consortium.check()
        if now - began > CROWD_S:
            raise RuntimeError(f"after {CROWD_S:.0f} s {attached} of {peers} sites are back")
    return {
        "all_back_s": round(moment - began, 1),
        "start_core_s": round(start_s, 2),
        "storm_core_s": round(spent_s - start_s, 2),
        "share_of_a_core_by_second": shares,
    }


def _account(records: list[dict[str, Any]], killed_at_ms: float) -> dict[str, Any]:
    """What the run's own records say; a lost round is an attempt that led to no version."""
    closed = [record for record in records if record["version"]]
    versions = [record["version"] for record in closed]
    if versions != list(range(1, len(versions) + 1)):
        raise RuntimeError(f"the versions are no chain: {versions}")
    before = [record["seconds"] for record in closed if record["closed_ms"] < killed_at_ms]
    after = [record for record in closed if record["closed_ms"] >= killed_at_ms]
    stopped = 1 if records and records[-1]["version"] is None else 0  # the round that our stop cut off
    return {
        "rounds_before": len(before),
        "rounds_after": len(after),
        "rounds_lost": len(records) - len(closed) - stopped - sum(r["index"] == 0 for r in records),
        "least_contributors": min(len(record["counted"]) for record in closed),
        "first_version_after_kill_s": round((after[0]["closed_ms"] - killed_at_ms) / 1000, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="The return of many sites after a coordinator's crash.")
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="200 peers")
    options = parser.parse_args()
    peers = 200 if options.quick else options.peers
    allow_descriptors(peers)
    found = measure(peers)
    emit(found)
    print(f"\n{peers} light sites and {SITES} working ones, coordinator killed and away for {OUTAGE_S:g} s")
    for key, title in (
        ("all_back_s", "seconds until all are back, from when it listens"),
        ("storm_core_s", "core-seconds of the coordinator for that"),
        ("first_version_after_kill_s", "seconds from the kill to the next version"),
        ("rounds_lost", "rounds lost"),
        ("least_contributors", "fewest contributors of a round"),
    ):
        print(f"{title:<50} {found[key]:>8}")


if __name__ == "__main__":
    main()
