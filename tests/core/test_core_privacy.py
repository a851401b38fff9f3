"""Promises of privacy: read strictly, charged as what they are, and held against budgets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.core import canonical
from fedtrain.core.accounts import next_clip
from fedtrain.core.budget import Spending, is_charged
from fedtrain.core.charges import (
    BIT_CLIP,
    Charge,
    Mechanism,
    Permit,
    bit_mechanism,
    permit_fault,
    record_mechanism,
    sampling_rate,
    serving,
    site_mechanism,
)
from fedtrain.core.contract import Budget, Contract, Require, Rights
from fedtrain.core.judgement import Circumstances, Moment, judge
from fedtrain.core.orders import Order, OrderKind, order_id
from fedtrain.core.privacy import (
    AdaptiveTerms,
    MaskTerms,
    PrivacyTerms,
    RecordTerms,
    SiteTerms,
    plain,
    read_privacy,
)
from fedtrain.core.terms import read_asked

RECORD = RecordTerms(epsilon=8.0, delta=1e-5, clip=1.0, steps_total=100)
SITE = SiteTerms(clip=0.5, noise_multiplier=2.0, delta=1e-5, rounds_total=10)
DISTRIBUTED = replace(SITE, noise="distributed", dropouts_max=1)
RIGHTS = Rights(discoverable=True, execute=("tiny",))
ALLOWS = Contract(runs=("*",), tasks=("tiny",), datasets={"corpus": RIGHTS})
NOW = Circumstances(moment=Moment(1, 600))


def order(terms: PrivacyTerms | Mapping[str, Any], **changes: Any) -> Order:
    privacy = plain(terms) if isinstance(terms, PrivacyTerms) else terms
    task = {
        "name": "tiny",
        "data": "corpus",
        "training": {"batch_size": 10},
        "terms": {"privacy": privacy},
    }
    made = Order(
        id=order_id("r", 1, 1, "a"),
        kind=OrderKind.TRAIN,
        run="r",
        round=1,
        attempt=1,
        site="a",
        seed=1,
        model=None,
        steps=5,
        evaluate=False,
        parent="",
        returned=(),
        cohort=("a", "b", "c"),
        task=json.dumps(task),
        codec="int8",
        block_elements=4096,
        patience_ms=1000,
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    "terms",
    [
        PrivacyTerms(),
        PrivacyTerms(RECORD),
        PrivacyTerms(replace(RECORD, sampling_rate=0.02, unit="group", accountant="rdp", mode="ghost")),
        PrivacyTerms(RECORD, replace(SITE, adaptive=AdaptiveTerms(0.7, 0.1, 2.0)), MaskTerms(100, 2)),
        PrivacyTerms(None, DISTRIBUTED, MaskTerms(0, 1)),
    ],
)
def test_terms_survive_the_way_through_a_task(terms: PrivacyTerms) -> None:
    """What the run's file resolves is what a site reads."""
    assert read_asked(order(terms).task).privacy == terms


ABSURD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"magic": {}}, "terms.privacy.magic"),
    "unknown key": ({"record": {**plain(RECORD), "sigma": 1}}, "record.sigma"),
    "missing": ({"record": {"epsilon": 1.0}}, "record.delta is no number"),
    "zero epsilon": ({"record": {**plain(RECORD), "epsilon": 0}}, "record.epsilon is not from"),
    "huge": ({"record": {**plain(RECORD), "epsilon": 10**400}}, "record.epsilon is not from"),
    "true": ({"record": {**plain(RECORD), "clip": True}}, "record.clip is no number"),
    "text": ({"record": {**plain(RECORD), "clip": "1"}}, "record.clip is no number"),
    "delta": ({"record": {**plain(RECORD), "delta": 0.5}}, "record.delta is not from"),
    "rate": ({"record": {**plain(RECORD), "sampling_rate": 1.5}}, "record.sampling_rate is not from"),
    "shuffle": ({"record": {**plain(RECORD), "sampling": "shuffle"}}, "record.sampling is shuffle"),
    "unit": ({"record": {**plain(RECORD), "unit": "site"}}, "record.unit is site"),
    "steps": ({"record": {**plain(RECORD), "steps_total": 1.5}}, "steps_total is no whole number"),
    "negative": ({"site": {**plain(SITE), "noise_multiplier": -1}}, "noise_multiplier is not from"),
    "plain": ({"site": plain(DISTRIBUTED)}, "hides no single update"),
    "twice": (
        {"record": plain(RECORD), "site": plain(DISTRIBUTED), "masked": {"dropouts_max": 1}},
        "exclude",
    ),
    "provision": ({"site": plain(DISTRIBUTED), "masked": {}}, "masked.dropouts_max is -1"),
    "weights": (
        {"site": plain(DISTRIBUTED), "masked": {"weight_max": 2, "dropouts_max": 1}},
        "updates that count the same",
    ),
    "masked": ({"masked": "yes"}, "terms.privacy.masked is no section"),
}


