"""One run as the auditor keeps it: every order with its fate, from events and effects alone.

The core's state is looked at for one thing only, the records, because they are what is audited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.core.state import RoundRecord
from fedtrain.sim import checks
from fedtrain.sim.account import AT_WORK, KEPT, Account, Fate
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.secrecy import Secrecy
from fedtrain.sim.veil import Veil
from fedtrain.sim.veils import is_veiled
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
        secrecy: what is said under masks.

    Attributes:
        chain: its versions, recomputed.
        ended: how it ended, "" while it goes on.
    """

    def __init__(self, spec: RunSpec, chain: Chain, honest: Callable[[Order], str], secrecy: Secrecy) -> None:
        self.spec = spec
        self.chain = chain
        self._honest = honest
        self._veil = Veil(secrecy) if is_veiled(spec.codec_up) else None
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
                if self._closed is None and not self._unmasking:
                    self._turn_site(event.site, (Fate.LOST,), Fate.INVITED)
            case ev.StatementHeard() | ev.SumRefused() if self._veil is not None:
                self._veil.happened(event, self._closed)
            case ev.RunPaused():
                self._paused = True
            case ev.RunResumed():
                self._paused = False
                self._refusals.clear()

    def _damaged(self, event: ev.BlobDamaged) -> None:
        """The disk lost an update: nothing of it counts, until the site has sent it again. One that came late
        goes back into its site's residual, and a sum that was to hold it is wanted without it."""
        for account in self.orders.values():
            if account.blob != event.blob or account.versions or not account.outcome:
                continue
            if account.outcome == "late_next_round":
                site = account.order.site
                account.outcome = "late_residual"
                self._returned[site] = (*self._returned.get(site, ()), account.order.id)
                if self._closed is not None:
                    self._closed = checks.without(self._closed, account.order.id)
                    self.chain.compute(self._closed)
                continue
            if account.seated and account.fate is Fate.STORED:
                account.fate, account.outcome, account.blob = Fate.WORKING, "", ""
            self._reopen()

    def take_out(self, site: str, fate: Fate, why: str) -> None:
        """The site has left: nothing of it that no version counts may ever count, also by its residual.

        A sum that was to hold some of it is not wanted any more.
        """
        self._busy.pop(site, None)
        self._returned.pop(site, None)
        summed = {item.order for item in self._closed.contributions} if self._closed else set()
        summed |= set(self._veil.survivors or ()) if self._veil else set()
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
                self._reopen()

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
        closed = self._closed is not None or self._unmasking
        in_time = account.seated and account.fate in (*AT_WORK, Fate.LOST) and not closed
        late = {LatePolicy.NEXT_ROUND: "late_next_round", LatePolicy.RESIDUAL: "late_residual"}
        allowed = "stored" if in_time else late.get(self.spec.late, "nothing")
        demand(outcome == allowed, "I1", f"{order.id} was acknowledged as {outcome}, not {allowed}")
        if in_time:
            account.fate = Fate.STORED
        if self._veil is None:
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
        checks.continued(order, self._parents.get(order.site, ""), self._returned.get(order.site, ()))
        session = sessions.get(order.site)
        demand(session is not None, "I10", f"{where} to a site that is not attached")
        refused = self._refusals.get(order.site)
        demand(refused is None or refused != session, "I5", f"{where} though the site has refused")
        demand(not self._paused and not self.ended, "I5", f"{where} though the run is paused or over")
        demand(self._back.target is None, "I3", f"{where} while version {self._back.target} is restored")
        checks.model(order, self.chain.digests)
        self.orders[order.id] = Account(order)

    def opened(self, index: int, attempt: int, now_ms: int) -> None:
        """An attempt begins; who has left the last one has no seat any more."""
        if (index, attempt) <= self._round:
            return
        for account in self.orders.values():
            over = account.order.round < index or (self._veil is not None and index > 0)
            if over or account.fate not in KEPT:
                account.seated = False
        self._round = (index, attempt)
        self._opened_ms = now_ms
        self._unrecorded.add(self._round)
        self._new_attempt = True
        self._reopen()

    def complete(self, sessions: dict[str, str], enrolled: set[str]) -> None:
        """A step is over: an open attempt waits for somebody, a new one has a seat for all who are free."""
        self._back.pursued()
        if self.ended or self._closed or self._unmasking or self._round not in self._unrecorded:
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
        may_sit = self._veil.may_sit(self._round[0]) if self._veil else None
        missing = [s for s in free if s not in seats and (may_sit is None or s in may_sit)]
        demand(not missing, "I10", f"round {self._round} has no seat for {missing}")

    def in_time(self, now_ms: int, clear_ms: int) -> None:
        """I10 by true time: once faults are over, no attempt is open for longer than its deadline."""
        if self.ended or self._closed is not None or self._round not in self._unrecorded:
            return
        open_ms = now_ms - max(self._opened_ms, clear_ms + RECOVERY_MS)
        most_ms = self.spec.deadline_ms + SLACK_MS
        most_ms += 2 * self.spec.patience_ms if self._unmasking else 0
        demand(open_ms <= most_ms, "I10", f"round {self._round} is open for {open_ms} ms")

    def restore(self, effect: fx.Restore) -> None:
        """The way back is asked for: all that was under way, or would follow from it, is over."""
        self._back.begun(effect)
        self._reopen()
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
        checks.counted(effect, due)
        checks.quorum(self.spec, effect.round, fresh, seats, self._weights)
        self._closed = effect
        if self._veil is not None:
            self._veil.compute(effect, {name: self.orders[name].order for name in named}, self.chain)
            return
        for account in seats.values():
            if account.fate in AT_WORK:
                account.fate = Fate.LATE
                if self.spec.late is not LatePolicy.DROP and effect.round < self.spec.rounds:
                    self._busy[account.order.site] = account.order.id
        self.chain.compute(effect)

    def blobs_max(self) -> int:
        """Blobs that this run may need: the way to its newest version, updates, and uploads under way."""
        return 2 + 2 * self.spec.snapshot_every + 4 * len({a.order.site for a in self.orders.values()})

    # -- masked rounds ------------------------------------------------------------------------------

    @property
    def _unmasking(self) -> bool:
        """Whether a masked round is closed, and its masks are coming off."""
        return self._veil is not None and self._veil.survivors is not None

    def _reopen(self) -> None:
        """No sum is wanted any more."""
        self._closed = None
        if self._veil is not None:
            self._veil.survivors = None

    def called_off(self, effect: fx.Cancel, event: ev.Event) -> None:
        """An order is not wanted any more: a masked stage may go on without its site."""
        if self._veil is not None and self._veil.drops(effect, event):
            self._turn(effect.order, AT_WORK, Fate.FAILED)

    def spoken(self, effect: fx.Speak) -> None:
        """A masked round asks for the next word."""
        assert self._veil is not None, "only masked rounds have documents"
        self._veil.spoken(effect, [account for account in self.orders.values() if account.seated])

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
        last = record.index > self.spec.rounds and not self.ended and self._back.target is None
        for site, account in seats.items():
            fate = Fate.LATE if last and account.fate in AT_WORK else account.fate
            checks.seat(where, site, record.seats[site], fate)
            if self._veil is not None and record.version is None and account.order.kind is OrderKind.TRAIN:
                account.barred = account.barred or "in a session that was given up"
        if record.version is None:
            self._reopen()

    def _count(self, record: RoundRecord, event: ev.Event) -> None:
        """A version was published: each update in it is now used up."""
        event = checks.published(record, event, self._closed)
        assert record.version is not None, "asked of versions"
        self.chain.publish(record.version, event.model_digest, event.delta)
        if event.snapshot:
            self._back.snapshot(record.version)
        for name in record.counted:
            self.orders[name].versions.append(record.version)
            if self._veil is not None:
                self._parents[self.orders[name].order.site] = name
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
        checks.used(self.orders)
