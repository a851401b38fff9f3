"""The coordinator of a scenario: commands in, effects and changes out, over the production driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from core_script import SPEC, line
from scenario_account import changes, listed

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.driver import Driver, replay
from fedtrain.core.epochs import next_epoch
from fedtrain.core.invariants import violations
from fedtrain.core.orders import Order
from fedtrain.core.ports import Entry, MemoryJournal
from fedtrain.core.rollback import digest_of
from fedtrain.core.rounds import next_index
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import State
from fedtrain.core.transitions import step
from fedtrain.core.uploads import Admission, admit

PLACES = ("before-journal", "after-journal", "amid")
"""Where in *journal, step, act* the process can be made to die."""


class ScenarioError(Exception):
    """A line of a scenario that makes no sense."""


class Died(Exception):
    """The coordinator's process ended here."""


class Disk(MemoryJournal):
    """The journal, and the actor beside it: both end the process at the chosen place."""

    def __init__(self) -> None:
        super().__init__()
        self.place = ""
        self.performed: list[fx.Effect] = []

    def append(self, entries: Sequence[Entry]) -> int:
        """Durable, unless the process dies first."""
        if self.place == "before-journal":
            raise Died
        sequence = super().append(entries)
        if self.place == "after-journal":
            raise Died
        return sequence

    def perform(self, effect: fx.Effect) -> None:
        """Carried out; amid means that one effect still is."""
        if self.place == "amid" and self.performed:
            raise Died
        self.performed.append(effect)