@pytest.mark.parametrize(("privacy", "words"), ABSURD.values(), ids=ABSURD)
def test_what_cannot_be_meant_is_a_fault(privacy: dict[str, Any], words: str) -> None:
    """An unknown word, a number out of its range and an impossible combination are refused, named."""
    decision = judge(ALLOWS, order(privacy), NOW)
    assert not decision.accepted and len(decision.reasons) == 1
    assert "cannot be judged" in decision.reasons[0] and words in decision.reasons[0]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.dictionaries(
            st.sampled_from(["record", "site", "masked", "epsilon", "clip", "adaptive", "noise", "x"]), inner
        ),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_section_raises(value: Any) -> None:
    """Whatever a hostile coordinator writes is read as terms or as a fault, and never raises."""
    found = read_asked(json.dumps({"name": "tiny", "terms": {"privacy": value}}))
    assert found.fault or read_privacy(plain(found.privacy)) == found.privacy


# -- charges --------------------------------------------------------------------------------------


def permit(terms: PrivacyTerms, **changes: Any) -> Permit:
    found = Permit(
        order_id("r", 1, 1, "a"),
        1,
        record_mechanism(terms.record, 0.1, 1.3, 5) if terms.record else None,
        site_mechanism(terms.site, 3) if terms.site else None,
        100 if terms.record else 0,
        7,
        bit_mechanism(terms.site) if terms.site else None,
    )
    return replace(found, **changes)


BOTH = PrivacyTerms(RECORD, replace(SITE, adaptive=AdaptiveTerms()))


def test_a_permit_that_says_the_same_is_one() -> None:
    """The trainer may work where the permit says what the terms say, and where nothing is promised."""
    assert permit_fault(permit(BOTH), order(BOTH)) == ""
    assert permit_fault(None, order(PrivacyTerms())) == ""
    sums = PrivacyTerms(None, DISTRIBUTED, MaskTerms(0, 1))
    on_a_grid = replace(permit(sums), site=site_mechanism(DISTRIBUTED, 3, 2.0**-11, 1000))
    assert permit_fault(on_a_grid, order(sums)) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "r.2.1.a"},
        {"record": None},
        {"site": None},
        {"bit": None},
        {"record": replace(permit(BOTH).record, steps=4)},
        {"record": replace(permit(BOTH).record, clip=2.0)},
        {"record": replace(permit(BOTH).record, unit="group")},
        {"record": replace(permit(BOTH).record, noise_multiplier=0.0)},
        {"site": replace(permit(BOTH).site, noise_multiplier=4.0)},
        {"bit": replace(permit(BOTH).bit, noise_multiplier=4.0)},
    ],
)
def test_a_permit_that_says_something_else_is_none(changes: dict[str, Any]) -> None:
    """Every mechanism is compared: what was charged is what is done."""
    assert permit_fault(permit(BOTH, **changes), order(BOTH))


def test_no_permit_no_private_work() -> None:
    """An order that promises privacy is not worked on without a charge, nor with a surplus mechanism."""
    assert "has not charged" in permit_fault(None, order(BOTH))
    assert permit_fault(permit(BOTH), order(PrivacyTerms(None, BOTH.site)))
    rate = replace(RECORD, sampling_rate=0.2)
    assert permit_fault(permit(BOTH), order(PrivacyTerms(rate, BOTH.site)))


def test_the_rate_follows_from_the_units() -> None:
    """Batch over units, never above one; the run's own rate where it gives one."""
    assert sampling_rate(RECORD, 10, 100) == 0.1
    assert sampling_rate(RECORD, 10, 5) == sampling_rate(RECORD, 10, 0) == 1.0
    assert sampling_rate(replace(RECORD, sampling_rate=0.25), 10, 100) == 0.25


