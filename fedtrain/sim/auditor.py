"""The auditor: listens to what crosses the network and what the machines answer, and compares.

It raises `Violation` at the first step whose deeds do not fit the account, so that the transcript
ends where the trouble began. Invariants have the numbers of the project's list of faults; I4 (privacy
charges) is held by `expenses`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedtrain.core import agent
from fedtrain.core.masks import is_masked
from fedtrain.core.orders import Order, OrderKind, parse_order_id
from fedtrain.core.ports import MemoryJournal
from fedtrain.sim.clock import Clock
from fedtrain.sim.expenses import Expenses
from fedtrain.sim.history import History, Known
from fedtrain.sim.journals import JournalWatch
from fedtrain.sim.numbers import initial_weights, update_of
from fedtrain.sim.permission import Permission
from fedtrain.sim.plan import Plan
from fedtrain.sim.recomputation import sha256
from fedtrain.sim.secrecy import Secrecy
from fedtrain.sim.veils import Levels, levels_of
from fedtrain.sim.violation import Violation, demand

RETAINED_MAX = 3
"""Results that a site may keep per run: one at work, and those that a version does not count yet."""


class Auditor:
    """One world's account, of its plan and by its true time. A liar's answers may be anything.

    Attributes:
        histories: one for each journal of a coordinator that there ever was.
        secrecy: the account of what sites say under masks.
        expenses: the account of what sites pay for, and may still spend.
    """

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self.histories: list[History] = []
        self.expenses = Expenses(plan.prices)
        self._num_elements = plan.num_elements
        self._num_runs = len(plan.runs)
        self._liars = frozenset(site.name for site in plan.sites if site.lies)
        self._weights = {site.name: site.weight for site in plan.sites}
        blobs: dict[str, bytes] = {}
        tasks = {run.spec.run: run.spec.task for run in plan.runs}
        self.secrecy = Secrecy(self._plain, blobs, tasks, self._liars)
        self._known = Known(self._honest, clock, plan.clear_ms, self.secrecy, blobs)
        self._watches: dict[str, JournalWatch] = {}
        self._permissions: dict[str, Permission] = {}

    # -- journals and states ------------------------------------------------------------------------

    def watch_coordinator(self, name: str, journal: MemoryJournal) -> History:
        """From now on this is a coordinator's journal; what it holds already is accounted at its start."""
        history = History(name, journal, self._known)
        self.histories.append(history)
        return history

    def watch_site(self, name: str, journal: MemoryJournal) -> None:
        """From now on this is the site's journal."""
        kinds: Mapping[str, type] = agent.AGENT_EVENTS
        self._watches[name] = JournalWatch(name, journal, agent.step, kinds, agent.AgentState())
        self._permissions[name] = Permission(name)

    def reigns(self, epoch: int, history: History) -> None:
        """A life of this epoch begins: no two lives that differ in what they know may share one."""
        other = self._known.epochs.setdefault(epoch, history)
        demand(other is history, "I3", f"two coordinators are in epoch {epoch}")

    def site_stepped(
        self,
        name: str,
        event: agent.AgentEvent,
        state: agent.AgentState,
        effects: tuple[agent.AgentEffect, ...],
    ) -> None:
        """A site's machine answered an event. I9: what it keeps does not pile up.

        I1: at the receipt the site's copy of an update is the only one beside the coordinator's, so it
        stays until a version counts it.
        """
        self._watches[name].stepped(state)
        self._permissions[name].happened(event)
        self._permissions[name].decided(effects)
        for effect in effects:
            if isinstance(effect, agent.BurnMasks):
                self.secrecy.burnt(name, state.masks[effect.order].session)
        if isinstance(event, agent.UploadAcknowledged) and event.outcome != "late_residual":
            given_up = [effect.order for effect in effects if isinstance(effect, agent.Discard)]
            trained = [order for order in given_up if parse_order_id(order)[1] > 0]
            demand(not trained, "I1", f"{name} lets {trained} go, which no version counts yet")
        if name in self._liars:
            return  # what it answered behind its own agent's back stays with that agent
        kept: dict[str, int] = {}
        for held in state.held.values():
            kept[held.order.run] = kept.get(held.order.run, 0) + 1
        for run, count in kept.items():
            demand(count <= RETAINED_MAX, "I9", f"{name} keeps {count} orders of {run}: {list(state.held)}")

    def site_restarted(self, name: str, state: agent.AgentState) -> None:
        """A site replayed its journal to this state after a crash."""
        for event, _, _ in self._watches[name].missed():
            self._permissions[name].happened(event)
        self._watches[name].compare(state)

    def close(self) -> None:
        """The world is over: every journal replays from its first row to the state that was live."""
        for history in self.histories:
            history.close()
        for watch in self._watches.values():
            watch.missed()
            watch.fold()
        self.expenses.close()

    # -- what crosses the network -----------------------------------------------------------------------

    def uploaded(self, payload: bytes) -> None:
        """A site has sent these bytes, whole."""
        self._known.blobs[sha256(payload)] = payload

    def spoils(self, digest: str) -> None:
        """A coordinator's disk turns a bit of this update over."""
        self._known.spoilt.add(digest)

    def keeps(self, site: str, num_files: int) -> None:
        """I9: a site's outbox and mailbox hold so many results."""
        most = RETAINED_MAX * self._num_runs
        demand(num_files <= most, "I9", f"{site} keeps {num_files} results, {most} are enough")

    def spoke(self, site: str, order: str, topic: str, document: str, bare: bool) -> None:
        """A site says this of a masked round; `bare`: its disk holds no secrets of it any more."""
        permission = self._permissions[site]
        permission.speaks(order)
        self.secrecy.spoke(site, topic, document, bare, permission.contract.cohort_min)

    def obeys(self, site: str, highest: int, epoch: int) -> None:
        """A site acts on a message of this epoch."""
        demand(epoch >= highest, "I3", f"{site} obeys epoch {epoch} after {highest}")

    def holds(self, site: str, order: Order, digest: str) -> None:
        """I11: a site works from this version, which has to be that of the history the order is from."""
        assert order.model is not None, "only orders with a model are worked on from one"
        for history in self.histories:
            ledger = history.ledgers.get(order.run)
            account = ledger.orders.get(order.id) if ledger else None
            if ledger is not None and account is not None and account.order == order:
                ledger.chain.holds(site, order.model.version, digest)
                return
        raise Violation(f"I11: {site} works on {order.id}, which nobody handed out")

    def _honest(self, order: Order) -> str:
        """Digest of the only right answer to an order, "" where there is none."""
        if order.site in self._liars or order.kind is OrderKind.EVALUATE or is_masked(order):
            return ""
        seeds = order.kind is OrderKind.SEED
        make = initial_weights if seeds else update_of
        return sha256(make(order, self._num_elements).tobytes())

    def _plain(self, order: Order) -> Levels | None:
        """What has to lie under the masks of an answer, None where its site may lie."""
        if order.site in self._liars:
            return None
        return levels_of(order, update_of(order, self._num_elements), self._weights[order.site])
