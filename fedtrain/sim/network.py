"""Messages between coordinators and sites: lost, doubled, delayed, out of order, cut off, queued.

Worse than the real transport, which keeps the order within a session: whatever holds here holds
there. Nothing is lost or doubled once faults are over, but delays still vary, and a slow link stays
slow.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from fedtrain.sim.calls import Envelope, Request, Response, data_bytes
from fedtrain.sim.process import Process
from fedtrain.sim.scene import Scene


class Blocked(enum.StrEnum):
    """What does not pass a cut link."""

    ALL = "everything"
    DATA = "data"  # tensors; words and heartbeats pass
    SESSION = "the session"  # a half-open one: calls pass


@dataclass(frozen=True)
class Cut:
    """A link that does not carry everything until then."""

    until_ms: int
    blocked: Blocked

    def stops(self, body: Envelope | Request | Response, now_ms: int) -> bool:
        """Whether this does not pass now."""
        if now_ms >= self.until_ms:
            return False
        if self.blocked is Blocked.DATA:
            return data_bytes(body) > 0
        return self.blocked is Blocked.ALL or isinstance(body, Envelope)


class Network:
    """Who is reachable, and how well."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._rates = {site.name: site.link_bytes_per_s for site in scene.plan.sites}
        self._processes: dict[str, Process] = {}
        self._cuts: dict[str, Cut] = {}
        self._newest_ms: dict[str, int] = {}
        self._free_ms: dict[str, int] = {}

    def connect(self, process: Process) -> None:
        """From now on messages reach this process while it is up."""
        self._processes[process.name] = process

    def send(self, source: str, target: str, body: Envelope | Request | Response) -> None:
        """Carry a message, more or less."""
        scene, rates = self._scene, self._scene.plan.rates
        link, now_ms = f"{source}>{target}", scene.clock.now_ms
        cut = self._cuts.get(link)
        if cut is not None and cut.stops(body, now_ms):
            scene.faults["message cut off"] += 1
            return
        if scene.strikes(rates.lost, "message lost", link):
            return
        copies = 2 if scene.strikes(rates.doubled, "message doubled", link) else 1
        for _ in range(copies):
            delay_ms = self._queued_ms(link, source, target, body)
            delay_ms += scene.chance.stream("delay", link).randint(1, 40)
            if how := scene.strikes(rates.slow, "message delayed", link):
                delay_ms += how.randint(500, 20_000)
            self._carry(link, source, target, body, now_ms + delay_ms)

    def threaten(self, gap_ms: int) -> None:
        """Cut some sites off now and then, until faults are over."""
        self._scene.recur(gap_ms, "partition", "network", self._partition)

    def cut(self, source: str, target: str, until_ms: int, blocked: Blocked = Blocked.ALL) -> None:
        """Nothing of that kind passes in this direction until then."""
        self._cuts[f"{source}>{target}"] = Cut(until_ms, blocked)

    def _partition(self, how: random.Random) -> None:
        """Both directions or one; everything, or only the session, or only data."""
        coordinators = [name for name, process in self._processes.items() if process.kind == "coordinator"]
        sites = [name for name in self._processes if name not in coordinators]
        cut = how.sample(sites, how.randint(1, len(sites)))
        until_ms = min(self._scene.clock.now_ms + how.randint(1_000, 30_000), self._scene.plan.clear_ms)
        blocked = how.choice((Blocked.ALL, Blocked.ALL, Blocked.SESSION, Blocked.DATA))
        ways = how.choice(("both ways", "both ways", "upwards", "downwards"))
        for site in cut:
            for coordinator in coordinators:
                if ways != "downwards":
                    self.cut(site, coordinator, until_ms, blocked)
                if ways != "upwards":
                    self.cut(coordinator, site, until_ms, blocked)
        self._scene.note("network", "cuts off", f"{blocked} of {', '.join(cut)} {ways}")

    def _queued_ms(self, link: str, source: str, target: str, body: Envelope | Request | Response) -> int:
        """How long its bytes take, behind those that went before on this link."""
        size_bytes = data_bytes(body)
        rate = self._rates.get(source) or self._rates.get(target)
        if not size_bytes or not rate:
            return 0
        now_ms = self._scene.clock.now_ms
        free_ms = max(now_ms, self._free_ms.get(link, 0)) + size_bytes * 1_000 // rate
        self._free_ms[link] = free_ms
        return free_ms - now_ms

    def _carry(self, link: str, source: str, target: str, body: object, at_ms: int) -> None:
        newest_ms = self._newest_ms.get(link, 0)
        if at_ms < newest_ms:
            self._scene.faults["message overtaken"] += 1
        else:
            self._newest_ms[link] = at_ms
        process = self._processes[target]

        def arrive() -> None:
            if process.up:
                process.run(lambda: process.receive(source, body))

        self._scene.clock.at(at_ms, arrive)