def charge(mechanism: Mechanism, execution: int = 1) -> Charge:
    return Charge("r.1.1.a", execution, "r", "c", "corpus", mechanism)


def test_what_serves_a_unit() -> None:
    """A site's mechanism bounds records with half its noise, or for nothing where the same execution has
    noised records before; a group's bounds no record, whose change is no group's coming or going; what bounds
    nothing is told."""
    record, group = permit(BOTH).record, replace(permit(BOTH).record, unit="group")
    site, bit = permit(BOTH).site, permit(BOTH).bit
    assert record and site and bit
    assert serving("record", [charge(record), charge(site), charge(bit)]) == ([record], [])
    assert serving("record", [charge(group)]) == ([], [charge(group)])
    counted, unfit = serving("group", [charge(record), charge(site, 2)])
    assert [m.noise_multiplier for m in counted] == [site.noise_multiplier / 2]
    assert unfit == [charge(record)]
    assert serving("site", [charge(record), charge(site), charge(bit)]) == ([site, bit], [])
    assert serving("site", [charge(record)])[1] == [charge(record)]
    grid = site_mechanism(DISTRIBUTED, 5, 0.001, 10)
    (halved,), _ = serving("record", [charge(grid)])
    assert (halved.clip, halved.noise_multiplier) == (2 * grid.clip, grid.noise_multiplier / 2)
    assert halved.clip * halved.noise_multiplier == grid.clip * grid.noise_multiplier
    assert halved.detail["parts"] == 2


def test_only_training_is_charged() -> None:
    """Seeds come from no data, and an evaluation's loss is a side channel that the card names."""
    asked = read_asked(order(BOTH).task)
    assert is_charged(order(BOTH), asked)
    assert not is_charged(order(BOTH, kind=OrderKind.EVALUATE), asked)
    assert not is_charged(order(PrivacyTerms()), read_asked(order(PrivacyTerms()).task))


# -- budgets --------------------------------------------------------------------------------------

KEPT = replace(ALLOWS, budgets={"corpus": Budget("record", 8.0, 1e-5)})


def refusal(contract: Contract, asked_for: Order, spending: Spending | None) -> str:
    decision = judge(contract, asked_for, replace(NOW, spending=spending))
    assert not decision.accepted and len(decision.reasons) == 1, decision
    return decision.reasons[0]


def reckoned(spent: float, after: float | None) -> Spending:
    return Spending("record", 1e-5, spent, after, "record", 1e-5, spent, after, 8.0)


def test_a_spent_budget_says_what_is_left() -> None:
    """The refusal tells what is spent, what was needed and what is left, with unit and delta."""
    reason = refusal(KEPT, order(PrivacyTerms(RECORD)), reckoned(7.93, 8.05))
    assert reason == (
        "datasets.corpus.privacy.epsilon_max is 8: 7.93 are spent, this order needs 0.12, 0.07 are left "
        "(per record at delta 1e-05)"
    )
    assert "nothing is left" in refusal(KEPT, order(PrivacyTerms(RECORD)), reckoned(8.0, None))
    assert judge(KEPT, order(PrivacyTerms(RECORD)), replace(NOW, spending=reckoned(7.9, 8.0))).accepted
    assert judge(KEPT, order(PrivacyTerms(RECORD)), replace(NOW, spending=reckoned(7.9, None))).accepted


@pytest.mark.parametrize(
    ("unit", "terms", "fits"),
    [
        ("record", PrivacyTerms(), False),
        ("record", PrivacyTerms(RECORD), True),
        ("record", PrivacyTerms(replace(RECORD, unit="group")), False),
        ("group", PrivacyTerms(replace(RECORD, unit="group")), True),
        ("group", PrivacyTerms(RECORD), False),
        ("record", PrivacyTerms(None, SITE), True),
        ("site", PrivacyTerms(None, SITE), True),
        ("site", PrivacyTerms(RECORD), False),
        ("record", PrivacyTerms(masked=MaskTerms()), False),
    ],
)
def test_a_budget_wants_privacy_of_its_unit(unit: str, terms: PrivacyTerms, fits: bool) -> None:
    """A data set with a budget is trained on with noise for its unit, or not at all."""
    contract = replace(ALLOWS, budgets={"corpus": Budget(unit, 8.0, 1e-5)})
    decision = judge(contract, order(terms), replace(NOW, spending=reckoned(0.0, 1.0)))
    assert decision.accepted is fits
    if not fits:
        assert f"a budget is kept for unit {unit}" in decision.reasons[0]


