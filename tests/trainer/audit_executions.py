"""The ledger held against the work: was every execution of a private order charged, by itself and before?

An execution is a trainer's claim of an order. It is witnessed at the mailbox, by whoever watches the
folder, so it does not depend on what the agent says of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedtrain.core.charges import Permit
from fedtrain.storage.ledger import LedgerRow


@dataclass(frozen=True)
class Execution:
    """One claim: which order, with which permit (None for none), when the ledger had so many rows."""

    order: str
    permit: Permit | None
    rows_before: int


def uncharged(executions: Sequence[Execution], rows: Sequence[LedgerRow]) -> list[str]:
    """What is wrong, a sentence each; empty if each execution has a charge of its own."""
    charged = {(row.charge.order, row.charge.execution): row for row in rows}
    spent: set[tuple[str, int]] = set()
    faults = []
    for execution in executions:
        permit = execution.permit
        if permit is None:
            faults.append(f"{execution.order} was worked on without a permit")
            continue
        place = (execution.order, permit.execution)
        row = charged.get(place)
        if row is None:
            faults.append(f"{execution.order}: execution {permit.execution} is not in the ledger")
        elif row.sequence > execution.rows_before:
            faults.append(f"{execution.order}: execution {permit.execution} was charged after it began")
        elif row.charge.mechanism != permit.record:
            faults.append(f"{execution.order}: another mechanism was charged than permitted")
        if place in spent:
            faults.append(f"{execution.order}: two executions with the charge of one")
        spent.add(place)
    return faults
