"""Worlds whose runs cost privacy: they hold, their plans vary, and the auditor's account can say no."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from fedtrain.core.charges import CLOSED, Charge, Mechanism, Permit
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.terms import read_asked
from fedtrain.sim import plan as plans
from fedtrain.sim.choice import Choice
from fedtrain.sim.expenses import Expenses, costs
from fedtrain.sim.plan import PRIVATE, draw
from fedtrain.sim.prices import AMPLE, STEPS_PER_EPSILON, Prices
from fedtrain.sim.purse import LedgerFile
from fedtrain.sim.violation import Violation
from fedtrain.sim.world import World

PRICED = [seed for seed in range(PRIVATE + 1, PRIVATE + 400) if draw(seed).prices is not None]
RARE = (PRIVATE + 220, PRIVATE + 222, PRIVATE + 297)
"""Worlds in which a trainer loses its claim, an order is done again with the last of a budget, and a ledger's
disk refuses."""

STEPS = 10
TASK = json.dumps({"data": "corpus", "name": "tiny", "terms": {"privacy": {"record": {}}}})


def charge(execution: int, order: str = "run-1.1.1.a", steps: int = STEPS, kind: str = "") -> Charge:
    mechanism = Mechanism(kind or "poisson-gaussian", "record", 1.0, 1.0, 0.02, steps)
    return Charge(order, execution, "run-1", "sim", "corpus", mechanism)


def an_order() -> Order:
    """A training order of site a, of a run that costs."""
    return Order(
        id="run-1.1.1.a",
        kind=OrderKind.TRAIN,
        run="run-1",
        round=1,
        attempt=1,
        site="a",
        seed=1,
        model=None,
        steps=STEPS,
        evaluate=False,
        parent="",
        returned=(),
        cohort=("a",),
        task=TASK,
        codec="float32",
        block_elements=1,
        patience_ms=1_000,
    )


def account(budget_steps: int | None, *rows: Charge) -> Expenses:
    """The account of a site with this budget, whose disk holds these rows."""
    budgets = {} if budget_steps is None else {"a": budget_steps / STEPS_PER_EPSILON}
    expenses = Expenses(Prices(budgets, ("a",), 0.0, 1))
    expenses.watch("a", lambda: rows)
    return expenses


def test_priced_worlds_hold() -> None:
    """Executions are charged for, also repeated ones; ledgers roll back; budgets end."""
    executions = repeated = spent = 0
    for seed in PRICED[:14]:
        world = World(seed)
        faults = world.run().faults
        begun = [about for found in world._auditor.expenses.begun.values() for about in found]
        executions += len(begun)
        repeated += sum(execution > 1 for _, execution in begun)
        spent += faults["run stopped, its budgets are spent"]
    assert executions > 60 and repeated > 3 and spent > 0


@pytest.mark.parametrize("seed", RARE)
def test_rare_troubles(seed: int) -> None:
    """What few worlds have is in these."""
    assert World(seed).run().events > 0


def test_plans_of_priced_worlds_vary() -> None:
    """A tenth of the worlds and some more; with and without budgets, masks, old copies and crashes."""
    found = [draw(seed) for seed in PRICED]
    prices = [plan.prices for plan in found if plan.prices]
    assert 0.10 < len(PRICED) / 399 < 0.16
    assert {len(price.budgets) < len(plan.sites) for price, plan in zip(prices, found, strict=True)} == {
        True,
        False,
    }
    assert {AMPLE in price.budgets.values() for price in prices} == {True, False}
    assert len({price.roll_back_gap_ms for price in prices}) == 3
    assert len({price.crash for price in prices}) == 3
    for plan in found:
        for run in plan.runs:
            asked = read_asked(run.spec.task)
            assert not asked.fault and asked.record is not None and asked.record.sampling_rate == 0.02
            assert costs(run.spec.task)
    assert {read_asked(plan.runs[0].spec.task).masked is None for plan in found} == {True, False}


def test_other_worlds_are_drawn_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a price a plan is what it is without this stream of chance."""
    seeds = [seed for seed in range(PRIVATE + 1, PRIVATE + 60) if seed not in PRICED]
    before = [draw(seed) for seed in seeds]
    assert not any(costs(run.spec.task) for plan in before for run in plan.runs)
    monkeypatch.setattr(plans, "draw_prices", lambda *facts: None)
    assert [draw(seed) for seed in seeds] == before
    assert replace(draw(PRICED[0]), runs=(), sites=()) != replace(before[0], runs=(), sites=())


def test_what_is_paid_may_begin() -> None:
    """Once for each row, up to the budget."""
    expenses = account(2 * STEPS, charge(1), charge(2))
    expenses.begins("a", an_order(), 1)
    expenses.begins("a", an_order(), 2)
    expenses.restarted("a")
    expenses.close()
    assert len(expenses.begun["a"]) == 2


