"""A site's own people: they say yes and no to runs, and look at what is held before it leaves."""

from __future__ import annotations

import random

from fedtrain.core import agent
from fedtrain.core.contract import Verdict, Word
from fedtrain.sim.acts import NOTHING
from fedtrain.sim.scene import Scene
from fedtrain.sim.site import Site

LOOK_MS = 700
LOOKING_MS_MAX = 6_000
"""How long somebody looks at one update."""

WITHHELD = 0.1


class Owner:
    """Of one site. What was said to an agent that is down is said again when it is up."""

    def __init__(self, scene: Scene, site: Site) -> None:
        self._scene = scene
        self._site = site
        self._acts = scene.plan.acts.get(site.name, NOTHING)
        self._chance = random.Random(f"{scene.plan.seed}.owner.{site.name}")
        self._said: dict[str, Word] = {}
        self._due_ms: dict[str, int] = {}

    def prepare(self) -> None:
        """Look now and then, where there is anything to decide."""
        acts = self._acts
        if acts.holds or acts.withdrawn is not None or acts.approves_ms is not None:
            self._look()

    def _look(self) -> None:
        site = self._site
        if site.up:
            site.run(self._decide)
        self._scene.clock.after(LOOK_MS, self._look)

    def _decide(self) -> None:
        for run in self._scene.plan.runs:
            self._speak(run.spec.run)
        for name, held in self._site.held.items():
            if held.stage is agent.Stage.HELD:
                self._inspect(name)

    def _speak(self, run: str) -> None:
        """Say what is meant now, unless it was said."""
        acts, site, now_ms = self._acts, self._site, self._scene.clock.now_ms
        said = self._said.get(run) or site.word_on(run)  # an agent may have died over it once it was kept
        no = acts.withdrawn is not None and acts.withdrawn.holds(now_ms)
        yes = acts.approves_ms is not None and now_ms >= acts.approves_ms
        if no and said in (None, Word.APPROVED):
            word = self._chance.choice((Word.DENIED, Word.WITHDRAWN))
        elif not no and (yes if said is None else said is not Word.APPROVED):
            word = Word.APPROVED
        else:
            return
        self._scene.faults[f"owner has {word}"] += 1
        site.submit(agent.RunDecided(site.now_ms, run, Verdict(word, "we have talked about it", "owner")))
        self._said[run] = word  # only now: an agent that died over it is told again

    def _inspect(self, order: str) -> None:
        """After a while the update goes, or stays for good."""
        scene, site = self._scene, self._site
        looking_ms = 0 if scene.clear else self._chance.randint(0, LOOKING_MS_MAX)
        due_ms = self._due_ms.setdefault(order, scene.clock.now_ms + looking_ms)
        if scene.clock.now_ms < due_ms and not scene.clear:
            return
        if not scene.clear and self._chance.random() < WITHHELD:
            scene.faults["update withheld"] += 1
            site.submit(agent.UpdateWithheld(site.now_ms, order, "owner", "too much of one patient"))
        else:
            scene.faults["update released"] += 1
            site.submit(agent.UpdateReleased(site.now_ms, order, "owner", site.moment.day))