def test_unreckoned_is_refused_and_begun_work_goes_on() -> None:
    """Without numbers a new order is refused; work that was accepted is judged at its charge."""
    assert "could not be reckoned" in refusal(KEPT, order(PrivacyTerms(RECORD)), None)
    assert judge(KEPT, order(PrivacyTerms(RECORD)), Circumstances()).accepted


def test_a_rolled_back_ledger_refuses_whatever_costs_privacy() -> None:
    """Also where no budget is kept: nobody knows what was spent."""
    broken = Spending(fault="the privacy ledger was rolled back")
    assert refusal(ALLOWS, order(PrivacyTerms(RECORD)), broken) == broken.fault
    assert judge(ALLOWS, order(PrivacyTerms()), replace(NOW, spending=broken)).accepted


@pytest.mark.parametrize(
    ("require", "terms", "spending", "words"),
    [
        (Require(epsilon_max=3), PrivacyTerms(RECORD), None, "epsilon_max is 3, this run's is 8 per record"),
        (Require(epsilon_max=3), PrivacyTerms(masked=MaskTerms()), None, "promises no epsilon"),
        (Require(epsilon_max=8), PrivacyTerms(RECORD), reckoned(7.9, 8.2), "in this run"),
        (
            Require(epsilon_max=3),
            PrivacyTerms(None, SITE),
            Spending(run_unit="site", run_delta=1e-5, promised=9.5),
            "this run's is 9.5 per site",
        ),
        (Require(unit="group"), PrivacyTerms(RECORD), None, "unit is group, this run's is record"),
        (Require(unit="site"), PrivacyTerms(RECORD), None, "unit is site"),
        (Require(masked=True), PrivacyTerms(RECORD), None, "asks for a plain update"),
    ],
)
def test_what_a_site_requires_of_a_run(
    require: Require, terms: PrivacyTerms, spending: Spending | None, words: str
) -> None:
    """A larger epsilon, another unit or no masks are refused by their clause (FAULTS 54)."""
    assert words in refusal(replace(ALLOWS, require=require), order(terms), spending)


def test_more_steps_than_promised_are_refused() -> None:
    """An order of more steps than the whole run promises is no part of that promise."""
    assert "100 in all" in refusal(ALLOWS, order(PrivacyTerms(RECORD), steps=101), None)
    without = order(PrivacyTerms(RECORD))
    without = replace(without, task=without.task.replace('"batch_size": 10', '"batch": 10'))
    assert "sampling_rate" in refusal(ALLOWS, without, None)


# -- adaptive clipping ----------------------------------------------------------------------------


def test_the_clip_walks_to_the_quantile() -> None:
    """With exact bits the clip ends where the asked share of sites is within it (arXiv:1905.03871)."""
    terms = replace(SITE, adaptive=AdaptiveTerms(quantile=0.6, rate=0.2, noise=1.0))
    norms, clip = (1.0, 2.0, 3.0, 4.0, 5.0), 0.01
    for _ in range(200):
        clip = next_clip(clip, terms, tuple(float(norm <= clip) for norm in norms))
    assert 2.0 < clip < 4.5


def test_the_step_is_geometric_and_bounded() -> None:
    """C * exp(-rate * (share - quantile)); a lie of any size moves no further than honest noise could."""
    terms = replace(SITE, adaptive=AdaptiveTerms(0.5, 0.2, 1.0))
    assert next_clip(2.0, terms, (1.0, 1.0)) == pytest.approx(2.0 * math.exp(-0.1))
    assert next_clip(2.0, terms, ()) == 2.0
    assert next_clip(2.0, terms, (-1e300,)) == pytest.approx(2.0 * math.exp(0.2 * 6.5))
    bit = bit_mechanism(terms)
    assert bit and (bit.clip, bit.noise_multiplier) == (BIT_CLIP, 1.0 / BIT_CLIP)


def test_documents_have_one_spelling() -> None:
    """A permit and a charge come back from their canonical JSON."""
    for value in (permit(BOTH), charge(site_mechanism(DISTRIBUTED, 5, 0.5, 10))):
        assert canonical.decode(type(value), canonical.encode(value)) == value
