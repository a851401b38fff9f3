"""One run as the auditor keeps it: every order with its fate, from events and effects alone.

The core's state is looked at for one thing only, the records, because they are what is audited.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import RoundRecord
from fedtrain.sim.account import AT_WORK, KEPT, Account, Fate, check_quorum
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.violation import demand
from fedtrain.sim.wayback import WayBack

RECOVERY_MS = 60_000
"""So long after faults every process that was stopped, down or to be restored is back."""

SLACK_MS = 15_000
"""A round may be open for so much longer than its deadline: a restart within it takes its time."""


class Ledger:
    """The account of one run.

    Args:
        honest: order -> digest of the only right answer to it, "" if there is none.

    Attributes:
        chain: its versions, recomputed.
        ended: how it ended, "" while it goes on.
    """

    def __init__(self, spec: RunSpec, chain: Chain, honest: Callable[[Order], str]) -> None:
        self.spec = spec
        self.chain = chain
        self._honest = honest
        self.orders: dict[str, Account] = {}
        self.ended = ""
        self._round = (0, 0)
        self._opened_ms = 0
        self._closed: fx.Aggregate | None = None
        self._parents: dict[str, str] = {}
        self._returned: dict[str, tuple[str, ...]] = {}
        self._weights: dict[str, int] = {}
        self._refusals: dict[str, str] = {}
        self._records = 0
        self._unrecorded: set[tuple[int, int]] = set()
        self._paused = False
        self._busy: dict[str, str] = {}
        self._new_attempt = False
        self._back = WayBack(chain)

    # -- what happens -----------------------------------------------------------------------------

    def happened(self, event: ev.Event, sessions: dict[str, str]) -> None:
        """An event's own meaning, before anything that was decided about it."""
        match event:
            case ev.ConsentGiven():
                self._turn(event.order, (Fate.INVITED,), Fate.WORKING)
            case ev.ConsentRefused():
                account = self.orders.get(event.order)
                if account and (account.fate in AT_WORK or account.fate is Fate.LATE):
                    self._refusals[account.order.site] = sessions.get(account.order.site, "")
                self._turn(event.order, AT_WORK, Fate.REFUSED)
                self._free(event.order)
            case ev.WorkFailed() | ev.UpdateRejected():
                self._free(event.order)
                self._turn(event.order, (*AT_WORK, Fate.LOST), Fate.FAILED)
            case ev.EvaluationStored():
                account = self.orders.get(event.order)
                if account and account.order.kind is OrderKind.EVALUATE:
                    self._turn(event.order, (*AT_WORK, Fate.LOST), Fate.DONE)
            case ev.UpdateStored():
                self._free(event.order)
            case ev.BlobDamaged():
                self._damaged(event)
            case ev.ConsentWithdrawn():
                self._refusals[event.site] = sessions.get(event.site, "")
                self.take_out(event.site, Fate.REFUSED, "withdrawn")
            case ev.RunRolledBack():
                self._back.asked(event.version)
            case ev.SiteLost():
                self._busy.pop(event.site, None)
                self._turn_site(event.site, AT_WORK, Fate.LOST)
            case ev.SiteAttached():
                if self._refusals.get(event.site) != event.session:
                    self._refusals.pop(event.site, None)  # else an old hello came again: nothing is new
                if self._busy.get(event.site) not in event.holding:
                    self._busy.pop(event.site, None)
                if self._closed is None:
                    self._turn_site(event.site, (Fate.LOST,), Fate.INVITED)
            case ev.RunPaused():
                self._paused = True
            case ev.RunResumed():
                self._paused = False
                self._refusals.clear()

    def _damaged(self, event: ev.BlobDamaged) -> None:
        """The disk lost an update: nothing of it counts, until the site has sent it again.

        One that came late goes back into its site's residual; there is nobody else to bring it.
        """
        for account in self.orders.values():
            if account.blob != event.blob or account.versions or not account.outcome:
                continue
            if account.outcome == "late_next_round":
                site = account.order.site
                account.outcome = "late_residual"
                self._returned[site] = (*self._returned.get(site, ()), account.order.id)
            elif account.seated and account.fate is Fate.STORED:
                account.fate, account.outcome, account.blob = Fate.WORKING, "", ""
            self._closed = None

    def take_out(self, site: str, fate: Fate, why: str) -> None:
        """The site has left: nothing of it that no version counts may ever count, also by its residual.

        A sum that was to hold some of it is not wanted any more.
        """
        self._busy.pop(site, None)
        self._returned.pop(site, None)
        summed = {item.order for item in self._closed.contributions} if self._closed else set()
        for name, account in self.orders.items():
            if account.order.site != site or account.versions:
                continue
            if account.order.kind is OrderKind.TRAIN or not account.outcome:
                account.barred = why
            open_seat = account.seated and (
                account.fate in (*AT_WORK, Fate.LOST)
                or (account.fate is Fate.STORED and account.order.kind is OrderKind.TRAIN)
            )
            if open_seat:
                account.fate = fate
            if name in summed:
                self._closed = None

    def _free(self, order: str) -> None:
        """The site is not at work on this order any more, if it was late with it."""
        for site in [site for site, late in self._busy.items() if late == order]:
            del self._busy[site]

    def _turn(self, order: str, before: tuple[Fate, ...], after: Fate) -> None:
        account = self.orders.get(order)
        if account is not None and account.seated and account.fate in before:
            account.fate = after

    def _turn_site(self, site: str, before: tuple[Fate, ...], after: Fate) -> None:
        for account in self.orders.values():
            if account.order.site == site:
                self._turn(account.order.id, before, after)

    # -- acknowledgements ---------------------------------------------------------------------------

    def acknowledged(self, effect: fx.Acknowledge, event: ev.Event) -> None:
        """An upload is ours from now on."""
        account = self.orders.get(effect.order)
        demand(account is not None, "I1", f"{effect.order} was acknowledged and never handed out")
        assert account is not None, "demanded above"
        demand(not account.outcome, "I1", f"{effect.order} was acknowledged twice")
        demand(
            not account.barred, "I5", f"{effect.order} was acknowledged, and its site was {account.barred}"
        )
        demand(
            isinstance(event, (ev.UpdateStored, ev.ModelSeeded))
            and (event.order, event.blob) == (effect.order, effect.blob),
            "I1",
            f"{effect.order} was acknowledged without being stored",
        )
        right = self._honest(account.order)
        demand(right in ("", effect.blob), "I2", f"{effect.order} was answered with other work than its own")
        account.outcome, account.blob = effect.outcome, effect.blob
        if isinstance(event, ev.ModelSeeded):
            account.fate = Fate.DONE
            self.chain.seed(effect.blob)
            return
        assert isinstance(event, ev.UpdateStored), "demanded above"
        self._stored(account, event)

    def _stored(self, account: Account, event: ev.UpdateStored) -> None:
        """What an acknowledged update changes for its site's next order."""
        order, outcome = account.order, account.outcome
        account.weight = event.weight
        in_time = account.seated and account.fate in (*AT_WORK, Fate.LOST) and self._closed is None
        late = {LatePolicy.NEXT_ROUND: "late_next_round", LatePolicy.RESIDUAL: "late_residual"}
        allowed = "stored" if in_time else late.get(self.spec.late, "nothing")
        demand(outcome == allowed, "I1", f"{order.id} was acknowledged as {outcome}, not {allowed}")
        if in_time:
            account.fate = Fate.STORED
        self._parents[order.site] = order.id
        self._weights[order.site] = event.weight
        kept = tuple(name for name in self._returned.get(order.site, ()) if name not in order.returned)
        self._returned[order.site] = (*kept, order.id) if outcome == "late_residual" else kept

    # -- rounds -----------------------------------------------------------------------------------

    def invited(self, effect: fx.Invite, sessions: dict[str, str], now_ms: int) -> None:
        """An order is handed out, for the first time or again."""
        order = effect.order
        known = self.orders.get(order.id)
        if known is not None:
            demand(known.order == order, "I1", f"{order.id} was handed out again with another content")
            return
        self.opened(order.round, order.attempt, now_ms)
        where = f"{order.id} was handed out"
        demand((order.round, order.attempt) == self._round, "I3", f"{where} in round {self._round}")
        demand(order.parent == self._parents.get(order.site, ""), "I1", f"{where} from parent {order.parent}")
        demand(
            order.returned == self._returned.get(order.site, ()),
            "I1",
            f"{where} with {order.returned} back, not {self._returned.get(order.site, ())}",
        )
        session = sessions.get(order.site)
        demand(session is not None, "I10", f"{where} to a site that is not attached")
        refused = self._refusals.get(order.site)
        demand(refused is None or refused != session, "I5", f"{where} though the site has refused")
        demand(not self._paused and not self.ended, "I5", f"{where} though the run is paused or over")
        demand(self._back.target is None, "I3", f"{where} while version {self._back.target} is restored")
        self._check_model(order)
        self.orders[order.id] = Account(order)

    def _check_model(self, order: Order) -> None:
        expected = order.kind if order.round else OrderKind.SEED
        demand(order.kind is expected, "I3", f"{order.id} asks to {order.kind}")
        newest = len(self.chain.digests) - 1
        demand(order.round == newest + 1, "I3", f"{order.id} comes after version {newest}")
        if order.model is not None:
            told = (order.model.version, order.model.digest)
            demand(told == (newest, self.chain.digests[newest]), "I3", f"{order.id} starts from {told}")

    def opened(self, index: int, attempt: int, now_ms: int) -> None:
        """An attempt begins; who has left the last one has no seat any more."""
        if (index, attempt) <= self._round:
            return
        for account in self.orders.values():
            over = account.order.round < index
            if over or account.fate not in KEPT:
                account.seated = False
        self._round = (index, attempt)
        self._opened_ms = now_ms
        self._unrecorded.add(self._round)
        self._new_attempt = True
        self._closed = None

    def complete(self, sessions: dict[str, str], enrolled: set[str]) -> None:
        """A step is over: an open attempt waits for somebody, a new one has a seat for all who are free."""
        self._back.pursued()
        if self.ended or self._closed is not None or self._round not in self._unrecorded:
            return
        seats = {a.order.site: a for a in self.orders.values() if a.seated}
        waits = any(account.fate in AT_WORK for account in seats.values())
        demand(waits, "I10", f"round {self._round} is open and waits for nobody")
        if not self._new_attempt or self._round[0] == 0:
            return
        self._new_attempt = False
        expected = enrolled & set(self.spec.sites) if self.spec.sites else enrolled
        present = sorted(expected & set(sessions))
        free = [
            site for site in present if site not in self._busy and self._refusals.get(site) != sessions[site]
        ]
        missing = [site for site in free if site not in seats]
        demand(not missing, "I10", f"round {self._round} has no seat for {missing}")

    def in_time(self, now_ms: int, clear_ms: int) -> None:
        """I10 by true time: once faults are over, no attempt is open for longer than its deadline."""
        if self.ended or self._closed is not None or self._round not in self._unrecorded:
            return
        open_ms = now_ms - max(self._opened_ms, clear_ms + RECOVERY_MS)
        most_ms = self.spec.deadline_ms + SLACK_MS
        demand(open_ms <= most_ms, "I10", f"round {self._round} is open for {open_ms} ms")

    def restore(self, effect: fx.Restore) -> None:
        """The way back is asked for: all that was under way, or would follow from it, is over."""
        self._back.begun(effect)
        self._closed = None
        self._busy.clear()
        self._parents.clear()
        self._returned.clear()
        for account in self.orders.values():
            account.seated = False
            if not account.versions:
                account.barred = account.barred or "on a path that was left"

    def aggregate(self, effect: fx.Aggregate) -> None:
        """A round is closed: what it counts has to be what was acknowledged for it, and a quorum."""
        if self._closed is not None:
            demand(effect == self._closed, "I2", f"round {effect.round} is asked for again, otherwise")
            return
        seats = {a.order.site: a for a in self.orders.values() if a.seated}
        fresh = [a for a in seats.values() if a.fate is Fate.STORED]
        late = [
            a
            for a in self.orders.values()
            if a.outcome == "late_next_round" and not a.versions and not a.barred
        ]
        due = sorted((*fresh, *late), key=lambda a: (a.order.site, -a.order.round))
        named = [item.order for item in effect.contributions]
        barred = [name for name in named if self.orders[name].barred]
        demand(not barred, "I5", f"round {effect.round} counts {barred}, whose sites were taken out")
        demand(
            named == [a.order.id for a in due],
            "I1",
            f"round {effect.round} counts {named}, due are {[a.order.id for a in due]}",
        )
        for item, account in zip(effect.contributions, due, strict=True):
            assert account.order.model is not None, "training starts from a model"
            staleness = effect.round - 1 - account.order.model.version
            weight = account.weight / math.sqrt(1 + staleness)
            demand(item.blob == account.blob, "I2", f"{item.order} counts with other bytes")
            fits = math.isclose(item.weight, weight)
            demand(fits, "I2", f"{item.order} weighs {item.weight}, not {weight}")
        demand(effect.base_version == effect.round - 1, "I3", f"base version {effect.base_version}")
        check_quorum(self.spec, effect.round, fresh, seats, self._weights)
        for account in seats.values():
            if account.fate in AT_WORK:
                account.fate = Fate.LATE
                if self.spec.late is not LatePolicy.DROP and effect.round < self.spec.rounds:
                    self._busy[account.order.site] = account.order.id
        self._closed = effect
        self.chain.compute(effect)

    def blobs_max(self) -> int:
        """Blobs that this run may need: the way to its newest version, updates, and uploads under way."""
        ways = 2 + 2 * self.spec.snapshot_every
        return ways + 4 * len({account.order.site for account in self.orders.values()})

    # -- records ------------------------------------------------------------------------------------

    def recorded(self, records: tuple[RoundRecord, ...], event: ev.Event) -> None:
        """Hold every new record against the account."""
        new = records[self._records :]
        self._records = len(records)
        for record in new:
            if record.restored is not None:
                further = self._back.done(record, event)
                self.spec = replace(self.spec, rounds=self.spec.rounds + further)
                self._round = (record.index, record.attempt)
                continue
            self._check_record(record)
            counts = record.version is not None and record.index > 0
            if counts:
                self._count(record, event)

    def _check_record(self, record: RoundRecord) -> None:
        where = f"the record of round {record.index}.{record.attempt}"
        demand((record.index, record.attempt) == self._round, "I7", f"{where} came in round {self._round}")
        revived = record.version == 0  # initial weights may come after their attempt was abandoned
        demand(self._round in self._unrecorded or revived, "I7", f"{where} came twice")
        self._unrecorded.discard(self._round)
        seats = {a.order.site: a for a in self.orders.values() if a.seated}
        demand(set(record.seats) == set(seats), "I7", f"{where} names {sorted(record.seats)}")
        last = record.index > self.spec.rounds
        for site, account in seats.items():
            cut_short = self.ended or self._back.target is not None
            fate = Fate.LATE if last and account.fate in AT_WORK and not cut_short else account.fate
            told = record.seats[site]
            demand(told.standing.value == fate.value, "I7", f"{where} has {site} {told.standing}, not {fate}")
            silent = fate in (Fate.REFUSED, Fate.FAILED, Fate.LOST, Fate.LATE)
            demand(bool(told.reason) or not silent, "I7", f"{where} gives no reason for {site}")

    def _count(self, record: RoundRecord, event: ev.Event) -> None:
        """A version was published: each update in it is now used up."""
        demand(self._closed is not None, "I2", f"version {record.version} came without an aggregation")
        assert self._closed is not None and record.version is not None, "demanded above"
        told = tuple(item.order for item in self._closed.contributions)
        demand(record.counted == told, "I2", f"the record counts {record.counted}, the sum {told}")
        demand(isinstance(event, ev.RoundAggregated), "I2", f"version {record.version} was not computed")
        assert isinstance(event, ev.RoundAggregated), "demanded above"
        demand(record.model_digest == event.model_digest, "I2", "the record names another model")
        self.chain.publish(record.version, event.model_digest, event.delta)
        if event.snapshot:
            self._back.snapshot(record.version)
        for name in record.counted:
            self.orders[name].versions.append(record.version)
        for account in self.orders.values():
            account.seated = False

    def finished(self, effect: fx.Finish) -> None:
        """The run is over: what was acknowledged has to have been used, as it was acknowledged."""
        self.ended = effect.phase
        demand(not self._unrecorded, "I7", f"no record of the attempts {sorted(self._unrecorded)}")
        if effect.phase != "done":
            return
        rounds = len(self.chain.digests) - 1
        demand(rounds == self.spec.rounds, "I3", f"{self.spec.run} is done after {rounds} rounds")
        for name, account in self.orders.items():
            if account.order.kind is not OrderKind.TRAIN or not account.outcome:
                continue
            counts = account.outcome in ("stored", "late_next_round") and not account.barred
            expected = 1 if counts else 0
            demand(
                len(account.versions) == expected,
                "I1",
                f"{name} was acknowledged as {account.outcome} and counted in versions {account.versions}",
            )
