"""How long a start takes after 100,000 journaled events, and what takes the time.

    python benchmarks/restart_time.py [--quick] [--folder DIR]

The journal is written by the production core, played by hand through runs of 500 rounds with eight
sites: consents, updates, aggregations, a site that is lost and comes back, a restart now and then.
Measured are the check of the whole file, the state from its newest snapshot and the rows behind it,
the state from the first row on (what a start without snapshots would cost), and the real thing:
`fedtrain coordinator serve` from its first instruction until it listens. One JSON line a
measurement, then a table. Goal: ready in less than 2 s after 100,000 events.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.coordinator.setup import init
from fedtrain.core import canonical, events as ev, transitions
from fedtrain.core.driver import entry_of, replay
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import Phase, Standing, State
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots

GOAL_S = 2.0
SITES = 8
ROUNDS = 500
ROUND_MS = 30_000
LOST_EVERY_ROUNDS = 20
RESTART_EVERY_ROUNDS = 100
BATCH_ROWS = 1_000
READY_S = 120.0
"""How long a start may take before it counts as failed."""

LAYOUT = '[["weight",[5000,5000]]]'


def spec_of(run: str) -> RunSpec:
    """A run as its file would give it."""
    return RunSpec(
        run=run,
        seed=7,
        task='{"name":"synthetic"}',
        sites=(),
        minimum=SITES - 1,
        rounds=ROUNDS,
        steps=50,
        quorum=2,
        quorum_share=0.5,
        deadline_ms=10 * ROUND_MS,
        patience_ms=60_000,
        heartbeat_ms=5_000,
        late=LatePolicy.NEXT_ROUND,
        outer="nesterov",
        outer_params={},
        outer_warmup_rounds=0,
        codec_up="int8",
        codec_down="int8",
        aggregator="mean",
        norm_max=None,
        evaluate_every=1,
    )


class Play:
    """A coordinator's life, event by event. `state` is what the core makes of them."""

    def __init__(self, state: State, now_ms: int) -> None:
        self.state = state
        self.now_ms = now_ms
        self.sites = [f"site-{index}" for index in range(SITES)]
        self._sessions = 0

    def events(self) -> Iterator[ev.Event]:
        """For ever: enrolment, then one run after the other."""
        yield from self._told(ev.Booted(self.now_ms, self.state.epoch + 1))
        for site in self.sites:
            yield from self._told(self._enrolment(site))
            yield from self._told(self._attachment(site))
        number = 0
        while True:
            number += 1
            yield from self._run(f"run-{number}")

    def _told(self, event: ev.Event) -> Iterator[ev.Event]:
        self.state, _ = transitions.step(self.state, event)
        yield event

    def _enrolment(self, site: str) -> ev.Event:
        certificate = "-----BEGIN CERTIFICATE-----\n" + "A" * 800 + "\n-----END CERTIFICATE-----\n"
        return ev.MemberEnrolled(
            self.now_ms, site, "site", mark(site, "invite"), mark(site, "key"), certificate, mark(site, "msg")
        )

    def _attachment(self, site: str) -> ev.Event:
        self._sessions += 1
        return ev.SiteAttached(self.now_ms, site, f"{self._sessions:016x}", "0.1.0", ())

    def _run(self, run: str) -> Iterator[ev.Event]:
        yield from self._told(ev.RunSubmitted(self.now_ms, spec_of(run), "operator"))
        while (opened := self.state.runs[run].round) is not None:
            self.now_ms += ROUND_MS
            orders = {site: seat.order.id for site, seat in opened.seats.items()}
            match self.state.runs[run].phase:
                case Phase.SEEDING:
                    yield from self._told(self._seed(run, *orders.values()))
                case Phase.EVALUATING:
                    for order in orders.values():
                        yield from self._told(ev.EvaluationStored(self.now_ms, order, 1.9375, 1_000))
                case _:
                    yield from self._round(run, opened.index, orders)

    def _round(self, run: str, index: int, orders: dict[str, str]) -> Iterator[ev.Event]:
        """Consents, updates, the version; sometimes somebody is away for a while."""
        if index % RESTART_EVERY_ROUNDS == 0:
            yield from self._told(ev.Booted(self.now_ms, self.state.epoch + 1))
            for site in self.sites:
                yield from self._told(self._attachment(site))
        for order in orders.values():
            yield from self._told(ev.ConsentGiven(self.now_ms, order))
        if index % LOST_EVERY_ROUNDS == 0:
            site = self.sites[index // LOST_EVERY_ROUNDS % SITES]
            yield from self._told(ev.SiteLost(self.now_ms, site, "no sign of life for 60 s"))
            yield from self._told(self._attachment(site))
        for place, order in enumerate(orders.values()):
            yield from self._told(self._update(order, self.now_ms + 137 * place))
        opened = self.state.runs[run].round
        assert opened is not None and all(seat.standing is Standing.STORED for seat in opened.seats.values())
        digest = mark(run, index)
        yield from self._told(
            ev.RoundAggregated(
                self.now_ms, run, index, opened.attempt, digest, mark(digest), 25_000_000, "", 0, 0.123456789
            )
        )

    def _seed(self, run: str, order: str) -> ev.Event:
        return ev.ModelSeeded(
            self.now_ms, order, mark(run), 100_000_000, mark(run, "model"), LAYOUT, mark(LAYOUT), 25_000_000
        )

    def _update(self, order: str, at_ms: int) -> ev.Event:
        return ev.UpdateStored(
            at_ms=at_ms,
            order=order,
            blob=mark(order),
            size_bytes=25_098_000,
            weight=100_000 + at_ms % 1_000,
            steps=50,
            norm=1.23456789012345,
            train_loss=2.3456789012345,
            eval_loss=2.2456789012345,
            eval_count=1_000,
            seconds=12.345678,
            signature=mark(order, "signature") * 2,
        )


def mark(*what: object) -> str:
    """64 hexadecimal digits in the place of a digest."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def write_journal(path: Path, num_events: int, lock: Path) -> State:
    """Append so many events behind what the journal holds, as a coordinator would have."""
    journal = Journal.open(path, lock=lock)
    play = Play(replay(journal, transitions.step, State(), ev.EVENTS), now_ms=1_700_000_000_000)
    snapshots = Snapshots(journal, State)
    batch = []
    for event in play.events():
        batch.append(entry_of(event))
        if len(batch) == BATCH_ROWS or journal.head[0] + len(batch) >= num_events:
            journal.append(batch)
            batch.clear()
            if snapshots.due:
                snapshots.keep(play.state)
        if journal.head[0] >= num_events:
            break
    journal.close()
    return play.state


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure_parts(folder: Path) -> dict[str, object]:
    """The parts of a start, in this process."""
    path, lock = folder / "state" / "journal.db", folder / "state" / "lock"
    begin = time.perf_counter()
    journal = Journal.open(path, lock=lock)
    check_s = time.perf_counter() - begin
    snapshots = Snapshots(journal, State)
    begin = time.perf_counter()
    state = snapshots.recover(transitions.step, State(), ev.EVENTS)
    recover_s = time.perf_counter() - begin
    rows_behind = snapshots.rows_behind
    keep_s = timed(lambda: snapshots.keep(state))
    journal.close()
    return {
        "rows": journal_rows(path),
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "state_mb": round(len(canonical.encode(state)) / 1e6, 2),
        "rows_behind": rows_behind,
        "check_s": round(check_s, 3),
        "state_s": round(recover_s, 3),
        "keep_s": round(keep_s, 3),
    }


def journal_rows(path: Path) -> int:
    """The last sequence."""
    journal = Journal.open(path, writer=False)
    try:
        return journal.head[0]
    finally:
        journal.close()


def measure_fold(folder: Path, expected: State) -> float:
    """Seconds from the first row on; the same state must come of it."""
    journal = Journal.open(folder / "state" / "journal.db", writer=False)
    begin = time.perf_counter()
    state = replay(journal, transitions.step, State(), ev.EVENTS)
    seconds = time.perf_counter() - begin
    journal.close()
    assert state == expected, "the fold over the journal is not the state that was played"
    return seconds


def measure_serve(folder: Path) -> tuple[float, float]:
    """(seconds, processor seconds) from the start of the process until it is ready; then it is killed.

    On a machine that others use too, the second is what the start itself costs.
    """
    command = [sys.executable, "-m", "fedtrain.cli", "coordinator", "serve", str(folder), "--take-over"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        watchdog = threading.Timer(READY_S, server.kill)
        watchdog.start()
        try:
            for line in server.stderr:
                if " ready: " in line:
                    used = psutil.Process(server.pid).cpu_times()
                    return time.perf_counter() - begin, used.user + used.system
        finally:
            watchdog.cancel()
            server.kill()
    raise SystemExit("the coordinator ended before it was ready")


def measure(folder: Path, num_events: int, repetitions: int) -> dict[str, object]:
    """One line for a journal of so many events."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    init(folder, "benchmark", address)
    state = write_journal(folder / "state" / "journal.db", num_events, folder / "state" / "lock")
    fold_s = measure_fold(folder, state)
    serves = []
    for _ in range(repetitions):
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        serves.append(measure_serve(copy))
        shutil.rmtree(copy)
    parts = measure_parts(folder)
    return {
        "benchmark": "restart_time",
        **parts,
        "fold_from_row_1_s": round(fold_s, 3),
        "ready_s": round(statistics.median(wall for wall, _ in serves), 3),
        "ready_cpu_s": round(statistics.median(used for _, used in serves), 3),
        "goal_s": GOAL_S,
        "repetitions": repetitions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time until a coordinator is ready after a long life.")
    parser.add_argument("--quick", action="store_true", help="100,000 events only, three starts")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to put the files (default: temporary)"
    )
    options = parser.parse_args()
    lines = []
    for num_events in (100_000,) if options.quick else (10_000, 100_000, 300_000):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            line = measure(Path(folder) / "coordinator", num_events, 3 if options.quick else 7)
        lines.append(line)
        print(json.dumps(line), flush=True)
    columns = (
        "rows",
        "state_mb",
        "rows_behind",
        "check_s",
        "state_s",
        "keep_s",
        "fold_from_row_1_s",
        "ready_s",
        "ready_cpu_s",
    )
    print("  ".join(f"{name:>17}" for name in columns))
    for line in lines:
        print("  ".join(f"{line[name]!s:>17}" for name in columns))


if __name__ == "__main__":
    main()
