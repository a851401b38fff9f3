"""The auditor: listens to what crosses the network and what the machines answer, and compares.

It raises `Violation` at the first step whose deeds do not fit the account, so that the transcript
ends where the trouble began. Invariants have the numbers of the project's list of faults.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedtrain.core import agent, invariants, transitions
from fedtrain.core import effects as fx
from fedtrain.core import events as ev
from fedtrain.core import messages as msg
from fedtrain.core.driver import run_of
from fedtrain.core.ports import MemoryJournal
from fedtrain.core.state import State
from fedtrain.sim.journals import JournalWatch
from fedtrain.sim.ledger import Ledger
from fedtrain.sim.recomputation import Chain, sha256
from fedtrain.sim.violation import Violation, demand


class Auditor:
    """One world's account.

    Attributes:
        ledgers: run -> its account.
    """

    def __init__(self) -> None:
        self.ledgers: dict[str, Ledger] = {}
        self._blobs: dict[str, bytes] = {}
        self._sessions: dict[str, str] = {}
        self._enrolled: set[str] = set()
        self._receipts: dict[str, msg.Receipt] = {}
        self._watches: dict[str, JournalWatch] = {}

    # -- journals and states ------------------------------------------------------------------------

    def watch_coordinator(self, journal: MemoryJournal) -> None:
        """From now on this is the coordinator's journal."""
        kinds: Mapping[str, type] = ev.EVENTS
        self._coordinator = JournalWatch("coordinator", journal, transitions.step, kinds, State())

    def watch_site(self, name: str, journal: MemoryJournal) -> None:
        """From now on this is the site's journal."""
        kinds: Mapping[str, type] = agent.AGENT_EVENTS
        self._watches[name] = JournalWatch(name, journal, agent.step, kinds, agent.AgentState())

    def stepped(self, event: ev.Event, state: State, effects: tuple[fx.Effect, ...]) -> None:
        """The coordinator's machine answered an event."""
        self._coordinator.stepped(state)
        self._account(event, state, effects)

    def restarted(self, state: State) -> None:
        """The coordinator replayed its journal to this state after a crash."""
        for event, behind, effects in self._coordinator.missed():
            self._account(event, behind, effects)
        self._coordinator.compare(state)

    def site_stepped(self, name: str, state: agent.AgentState) -> None:
        """A site's machine answered an event."""
        self._watches[name].stepped(state)

    def site_restarted(self, name: str, state: agent.AgentState) -> None:
        """A site replayed its journal to this state after a crash."""
        self._watches[name].missed()
        self._watches[name].compare(state)

    def close(self) -> None:
        """The world is over: every journal replays from its first row to the state that is live."""
        for watch in (self._coordinator, *self._watches.values()):
            watch.missed()
            watch.fold()

    # -- what the coordinator decides -----------------------------------------------------------------

    def _account(self, event: ev.Event, state: State, effects: tuple[fx.Effect, ...]) -> None:
        """One step: what happened, what was acknowledged, what was recorded, what was decided."""
        broken = invariants.violations(state)
        if broken:
            raise Violation("; ".join(broken))
        self._members(event)
        for name, ledger in self.ledgers.items():
            about = run_of(event)
            if about in ("", name) and not ledger.ended:
                ledger.happened(event, self._sessions)
        for effect in effects:
            if isinstance(effect, fx.Acknowledge):
                self._ledger_of(effect.order).acknowledged(effect, event)
        for effect in effects:
            if isinstance(effect, fx.Finish) and effect.phase == "stopped":
                self.ledgers[effect.run].ended = effect.phase
        for name, ledger in self.ledgers.items():
            ledger.recorded(state.runs[name].records, event)
        for effect in effects:
            self._decided(effect)
        for ledger in self.ledgers.values():
            ledger.complete(self._sessions, self._enrolled)

    def _members(self, event: ev.Event) -> None:
        match event:
            case ev.MemberEnrolled():
                self._enrolled.add(event.name)
            case ev.Booted():
                self._sessions.clear()
            case ev.SiteAttached():
                self._sessions[event.site] = event.session
            case ev.SiteLost():
                self._sessions.pop(event.site, None)
            case ev.RunSubmitted() if event.spec.run not in self.ledgers:
                self.ledgers[event.spec.run] = Ledger(event.spec, Chain(event.spec, self._blobs))

    def _decided(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Invite():
                self.ledgers[effect.order.run].invited(effect, self._sessions)
            case fx.SetTimer() if effect.timer.startswith("deadline."):
                _, index, attempt = effect.timer.split(".")
                self.ledgers[effect.run].opened(int(index), int(attempt))
            case fx.Aggregate():
                self.ledgers[effect.run].aggregate(effect)
            case fx.Publish():
                newest = len(self.ledgers[effect.run].chain.digests) - 1
                demand(effect.version == newest, "I3", f"{effect.version} is published, {newest} is newest")
            case fx.Finish():
                self.ledgers[effect.run].finished(effect)

    def _ledger_of(self, order: str) -> Ledger:
        return self.ledgers[order.split(".", 1)[0]]

    # -- what crosses the network -----------------------------------------------------------------------

    def uploaded(self, payload: bytes) -> None:
        """A site sends these bytes with a commit."""
        self._blobs[sha256(payload)] = payload

    def receipt(self, receipt: msg.Receipt) -> None:
        """The coordinator gives a receipt: it has to fit the account, and to be the same every time."""
        account = self._ledger_of(receipt.order).orders.get(receipt.order)
        demand(account is not None, "I1", f"a receipt for {receipt.order}, which nobody handed out")
        assert account is not None, "demanded above"
        told = (receipt.digest, receipt.outcome)
        demand(told == (account.blob, account.outcome), "I1", f"the receipt for {receipt.order} says {told}")
        first = self._receipts.setdefault(receipt.order, receipt)
        demand(receipt == first, "I1", f"two receipts for {receipt.order} differ")

    def site_holds(self, site: str, run: str, version: int, digest: str) -> None:
        """A site has built a version of the public model."""
        self.ledgers[run].chain.holds(site, version, digest)

    def lacks(self, digest: str) -> None:
        """The coordinator has no such blob: none that leads to a newest version may be missing."""
        for name, ledger in self.ledgers.items():
            newest = len(ledger.chain.digests) - 1
            for account in ledger.orders.values():
                model = account.order.model
                needed = model is not None and model.version == newest and not ledger.ended
                gone = needed and model is not None and any(digest == blob for _, blob, _ in model.chain)
                demand(not gone, "I3", f"{name}: a blob on the way to version {newest} is gone")

    def unanswered(self, order: str) -> None:
        """An upload was admitted and stored, and no acknowledgement followed."""
        raise Violation(f"I1: {order} was admitted, stored, and never acknowledged")
