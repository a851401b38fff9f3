"""A world's operators: they start, pause, stop and take back runs, and decide who belongs to it.

What they have decided they see to: a coordinator that was down, or was rolled back, is told again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fedtrain.core import events as ev, masks
from fedtrain.core.conduct import RULE
from fedtrain.core.rollback import restorable
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import ENDED, Phase, RunState
from fedtrain.sim.acts import NOTHING, WayBack
from fedtrain.sim.coordinator import Coordinator
from fedtrain.sim.plan import RunPlan
from fedtrain.sim.scene import Scene

CARE_MS = 2_000
"""How often they look."""

OUT_MS = 15_000
"""So long a site stays in a quarantine by rule, until somebody has found its disk or its liar."""

UNKNOWN = 7
"""So far beyond the newest version nothing ever was."""

STARVED_MS = 90_000
"""So long people wait for a next version of a run that its sites cannot pay for any more."""

NAME = "operator"


class Operators:
    """What they mean the chief to know.

    Args:
        chief: who is to be obeyed now.
        starved: whether too few sites have a budget left for a run.
    """

    def __init__(
        self, scene: Scene, chief: Callable[[], Coordinator], starved: Callable[[RunSpec], bool]
    ) -> None:
        self._scene = scene
        self._chief = chief
        self._starved = starved
        self._stands: dict[str, tuple[int, int]] = {}
        self._joined: set[str] = set()
        self._submitted: list[RunPlan] = []
        self._back = {run: list(ways) for run, ways in scene.plan.ways_back.items()}

    def prepare(self) -> None:
        """Let every run's operator begin, and look after it all."""
        for run in self._scene.plan.runs:
            self._operate(run)
        self._scene.clock.after(CARE_MS, self._care)

    def enrol(self, name: str) -> bool:
        """Whether the chief has taken the site in."""
        key = self._scene.notary.key_of(name)
        taken = self._told(lambda at_ms: ev.MemberEnrolled(at_ms, name, "site", "", "", "", key))
        if taken:
            self._joined.add(name)
        return taken

    def _operate(self, run: RunPlan) -> None:
        """What this run's operator does, and when."""
        name, clock = run.spec.run, self._scene.clock

        def submit() -> None:
            self._submitted.append(run)
            self._look_after()

        def tell(kind: type[ev.RunPaused | ev.RunResumed | ev.RunStopped]) -> None:
            self._told(lambda at_ms: kind(at_ms, name, NAME))

        clock.at(run.submitted_ms, submit)
        if run.paused_ms is not None and run.resumed_ms is not None:
            clock.at(run.paused_ms, partial(tell, ev.RunPaused))
            clock.at(run.resumed_ms, partial(tell, ev.RunResumed))
        if run.stopped_ms is not None:
            clock.at(run.stopped_ms, partial(tell, ev.RunStopped))

    def _told(self, make: Callable[[int], ev.Event]) -> bool:
        """Whether the chief has taken an operator's word; one that is down has not."""
        chief = self._chief()
        if not chief.serving:
            return False
        chief.run(lambda: chief.submit(make(chief.now_ms)))
        return chief.serving

    def _look_after(self) -> None:
        """See that the chief has what it should have: its history may have been rolled back."""
        chief = self._chief()
        for name in sorted(self._joined) if chief.serving else ():
            self._see_to_member(name)
        for run in self._submitted:
            if chief.serving and run.spec.run not in chief.state.runs:
                self._told(partial(ev.RunSubmitted, spec=run.spec, by=NAME))

    def _see_to_member(self, name: str) -> None:
        """In, out, or in quarantine, as it is meant to be now."""
        chief, now_ms = self._chief(), self._scene.clock.now_ms
        if not chief.serving:
            return
        acts = self._scene.plan.acts.get(name, NOTHING)
        member = chief.state.members.get(name)
        out = acts.revoked is not None and acts.revoked.holds(now_ms)
        if member is None or (member.revoked and not out):
            self.enrol(name)
        elif out and not member.revoked:
            self._decided("member revoked", name)
            self._told(partial(ev.MemberRevoked, name=name, by=NAME, reason="its agreement has ended"))
        if chief.serving:
            self._see_to_conduct(name, acts.quarantined is not None and acts.quarantined.holds(now_ms))

    def _see_to_conduct(self, name: str, out: bool) -> None:
        chief = self._chief()
        found = chief.state.quarantined.get(name)
        if found is None and out:
            self._decided("site quarantined", name)
            self._told(partial(ev.SiteQuarantined, site=name, by=NAME, reason="its losses are odd"))
        if found is None or out:
            return
        served = found.by != RULE or chief.now_ms - found.since_ms >= OUT_MS
        if served or self._scene.clear:
            self._decided("site released", name)
            self._told(partial(ev.SiteReleased, site=name, by=NAME, reason="it was looked after"))

    def _take_back(self, run: RunState) -> None:
        """Go back as soon as it is due and there is an earlier version."""
        ways = self._back.get(run.spec.run, [])
        if not ways or ways[0].at_ms > self._scene.clock.now_ms or run.model is None:
            return
        version = _meant(run, ways[0])
        if version is not None:
            ways.pop(0)
            self._decided("run taken back", run.spec.run)
            self._told(partial(ev.RunRolledBack, run=run.spec.run, version=version, by=NAME))

    def _unlock(self, run: RunState) -> None:
        """Shares were opened for a set that is not to be had again: back by a version, or the end."""
        found = restorable(run.model) if run.model else ()
        self._decided("masked round given up", run.spec.run)
        if found and run.model is not None:
            version = max(found)
            self._told(partial(ev.RunRolledBack, run=run.spec.run, version=version, by=NAME))
        else:
            self._told(partial(ev.RunStopped, run=run.spec.run, by=NAME))

    def _gives_up(self, run: RunState) -> bool:
        """Once faults are over: a run that makes no version, because budgets are spent, is stopped."""
        name, now_ms = run.spec.run, self._scene.clock.now_ms
        version = run.model.ref.version if run.model else -1
        if not self._scene.clear or not self._starved(run.spec):
            self._stands.pop(name, None)
            return False
        before, since_ms = self._stands.setdefault(name, (version, now_ms))
        if before != version:
            self._stands[name] = (version, now_ms)
        elif now_ms - since_ms >= STARVED_MS:
            self._decided("run stopped, its budgets are spent", name)
            return self._told(partial(ev.RunStopped, run=name, by=NAME))
        return False

    def _decided(self, what: str, about: str) -> None:
        self._scene.faults[what] += 1
        self._scene.note(NAME, "decides", f"{what}: {about}")

    def _care(self) -> None:
        """After a while they look again, and once faults are over resume whatever is paused."""
        chief = self._chief()
        self._look_after()
        for name, run in chief.state.runs.items() if chief.serving else ():
            if not chief.serving or run.phase in ENDED:
                continue
            self._take_back(run)
            if chief.serving and self._gives_up(run):
                continue
            if self._scene.clear and chief.serving and _is_locked(run):
                self._unlock(run)
                continue
            if self._scene.clear and chief.serving and (run.paused or _has_shrunk(run)):
                self._told(partial(ev.RunResumed, run=name, by=NAME))
        self._scene.clock.after(CARE_MS, self._care)


def _meant(run: RunState, way: WayBack) -> int | None:
    """The version to go back to, None as long as there is none."""
    assert run.model is not None, "asked of a run with a model"
    newest, found = run.model.ref.version, restorable(run.model)
    if way.versions == 0:
        return newest + UNKNOWN
    return max(found[0], newest - way.versions) if found else None


def _has_shrunk(run: RunState) -> bool:
    """Whether a masked run waits for sites that refused a smaller cohort: with all here they may agree."""
    masked = masks.mask_terms(run.spec.task) is not None
    return masked and run.phase is Phase.WAITING and bool(run.excluded)


def _is_locked(run: RunState) -> bool:
    """Whether people have to decide: a masked round waits for sites that stay away, or sites have opened
    shares for another set, which this coordinator, a copy, knows nothing of.
    """
    if run.phase is not Phase.WAITING or run.round is None or run.round.masks is None:
        return False
    told = [seat.reason for record in run.records[-1:] for seat in record.seats.values()]
    return "no other one can be" in run.reason or (bool(run.paused) and any("another set" in t for t in told))
