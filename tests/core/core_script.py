"""Drives the coordinator's machine by events and shows its effects as short lines.

    script = Script(quorum=2).begin()     # booted, three sites enrolled and attached, a run submitted
    script.seed()                         # version 0 is there, round 1 is open
    assert script.store("a") == ["acknowledge a run.1.1.a stored"]

After every event the invariants are checked, and `replayed` folds the journal from its first row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.driver import Driver, replay
from fedtrain.core.invariants import violations
from fedtrain.core.orders import Order
from fedtrain.core.ports import MemoryActor, MemoryJournal
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import RunState, Standing, State
from fedtrain.core.transitions import step

SPEC = RunSpec(
    run="run",
    seed=7,
    task='{"data":"corpus","name":"tiny"}',
    sites=(),
    minimum=2,
    rounds=2,
    steps=5,
    quorum=2,
    quorum_share=0.0,
    deadline_ms=10_000,
    patience_ms=3_000,
    heartbeat_ms=500,
    late=LatePolicy.NEXT_ROUND,
    outer="average",
    outer_params={},
    outer_warmup_rounds=0,
    codec_up="float32",
    codec_down="float32",
    aggregator="mean",
    norm_max=None,
    evaluate_every=0,
)
"""Two rounds of two or three sites."""


class Script:
    """One coordinator, by hand. `names` of its sites have one letter each."""

    def __init__(self, names: str = "abc", **changes: Any) -> None:
        self.spec = replace(SPEC, **changes)
        self.sites = tuple(names)
        self.now_ms = 1_000
        self.journal = MemoryJournal()
        self.timers: dict[str, int] = {}
        self._actor: MemoryActor[fx.Effect] = MemoryActor()
        self._driver: Driver[State, ev.Event, fx.Effect] = Driver(self.journal, self._actor, step, State())
        self._sessions = 0

    # -- what is known ----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the machine knows."""
        return self._driver.state

    @property
    def run(self) -> RunState:
        """The run."""
        return self.state.runs["run"]

    @property
    def standings(self) -> str:
        """Where the sites of the open round stand, e.g. `a stored, b working`."""
        assert self.run.round is not None
        return ", ".join(f"{site} {seat.standing}" for site, seat in self.run.round.seats.items())

    def replayed(self) -> State:
        """The fold over the journal, from its first row."""
        return replay(self.journal, step, State(), ev.EVENTS)

    def order(self, site: str) -> Order:
        """The site's order in the open round."""
        assert self.run.round is not None
        return self.run.round.seats[site].order

    def _order_id(self, site: str) -> str:
        """Of the open round's seat, else the late order that the site still works on."""
        if self.run.round is not None and site in self.run.round.seats:
            return self.order(site).id
        return self.run.busy[site].id

    # -- what happens -----------------------------------------------------------------------------

    def tell(self, kind: type[ev.Event], **fields: Any) -> list[str]:
        """One event; the effects that follow, as lines."""
        self._actor.performed.clear()
        self._driver.handle(kind(at_ms=self.now_ms, **fields))
        assert violations(self.state) == ()
        for effect in self._actor.performed:
            if isinstance(effect, fx.SetTimer):
                self.timers[effect.timer] = effect.at_ms
        return [line(effect, self.now_ms) for effect in self._actor.performed]

    def wait(self, delay_ms: int) -> list[str]:
        """Time passes; timers that come due fire, in their order."""
        end_ms, lines = self.now_ms + delay_ms, []
        while due := [(at_ms, timer) for timer, at_ms in self.timers.items() if at_ms <= end_ms]:
            at_ms, timer = min(due)
            del self.timers[timer]
            self.now_ms = max(self.now_ms, at_ms)
            lines += self.tell(ev.TimerFired, run="run", timer=timer)
        self.now_ms = end_ms
        return lines

    def begin(self, attached: str | None = None) -> Script:
        """Booted, all sites enrolled, the `attached` ones (all) here, the run submitted."""
        self.boot()
        for site in self.sites:
            self.enrol(site)
        for site in self.sites if attached is None else attached:
            self.attach(site)
        self.submit()
        return self

    def boot(self) -> list[str]:
        """A coordinator's process starts."""
        return self.tell(ev.Booted, epoch=self.state.epoch + 1)

    def enrol(self, site: str, role: str = "site") -> list[str]:
        """A member joins for the first time."""
        return self.tell(
            ev.MemberEnrolled,
            name=site,
            role=role,
            invite=f"invite-{site}",
            key_digest="k",
            certificate="",
            message_key=self.message_key(site),
        )

    def message_key(self, site: str) -> str:
        """What verifies the site's words."""
        return "m"

    def submit(self) -> list[str]:
        """The operator starts the run."""
        return self.tell(ev.RunSubmitted, spec=self.spec, by="op")

    def attach(self, site: str, holding: tuple[str, ...] = ()) -> list[str]:
        """The site opens a new session."""
        self._sessions += 1
        return self.tell(
            ev.SiteAttached, site=site, session=f"s{self._sessions}", version="1", holding=holding
        )

    def lose(self, site: str) -> list[str]:
        """Liveness gives the site up."""
        return self.tell(ev.SiteLost, site=site, reason="no sign of life")

    def consent(self, *sites: str) -> list[str]:
        """The sites accept their orders."""
        return [text for site in sites for text in self.tell(ev.ConsentGiven, order=self._order_id(site))]

    def refuse(self, site: str, order: str = "") -> list[str]:
        """The site's contract says no."""
        return self.tell(ev.ConsentRefused, order=order or self._order_id(site), reasons=("clause",))

    def fail(self, site: str, order: str = "") -> list[str]:
        """The site's trainer could not."""
        return self.tell(ev.WorkFailed, order=order or self._order_id(site), reason="broken")

    def seed(self, site: str = "a", order: str = "") -> list[str]:
        """The initial weights are stored."""
        return self.tell(
            ev.ModelSeeded,
            order=order or self._order_id(site),
            blob="blob-0",
            size_bytes=40,
            model_digest="model-0",
            layout="[]",
            layout_digest="layout",
            num_elements=10,
        )

    def store(self, site: str, weight: int = 1, order: str = "", eval_loss: float | None = None) -> list[str]:
        """The site's update is verified and durable."""
        order = order or self._order_id(site)
        return self.tell(
            ev.UpdateStored,
            order=order,
            blob=f"blob-{order}",
            size_bytes=40,
            weight=weight,
            steps=5,
            norm=1.0,
            train_loss=2.0,
            eval_loss=eval_loss,
            eval_count=0 if eval_loss is None else 10,
            seconds=0.5,
            signature="",
        )

    def aggregate(self, snapshot: str = "") -> list[str]:
        """The next version is computed."""
        assert self.run.round is not None and self.run.model is not None
        version = self.run.model.ref.version + 1
        return self.tell(
            ev.RoundAggregated,
            run="run",
            round=self.run.round.index,
            attempt=self.run.round.attempt,
            model_digest=f"model-{version}",
            delta=f"delta-{version}",
            delta_bytes=12,
            snapshot=snapshot,
            snapshot_bytes=40 if snapshot else 0,
            update_norm=1.5,
        )

    def tell_evaluation(self, site: str, loss: float, order: str = "") -> list[str]:
        """The site has measured the last version."""
        return self.tell(ev.EvaluationStored, order=order or self._order_id(site), loss=loss, count=10)

    def pause(self) -> list[str]:
        """An operator pauses the run."""
        return self.tell(ev.RunPaused, run="run", by="op")

    def resume(self) -> list[str]:
        """An operator resumes the run."""
        return self.tell(ev.RunResumed, run="run", by="op")

    def stop(self) -> list[str]:
        """An operator stops the run."""
        return self.tell(ev.RunStopped, run="run", by="op")

    def reject(self, site: str, order: str = "") -> list[str]:
        """The site has sent something that cannot be used."""
        return self.tell(ev.UpdateRejected, order=order or self._order_id(site), blob="bad", reason="NaN")

    def withdraw(self, site: str) -> list[str]:
        """The site takes its consent back."""
        return self.tell(ev.ConsentWithdrawn, site=site, run="run", reason="enough", signature="s")

    def quarantine(self, site: str) -> list[str]:
        """An operator takes the site out."""
        return self.tell(ev.SiteQuarantined, site=site, by="op", reason="odd")

    def release(self, site: str) -> list[str]:
        """An operator ends the quarantine."""
        return self.tell(ev.SiteReleased, site=site, by="op", reason="mended")

    def revoke(self, site: str) -> list[str]:
        """An operator ends the membership."""
        return self.tell(ev.MemberRevoked, name=site, by="op", reason="left")

    def roll_back(self, version: int) -> list[str]:
        """An operator wants the run to go on from there."""
        return self.tell(ev.RunRolledBack, run="run", version=version, by="op")

    def restored(self, version: int, digest: str = "") -> list[str]:
        """The version is made again, as the newest."""
        assert self.run.model is not None
        index = self.run.model.ref.version + 1
        told = {"model_digest": digest or f"model-{version}", "snapshot": f"again-{version}"}
        return self.tell(ev.VersionRestored, run="run", round=index, snapshot_bytes=40, **told)

    def last_aggregation(self) -> fx.Aggregate:
        """The aggregation that the last event asked for."""
        return next(effect for effect in self._actor.performed if isinstance(effect, fx.Aggregate))

    def play_round(self, sites: str | None = None) -> list[str]:
        """Everybody contributes and the version is computed."""
        for site in self.sites if sites is None else sites:
            self.store(site)
        return self.aggregate()

    def last_seats(self) -> dict[str, tuple[Standing, str]]:
        """The last record's seats: standing and reason."""
        return {site: (seat.standing, seat.reason) for site, seat in self.run.records[-1].seats.items()}


