"""I4 by the auditor's own account: whatever a trainer begins is paid for, durably, and within the budget.

It hears when an execution begins, and looks at nothing but the rows that the site's disk would still hold
after a loss of power at that moment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from fedtrain.core.charges import CLOSED, Charge
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import RunSpec
from fedtrain.sim.prices import STEPS_PER_EPSILON, Prices
from fedtrain.sim.violation import demand

Execution = tuple[str, int]


class Expenses:
    """Of one world.

    Attributes:
        begun: site -> steps of each execution that its trainer has begun.
    """

    def __init__(self, prices: Prices | None) -> None:
        self.begun: dict[str, dict[Execution, int]] = {}
        self._prices = prices
        self._steps: dict[str, int] = {}
        self._ledgers: dict[str, Callable[[], Sequence[Charge]]] = {}
        self._old: set[str] = set()

    def watch(self, site: str, durable: Callable[[], Sequence[Charge]]) -> None:
        """From now on this is how the site's ledger is read: only what no crash takes."""
        self._ledgers[site] = durable

    def begins(self, site: str, order: Order, execution: int | None) -> None:
        """A trainer starts to work on this order."""
        if order.kind is not OrderKind.TRAIN or not costs(order.task):
            return
        begun = self.begun.setdefault(site, {})
        demand(execution is not None, "I4", f"{site} works on {order.id} without a permit")
        assert execution is not None, "demanded above"
        about, rows = (order.id, execution), self._ledgers[site]()
        paid = [
            row for row in rows if (row.order, row.execution) == about and row.mechanism.steps == order.steps
        ]
        demand(len(paid) == 1, "I4", f"{site} begins execution {execution} of {order.id} unpaid")
        closed = _is_closed(rows)
        demand(closed or about not in begun, "I4", f"{site} begins execution {execution} of {order.id} twice")
        begun[about] = order.steps
        self._steps[site] = self._steps.get(site, 0) + order.steps
        self._has_all(site, rows)
        self._within(site, closed, sum(row.mechanism.steps for row in rows))

    def restarted(self, site: str) -> None:
        """The site starts again: no crash has taken a row that was paid with."""
        if site not in self._old:
            self._has_all(site, self._ledgers[site]())

    def close(self) -> None:
        """The world is over."""
        for site in self._ledgers:
            self.restarted(site)

    def _has_all(self, site: str, rows: Sequence[Charge]) -> None:
        """The ledger never counts less than what was begun, unless it is written off."""
        if _is_closed(rows):
            return
        held = {(row.order, row.execution) for row in rows}
        lacking = sorted(set(self.begun.get(site, {})) - held)
        demand(not lacking, "I4", f"the ledger of {site} does not hold {lacking}")

    def _within(self, site: str, closed: bool, charged: int) -> None:
        """The budget holds what was begun, by this account and by the ledger's."""
        budget = self._prices.budgets.get(site) if self._prices else None
        if budget is None:
            return
        demand(not closed, "I4", f"{site} works on with a budget that is written off")
        spent = max(self._steps[site], charged)
        demand(spent <= budget * STEPS_PER_EPSILON, "I4", f"{site} has spent {spent} steps of its {budget:g}")

    # -- what people know ---------------------------------------------------------------------------

    def ages(self, site: str, is_old: bool) -> None:
        """The ledger's file is an old copy, or is so no longer."""
        (self._old.add if is_old else self._old.discard)(site)

    def is_old(self, site: str) -> bool:
        """Whether an old copy lies there."""
        return site in self._old

    def starved(self, spec: RunSpec) -> bool:
        """Whether too few of the sites that always come back have budget left for one more execution."""
        if self._prices is None:
            return False
        here = set(self._prices.needed) & set(self._ledgers)
        able = [site for site in here if self._can_pay(site, spec.steps)]
        return len(able) < max(spec.minimum, spec.quorum, self._prices.shared_by)

    def _can_pay(self, site: str, steps: int) -> bool:
        budget = self._prices.budgets.get(site) if self._prices else None
        rows = self._ledgers[site]()
        if budget is None:
            return True
        spent = sum(row.mechanism.steps for row in rows)
        return not _is_closed(rows) and spent + steps <= budget * STEPS_PER_EPSILON


def costs(task: str) -> bool:
    """Whether a run of this task section promises privacy of records; read here by its own reader."""
    return "record" in json.loads(task).get("terms", {}).get("privacy", {})


def _is_closed(rows: Sequence[Charge]) -> bool:
    return any(row.mechanism.kind == CLOSED for row in rows)
