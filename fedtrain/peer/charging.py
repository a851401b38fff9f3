"""The site's privacy ledger in the agent's hands: reckon, charge, then permit.

Before an order is judged its cost is reckoned from the ledger; before it reaches a trainer it is charged,
durably, and only then a permit is made. What is charged stays charged: a crash behind the charge costs it,
and every further execution is a charge of its own. Bytes that lie in the outbox are sent again for nothing.

A ledger that was put back to an older copy would make spent privacy look unspent. So the agent's journal
keeps the ledger's head with every charge, and the coordinator the last one that this site signed; where the
ledger does not hold such a row, no order that costs privacy is taken until `fedtrain ledger repair` has
written off what cannot be known.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fedtrain.core.agent import AgentEvent, AgentState, ChargeMade, PrivacyReckoned, Stage
from fedtrain.core.agent_state import Reckoned
from fedtrain.core.budget import Spending, budget_reasons, is_charged, promise_reasons
from fedtrain.core.charges import Account, Permit, sampling_rate
from fedtrain.core.orders import Order
from fedtrain.core.terms import Asked, read_asked
from fedtrain.errors import BadOrder, FedtrainError, RefusedError
from fedtrain.methods.accounting import CLOSED, solve_noise
from fedtrain.peer import spending
from fedtrain.peer.clock import now_ms
from fedtrain.peer.counting import count_units
from fedtrain.peer.jobs import in_thread
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.ledger import Head, Ledger

_log = logging.getLogger("fedtrain.peer")

FILE = "ledger.sqlite"


class Owner(Protocol):
    """What charging needs of its agent."""

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""

    def has_charged(self, order: Order) -> None:
        """An execution of this order is charged for."""


class Charging:
    """Keeps the ledger.

    Args:
        stopping: set when the agent stops, so that no wait for a trainer outlives it.

    Attributes:
        reckoning: orders whose cost is being worked out, which takes up to a minute on a busy machine.
    """

    def __init__(
        self, owner: Owner, settings: AgentSettings, consortium: str, stopping: threading.Event
    ) -> None:
        self._owner = owner
        self._settings = settings
        self._consortium = consortium
        self._stopping = stopping
        self.reckoning: set[str] = set()
        self._one_at_a_time = asyncio.Lock()
        self._ledger: Ledger | None = None
        self._missing: dict[tuple[int, str], str] = {}
        self._told: list[tuple[int, str]] = []

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self._settings.ledger or self._settings.state / FILE

    def concerns(self, order: Order) -> bool:
        """Whether this order cannot be judged without the ledger."""
        asked = read_asked(order.task)
        return not asked.fault and bool(asked.privacy.units)

    async def spending(self, order: Order) -> Spending | None:
        """What the order would cost; None for one that promises no privacy by noise."""
        if not self.concerns(order):
            return None
        asked, state = read_asked(order.task), self._owner.state
        try:
            return await in_thread(self._spending, order, asked, state)
        except FedtrainError as error:
            return Spending(fault=f"the privacy ledger cannot be used: {error}")

    async def permit(self, order: Order) -> Permit | None:
        """Charge for one execution; the permit that goes to the trainer, None where none is needed.

        Raises `RefusedError` where the contract or a budget has no room for it, `ConfigError` where the
        trainer cannot count, `UnreachableError` where there is none, `StorageError` where nothing can be
        made durable.
        """
        asked = read_asked(order.task)
        if not is_charged(order, asked):
            return None
        found = await self._reckoned(order, asked)
        async with self._one_at_a_time:
            held = self._owner.state.held.get(order.id)
            if held is None or held.stage is not Stage.WORKING:
                raise BadOrder(f"{order.id} is not to be worked on any more")
            state = self._owner.state
            self.reckoning.add(order.id)
            try:
                permit, head = await in_thread(self._charge, order, asked, found, state)
            finally:
                self.reckoning.discard(order.id)
            self._owner.submit(
                ChargeMade(
                    now_ms(), order.id, permit.execution, head.sequence, head.hash, tuple(self._missing)
                )
            )
        _log.info("%s: execution %d is charged for, ledger row %d", order.id, permit.execution, head.sequence)
        self._owner.has_charged(order)
        return permit

    async def account(self, order: Order, execution: int, within: float | None) -> Account:
        """What the run has cost at this site, for the coordinator to keep."""
        return await in_thread(self._account, order, execution, within)

    def told(self, sequence: int, row_hash: str) -> None:
        """What this site has signed before, by the coordinator's copy; looked at with the next order."""
        self._told.append((sequence, row_hash))

    # -- in a thread ------------------------------------------------------------------------------

    def _spending(self, order: Order, asked: Asked, state: AgentState) -> Spending:
        ledger = self._open(state)
        if fault := self._rolled_back(ledger, asked.dataset):
            return Spending(fault=fault)
        return spending.spending(
            ledger.spending(asked.dataset),
            state.contract,
            order,
            asked,
            self._consortium,
            spending.reckoned(state, order.run, asked),
        )

    def _charge(
        self, order: Order, asked: Asked, found: Reckoned | None, state: AgentState
    ) -> tuple[Permit, Head]:
        """Look once more, then write. Another agent may write to the same ledger between the two."""
        ledger = self._open(state)
        before = self._held_against(ledger, order, asked, found, state)
        past = ledger.spending(asked.dataset)
        mine = [
            charge.execution
            for charge in past
            if (charge.consortium, charge.order) == (self._consortium, order.id)
        ]
        permit = spending.permit_of(order, asked, found)
        assert permit is not None, "its noise is reckoned"
        execution = max((state.held[order.id].execution, *mine)) + 1
        permit = _executed(permit, execution, 0)
        rows = spending.charges_of(permit, order, self._consortium, asked.dataset)
        head = ledger.charge(rows)
        if head.sequence != before + len(rows):
            # Others have charged meanwhile. What is written stays written, and is not worked on.
            self._check_total(ledger, order, asked, state)
        return _executed(permit, execution, head.sequence), head

    def _held_against(
        self, ledger: Ledger, order: Order, asked: Asked, found: Reckoned | None, state: AgentState
    ) -> int:
        """The ledger's head, if there is room behind it for this order; else `RefusedError`."""
        sequence = ledger.head.sequence
        if fault := self._rolled_back(ledger, asked.dataset):
            raise RefusedError(fault)
        cost = spending.spending(
            ledger.spending(asked.dataset), state.contract, order, asked, self._consortium, found
        )
        contract = state.contract
        reasons = [
            *promise_reasons(contract.require, order, asked, cost),
            *budget_reasons(contract.budgets.get(asked.dataset), order, asked, cost, begun=False),
        ]
        if reasons:
            raise RefusedError("; ".join(dict.fromkeys(reasons)))
        return sequence

    def _check_total(self, ledger: Ledger, order: Order, asked: Asked, state: AgentState) -> None:
        budget = state.contract.budgets.get(asked.dataset)
        if budget is None:
            return
        past = ledger.spending(asked.dataset)
        total = spending.total(past, budget)
        if total > budget.epsilon_max:
            raise RefusedError(
                f"datasets.{asked.dataset}.privacy.epsilon_max is {budget.epsilon_max:g}: another agent of"
                f" this site has charged at the same moment, and {total:.4g} are spent; this charge is lost"
            )

    def _account(self, order: Order, execution: int, within: float | None) -> Account:
        ledger = self._open(self._owner.state)
        asked = read_asked(order.task)
        past = [
            charge
            for charge in ledger.spending(asked.dataset)
            if (charge.consortium, charge.run) == (self._consortium, order.run)
        ]
        told = spending.account(past, asked, order, execution, within)
        head = ledger.head
        return replace(told, sequence=head.sequence, hash=head.hash)

    def close(self) -> None:
        """Give the ledger's file up."""
        if self._ledger is not None:
            self._ledger.close()

    def _open(self, state: AgentState) -> Ledger:
        """The ledger, held against what this agent and the coordinator know of it."""
        known: list[tuple[tuple[int, str], str]] = []
        if self._ledger is None:
            self._ledger = Ledger(self.path)
            heads = ((state.ledger.sequence, state.ledger.hash), *state.missing)
            known += [(head, "this agent's journal") for head in heads if head[0]]
        told, self._told = self._told, []
        known += [(head, "the coordinator") for head in told]
        for head, who in known:
            if not self._ledger.holds(*head):
                self._missing.setdefault(head, who)
        return self._ledger

    def _rolled_back(self, ledger: Ledger, dataset: str) -> str:
        """Why nobody knows what this data set has spent; "" if the ledger is whole, or it was written off."""
        if not self._missing or any(row.mechanism.kind == CLOSED for row in ledger.spending(dataset)):
            return ""
        (sequence, row_hash), who = next(iter(self._missing.items()))
        return (
            f"the privacy ledger {self.path} was rolled back: {who} knows of row {sequence}"
            f" ({row_hash[:12]}), which it does not hold. Put its newest copy back and start the agent again,"
            " or write off what is unknown with `fedtrain ledger repair`"
        )

    async def _reckoned(self, order: Order, asked: Asked) -> Reckoned | None:
        """The run's noise and units here, found once; None where no record-level privacy is promised."""
        record = asked.record
        if record is None:
            return None
        known = spending.reckoned(self._owner.state, order.run, asked)
        if known is not None:
            return known
        units = 0
        if record.sampling_rate is None:
            _log.info("%s: the units (%s) of the data set are being counted", order.id, record.unit)
            units = await in_thread(count_units, self._settings, order.task, record.unit, self._stopping)
        rate = sampling_rate(record, asked.batch_size, units)
        self.reckoning.add(order.id)
        try:
            noise = await in_thread(
                solve_noise, record.epsilon, record.delta, rate, record.steps_total, record.accountant
            )
        finally:
            self.reckoning.discard(order.id)
        event = PrivacyReckoned(now_ms(), order.run, spending.promise(asked), units, noise)
        self._owner.submit(event)
        _log.info(
            "%s: noise multiplier %g for epsilon %g per %s at delta %g (rate %g, %d steps)",
            order.run, noise, record.epsilon, record.unit, record.delta, rate, record.steps_total,
        )  # fmt: skip
        return Reckoned(event.terms, units, noise)


def _executed(permit: Permit, execution: int, sequence: int) -> Permit:
    return replace(permit, execution=execution, ledger_sequence=sequence)
