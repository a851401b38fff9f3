"""A consortium of real processes, and the means to hurt it at a chosen moment.

<folder>/home           the coordinator's folder
<folder>/sites/<name>   a site's folder; its trainer runs there
<folder>/logs           what each process said
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.consortium import free_port as free_port
from fedtrain.cli.session import ask, load_identity, open_client
from fedtrain.errors import NotFoundError, UnreachableError

PLUGIN = Path(__file__).parent / "plugin"
CONSORTIUM = "storm"
SITES = ("east", "north", "west")
COORDINATOR = "coordinator"

PATIENCE_S = 60.0
"""For anything to happen on a busy machine; whoever waits longer has found a bug."""

View = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that `--json` promises."""
        return json.loads(self.out)


def fedtrain(*words: object, limit_s: float = PATIENCE_S) -> Outcome:
    """Run one command to its end. Whatever it is, no traceback may be seen, and trouble is announced."""
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in outcome.err, outcome.err
    if outcome.code not in (0, 130) and outcome.err:
        assert outcome.err.splitlines()[-1].startswith("fedtrain: "), outcome.err
    return outcome


def command(*words: object) -> list[str]:
    """The command line as a process."""
    return [sys.executable, "-m", "fedtrain.cli", *map(str, words)]


def wait_for(condition: Callable[[], bool], what: str, tell: Callable[[], str] = str) -> None:
    """Poll until it holds; fail with `what` and the words of `tell` if it does not."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {PATIENCE_S:g} s for {what}\n{tell()}")
        time.sleep(0.01)


def tail(path: Path, count: int = 12) -> str:
    """The last lines of a log."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        lines = ["(no log)"]
    return "\n".join((f"--- {path}", *lines))


class Processes:
    """The processes of one test world, each with a log; nothing else is ever ended."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, name: str, *words: object, **environment: str) -> subprocess.Popen[bytes]:
        """Start `fedtrain WORDS` under this name."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen(
                command(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._running[name] = process
        return process

    def log(self, name: str) -> Path:
        """Where it writes what it has to say."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Its process id."""
        return self._running[name].pid

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        return name in self._running and self._running[name].poll() is None

    def children(self, name: str) -> list[psutil.Process]:
        """The processes that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid(name)).children(recursive=True)
        return []

    def kill(self, name: str) -> None:
        """`kill -9`, and wait for the end."""
        self._running[name].kill()
        self._running[name].wait()

    def stop(self, name: str, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code; fails if it does not end."""
        process = self._running[name]
        process.send_signal(number)
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} did not end on signal {number}\n{tail(self.log(name))}")

    def close(self) -> None:
        """End all, and their children, by force."""
        for name, process in self._running.items():
            orphans = self.children(name) if self.alive(name) else []
            process.kill()
            process.wait()
            for orphan in orphans:
                with contextlib.suppress(psutil.NoSuchProcess):
                    orphan.kill()


