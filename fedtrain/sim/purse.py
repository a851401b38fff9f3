"""A site's privacy ledger on its disk, and the shell's part: reckon, charge, note, and only then post.

A row is durable once it is synced. A killed process leaves what it has written to chance, as an open
transaction does; a loss of power takes all that is not synced.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedtrain.core import agent, canonical
from fedtrain.core.budget import Spending, budget_reasons, is_charged, promise_reasons
from fedtrain.core.charges import CLOSED, Charge, Mechanism, Permit, record_mechanism, sampling_rate
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.terms import Asked, read_asked
from fedtrain.errors import StorageError
from fedtrain.sim.disk import Trouble
from fedtrain.sim.numbers import digest_of
from fedtrain.sim.plan import DATASET
from fedtrain.sim.prices import DELTA, STEPS_PER_EPSILON
from fedtrain.sim.process import Crashed, Place

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

NOISE = 1.0
"""Every run's noise multiplier: a stand-in, as epsilon is."""

CONSORTIUM = "sim"

TROUBLE = 10
"""So many times as often as a journal a ledger finds its disk in trouble, being written less often."""


class Point(enum.StrEnum):
    """Where in a charge the agent dies."""

    UNWRITTEN = "before the charge"
    WRITTEN = "between a charge and its sync"
    SYNCED = "between a charge and its event"
    NOTED = "between a charge's event and the post"
    POSTED = "behind the post"


@dataclass(frozen=True)
class Row:
    """One charge, and the hash over it and everything before it."""

    charge: Charge
    hash: str


class LedgerFile:
    """Rows in order; of them the first `durable` are synced."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.durable = 0

    @property
    def head(self) -> tuple[int, str]:
        """Sequence and hash of the newest row."""
        return len(self.rows), self.rows[-1].hash if self.rows else ""

    def append(self, charge: Charge) -> None:
        """Write one row; it is not durable yet."""
        text = self.head[1].encode() + canonical.encode(charge)
        self.rows.append(Row(charge, digest_of(text)))

    def sync(self) -> None:
        """What is written is durable."""
        self.durable = len(self.rows)

    def lose_tail(self) -> None:
        """What is not durable is gone."""
        del self.rows[self.durable :]

    def holds(self, sequence: int, row_hash: str) -> bool:
        """Whether this row is here."""
        return 0 < sequence <= len(self.rows) and self.rows[sequence - 1].hash == row_hash

    def put(self, rows: list[Row]) -> None:
        """Another copy takes this file's place."""
        self.rows, self.durable = list(rows), len(rows)