class Coordinator:
    """Lives one after the other over one disk. Time stands still unless a command says `wait`."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.orders: dict[str, Order] = {}
        self._disk = Disk()
        self._driver: Driver[State, ev.Event, fx.Effect] | None = None
        self._timers: dict[tuple[str, str], int] = {}
        self._sessions = 0
        self._copied = 0

    @property
    def state(self) -> State:
        """What the machine knows."""
        if self._driver is None:
            raise ScenarioError("the coordinator is down: boot it first")
        return self._driver.state

    # -- the process ------------------------------------------------------------------------------

    def do_begin(self, run: str, *sites: str, **changes: str) -> list[str]:
        """What most scenarios start from: everybody is here, and the run's first round is open."""
        self.do_boot()
        self.do_enrol(*sites)
        self.do_attach(*sites)
        self.do_submit(run, **changes)
        self.do_wait("1s")  # so that the timer of the seeding is over before the first round's
        return self.do_seed(f"{run}.0.1.{min(sites)}")[-1:]

    def do_copy(self) -> list[str]:
        """Somebody copies the state folder, the coordinator may be up."""
        self._copied = len(self._disk.entries)
        return [f"{self._copied} rows"]

    def do_boot(self, take_over: str = "", rows: str = "all") -> list[str]:
        """A process starts on the disk. `take-over` starts a standby, `rows=copied` on the copied folder."""
        if self._driver is not None:
            self.do_crash()
        if rows == "copied":
            del self._disk.entries[self._copied :]
        place = "the copy" if take_over else "the folder"
        before = replay(self._disk, step, State(), ev.EVENTS)
        self._timers.clear()
        self._driver = Driver(self._disk, self._disk, step, before)
        epoch = next_epoch(max(before.epoch, before.fenced), 7) if take_over else next_epoch(before.epoch)
        return [f"epoch {epoch}", *self._tell(ev.Booted, epoch=epoch, place=place)]

    def do_crash(self) -> list[str]:
        """The process is killed between two events. What it knew is what its journal says."""
        if replay(self._disk, step, State(), ev.EVENTS) != self.state:
            raise AssertionError("I8: the journal does not replay to the state that was live")
        self._driver = None
        return ["the coordinator is down"]

    def do_wait(self, duration: str) -> list[str]:
        """Time passes; timers that come due fire in their order."""
        if not duration.endswith("s") or not duration[:-1].isdigit():
            raise ScenarioError(f"{duration!r} is no duration; write for instance 10s")
        end_ms, lines = self.now_ms + 1_000 * int(duration[:-1]), []
        while due := [(at_ms, key) for key, at_ms in self._timers.items() if at_ms <= end_ms]:
            at_ms, (run, timer) = min(due)
            del self._timers[run, timer]
            self.now_ms = max(self.now_ms, at_ms)
            found = self._tell(ev.TimerFired, run=run, timer=timer)
            lines += [f"{run}: timer {timer} fires", *found] if found else []
        self.now_ms = end_ms
        return lines

    def do_fenced(self, site: str, epoch: str) -> list[str]:
        """A site shows that it follows another coordinator."""
        return self._tell(ev.Fenced, site=site, epoch=int(epoch))

    # -- members ------------------------------------------------------------------------------------

    def do_enrol(self, *names: str, role: str = "site") -> list[str]:
        """Members join for the first time."""
        member = {"role": role, "key_digest": "k", "certificate": "", "message_key": "m"}
        return self._all(
            self._tell(ev.MemberEnrolled, name=name, invite=f"invite-{name}", **member) for name in names
        )

    def do_attach(self, *sites: str, holding: str = "", crash: str = "") -> list[str]:
        """Agents open new sessions, with these orders in hand."""
        orders = tuple(filter(None, holding.split(",")))
        return self._all(self._attach(site, orders, crash) for site in sites)

    def _attach(self, site: str, holding: tuple[str, ...], crash: str) -> list[str]:
        self._sessions += 1
        session = f"s{self._sessions}"
        told = {"site": site, "session": session, "version": "1", "holding": holding}
        return self._tell(ev.SiteAttached, crash, **told)

    def do_lose(self, site: str, reason: str = "no sign of life for 3 s", crash: str = "") -> list[str]:
        """Liveness gives a site up, or it says goodbye."""
        return self._tell(ev.SiteLost, crash, site=site, reason=reason)

    # -- operators ----------------------------------------------------------------------------------

    def do_submit(self, run: str, crash: str = "", **changes: str) -> list[str]:
        """A run is started; what is not said is as in tests/core."""
        return self._tell(ev.RunSubmitted, crash, spec=_spec(run, changes), by="op")

    def do_pause(self, run: str) -> list[str]:
        """No new work is handed out."""
        return self._tell(ev.RunPaused, run=run, by="op")

    def do_resume(self, run: str) -> list[str]:
        """Go on."""
        return self._tell(ev.RunResumed, run=run, by="op")

    def do_stop(self, run: str) -> list[str]:
        """The run ends for good."""
        return self._tell(ev.RunStopped, run=run, by="op")

    def do_quarantine(self, site: str, reason: str = "its losses are odd", crash: str = "") -> list[str]:
        """A site is taken out of all runs."""
        return self._tell(ev.SiteQuarantined, crash, site=site, by="op", reason=reason)

    def do_release(self, site: str, reason: str = "its disk was replaced") -> list[str]:
        """Its quarantine ends."""
        return self._tell(ev.SiteReleased, site=site, by="op", reason=reason)

    def do_revoke(self, site: str, reason: str = "its agreement has ended", crash: str = "") -> list[str]:
        """Its membership ends."""
        return self._tell(ev.MemberRevoked, crash, name=site, by="op", reason=reason)

    def do_rollback(self, run: str, version: str, crash: str = "") -> list[str]:
        """The run is to go on from an earlier version."""
        return self._tell(ev.RunRolledBack, crash, run=run, version=int(version), by="op")

    # -- answers to orders --------------------------------------------------------------------------

    def do_consent(self, *orders: str, crash: str = "") -> list[str]:
        """Sites accept their orders."""
        return self._all(self._tell(ev.ConsentGiven, crash, order=order) for order in orders)

    def do_refuse(self, order: str, reason: str = "contract.runs does not allow it") -> list[str]:
        """A site's contract says no."""
        return self._tell(ev.ConsentRefused, order=order, reasons=(reason,))

    def do_fail(self, order: str, reason: str = "the loss is not finite") -> list[str]:
        """A site's trainer could not."""
        return self._tell(ev.WorkFailed, order=order, reason=reason)

    def do_seed(self, order: str, crash: str = "") -> list[str]:
        """The initial weights are stored."""
        run = order.split(".", 1)[0]
        model = {"model_digest": f"model-{run}-0", "layout": "[]", "layout_digest": "layout"}
        told = {"order": order, "blob": f"blob-{order}", "size_bytes": 40, "num_elements": 10}
        return self._tell(ev.ModelSeeded, crash, **told, **model)

    def do_offer(self, order: str, site: str = "", blob: str = "") -> list[str]:
        """A site asks whether it may upload; nothing is decided."""
        answer = admit(self.state, site or order.rsplit(".", 1)[-1], order, blob or f"blob-{order}")
        kept = answer.acknowledged
        receipt = f"the same receipt: {kept.outcome}, epoch {kept.epoch}" if kept else ""
        return [": ".join(filter(None, (answer.admission.value, answer.reason or receipt)))]

    def do_withdraw(self, site: str, run: str, reason: str = "we must not", crash: str = "") -> list[str]:
        """A site takes its consent back."""
        return self._tell(ev.ConsentWithdrawn, crash, site=site, run=run, reason=reason, signature="s")

    def do_commit(
        self, order: str, weight: str = "1", site: str = "", blob: str = "", crash: str = ""
    ) -> list[str]:
        """An upload as the shell takes it: admission first, then the event that it stands for."""
        site, blob = site or order.rsplit(".", 1)[-1], blob or f"blob-{order}"
        answer = admit(self.state, site, order, blob)
        if answer.admission is Admission.WELCOME:
            return self.do_store(order, weight, blob, crash)
        lines = self.do_offer(order, site, blob)
        if answer.admission is Admission.EQUIVOCATION:
            lines += self._tell(ev.UpdateRejected, crash, order=order, blob=blob, reason=answer.reason)
            lines += [f"journaled: {self._disk.entries[-1].kind}"]
        return lines

    def do_store(self, order: str, weight: str = "1", blob: str = "", crash: str = "") -> list[str]:
        """An update that was admitted before is durable now, whatever has happened in between."""
        told: dict[str, Any] = {"order": order, "blob": blob or f"blob-{order}", "size_bytes": 40}
        numbers = {"weight": int(weight), "steps": 5, "norm": 1.0, "train_loss": 2.0, "seconds": 0.5}
        none = {"eval_loss": None, "eval_count": 0, "signature": ""}
        return self._tell(ev.UpdateStored, crash, **told, **numbers, **none)

    def do_reject(self, order: str, reason: str = "a value is not finite") -> list[str]:
        """An upload came that cannot be used."""
        return self._tell(ev.UpdateRejected, order=order, blob=f"blob-{order}", reason=reason)

    def do_evaluate(self, order: str, loss: str = "1.5") -> list[str]:
        """A site has measured the last version."""
        return self._tell(ev.EvaluationStored, order=order, loss=float(loss), count=10)

    # -- the coordinator's own work -------------------------------------------------------------------

    def do_aggregate(self, run: str, attempt: str = "", crash: str = "") -> list[str]:
        """The next version is computed and durable; `attempt` for an answer to an older question."""
        opened = self._open_round(run)
        index = opened.index
        snapshot = f"snapshot-{run}-{index}" if index % self.state.runs[run].spec.snapshot_every == 0 else ""
        place = {"run": run, "round": index, "attempt": int(attempt or opened.attempt)}
        delta = {"model_digest": f"model-{run}-{index}", "delta": f"delta-{run}-{index}", "delta_bytes": 12}
        whole = {"snapshot": snapshot, "snapshot_bytes": 40 if snapshot else 0, "update_norm": 1.5}
        return self._tell(ev.RoundAggregated, crash, **place, **delta, **whole)

    def do_cannot_aggregate(self, run: str, reason: str = "no space left") -> list[str]:
        """The next version could not be computed."""
        opened = self._open_round(run)
        place = {"run": run, "round": opened.index, "attempt": opened.attempt}
        return self._tell(ev.AggregationFailed, **place, reason=reason)

    def do_late_answer(self, run: str, index: str, attempt: str) -> list[str]:
        """A sum that nobody waits for any more is there, and another one has failed."""
        place = {"run": run, "round": int(index), "attempt": int(attempt)}
        delta = {"model_digest": "left", "delta": "left", "delta_bytes": 12}
        whole = {"snapshot": "", "snapshot_bytes": 0, "update_norm": 1.5}
        failed = self._tell(ev.AggregationFailed, **place, reason="memory ran out")
        return [*self._tell(ev.RoundAggregated, **place, **delta, **whole), *failed]

    def do_restore(self, run: str, crash: str = "") -> list[str]:
        """The earlier version is made again."""
        found = self.state.runs[run]
        if found.restoring is None:
            raise ScenarioError(f"nothing of {run} is being restored")
        told = {"snapshot": f"snapshot-{run}-{found.restoring}-again", "snapshot_bytes": 40}
        digest = digest_of(found, found.restoring)
        return self._tell(
            ev.VersionRestored, crash, run=run, round=next_index(found), model_digest=digest, **told
        )

    def do_damage(self, order: str, reason: str = "damaged") -> list[str]:
        """The disk has lost an acknowledged update."""
        run = order.split(".", 1)[0]
        return self._tell(ev.BlobDamaged, run=run, blob=f"blob-{order}", reason=reason)

    def do_show(self, run: str) -> list[str]:
        """What a run remembers beside its open round."""
        shown = self.state.runs[run]
        return [
            f"late: {', '.join(update.order for update in shown.late) or 'none'}",
            f"busy: {', '.join(order.id for order in shown.busy.values()) or 'none'}",
            f"back into residuals: {listed(shown.returned)}",
            f"continues from: {listed(shown.parents)}",
        ]

    # -- how it is told -------------------------------------------------------------------------------

    def _open_round(self, run: str) -> Any:
        if run not in self.state.runs or self.state.runs[run].round is None:
            raise ScenarioError(f"no round of {run} is open")
        return self.state.runs[run].round

    def _all(self, answers: Any) -> list[str]:
        return [text for answer in answers for text in answer]

    def _tell(self, kind: type[ev.Event], crash: str = "", **told: Any) -> list[str]:
        """One event through the driver; what was done about it, and what has changed."""
        if crash and crash not in PLACES:
            raise ScenarioError(f"crash={crash} is none of {', '.join(PLACES)}")
        before = self.state
        self._disk.performed.clear()
        self._disk.place = crash
        try:
            assert self._driver is not None, "`state` has looked"
            self._driver.handle(kind(at_ms=self.now_ms, **told))
        except Died:
            self._driver = None
        finally:
            self._disk.place = ""
        lines = [self._effect(effect) for effect in self._disk.performed]
        if self._driver is None:
            return [*lines, "the coordinator is down"]
        broken = violations(self.state)
        if broken:
            raise AssertionError("; ".join(broken))
        return lines + changes(before, self.state)

    def _effect(self, effect: fx.Effect) -> str:
        """An effect as a line, and remembered where a later command may speak of it."""
        if isinstance(effect, fx.Invite):
            self.orders[effect.order.id] = effect.order
        if isinstance(effect, fx.SetTimer):
            self._timers[effect.run, effect.timer] = effect.at_ms
        text = line(effect, self.now_ms)
        run = getattr(effect, "run", "")
        return f"{run}: {text}" if run else text


def _spec(run: str, changes: dict[str, str]) -> RunSpec:
    """A run's file with these fields changed, each read as the type that it has."""
    known = {field.name: getattr(SPEC, field.name) for field in fields(SPEC)}
    read: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in known:
            raise ScenarioError(f"a run has no {name}")
        default = known[name]
        if name == "sites":
            read[name] = tuple(text.split(","))
        elif name == "late":
            read[name] = LatePolicy(text)
        else:
            read[name] = type(default)(text)
    return replace(SPEC, run=run, **read)
