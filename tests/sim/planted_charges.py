"""Faults to be planted where privacy is paid for: in a site's shell, its trainer, and the judgement."""

from __future__ import annotations

from planted_faults import Mutation

from fedtrain.sim.plan import PRIVATE

CHARGES = (
    Mutation(
        "post before the charge",
        "sim/purse.py",
        "        _reach(Point.UNWRITTEN, dies_at)\n",
        "        owner.trainer.post(order, Permit(order.id, execution, record=mechanism))\n",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "begin again without another charge",
        "sim/trainer.py",
        "        elif job.permit is None:\n",
        "        elif job.deaths:\n",
        "tests/sim/test_sim_charges.py::test_rare_troubles",
    ),
    Mutation(
        "pay once for all executions of an order",
        "sim/purse.py",
        "        execution = max((held.execution, *mine)) + 1\n",
        "        execution = 1\n",
        seed=PRIVATE + 33,
    ),
    Mutation(
        "charge without a sync",
        "sim/purse.py",
        """            raise StorageError("the ledger's sync failed")
        self.file.sync()
""",
        """            raise StorageError("the ledger's sync failed")
        # and nobody waits
""",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "work on after a ledger that refuses",
        "sim/purse.py",
        """            raise StorageError("the ledger's sync failed")
        self.file.sync()
""",
        """            return
        self.file.sync()
""",
        "tests/sim/test_sim_charges.py::test_rare_troubles",
    ),
    Mutation(
        "look at the budget once for each order",
        "sim/purse.py",
        "            *budget_reasons(budget, order, asked, cost, begun=False),\n",
        "            *budget_reasons(budget, order, asked, cost, begun=True)[:0],\n",
        "tests/sim/test_sim_charges.py::test_rare_troubles",
    ),
    Mutation(
        "let the last execution exceed the budget",
        "core/budget.py",
        "    if after is not None and after > most:\n",
        "    if after is not None and spent > most:\n",
        seed=PRIVATE + 35,
    ),
    Mutation(
        "start with any ledger",
        "sim/purse.py",
        "        self._missing = {head: None for head in heads if head[0] and not self.file.holds(*head)}\n",
        "        self._missing = {}\n",
        seed=PRIVATE + 1,
    ),
    Mutation(
        "forget the ledger's head",
        "core/agent.py",
        "    state = replace(state, ledger=LedgerHead(event.sequence, event.hash), missing=missing)\n",
        "    state = replace(state, missing=missing)\n",
        seed=PRIVATE + 1,
    ),
)
