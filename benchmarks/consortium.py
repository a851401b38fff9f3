"""A consortium for measurements: one coordinator and N sites as real processes on this machine.

Everything goes through the real command line: `coordinator init` and `serve`, `site invite`, `join`,
`peer run`; the agents start the trainers. Only the watching is done by an operations client in this
process, because a command a second would itself be a load. The task is `synthetic`: real bytes that
change every round, and no arithmetic worth naming.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedtrain.cli.session import ask, load_identity, open_client
from fedtrain.config import load_run

REPOSITORY = Path(__file__).resolve().parent.parent

WARM_UP_ROUNDS = 2
"""Not counted: the first one starts the trainers, the second one fills caches."""

START_S = 60.0
LOOK_EVERY_S = 0.25
"""How often a run is looked at; nothing in a round waits for it."""

END_S = 5.0

COORDINATOR = "coordinator"

AT_WORK = ("waiting", "seeding", "training", "unmasking", "aggregating", "evaluating")
"""Phases of a run that goes on by itself."""

PEER_FILE = """\
site: {site}
coordinator: {address}
contract: {{runs: ["*"], tasks: [synthetic], cohort_min: 1}}
"""

RUN_FILE = """\
run: {run}
task:
  name: synthetic
  model: {{parameters: {parameters}, tensors: 16}}
sites: {{minimum: {sites}}}
rounds: {{count: {rounds}, steps: 1, quorum_share: 1.0, deadline_s: 3600, patience_s: 1800}}
codec: {{up: {up}, down: {down}}}
privacy: {{masked: {masked}}}
evaluate: {{every: 0}}
"""


@dataclass(frozen=True)
class Work:
    """A run to measure: `parameters` values, `codec_up`/`codec_down` by their names in a run file.

    `masked`: the coordinator learns only sums.
    """

    run: str
    parameters: int
    rounds: int
    codec_up: str = "float32"
    codec_down: str = "float32"
    masked: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Attributes:
        rounds: its training rounds as `run rounds --json` tells them, in order.
        core_seconds: user and system time of all processes per round after the warm-up, the last
            evaluation included. Steadier than the clock on a machine that others use too.
    """

    rounds: list[dict[str, Any]]
    core_seconds: float


