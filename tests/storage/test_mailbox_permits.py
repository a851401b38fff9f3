"""Permits in the mailbox: for one execution each, read with suspicion, gone with an expired claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedtrain.core import canonical
from fedtrain.core.charges import POISSON_GAUSSIAN
from fedtrain.core.orders import order_id
from fedtrain.storage.mailbox import Mailbox, Mechanism, Order, OrderKind, Permit, Result

ORDER = Order(
    id=order_id("run", 1, 1, "north"),
    kind=OrderKind.TRAIN,
    run="run",
    round=1,
    attempt=1,
    site="north",
    seed=7,
    model=None,
    steps=10,
    evaluate=False,
    parent="",
    returned=(),
    cohort=("north", "south"),
    task="{}",
    codec="int8",
    block_elements=1 << 20,
    patience_ms=60_000,
)
PERMIT = Permit(ORDER.id, 1, Mechanism(POISSON_GAUSSIAN, "record", 1.0, 1.1, 0.01, 10), None, 500, 3)


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    made = Mailbox(tmp_path / "mailbox")
    made.create()
    return made


def test_a_permit_comes_with_its_order(mailbox: Mailbox) -> None:
    """Who claims the order gets what the agent has charged for, and nobody else's."""
    mailbox.post(ORDER, None, PERMIT)
    claim = mailbox.claim("trainer-1")
    assert claim is not None and claim.permit == PERMIT
    other = replace(ORDER, id=order_id("run", 2, 1, "north"), round=2)
    mailbox.post(other, None)
    plain = mailbox.claim("trainer-1")
    assert plain is not None and plain.permit is None


def test_an_expired_claim_takes_its_permit_along(mailbox: Mailbox) -> None:
    """One permit is for one execution: the order is gone until the agent posts it with another."""
    mailbox.post(ORDER, None, PERMIT)
    assert mailbox.claim("trainer-1") is not None
    mailbox.expire(ORDER.id)
    assert mailbox.withdrawn(ORDER.id) and mailbox.claim("trainer-2") is None
    mailbox.post(ORDER, None, replace(PERMIT, execution=2, ledger_sequence=4))
    again = mailbox.claim("trainer-2")
    assert again is not None and again.permit is not None and again.permit.execution == 2
    assert mailbox.publish(Result(ORDER.id, failure="enough"), None)
    mailbox.expire(ORDER.id)
    assert mailbox.results() == [ORDER.id]


def test_an_order_without_a_permit_goes_back_as_it_is(mailbox: Mailbox) -> None:
    """What costs nothing is simply there for the next trainer."""
    mailbox.post(ORDER, None)
    assert mailbox.claim("trainer-1") is not None
    mailbox.expire(ORDER.id)
    assert mailbox.claim("trainer-2") is not None


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"x" * 300_000,
        canonical.encode(replace(PERMIT, order=order_id("run", 9, 1, "north"))),
        canonical.encode(replace(PERMIT, units=-1)),
    ],
)
def test_an_unfit_permit_is_no_permit(mailbox: Mailbox, data: bytes) -> None:
    """Rubbish in a permit's place lets nobody work on its order."""
    mailbox.post(ORDER, None, PERMIT)
    (mailbox.orders_folder / ORDER.id / "permit.json").write_bytes(data)
    assert mailbox.claim("trainer-1") is None
