"""A world from its seed to its verdict: build everything, let time run, demand an end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial

from fedtrain.core import events as ev
from fedtrain.core.state import ENDED
from fedtrain.errors import LocalError
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.coordinator import Coordinator
from fedtrain.sim.network import Network
from fedtrain.sim.plan import Plan, RunPlan, draw
from fedtrain.sim.scene import Scene
from fedtrain.sim.site import Site
from fedtrain.sim.violation import Violation

END_MS = 3_600_000
"""So long after faults have ended every run must have come to its end."""

CARE_MS = 2_000
"""How often an operator looks for paused runs, once faults are over."""

TAIL_LINES = 60


class SeedFailed(LocalError):
    """A world broke an invariant or an assertion; the text tells how to repeat it."""


@dataclass(frozen=True)
class Outcome:
    """What one world amounted to. `virtual_ms` is how long it lasted in its own time."""

    events: int
    faults: Counter[str]
    virtual_ms: int
    versions: int
    stopped: int
    trace: str = ""


class World:
    """One seed's world."""

    def __init__(self, seed: int) -> None:
        plan: Plan = draw(seed)
        self.scene = Scene(plan, random.Random(f"course.{seed}"))
        self._network = Network(self.scene)
        self._auditor = Auditor()
        self._coordinator = Coordinator(self.scene, self._network, self._auditor)
        self._sites = [Site(self.scene, site, self._network, self._auditor) for site in plan.sites]

    def run(self, trace: bool = False) -> Outcome:
        """Let it happen. `SeedFailed` if anything is not as it has to be."""
        scene = self.scene
        try:
            self._prepare()
            begin_ms = scene.clock.now_ms
            while not self._over():
                if scene.clock.now_ms >= scene.plan.clear_ms + END_MS:
                    raise Violation(f"I12: no end of {self._unfinished()}")
                scene.clock.advance()
            self._auditor.close()
        except Exception as error:
            raise SeedFailed(self._report(error)) from error
        ledgers = self._auditor.ledgers.values()
        return Outcome(
            events=scene.events,
            faults=scene.faults,
            virtual_ms=scene.clock.now_ms - begin_ms,
            versions=sum(len(ledger.chain.digests) for ledger in ledgers),
            stopped=sum(ledger.ended == "stopped" for ledger in ledgers),
            trace=scene.transcript.digest() if trace else "",
        )

    def _prepare(self) -> None:
        """Everything that will happen by itself: starts, joins, runs, faults, care."""
        scene, rates = self.scene, self.scene.plan.rates
        self._coordinator.start()
        self._coordinator.threaten(rates.coordinator_gap_ms)
        self._network.threaten(rates.partition_gap_ms)
        for site in self._sites:
            scene.clock.at(site.plan.joins_ms, partial(self._join, site))
        for run in scene.plan.runs:
            self._operate(run)
        scene.clock.at(scene.plan.clear_ms, self._care)

    def _join(self, site: Site) -> None:
        """Enrolment, as often as it takes, then the agent's first start."""
        if not self._told(ev.MemberEnrolled(self.scene.clock.now_ms, site.name, "site", "", "", "", "")):
            self.scene.clock.after(1_000, lambda: self._join(site))
            return
        site.start()
        site.threaten(self.scene.plan.rates.site_gap_ms)
        self._roam(site)
        self.scene.clock.at(self.scene.plan.clear_ms + 1, site.reconsider)

    def _roam(self, site: Site) -> None:
        """A site leaves now and then, until faults are over."""
        scene = self.scene
        delay_ms = int(scene.chance.expovariate(1 / scene.plan.rates.leave_gap_ms))
        if scene.clock.now_ms + delay_ms < scene.plan.clear_ms:

            def strike() -> None:
                site.run(site.leave)
                self._roam(site)

            scene.clock.after(delay_ms, strike)

    def _operate(self, run: RunPlan) -> None:
        """What this run's operator does, and when."""
        name, clock = run.spec.run, self.scene.clock

        def submit() -> None:
            if not self._told(ev.RunSubmitted(clock.now_ms, run.spec, "operator")):
                clock.after(1_000, submit)

        def tell(kind: type[ev.RunPaused | ev.RunResumed | ev.RunStopped]) -> None:
            self._told(kind(clock.now_ms, name, "operator"))

        clock.at(run.submitted_ms, submit)
        if run.paused_ms is not None and run.resumed_ms is not None:
            clock.at(run.paused_ms, partial(tell, ev.RunPaused))
            clock.at(run.resumed_ms, partial(tell, ev.RunResumed))
        if run.stopped_ms is not None:
            clock.at(run.stopped_ms, partial(tell, ev.RunStopped))

    def _told(self, event: ev.Event) -> bool:
        """Whether the coordinator has taken an operator's word; one that is down has not."""
        coordinator = self._coordinator
        if not coordinator.up:
            return False
        coordinator.run(lambda: coordinator.submit(event))
        return coordinator.up

    def _care(self) -> None:
        """After the faults an operator resumes whatever is paused."""
        for name, run in self._coordinator.state.runs.items() if self._coordinator.up else ():
            if run.paused:
                self._told(ev.RunResumed(self.scene.clock.now_ms, name, "operator"))
        self.scene.clock.after(CARE_MS, self._care)

    def _over(self) -> bool:
        ledgers = self._auditor.ledgers
        return len(ledgers) == len(self.scene.plan.runs) and all(led.ended for led in ledgers.values())

    def _unfinished(self) -> str:
        runs = self._coordinator.state.runs if self._coordinator.up else {}
        return "; ".join(
            f"{name} ({run.phase}: {run.reason}{', ' + run.paused if run.paused else ''})"
            for name, run in runs.items()
            if run.phase not in ENDED
        )

    def _report(self, error: Exception) -> str:
        seed = self.scene.plan.seed
        return (
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"repeat it: python -m fedtrain.sim --seed {seed} --transcript\n"
            f"its last lines:\n{self.scene.transcript.text(TAIL_LINES)}"
        )


def hold(seed: int) -> Outcome | str:
    """One world's outcome, or in words how it failed: what a pool of processes can hand back."""
    try:
        return World(seed).run()
    except SeedFailed as failure:
        return str(failure)