class Purse:
    """Of one site; the file outlives the agent's lives."""

    def __init__(self, owner: Site) -> None:
        self.file = LedgerFile()
        self._owner = owner
        self._charging: set[str] = set()
        self._missing: dict[tuple[int, str], None] = {}
        owner.auditor.expenses.watch(owner.name, lambda: self.durable)

    def wake(self) -> None:
        """At a start: what an open transaction left, and whether all is here that the journal knows."""
        owner = self._owner
        self._charging = set()
        if self.file.durable < len(self.file.rows):
            if owner.scene.chance.stream("open transaction", owner.name).random() < 0.5:
                self.file.sync()
            else:
                self.file.lose_tail()
        state = owner.state
        heads = ((state.ledger.sequence, state.ledger.hash), *state.missing)
        self._missing = {head: None for head in heads if head[0] and not self.file.holds(*head)}
        owner.auditor.expenses.restarted(owner.name)

    @property
    def durable(self) -> tuple[Charge, ...]:
        """The charges that no crash takes."""
        return tuple(row.charge for row in self.file.rows[: self.file.durable])

    def spending(self, order: Order) -> Spending | None:
        """What the order would cost; None for one that promises no privacy by noise."""
        asked = read_asked(order.task)
        if asked.fault or not asked.privacy.units:
            return None
        if fault := self._rolled_back():
            return Spending(fault=fault)
        trains = order.kind is OrderKind.TRAIN or (order.kind is OrderKind.SEED and order.steps > 0)
        coming = order.steps if trains else 0
        charges = [row.charge for row in self.file.rows]
        spent, of_run = _steps(charges), _steps([found for found in charges if found.run == order.run])
        budget = self._owner.state.contract.budgets.get(asked.dataset)
        closed = budget is not None and any(found.mechanism.kind == CLOSED for found in charges)
        return Spending(
            unit=budget.unit if budget else "",
            delta=budget.delta if budget else 0.0,
            spent=_epsilon(spent),
            after=_epsilon(spent + coming),
            run_unit="record",
            run_delta=DELTA,
            run_spent=_epsilon(of_run),
            run_after=_epsilon(of_run + coming),
            promised=asked.record.epsilon if asked.record else 0.0,
            fault="the ledger was repaired, so nothing is left" if closed else "",
        )

    def post(self, order: Order) -> None:
        """To the trainer, charged for first where it costs; what lies in the mailbox lies there already."""
        owner = self._owner
        if not is_charged(order, read_asked(order.task)) or owner.trainer.has(order.id):
            owner.trainer.post(order)
        elif order.id not in self._charging:
            self._charging.add(order.id)
            delay_ms = owner.scene.chance.stream("charge", owner.name).randint(1, 300)
            owner.later(delay_ms, lambda: self._pay(order))

    def _pay(self, order: Order) -> None:
        """Look once more, write, note, post. An order that is over meanwhile costs nothing."""
        owner, asked = self._owner, read_asked(order.task)
        self._charging.discard(order.id)
        held = owner.held.get(order.id)
        if held is None or held.order != order or held.stage is not agent.Stage.WORKING:
            return
        self._reckon(order, asked)
        reasons = self._reasons(order, asked)
        if reasons:
            self._give_up(order, "; ".join(reasons))
        else:
            self._charge(order, asked, held)

    def _give_up(self, order: Order, reason: str) -> None:
        self._owner.submit(agent.WorkAbandoned(self._owner.now_ms, order.id, reason))

    def _reasons(self, order: Order, asked: Asked) -> list[str]:
        """Why there is no room for it."""
        contract, cost = self._owner.state.contract, self.spending(order)
        budget = contract.budgets.get(asked.dataset)
        return [
            *promise_reasons(contract.require, order, asked, cost),
            *budget_reasons(budget, order, asked, cost, begun=False),
        ]

    def _reckon(self, order: Order, asked: Asked) -> None:
        """The run's noise, found once."""
        owner = self._owner
        terms = canonical.digest((asked.record, asked.batch_size, asked.dataset))
        known = owner.state.reckoned.get(order.run)
        if known is None or known.terms != terms:
            owner.submit(agent.PrivacyReckoned(owner.now_ms, order.run, terms, 0, NOISE))

    def _charge(self, order: Order, asked: Asked, held: agent.Held) -> None:
        """One more execution, durable before anything knows of it."""
        owner, record = self._owner, asked.record
        assert record is not None, "only such orders cost here"
        dies_at = self._dies_at(order)
        mine = [row.charge.execution for row in self.file.rows if row.charge.order == order.id]
        execution = max((held.execution, *mine)) + 1
        rate = sampling_rate(record, asked.batch_size, 0)
        mechanism = record_mechanism(record, rate, NOISE, order.steps)
        _reach(Point.UNWRITTEN, dies_at)
        charge = Charge(order.id, execution, order.run, CONSORTIUM, asked.dataset, mechanism)
        try:
            self._write(charge, dies_at)
        except StorageError as error:  # of the ledger; one of the journal ends this life
            self._give_up(order, f"the privacy ledger cannot be used: {error}")
            return
        sequence, row_hash = self.file.head
        _reach(Point.SYNCED, dies_at)
        owner.fuse.reach(Place.BEFORE_ROW)
        made = (order.id, execution, sequence, row_hash, tuple(self._missing))
        owner.submit(agent.ChargeMade(owner.now_ms, *made))
        _reach(Point.NOTED, dies_at)
        permit = Permit(order.id, execution, record=mechanism, ledger_sequence=sequence)
        owner.trainer.post(order, permit)
        _reach(Point.POSTED, dies_at)

    def _write(self, charge: Charge, dies_at: Point | None) -> None:
        """Append and sync; `StorageError` where the disk refuses, and then nobody knows what it holds."""
        owner, rates = self._owner, self._owner.scene.plan.rates
        if owner.scene.strikes(TROUBLE * rates.journal_full, "ledger finds no space", owner.name):
            raise StorageError(Trouble.FULL.value)
        self.file.append(charge)
        _reach(Point.WRITTEN, dies_at)
        if how := owner.scene.strikes(TROUBLE * rates.sync_fails, "ledger's sync fails", owner.name):
            if how.random() < 0.5:
                self.file.sync()
            else:
                self.file.lose_tail()
            raise StorageError("the ledger's sync failed")
        self.file.sync()

    def _dies_at(self, order: Order) -> Point | None:
        """Whether the agent dies amid this charge, and where; perhaps with its whole machine."""
        owner, prices = self._owner, self._owner.scene.plan.prices
        how = owner.scene.strikes(prices.crash if prices else 0.0, "crash amid a charge", order.id)
        return how.choice(tuple(Point)) if how else None

    def _rolled_back(self) -> str:
        """Why nobody knows what was spent; "" if the ledger is whole, or it was written off."""
        if not self._missing or any(row.charge.mechanism.kind == CLOSED for row in self.file.rows):
            return ""
        return f"the privacy ledger was rolled back: row {next(iter(self._missing))[0]} is not in it"

    # -- what befalls the file ----------------------------------------------------------------------

    def threaten(self) -> None:
        """Somebody puts an old copy back now and then, until faults are over."""
        scene, name, prices = self._owner.scene, self._owner.name, self._owner.scene.plan.prices
        if prices is not None:
            scene.recur(prices.roll_back_gap_ms, "ledger rolled back", name, self._roll_back)

    def _roll_back(self, how: random.Random) -> None:
        """The agent starts again with it. Later its owner finds the newest copy, or writes it off."""
        owner, newest = self._owner, list(self.file.rows[: self.file.durable])
        expenses = owner.auditor.expenses
        if not newest or expenses.is_old(owner.name):
            return
        kept = how.randint(0, len(newest) - 1)
        self.file.put(newest[:kept])
        expenses.ages(owner.name, True)
        owner.scene.note(owner.name, "disk", f"the ledger has {kept} of its {len(newest)} rows again")
        if owner.up:
            owner.crash("and its ledger is an old copy")
        writes_off = how.random() < 0.25
        owner.scene.clock.after(how.randint(2_000, 25_000), lambda: self._mend(newest, kept, writes_off))

    def _mend(self, newest: list[Row], kept: int, writes_off: bool) -> None:
        """What a person does about it, which takes a restart of the agent."""
        owner, file = self._owner, self.file
        if writes_off:
            file.append(Charge("", 0, "", CONSORTIUM, DATASET, Mechanism(CLOSED, "record", 0.0, 0.0)))
            file.sync()
        elif len(file.rows) == kept:
            file.put(newest)  # else nobody had been told of what was lost, and others were charged since
        owner.scene.note(owner.name, "disk", "the ledger is " + ("written off" if writes_off else "back"))
        owner.auditor.expenses.ages(owner.name, False)
        if owner.up:
            owner.restart(500)


def _reach(point: Point, dies_at: Point | None) -> None:
    if point is dies_at:
        raise Crashed(point.value)


def _steps(charges: list[Charge]) -> int:
    return sum(charge.mechanism.steps for charge in charges if charge.mechanism.kind != CLOSED)


def _epsilon(steps: int) -> float:
    return steps / STEPS_PER_EPSILON