def line(effect: fx.Effect, now_ms: int) -> str:
    """An effect as one short line; times relative to now."""
    match effect:
        case fx.Invite():
            return f"invite {effect.order.site} {effect.order.id}"
        case fx.Cancel():
            return f"cancel {effect.site} {effect.order}: {effect.reason}"
        case fx.Acknowledge():
            return f"acknowledge {effect.site} {effect.order} {effect.outcome}"
        case fx.SetTimer():
            return f"timer {effect.timer} in {effect.at_ms - now_ms}"
        case fx.Aggregate():
            parts = " + ".join(f"{c.order}*{c.weight:.4g}" for c in effect.contributions)
            return f"aggregate {effect.round}.{effect.attempt} onto {effect.base_version}: {parts}"
        case fx.Publish():
            return f"publish {effect.version}"
        case fx.Collect():
            return f"collect below {effect.keep_version}"
        case fx.Finish():
            return f"finish {effect.phase}: {effect.reason}"
        case fx.Retire():
            return f"retire behind epoch {effect.epoch}"
        case fx.Restore():
            return f"restore {effect.version} as {effect.round}"
        case fx.Speak():
            return f"speak {effect.topic} to {effect.site}"
        case fx.Expel():
            return f"expel {effect.name}: {effect.reason}"
    raise AssertionError(effect)
