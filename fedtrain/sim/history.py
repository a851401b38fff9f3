"""The auditor's account of one journal: what its coordinator decided, life after life.

A folder that is copied has two histories from then on. The account of the copy begins with the rows
that were copied, and knows nothing of what the other one did later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedtrain.core import effects as fx, events as ev, invariants, messages as msg, transitions
from fedtrain.core.driver import run_of
from fedtrain.core.orders import Order
from fedtrain.core.ports import MemoryJournal
from fedtrain.core.state import State
from fedtrain.sim.account import Fate
from fedtrain.sim.clock import Clock
from fedtrain.sim.conduct import REVOKED, Conduct
from fedtrain.sim.journals import JournalWatch
from fedtrain.sim.ledger import Ledger
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.secrecy import Secrecy
from fedtrain.sim.violation import Violation, demand


@dataclass(frozen=True)
class Known:
    """What no journal tells, and every history is held against.

    Attributes:
        clock, clear_ms: the true time, and when faults are over.
        secrecy: what is said under masks.
        blobs: every upload that crossed the network, by its digest.
        spoilt: digests of the updates in which a disk has turned a bit over.
        epochs: epoch -> the history that had it first.
        honest: order -> digest of the only right answer to it, "" if its site may lie.
    """

    honest: Callable[[Order], str]
    clock: Clock
    clear_ms: int
    secrecy: Secrecy
    blobs: dict[str, bytes] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    epochs: dict[int, History] = field(default_factory=dict)


class History:
    """One journal's account.

    Args:
        world: what the auditor knows of the world outside this journal.

    Attributes:
        ledgers: run -> its account.
    """

    def __init__(self, name: str, journal: MemoryJournal, world: Known) -> None:
        self.ledgers: dict[str, Ledger] = {}
        self._name = name
        self._world = world
        self._sessions: dict[str, str] = {}
        self._enrolled: set[str] = set()
        self._conduct = Conduct()
        self._receipts: dict[str, msg.Receipt] = {}
        self._fenced = 0
        kinds: Mapping[str, type] = ev.EVENTS
        self._watch = JournalWatch(name, journal, transitions.step, kinds, State())

    def stepped(self, event: ev.Event, state: State, effects: tuple[fx.Effect, ...]) -> None:
        """The machine answered an event."""
        self._watch.stepped(state)
        self._account(event, state, effects)
        # Only here: what a dead life left unanswered is looked at whenever its journal is read again.
        for ledger in self.ledgers.values() if not self._fenced else ():
            ledger.in_time(self._world.clock.now_ms, self._world.clear_ms)

    def restarted(self, state: State) -> None:
        """The coordinator replayed its journal to this state."""
        for event, behind, effects in self._watch.missed():
            self._account(event, behind, effects)
        self._watch.compare(state)

    def close(self) -> None:
        """The world is over: the journal replays from its first row to the state that was live."""
        for event, behind, effects in self._watch.missed():
            self._account(event, behind, effects)
        self._watch.fold()

    # -- what the coordinator decides -----------------------------------------------------------------

    def _account(self, event: ev.Event, state: State, effects: tuple[fx.Effect, ...]) -> None:
        """One step: what happened, what was acknowledged, what was recorded, what was decided."""
        if self._obeyed_another(event, effects):
            return
        broken = invariants.violations(state)
        if broken:
            raise Violation("; ".join(broken))
        self._members(event)
        about = run_of(event)
        goes_on = [name for name, ledger in self.ledgers.items() if not ledger.ended]
        for name in goes_on:
            if about in ("", name):
                self.ledgers[name].happened(event, self._sessions)
        if about == "" or about in goes_on:
            self._taken_out(event)
        for effect in effects:
            if isinstance(effect, fx.Acknowledge):
                self._ledger_of(effect.order).acknowledged(effect, event)
                self._receipts.pop(effect.order, None)
            elif isinstance(effect, fx.Cancel):
                ledger = self.ledgers.get(effect.order.split(".", 1)[0])  # a copy may not know its run
                if ledger is not None:
                    ledger.called_off(effect, event)
            elif isinstance(effect, fx.Speak):
                self._world.secrecy.spoken(effect)
                self._ledger_of(effect.order).spoken(effect)
        for effect in effects:
            if isinstance(effect, fx.Finish) and effect.phase == "stopped":
                self.ledgers[effect.run].ended = effect.phase
        for name, ledger in self.ledgers.items():
            ledger.recorded(state.runs[name].records, event)
        for effect in effects:
            self._decided(effect)
        for ledger in self.ledgers.values():
            ledger.complete(self._sessions, self._enrolled - set(self._conduct.out))

    def _taken_out(self, event: ev.Event) -> None:
        """Who has lost its part in all runs, and who may take part again."""
        out = self._conduct.happened(event, self._enrolled)
        for ledger in self.ledgers.values() if out else ():
            if not ledger.ended:
                ledger.take_out(out, Fate.FAILED, self._conduct.out[out])

    def _obeyed_another(self, event: ev.Event, effects: tuple[fx.Effect, ...]) -> bool:
        """Whether somebody else rules: then nothing may be decided here until a life of a higher epoch."""
        if isinstance(event, ev.Fenced):
            demand(
                event.epoch in self._world.epochs, "I3", f"{self._name} obeys epoch {event.epoch}, nobody's"
            )
            self._fenced = event.epoch
        if isinstance(event, ev.Booted) and event.epoch > self._fenced:
            self._fenced = 0
        if not self._fenced:
            return False
        done = [effect for effect in effects if not isinstance(effect, fx.Retire)]
        demand(not done, "I3", f"{self._name} decides {done} though {self._fenced} has taken over")
        return True

    def _members(self, event: ev.Event) -> None:
        match event:
            case ev.MemberEnrolled():
                self._enrolled.add(event.name)
            case ev.Booted():
                self._sessions.clear()
            case ev.SiteAttached() if self._conduct.out.get(event.site) != REVOKED:
                self._sessions[event.site] = event.session
            case ev.SiteLost():
                self._sessions.pop(event.site, None)
            case ev.MemberRevoked():
                self._sessions.pop(event.name, None)
            case ev.RunSubmitted() if event.spec.run not in self.ledgers:
                chain = Chain(event.spec, self._world.blobs)
                self.ledgers[event.spec.run] = Ledger(
                    event.spec, chain, self._world.honest, self._world.secrecy
                )
            case ev.BlobDamaged():
                spoilt = event.blob in self._world.spoilt
                demand(spoilt, "I1", f"{event.blob[:12]} is {event.reason}, and no disk has touched it")

    def _decided(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Invite():
                why = self._conduct.out.get(effect.order.site)
                demand(why is None, "I5", f"{effect.order.id} was handed out, and its site was {why}")
                self.ledgers[effect.order.run].invited(effect, self._sessions, self._world.clock.now_ms)
            case fx.SetTimer() if effect.timer.startswith("deadline."):
                _, index, attempt = effect.timer.split(".")
                self.ledgers[effect.run].opened(int(index), int(attempt), self._world.clock.now_ms)
            case fx.Aggregate():
                self.ledgers[effect.run].aggregate(effect)
            case fx.Restore():
                self.ledgers[effect.run].restore(effect)
            case fx.Publish():
                newest = len(self.ledgers[effect.run].chain.digests) - 1
                demand(effect.version == newest, "I3", f"{effect.version} is published, {newest} is newest")
            case fx.Finish():
                self.ledgers[effect.run].finished(effect)

    def _ledger_of(self, order: str) -> Ledger:
        return self.ledgers[order.split(".", 1)[0]]

    # -- what its shell says --------------------------------------------------------------------------

    def receipt(self, receipt: msg.Receipt) -> None:
        """A receipt is given: it has to fit the account, and to be the same every time."""
        account = self._ledger_of(receipt.order).orders.get(receipt.order)
        demand(account is not None, "I1", f"a receipt for {receipt.order}, which nobody handed out")
        assert account is not None, "demanded above"
        told = (receipt.digest, receipt.outcome)
        demand(told == (account.blob, account.outcome), "I1", f"the receipt for {receipt.order} says {told}")
        first = self._receipts.setdefault(receipt.order, receipt)
        demand(receipt == first, "I1", f"two receipts for {receipt.order} differ")

    def unanswered(self, order: str) -> None:
        """An upload was admitted and stored, and no acknowledgement followed."""
        raise Violation(f"I1: {order} was admitted, stored, and never acknowledged")

    def lacks(self, digest: str) -> None:
        """The coordinator has no such blob: none that leads to a newest version may be missing."""
        for name, ledger in self.ledgers.items():
            newest = len(ledger.chain.digests) - 1
            for account in ledger.orders.values():
                model = account.order.model
                needed = model is not None and model.version == newest and not ledger.ended
                gone = needed and model is not None and any(digest == blob for _, blob, _ in model.chain)
                demand(not gone, "I3", f"{name}: a blob on the way to version {newest} is gone")

    def collected(self, num_blobs: int, num_versions: int) -> None:
        """I9: after a collection no more lies on the disk than the runs can name."""
        most_blobs = sum(ledger.blobs_max() for ledger in self.ledgers.values())
        demand(num_blobs <= most_blobs, "I9", f"{num_blobs} blobs are kept, {most_blobs} are enough")
        most_versions = 2 * len(self.ledgers)
        demand(num_versions <= most_versions, "I9", f"{num_versions} versions are kept by {self._name}")