class Consortium:
    """A context manager: the processes live as long as the block.

    Args:
        folder: made if it is missing; holds everything, logs included.
        sites: how many.
        through: given the coordinator's port and a site, the port that its agent dials instead, if any.
        options: more words for `coordinator init`.
    """

    def __init__(
        self,
        folder: Path,
        sites: int,
        through: Callable[[int, str], int] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.names = [f"site-{index}" for index in range(sites)]
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._through = through or (lambda port, _: port)
        self._options = options

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def coordinator_pid(self) -> int:
        """Process id of the coordinator, for `/proc`."""
        return self.children[COORDINATOR].pid

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / name

    def __enter__(self) -> Consortium:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def measure(self, work: Work) -> Outcome:
        """Do the run to its end.

        Raises `RuntimeError` with the end of a log if a process or the run fails.
        """
        path = self.folder / f"{work.run}.yaml"
        path.write_text(
            RUN_FILE.format(
                run=work.run,
                parameters=work.parameters,
                sites=len(self.names),
                rounds=work.rounds,
                up=work.codec_up,
                down=work.codec_down,
                masked=str(work.masked).lower(),
            )
        )
        core_seconds = asyncio.run(self._follow(path, work.run))
        rounds = json.loads(self.command("run", "rounds", work.run, "--dir", str(self.home), "--json"))
        return Outcome([entry for entry in rounds["rounds"] if entry["version"]], core_seconds)

    async def _follow(self, path: Path, run: str) -> float:
        """Core-seconds per round from the first look after the warm-up to the end."""
        keys, proxy = load_identity(self.home)
        async with open_client(keys, proxy) as client:
            await client.start(load_run(path).spec())
            start: tuple[int, float] | None = None
            while True:
                view = await client.run(run)
                if start is None and view["version"] >= WARM_UP_ROUNDS:
                    start = view["version"], self._core_seconds()
                if view["phase"] == "done":
                    first, before = start or (0, 0.0)
                    return (self._core_seconds() - before) / max(1, view["version"] - first)
                self.check()
                if view["phase"] not in AT_WORK:
                    raise RuntimeError(f"{run} is {view['phase']}: {view['reason']}\n{self.last_words()}")
                await asyncio.sleep(LOOK_EVERY_S)

    def _start(self) -> None:
        port = free_port()
        address = f"127.0.0.1:{port}"
        init = ("coordinator", "init", str(self.home), "--name", "bench", "--address", address)
        self.command(*init, *self._options)
        self.launch(COORDINATOR)
        if not listens(port, START_S):
            raise RuntimeError(f"the coordinator does not listen\n{self.last_words()}")
        for name in self.names:
            site = self.site(name)
            site.mkdir(parents=True)
            address = f"127.0.0.1:{self._through(port, name)}"
            (site / "peer.yaml").write_text(PEER_FILE.format(site=name, address=address))
            invite = self.command("site", "invite", name, "--dir", str(self.home)).strip()
            self.command("join", invite, str(site))
            self.launch(name)
        end = time.monotonic() + START_S
        while not self._all_attached():
            self.check()
            if time.monotonic() > end:
                raise RuntimeError(f"not all sites attached in {START_S:.0f} s\n{self.last_words()}")
            time.sleep(LOOK_EVERY_S)

    def _core_seconds(self) -> float:
        """User and system seconds so far, of the processes and of the trainers that agents started."""
        ticks = 0
        for child in self.children.values():
            for pid in (child.pid, *started_by(child.pid)):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _all_attached(self) -> bool:
        members = ask(self.home, lambda client: client.members())["members"]
        return {m["name"] for m in members if m["attached"]} >= set(self.names)

    def check(self) -> None:
        """`RuntimeError` if a process has ended."""
        for name, child in self.children.items():
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with exit code {child.poll()}\n{self.last_words()}")

    def command(self, *arguments: str) -> str:
        """Standard output of a fedtrain command that has to succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "fedtrain.cli", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"fedtrain {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout

    def launch(self, name: str) -> None:
        """Start the coordinator or a site's agent, again if need be; it writes on in its log."""
        if name == COORDINATOR:
            arguments = ("coordinator", "serve", str(self.home))
        else:
            arguments = ("peer", "run", str(self.site(name)))
        with open(self.folder / f"{name}.log", "ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", "fedtrain.cli", *arguments],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> None:
        """`kill -9` the coordinator or an agent, and wait for the end."""
        self.children[name].kill()
        self.children[name].wait()

    def _stop(self) -> None:
        """Agents first (their trainers end with them), then the coordinator; by force if need be."""
        end_all([self.children[name] for name in sorted(self.children, key=COORDINATOR.__eq__)])
        self.children.clear()

    def last_words(self) -> str:
        """The ends of all logs."""
        tails = []
        for path in sorted(self.folder.glob("*.log")):
            tails.append(f"--- {path.name}")
            tails += path.read_text(errors="replace").splitlines()[-5:]
        return "\n".join(tails)


def median_seconds(rounds: list[dict[str, Any]]) -> float:
    """Seconds from one version to the next, median over the rounds after the warm-up."""
    ends = [entry["closed_ms"] for entry in rounds]
    spans = [(after - before) / 1000 for before, after in itertools.pairwise(ends)]
    return statistics.median(spans[WARM_UP_ROUNDS - 1 :])


def peak_resident_bytes(pid: int) -> int:
    """The largest resident memory that a process has had (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status tells no VmHWM")


def started_by(pid: int) -> list[int]:
    """The processes that a process has started and that live: of an agent, its trainer."""
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for path in paths for child in path.read_text().split()]
    return []


def free_port() -> int:
    """A port that was free a moment ago, below those that outgoing connections are given.

    One of those could be taken by an agent that dials while the coordinator is down.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int, limit_s: float) -> bool:
    """Whether something accepts connections on a local port, waiting for it up to a limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        time.sleep(0.05)
    return False


def end_all(children: list[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, in order, and end those that do not by force."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
    end = time.monotonic() + END_S
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def emit(line: dict[str, Any]) -> None:
    """One measurement, one JSON line."""
    print(json.dumps(line), flush=True)