class World:
    """A coordinator and its sites, from invite to model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.processes = Processes(folder / "logs")
        self.address = f"127.0.0.1:{free_port()}"

    # -- setting up -----------------------------------------------------------------------------------

    def start(self) -> None:
        """`coordinator init` and `serve`, then for every site `site invite`, `join` and `peer run`."""
        made = fedtrain("coordinator", "init", self.home, "--name", CONSORTIUM, "--address", self.address)
        assert made.code == 0, made.err
        self.launch(COORDINATOR)
        self.until_ready()
        with ThreadPoolExecutor(len(SITES)) as pool:
            list(pool.map(self._join, SITES))
        for site in SITES:
            self.launch(site)

    def _join(self, site: str) -> None:
        joined = fedtrain("join", self.invite(site), self.site(site))
        assert joined.code == 0, joined.err
        data = self.site(site) / "data"
        data.mkdir()
        (data / "empty.txt").touch()
        (self.site(site) / "peer.yaml").write_text(json.dumps(site_file(site, self.address), indent=1))

    def invite(self, name: str) -> str:
        """The line to paste, from the command."""
        done = fedtrain("site", "invite", name, "--dir", self.home, "--json")
        assert done.code == 0, done.err
        return str(done.document["invite"])

    def launch(self, name: str) -> None:
        """Start the coordinator or a site's agent; the plug-in task is installed for its trainer."""
        if name == COORDINATOR:
            self.processes.launch(name, "coordinator", "serve", self.home)
        else:
            self.processes.launch(name, "peer", "run", self.site(name), PYTHONPATH=str(PLUGIN))

    def until_ready(self) -> None:
        """Wait for the coordinator's answer."""

        async def connect() -> None:
            keys, proxy = load_identity(self.home)
            async with open_client(keys, proxy) as client:
                await client.connect(PATIENCE_S)

        try:
            asyncio.run(connect())
        except UnreachableError as error:
            pytest.fail(f"{error}\n{self.tails()}")

    def heal(self) -> None:
        """Everything runs, every gate is open, no run goes on: whatever the last test left behind."""
        self.clear("gate", "crash", "widened")
        for name in (COORDINATOR, *SITES):
            if not self.processes.alive(name):
                self.launch(name)
        self.until_ready()
        for run in ask(self.home, lambda client: client.runs())["runs"]:
            if run["phase"] not in ("done", "stopped"):
                fedtrain("run", "stop", run["run"], "--dir", self.home)

    # -- looking ----------------------------------------------------------------------------------------

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / name

    @property
    def journal(self) -> Path:
        """The coordinator's journal."""
        return self.home / "state" / "journal.db"

    def document(self, *words: object) -> Any:
        """What a command of the operator answers with `--json`."""
        done = fedtrain(*words, "--dir", self.home, "--json")
        assert done.code == 0, done.err + self.tails()
        return done.document

    def until(self, run: str, holds: Callable[[View], bool], what: str) -> View:
        """Follow a run until `holds(view)`; the view then. Restarts of the coordinator are sat out."""
        seen: list[View] = []

        async def follow() -> View:
            keys, proxy = load_identity(self.home)
            while True:
                with contextlib.suppress(UnreachableError, NotFoundError):
                    async with open_client(keys, proxy) as client:
                        async for view in client.watch(run):
                            seen.append(view)
                            if holds(view):
                                return view
                            if view["phase"] == "paused":
                                break
                        pytest.fail(f"{run} ended or paused before {what}: {_brief(seen)}\n{self.tails()}")
                await asyncio.sleep(0.05)

        try:
            return asyncio.run(asyncio.wait_for(follow(), PATIENCE_S))
        except TimeoutError:
            pytest.fail(f"{run}: waited {PATIENCE_S:g} s for {what}: {_brief(seen)}\n{self.tails()}")

    def until_done(self, run: str) -> View:
        """Wait for the run's end; its last view."""
        return self.until(run, lambda view: view["phase"] == "done", "its end")

    def tails(self) -> str:
        """The last words of everybody."""
        names = (COORDINATOR, *SITES)
        logs = [self.processes.log(name) for name in names]
        logs += [self.site(site) / "state" / "trainer.log" for site in SITES]
        return "\n".join(tail(log) for log in logs)

    def check(self) -> None:
        """The journal verifies against the heads that sites kept, and nobody printed a traceback."""
        if any(self.folder.glob("sites/*/state/heads/*.json")):  # some run has published
            verified = fedtrain("audit", "verify", self.journal, "--heads", self.folder / "sites", "--json")
            assert verified.code == 0, verified.err
            assert verified.document["verified"] and verified.document["heads_checked"] > 0
        logs = [*self.processes.logs.glob("*.log"), *self.folder.glob("sites/*/state/trainer.log")]
        for log in logs:
            assert "Traceback" not in log.read_text(errors="replace"), tail(log, 60)

    # -- steering ---------------------------------------------------------------------------------------

    def begin(self, name: str, **changes: Any) -> None:
        """`run start` with `run_file(name, **changes)`."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(run_file(name, **changes), indent=1))
        self.document("run", "start", path)

    def put(self, flag: str, *sites: str) -> None:
        """Set a flag of the plug-in task at these sites."""
        for site in sites:
            (self.site(site) / flag).touch()

    def clear(self, *flags: str, sites: tuple[str, ...] = SITES) -> None:
        """Take flags away."""
        for site in sites:
            for flag in flags:
                (self.site(site) / flag).unlink(missing_ok=True)

    def restart(self, name: str) -> None:
        """`kill -9` and start again."""
        self.processes.kill(name)
        self.launch(name)

    def trainer(self, site: str) -> psutil.Process:
        """The trainer that the site's agent has started."""
        wait_for(lambda: bool(self.processes.children(site)), f"a trainer at {site}", self.tails)
        return self.processes.children(site)[0]


@contextlib.contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """A running world; its processes end with the block, however that ends."""
    world = World(folder)
    try:
        world.start()
        yield world
    finally:
        world.processes.close()


def site_file(site: str, address: str) -> dict[str, Any]:
    """A peer.yaml. West is the odd one: it refuses `picky-*`, lacks `rare`, and its `broken` is missing."""
    odd = site == "west"
    rights = {"discoverable": True, "execute": ["gated", "causal_lm"]}
    module = {"east": "json", "north": "email", "west": "asyncio"}[site]
    datasets = {
        "corpus": {"path": [module], "format": "python-library", "rights": rights},
        "broken": {"path": "data/no-such-*.txt" if odd else __file__, "rights": rights},
        "empty": {"path": "data/empty.txt" if odd else __file__, "rights": rights},
    }
    if not odd:
        datasets["rare"] = datasets["corpus"]
    runs = ["run-*", "no-*"] if odd else ["*"]
    contract = {"runs": runs, "tasks": ["gated", "causal_lm", "elsewhere"], "cohort_min": 2}
    return {"site": site, "coordinator": address, "datasets": datasets, "contract": contract}


def run_file(name: str, **changes: Any) -> dict[str, Any]:
    """A run of three small rounds that needs all sites; `changes` replace or extend sections."""
    document: dict[str, Any] = {
        "run": name,
        "seed": 1,
        "task": {
            "name": "gated",
            "model": {"parameters": 5000, "tensors": 3},
            "training": {"seconds_per_step": 0.01},
        },
        "sites": {"include": "all", "minimum": 3},
        "rounds": {
            "count": 2,
            "steps": 5,
            "quorum": 3,
            "deadline_s": 80,
            "patience_s": 60,
            "heartbeat_s": 0.5,
            "late": "drop",
        },
        "codec": {"up": "int8", "down": "int8"},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(document.get(key), dict)
        document[key] = {**document[key], **value} if both else value
    return document


def standings(view: View) -> dict[str, str]:
    """site -> standing in the open round; empty while none is open."""
    opened = view.get("round")
    return {site: seat["standing"] for site, seat in opened["seats"].items()} if opened else {}


def all_work(view: View) -> bool:
    """Whether every site is at work on a training round."""
    return view["phase"] == "training" and list(standings(view).values()) == ["working"] * len(SITES)


def _brief(seen: list[View]) -> str:
    if not seen:
        return "no view came"
    view = seen[-1]
    return f"phase {view['phase']} ({view['reason']}), version {view['version']}, {standings(view)}"
