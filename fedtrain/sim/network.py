"""Messages between the coordinator and its sites: lost, doubled, delayed, out of order, cut off.

Worse than the real transport, which keeps the order within a session: whatever holds here holds
there. Nothing is lost or doubled once faults are over, but delays still vary.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core import messages as msg
from fedtrain.sim.process import Process
from fedtrain.sim.scene import Scene

COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Envelope:
    """A message of a session; `epoch` is the coordinator's, 0 from a site."""

    session: str
    epoch: int
    message: msg.FromPeer | msg.ToPeer


@dataclass(frozen=True)
class Fetch:
    """A site asks for a blob on the way to a version."""

    digest: str


@dataclass(frozen=True)
class Blob:
    """A blob's bytes."""

    digest: str
    data: bytes


@dataclass(frozen=True)
class Refusal:
    """A call was answered with an error."""

    reason: str


@dataclass(frozen=True)
class Request:
    """One call of a site; an upload's bytes travel with its commit."""

    call: int
    body: Fetch | msg.Offer | msg.Commit
    payload: bytes = b""


@dataclass(frozen=True)
class Response:
    """The answer to a call."""

    call: int
    epoch: int
    body: Blob | msg.Missing | msg.Receipt | Refusal


class Network:
    """Who is reachable, and how well."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._processes: dict[str, Process] = {}
        self._cut_until_ms: dict[str, int] = {}
        self._newest_ms: dict[tuple[str, str], int] = {}

    def connect(self, process: Process) -> None:
        """From now on messages reach this process while it is up."""
        self._processes[process.name] = process

    def send(self, source: str, target: str, body: Envelope | Request | Response) -> None:
        """Carry a message, more or less."""
        scene, rates = self._scene, self._scene.plan.rates
        site = source if target == COORDINATOR else target
        if scene.clock.now_ms < self._cut_until_ms.get(site, 0):
            scene.faults["message cut off"] += 1
            return
        if scene.strikes(rates.lost, "message lost"):
            return
        copies = 2 if scene.strikes(rates.doubled, "message doubled") else 1
        for _ in range(copies):
            delay_ms = scene.chance.randint(1, 40)
            if scene.strikes(rates.slow, "message delayed"):
                delay_ms += scene.chance.randint(500, 20_000)
            self._carry(source, target, body, scene.clock.now_ms + delay_ms)

    def threaten(self, gap_ms: int) -> None:
        """Cut some sites off now and then, until faults are over."""
        scene = self._scene
        delay_ms = int(scene.chance.expovariate(1 / gap_ms))
        if scene.clock.now_ms + delay_ms >= scene.plan.clear_ms:
            return

        def strike() -> None:
            sites = [name for name in self._processes if name != COORDINATOR]
            cut = scene.chance.sample(sites, scene.chance.randint(1, len(sites)))
            end_ms = min(scene.clock.now_ms + scene.chance.randint(1_000, 30_000), scene.plan.clear_ms)
            for site in cut:
                self._cut_until_ms[site] = end_ms
            scene.faults["partition"] += 1
            scene.note("network", "cuts off", ", ".join(cut))
            self.threaten(gap_ms)

        scene.clock.after(delay_ms, strike)

    def _carry(self, source: str, target: str, body: object, at_ms: int) -> None:
        link = (source, target)
        if at_ms < self._newest_ms.get(link, 0):
            self._scene.faults["message overtaken"] += 1
        self._newest_ms[link] = max(at_ms, self._newest_ms.get(link, 0))
        process = self._processes[target]

        def arrive() -> None:
            if process.up:
                process.run(lambda: process.receive(source, body))

        self._scene.clock.at(at_ms, arrive)
