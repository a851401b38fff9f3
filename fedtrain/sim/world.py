"""A world from its seed to its verdict: build everything, let time run, demand an end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from fedtrain.core.state import ENDED
from fedtrain.errors import LocalError
from fedtrain.sim.auditor import Auditor
from fedtrain.sim.chance import Chance
from fedtrain.sim.choice import EVERYTHING, Choice, planned, reduced
from fedtrain.sim.liar import Liar
from fedtrain.sim.network import Network
from fedtrain.sim.operators import Operators
from fedtrain.sim.owners import Owner
from fedtrain.sim.plan import Plan, draw
from fedtrain.sim.scene import Scene
from fedtrain.sim.site import Site
from fedtrain.sim.succession import FIRST, Succession
from fedtrain.sim.violation import Violation

END_MS = 3_600_000
"""So long after faults have ended every run must have come to its end."""

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
    """One seed's world.

    Attributes:
        scene: what all its parts share.
        succession: its coordinators.
    """

    def __init__(self, seed: int, choice: Choice = EVERYTHING) -> None:
        plan: Plan = reduced(draw(seed), choice)
        self._choice = choice
        self.scene = Scene(plan, Chance(plan.seed, choice.allows), struck=planned(plan))
        self._network = Network(self.scene)
        self._auditor = Auditor(plan, self.scene.clock)
        self._sites = [Site(self.scene, site, self._network, self._auditor, FIRST) for site in plan.sites]
        self._looked_at = 0
        self.succession = Succession(self.scene, self._network, self._auditor, self._sites)
        starved = self._auditor.expenses.starved
        self._operators = Operators(self.scene, lambda: self.succession.chief, starved)

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
        ledgers = self.succession.chief.history.ledgers.values()
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
        self.succession.prepare()
        self._network.threaten(rates.partition_gap_ms)
        for site in self._sites:
            scene.clock.at(site.plan.joins_ms, partial(self._join, site))
        self._operators.prepare()

    def _join(self, site: Site) -> None:
        """Enrolment, as often as it takes, then the agent's first start."""
        if not self._operators.enrol(site.name):
            self.scene.clock.after(1_000, lambda: self._join(site))
            return
        site.start()
        site.threaten(self.scene.plan.rates.site_gap_ms)
        site.purse.threaten()
        gap_ms = self.scene.plan.rates.flip_gap_ms
        self.scene.recur(gap_ms, "bit flipped in a model", site.name, site.damage_model)
        self._roam(site)
        if site.plan.lies:
            Liar(self.scene, site, self._network).threaten(self.scene.plan.rates.lie_gap_ms)
        Owner(self.scene, site).prepare()
        self.scene.clock.at(self.scene.plan.clear_ms + 1, site.reconsider)

    def _roam(self, site: Site) -> None:
        """A site leaves now and then, until faults are over."""
        gap_ms = self.scene.plan.rates.leave_gap_ms
        self.scene.recur(gap_ms, "site leaves", site.name, lambda how: site.run(lambda: site.leave(how)))

    def _over(self) -> bool:
        if self.scene.events == self._looked_at:
            return False  # only an event changes the account
        self._looked_at = self.scene.events
        ledgers = self.succession.chief.history.ledgers
        return len(ledgers) == len(self.scene.plan.runs) and all(led.ended for led in ledgers.values())

    def _unfinished(self) -> str:
        chief = self.succession.chief
        runs = chief.state.runs if chief.serving else {}
        if len(runs) < len(self.scene.plan.runs):
            return f"what {chief.name} has to do, which knows {list(runs)}"
        return "; ".join(
            f"{name} ({run.phase}: {run.reason}{', ' + run.paused if run.paused else ''})"
            for name, run in runs.items()
            if run.phase not in ENDED
        )

    def _report(self, error: Exception) -> str:
        seed = self.scene.plan.seed
        return (
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"repeat it: {self._choice.command(seed)}\n"
            f"make it smaller: python -m fedtrain.sim --seed {seed} --minimise\n"
            f"its last lines:\n{self.scene.transcript.text(TAIL_LINES)}"
        )


def hold(seed: int) -> Outcome | str:
    """One world's outcome, or in words how it failed: what a pool of processes can hand back."""
    try:
        return World(seed).run()
    except SeedFailed as failure:
        return str(failure)
