"""Charges against executions, over a real mailbox and a real ledger, with trainers that die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audit_executions import Execution, uncharged

from fedtrain.core.charges import Charge, Mechanism, Permit
from fedtrain.core.orders import Order
from fedtrain.errors import RefusedError
from fedtrain.storage.ledger import Ledger
from fedtrain.storage.mailbox import Claim, Mailbox
from fedtrain.trainer.privacy.permits import promise_of

TERMS = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip": 1.0,
    "steps_total": 60,
    "sampling_rate": 0.1,
    "unit": "record",
    "sampling": "poisson",
    "accountant": "pld",
    "mode": "auto",
}
TASK = {
    "name": "classifier",
    "data": "tables",
    "model": {"features": 4, "classes": 3},
    "training": {"batch_size": 10},
    "terms": {"privacy": {"record": TERMS}},
}


class Agent:
    """Charge, then post, and again for every execution; each fault leaves one thing out."""

    charges_retries = True
    gives_claims_back = False

    def __init__(self, folder: Path) -> None:
        self.mailbox = Mailbox(folder / "mailbox")
        self.mailbox.create()
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.executions: list[Execution] = []
        self._permits: dict[str, Permit] = {}

    def put(self, order: Order) -> None:
        """Before the trainers, for the first time or again."""
        known = self._permits.get(order.id)
        if known is None or self.charges_retries:
            number = known.execution + 1 if known else 1
            mechanism = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.1, order.steps)
            charge = Charge(order.id, number, order.run, "test", "tables", mechanism)
            head = self.ledger.charge([charge])
            known = Permit(order.id, number, mechanism, None, 0, head.sequence)
            self._permits[order.id] = known
        self.mailbox.post(order, None, known)

    def claim(self, trainer: str) -> Claim:
        """A trainer takes the order, and the witness notes it."""
        claim = self.mailbox.claim(trainer)
        assert claim is not None
        before = self.ledger.head.sequence
        self.executions.append(Execution(claim.order.id, claim.permit, before))
        return claim

    def lose(self, order: Order) -> None:
        """The trainer that has the claim is dead."""
        if self.gives_claims_back:
            claims, orders = (self.mailbox.folder / part for part in ("claims", "orders"))
            (claims / order.id / "claim.json").unlink()
            (claims / order.id).rename(orders / order.id)
        else:
            self.mailbox.expire(order.id)
            self.put(order)

    def faults(self) -> list[str]:
        return uncharged(self.executions, self.ledger.rows())


class FreeRetries(Agent):
    """Charge skipped on retry: what is posted again goes with the permit of the first time."""

    charges_retries = False


class ClaimsGivenBack(Agent):
    """An expired claim goes to the next trainer with its old permit."""

    gives_claims_back = True


def ordered(site: Any) -> Order:
    return site.order("train", 1, task=json.loads(json.dumps(TASK)))


def twice(agent: Agent, order: Order) -> list[Claim]:
    """One trainer dies at work, another takes over."""
    agent.put(order)
    first = agent.claim("trainer-1")
    agent.lose(order)
    return [first, agent.claim("trainer-2")]


def test_each_execution_has_a_charge_of_its_own(site: Any, tmp_path: Path) -> None:
    """A retry is charged again; the permits differ, the trainer takes both, and nothing is found."""
    agent = Agent(tmp_path)
    claims = twice(agent, ordered(site))
    assert [claim.permit.execution for claim in claims if claim.permit] == [1, 2]
    assert all(promise_of(claim).record is not None for claim in claims)
    assert agent.faults() == [] and len(agent.ledger.rows()) == 2


@pytest.mark.parametrize("faulty", [FreeRetries, ClaimsGivenBack])
def test_charge_skipped_on_retry_is_caught(site: Any, tmp_path: Path, faulty: type[Agent]) -> None:
    """Two executions on one charge are found, although each by itself carries a permit that fits."""
    agent = faulty(tmp_path)
    claims = twice(agent, ordered(site))
    assert all(promise_of(claim).record is not None for claim in claims)
    assert agent.faults() == [f"{claims[0].order.id}: two executions with the charge of one"]


def test_expired_claim_with_a_permit_does_not_go_round(site: Any, tmp_path: Path) -> None:
    """The mailbox takes an expired private order away, so no second trainer gets it on the old charge."""
    agent = Agent(tmp_path)
    order = ordered(site)
    agent.put(order)
    agent.claim("trainer-1")
    agent.mailbox.expire(order.id)
    assert agent.mailbox.claim("trainer-2") is None


def test_order_without_a_permit_is_not_worked_on(site: Any, tmp_path: Path) -> None:
    """An agent that charges nothing is stopped by the trainer, and found by the audit."""
    agent = Agent(tmp_path)
    agent.mailbox.post(ordered(site), None)
    claim = agent.claim("trainer-1")
    with pytest.raises(RefusedError, match="no permit"):
        promise_of(claim)
    assert agent.faults() == [f"{claim.order.id} was worked on without a permit"]


def test_charge_that_is_not_in_the_ledger_is_caught(site: Any, tmp_path: Path) -> None:
    """A permit made up beside the ledger, and one charged only after the work began, are told apart."""
    agent = Agent(tmp_path)
    order = ordered(site)
    mechanism = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.1, order.steps)
    agent.mailbox.post(order, None, Permit(order.id, 1, mechanism, None, 0, 1))
    agent.claim("trainer-1")
    assert agent.faults() == [f"{order.id}: execution 1 is not in the ledger"]
    agent.ledger.charge([Charge(order.id, 1, order.run, "test", "tables", mechanism)])
    assert agent.faults() == [f"{order.id}: execution 1 was charged after it began"]