@pytest.mark.parametrize(
    ("budget_steps", "rows", "execution"),
    [
        (None, (), None),
        (None, (), 1),
        (None, (charge(1),), 2),
        (None, (charge(1, steps=STEPS - 1),), 1),
        (None, (charge(1, order="run-1.2.1.a"),), 1),
        (2 * STEPS - 1, (charge(1), charge(2)), 1),
        (9 * STEPS, (charge(1), charge(0, order="", kind=CLOSED)), 1),
    ],
    ids=["no permit", "no row", "another execution", "too few steps", "another order", "above", "closed"],
)
def test_what_is_not_paid_may_not_begin(
    budget_steps: int | None, rows: tuple[Charge, ...], execution: int | None
) -> None:
    """Each demand of the account can fail."""
    with pytest.raises(Violation, match="I4"):
        account(budget_steps, *rows).begins("a", an_order(), execution)


def test_nothing_begins_twice() -> None:
    """One row pays for one execution."""
    expenses = account(None, charge(1))
    expenses.begins("a", an_order(), 1)
    with pytest.raises(Violation, match="twice"):
        expenses.begins("a", an_order(), 1)


def test_a_row_that_was_paid_with_stays() -> None:
    """A ledger that has lost one is noticed at a start and at the next execution, unless its owner knows."""
    rows = [charge(1)]
    expenses = account(None)
    expenses.watch("a", lambda: rows)
    expenses.begins("a", an_order(), 1)
    rows[0] = charge(2)
    with pytest.raises(Violation, match="does not hold"):
        expenses.restarted("a")
    expenses.ages("a", True)
    expenses.restarted("a")
    with pytest.raises(Violation, match="does not hold"):
        expenses.begins("a", an_order(), 2)


def test_a_run_starves_when_too_few_can_pay() -> None:
    """By what is charged, whether or not it was worked on."""
    spec = replace(draw(PRICED[0]).runs[0].spec, minimum=1, quorum=1, steps=STEPS)
    assert not account(None, charge(1)).starved(spec)
    assert not account(2 * STEPS, charge(1)).starved(spec)
    assert account(2 * STEPS - 1, charge(1)).starved(spec)
    assert account(9 * STEPS, charge(0, kind=CLOSED)).starved(spec)
    assert not Expenses(None).starved(spec)


def test_a_disk_keeps_what_is_synced() -> None:
    """And a row's hash says what came before it."""
    file = LedgerFile()
    file.append(charge(1))
    file.sync()
    head = file.head
    file.append(charge(2))
    second = file.head
    file.lose_tail()
    assert file.head == head and file.holds(*head) and not file.holds(*second)
    other = LedgerFile()
    other.append(charge(3))
    other.append(charge(2))
    assert not other.holds(*head) and not other.holds(*second)
    assert not file.holds(0, "")


def test_a_trainer_refuses_without_a_permit() -> None:
    """It fails the order, and nothing begins."""
    world = World(PRICED[0])
    site = world._sites[0]
    order = replace(an_order(), site=site.name, task=draw(PRICED[0]).runs[0].spec.task)
    site.trainer.post(order, Permit(order.id, 1))
    assert "the permit's record-level mechanism" in site.trainer.results[order.id].result.failure
    assert not world._auditor.expenses.begun


def test_a_mended_ledger_is_the_newest_or_closed() -> None:
    """An old copy is replaced by what was there before, or written off."""
    closed = []
    for number in range(12):
        world = World(PRICED[0])
        purse = world._sites[0].purse
        for execution in range(1, 4):
            purse.file.append(charge(execution))
        purse.file.sync()
        newest = list(purse.file.rows)
        purse._roll_back(random.Random(number))
        assert len(purse.file.rows) < 3 and world._auditor.expenses.is_old(world._sites[0].name)
        while world._auditor.expenses.is_old(world._sites[0].name):
            world.scene.clock.advance()
        kinds = [row.charge.mechanism.kind for row in purse.file.rows]
        closed.append(kinds[-1:] == [CLOSED])
        assert closed[-1] or purse.file.rows == newest
    assert set(closed) == {True, False}


def test_a_part_of_a_priced_world_ends() -> None:
    """With one site and one round, and with no fault, a run that costs is done or stopped as any other."""
    for seed in PRICED[:3]:
        site = draw(seed).prices.needed[0]  # type: ignore[union-attr]
        world = World(seed, Choice(only=frozenset(), rounds=1, runs=("run-1",)))
        assert world.run().versions > 0
        spec = draw(seed).runs[0].spec
        alone = World(seed, Choice(sites=(site,)))
        least = max(spec.minimum, spec.quorum, alone.scene.plan.prices.shared_by)  # type: ignore[union-attr]
        assert alone._auditor.expenses.starved(spec) is (least > 1)
