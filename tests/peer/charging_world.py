"""What tests of the privacy ledger at the agent share: a private run, and a data set with a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from peer_world import Site, Versions, an_order

from fedtrain.core.contract import Budget, Contract, Rights
from fedtrain.core.orders import Order
from fedtrain.core.privacy import PrivacyTerms, RecordTerms, plain
from fedtrain.methods.accounting import Bound, epsilon_rdp
from fedtrain.storage.ledger import Ledger

RECORD = RecordTerms(8.0, 1e-5, 1.0, steps_total=50, accountant="rdp", sampling_rate=0.1)
PRIVATE = PrivacyTerms(RECORD)
RIGHTS = Rights(discoverable=False, execute=("synthetic",))


def private(versions: Versions, round_index: int = 1, terms: PrivacyTerms = PRIVATE, **changes: Any) -> Order:
    """An order of a private run on the site's data set."""
    task = {
        "name": "synthetic",
        "data": "corpus",
        "training": {"batch_size": 8},
        "terms": {"privacy": plain(terms)},
    }
    model = versions.ref(min(round_index, 2) - 1)
    return an_order(round_index, model=model, task=json.dumps(task), **changes)


def with_budget(site: Site, epsilon_max: float | None, unit: str = "record") -> Site:
    """The site's contract, with the data set and its lifetime budget."""
    budgets = {"corpus": Budget(unit, epsilon_max, 1e-5)} if epsilon_max is not None else {}
    contract = Contract(("lib*",), ("synthetic",), 2, {"corpus": RIGHTS}, budgets=budgets)
    site.settings = replace(site.settings, contract=contract)
    return site


def rows(site: Site) -> list[Any]:
    with Ledger(site.settings.state / "ledger.sqlite", writer=False) as ledger:
        return list(ledger.rows())


def executions(site: Site) -> list[tuple[str, int]]:
    return [(row.charge.order, row.charge.execution) for row in rows(site)]


def by_rdp(composition: Any, delta: float, limit_s: float) -> Bound:
    """In place of the tight accountant, which has tests of its own and takes seconds."""
    return Bound(epsilon_rdp(composition, delta), "rdp", "not asked")
