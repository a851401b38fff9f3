"""What privacy may cost: a run's promises and a data set's budget, held against numbers of the ledger.

Pure. The numbers are reckoned outside, from the ledger's rows and by the accountants, and come along with
the event that is judged (`Spending`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core.contract import Budget, Require
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.privacy import SITE_UNIT
from fedtrain.core.terms import Asked

SERVED_BY = {
    "record": ("record", SITE_UNIT),
    "group": ("group", SITE_UNIT),
    SITE_UNIT: (SITE_UNIT,),
}
"""Budget's unit -> units of the mechanisms that bound what it loses (`charges.serving` says how)."""


@dataclass(frozen=True)
class Spending:
    """What an order costs, by the ledger.

    Attributes:
        unit, delta: of the data set's budget; "" where there is none.
        spent, after: epsilon of the data set's lifetime so far, and with this order; `after` is None while
            its units are not counted, and reckoned again before the charge.
        run_unit, run_delta: as the run promises.
        run_spent, run_after: of this run alone.
        promised: of the whole run, if nothing is repeated.
        fault: why none of this can be relied on, "" if it can.
    """

    unit: str = ""
    delta: float = 0.0
    spent: float = 0.0
    after: float | None = None
    run_unit: str = ""
    run_delta: float = 0.0
    run_spent: float = 0.0
    run_after: float | None = None
    promised: float = 0.0
    fault: str = ""


def is_charged(order: Order, asked: Asked) -> bool:
    """Whether the work on this order costs privacy: only training does."""
    return order.kind is OrderKind.TRAIN and bool(asked.privacy.units)


def promise_reasons(require: Require, order: Order, asked: Asked, spending: Spending | None) -> list[str]:
    """What the site demands of a run, and the run does not promise or keep."""
    reasons = []
    units = asked.privacy.units
    if require.masked and asked.masked is None:
        reasons.append("contract.require.masked is true, and this order asks for a plain update")
    if require.epsilon_max is not None:
        reasons += _epsilon_reasons(require.epsilon_max, asked, spending)
    if require.unit and require.unit not in units:
        found = " and ".join(units) or "not stated"
        reasons.append(f"contract.require.unit is {require.unit}, this run's is {found}")
    record = asked.record
    if record is not None and record.sampling_rate is None and not asked.batch_size:
        reasons.append(
            "the order promises privacy of records, and states neither terms.privacy.record.sampling_rate "
            "nor training.batch_size"
        )
    if record is not None and order.steps > record.steps_total:
        reasons.append(
            f"the order asks for {order.steps} steps, and the run promises its epsilon for "
            f"{record.steps_total} in all"
        )
    if units and spending is not None and spending.fault:
        reasons.append(spending.fault)
    return reasons


def _epsilon_reasons(epsilon_max: float, asked: Asked, spending: Spending | None) -> list[str]:
    """The run's own epsilon: as promised, and as charged so far."""
    clause = f"contract.require.epsilon_max is {epsilon_max:g}"
    if not asked.privacy.units:
        return [f"{clause}, and this run promises no epsilon"]
    if asked.record is not None and asked.record.epsilon > epsilon_max:
        return [f"{clause}, this run's is {asked.record.epsilon:g} per {asked.record.unit}"]
    if spending is None or spending.fault:
        return []
    told = f"per {spending.run_unit} at delta {spending.run_delta:g}"
    if asked.record is None and spending.promised > epsilon_max:
        return [f"{clause}, this run's is {_number(spending.promised)} {told}"]
    return _over(clause, epsilon_max, spending.run_spent, spending.run_after, f"{told} in this run")


def budget_reasons(
    budget: Budget | None, order: Order, asked: Asked, spending: Spending | None, begun: bool
) -> list[str]:
    """The data set's budget. `begun`: the order was accepted before, and the charge looks again."""
    if budget is None:
        return []
    name = f"datasets.{asked.dataset}.privacy"
    if not set(asked.privacy.units) & set(SERVED_BY[budget.unit]):
        found = f"promises it for unit {asked.record.unit}" if asked.record else "promises no such privacy"
        return [f"{name}: a budget is kept for unit {budget.unit}, and this order {found}"]
    if spending is None or not spending.unit:
        if begun or order.kind is OrderKind.EVALUATE:
            return []
        return [f"{name}: what this order costs could not be reckoned"]
    if spending.fault or order.kind is OrderKind.EVALUATE:
        return []
    told = f"per {budget.unit} at delta {budget.delta:g}"
    clause = f"{name}.epsilon_max is {budget.epsilon_max:g}"
    return _over(clause, budget.epsilon_max, spending.spent, spending.after, told)


def _over(clause: str, most: float, spent: float, after: float | None, told: str) -> list[str]:
    left = max(0.0, most - spent)
    if after is not None and after > most:
        return [
            f"{clause}: {_number(spent)} are spent, this order needs {_number(after - spent)}, "
            f"{_number(left)} are left ({told})"
        ]
    if spent >= most:
        return [f"{clause}: {_number(spent)} are spent, nothing is left ({told})"]
    return []


def _number(value: float) -> str:
    return f"{value:.4g}"
