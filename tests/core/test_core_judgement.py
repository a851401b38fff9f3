"""What a hostile order may say, and that no word of it is judged for what it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from test_core_agent import ALLOWS, FIRST, UPDATE, Site

from fedtrain.core import agent
from fedtrain.core.contract import Approval, Contract, Hours, Models, Require, Rights, Verdict, Word
from fedtrain.core.judgement import Circumstances, Moment, judge, upload_fault
from fedtrain.core.orders import Order

MANUAL = replace(ALLOWS, approval=Approval.MANUAL)
NOW = Circumstances(Moment(20_000, 600))


def asking(**changes: Any) -> Order:
    """The first order, with more in its task."""
    return replace(FIRST, task=json.dumps({"data": "corpus", "name": "tiny", **changes}))


def refusal(contract: Contract, order: Order, now: Circumstances = NOW) -> str:
    """The one reason for which this order is refused."""
    decision = judge(contract, order, now)
    assert not decision.accepted and len(decision.reasons) == 1, decision
    return decision.reasons[0]


TRICKS = {
    "twice": ('{"name":"other","name":"tiny","data":"corpus"}', "name is there twice"),
    "nan": ('{"name":"tiny","model":{"layers":NaN}}', "NaN is no number"),
    "infinity": ('{"name":"tiny","model":{"layers":-Infinity}}', "-Infinity is no number"),
    "overflow": ('{"name":"tiny","model":{"layers":1e999}}', "too large"),
    "deep": ('{"name":"tiny","model":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "digits": ('{"name":"tiny","seed":' + "9" * 5_000 + "}", "not JSON"),
    "name": ('{"name":["tiny"]}', "name is no text"),
    "no data": ('{"name":"tiny","data":false}', "data is no text"),
    "access": ('{"name":"tiny","data":"corpus","access":"read"}', "access is no list"),
    "access of numbers": ('{"name":"tiny","data":"corpus","access":[1]}', "access is no text"),
    "model": ('{"name":"tiny","model":[]}', "model is no section"),
    "terms": ('{"name":"tiny","terms":[]}', "terms is no section"),
    "unknown term": ('{"name":"tiny","terms":{"uses":"economic"}}', "terms.uses is a word"),
    "use": ('{"name":"tiny","terms":{"use":"non\\u2010economic"}}', "non\\u2010economic"),
    "masked": ('{"name":"tiny","terms":{"privacy":{"masked":"true"}}}', "terms.privacy.masked is no section"),
    "mechanism": ('{"name":"tiny","terms":{"privacy":{"magic":1}}}', "terms.privacy.magic"),
}


@pytest.mark.parametrize(("task", "words"), TRICKS.values(), ids=TRICKS)
def test_a_task_that_cannot_be_understood_is_refused_whole(task: str, words: str) -> None:
    """Even a contract that allows everything refuses what it cannot read, and says where it stopped."""
    wide = replace(ALLOWS, runs=("*",), use="economic")
    reason = refusal(wide, replace(FIRST, task=task))
    assert reason.startswith("the order's task cannot be judged: ") and words in reason


CLAUSES: dict[str, tuple[Contract, Order, str]] = {
    "use": (ALLOWS, asking(terms={"use": "economic"}), "contract.use is non-economic"),
    "licence": (
        replace(ALLOWS, licences=("CC-*",)),
        asking(terms={"licence": "proprietary"}),
        "contract.licences does not allow a model under proprietary (allowed: CC-*)",
    ),
    "no licence": (replace(ALLOWS, licences=("CC-*",)), asking(), "a model under unstated"),
    "read": (ALLOWS, asking(access=["read"]), "datasets.corpus.rights.read does not allow task tiny"),
    "write": (ALLOWS, asking(access=["write"]), "datasets.corpus.rights.write does not allow task tiny"),
    "own": (ALLOWS, asking(access=["own"] * 999), "no right own can be had on data set corpus"),
    "access to nothing": (ALLOWS, asking(data="", access=["read"]), "names no data set"),
    "look-alike": (
        ALLOWS,
        asking(name="tin\u0443", data=""),
        "contract.tasks does not allow task tin\\u0443 (allowed: tiny)",
    ),
    "limit": (
        replace(ALLOWS, models=Models(limits={"layers": 2})),
        asking(model={"layers": 3}),
        "contract.models.limits.layers is 2, the model has 3",
    ),
    "limit as truth": (
        replace(ALLOWS, models=Models(limits={"layers": 2})),
        asking(model={"layers": True}),
        "the model does not state a number",
    ),
    "layout": (replace(ALLOWS, models=Models(layouts=("e" * 64,))), FIRST, "contract.models.layouts"),
    "size": (
        replace(ALLOWS, models=Models(size_max_bytes=39)),
        FIRST,
        "size_max is 39 bytes, the model has 40",
    ),
    "masked": (replace(ALLOWS, require=Require(masked=True)), FIRST, "contract.require.masked is true"),
    "epsilon": (
        replace(ALLOWS, require=Require(epsilon_max=3)),
        FIRST,
        "contract.require.epsilon_max is 3, and this run promises no epsilon",
    ),
    "unit": (replace(ALLOWS, require=Require(unit="group")), FIRST, "contract.require.unit is group"),
    "impossible": (
        ALLOWS,
        asking(
            terms={
                "privacy": {
                    "site": {
                        "clip": 1.0,
                        "noise_multiplier": 1.0,
                        "delta": 1e-5,
                        "rounds_total": 5,
                        "noise": "distributed",
                    }
                }
            }
        ),
        "hides no single update unless the sum is masked",
    ),
    "padded": (replace(ALLOWS, cohort_min=3), replace(FIRST, cohort=("a", "b", "b", "b")), "shared by 2"),
    "hours": (
        replace(ALLOWS, hours=Hours(1200, 360, "Europe/Berlin")),
        FIRST,
        "contract.hours are 20:00-06:00 Europe/Berlin, and it is 10:00 there",
    ),
}


@pytest.mark.parametrize(("contract", "order", "words"), CLAUSES.values(), ids=CLAUSES)
def test_every_clause_refuses_by_itself(contract: Contract, order: Order, words: str) -> None:
    """Each clause alone says no, by its name, with what it allows and what was asked."""
    assert words in refusal(contract, order)


def test_ghosts_do_not_make_a_cohort() -> None:
    """Once there is a roster, names that it does not have count for nothing, and organisations count once."""
    three = replace(ALLOWS, cohort_min=3)
    order = replace(FIRST, cohort=("a", "b", "ghost"))
    assert judge(three, order, NOW).accepted  # nobody can know without a roster
    ghosts = replace(NOW, organisations={"a": "x", "b": "y"})
    assert "shared by 2 (and 1 that the coordinator's roster does not name)" in refusal(three, order, ghosts)
    dressed = replace(NOW, organisations={"a": "x", "b": "x", "ghost": "x"})
    two = replace(three, organisations_min=2)
    assert "contract.organisations_min is 2" in refusal(two, order, dressed)
    assert judge(two, order, replace(NOW, organisations={"a": "x", "b": "y", "ghost": "y"})).accepted


def test_bounds_of_traffic_and_effort() -> None:
    """A day's bytes and all accelerator hours bound what is begun; a file is held against both bounds."""
    bounded = replace(ALLOWS, upload_max_per_day_bytes=100, upload_max_per_round_bytes=60, gpu_hours_max=2.0)
    assert judge(bounded, FIRST, replace(NOW, uploaded_bytes=99, gpu_hours=1.9)).accepted
    assert "upload_max_per_day" in refusal(bounded, FIRST, replace(NOW, uploaded_bytes=100))
    assert "gpu_hours_max is 2, and 2.00 are used" in refusal(bounded, FIRST, replace(NOW, gpu_hours=2.0))
    assert upload_fault(bounded, 60, 40) == ""
    assert "upload_max_per_round" in upload_fault(bounded, 61, 0)
    assert "upload_max_per_day" in upload_fault(bounded, 60, 41)


def test_hours_over_midnight() -> None:
    """A window that ends before it begins goes over midnight; its last minute is not in it."""
    night = replace(ALLOWS, hours=Hours(1200, 360, "UTC"))
    for minute, inside in ((1199, False), (1200, True), (0, True), (359, True), (360, False)):
        assert judge(night, FIRST, Circumstances(Moment(1, minute))).accepted is inside


def test_a_word_is_the_last_one_and_no_name_leaves() -> None:
    """Manual approval waits, a yes lets go, a no refuses with its reason and without its person's name."""
    waits = judge(MANUAL, FIRST, NOW)
    assert waits.pending and "contract.approval is manual" in waits.reasons[0]
    assert not judge(replace(MANUAL, runs=()), FIRST, NOW).pending  # a word would not help
    yes = replace(NOW, verdicts={"run-1": Verdict(Word.APPROVED, "", "eve")})
    assert judge(MANUAL, FIRST, yes).accepted
    no = replace(NOW, verdicts={"run-1": Verdict(Word.WITHDRAWN, "ethics", "eve")})
    reason = refusal(ALLOWS, FIRST, no)
    assert "withdrawn" in reason and "ethics" in reason and "eve" not in reason


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["name", "data", "model", "access", "terms", "x"]),
)
def test_any_task_gets_an_answer_that_can_travel(value: Any, key: str) -> None:
    """Whatever stands in a task, the answer is a few short lines of printable ASCII."""
    task = json.dumps({"name": "tiny", "data": "corpus", key: value})
    decision = judge(ALLOWS, replace(FIRST, task=task), NOW)
    assert decision.accepted is not bool(decision.reasons) and len(decision.reasons) <= 8
    for reason in decision.reasons:
        assert len(reason) < 500 and reason.isascii() and reason.isprintable()


def test_an_update_that_is_asked_for_again_leaves_within_the_bounds() -> None:
    """A coordinator that forgets again and again does not get more than a day's bytes."""
    site = Site(replace(ALLOWS, upload_max_per_day_bytes=100))
    moment = {"day": 3, "minute": 10}
    site.tell(agent.OrderReceived, order=FIRST, **moment)
    sends = list(site.tell(agent.ResultTaken, result=UPDATE, day=3))
    for _ in range(4):
        receipt = {"blob": "d" * 64, "outcome": "stored", "epoch": 1, "signed_ms": 5, "signature": "s"}
        site.tell(agent.UploadAcknowledged, order=FIRST.id, **receipt)
        sends += site.tell(agent.OrderReceived, order=FIRST, **moment)
    assert [type(effect) for effect in sends].count(agent.Submit) == 2  # 40 bytes each, 100 allowed
    reports = [effect for effect in sends if isinstance(effect, agent.Report)]
    assert "contract.upload_max_per_day" in reports[0].result.failure


@pytest.mark.parametrize("word", [Word.WITHDRAWN, Word.DENIED])
def test_a_yes_after_a_no_asks_the_coordinator_again(word: Word) -> None:
    """Consent that was taken back and is given again leads to a new session, in which the run is asked."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST, day=1, minute=1)
    said = site.tell(agent.RunDecided, run="run-1", verdict=Verdict(word, "why", "eve"))
    assert agent.Withdraw("run-1", "why") in said and agent.Discard(FIRST.id) in said
    refused = site.tell(agent.OrderReceived, order=FIRST, day=1, minute=1)
    assert isinstance(refused[0], agent.Reply) and not refused[0].accepted
    again = site.tell(agent.RunDecided, run="run-1", verdict=Verdict(Word.APPROVED, "", "eve"))
    assert [type(effect) for effect in again] == [agent.Reattach]
    assert site.tell(agent.OrderReceived, order=FIRST, day=1, minute=1)[0] == agent.Reply(FIRST.id, True, ())


def test_rights_for_some_tasks() -> None:
    """A right that names tasks holds for those alone; one that is a flag holds for all."""
    some = Rights(execute=("tiny",), readable_by=("tiny",), writable_by=("other",))
    contract = replace(ALLOWS, datasets={"corpus": some})
    assert judge(contract, asking(access=["read"]), NOW).accepted
    assert "rights.write" in refusal(contract, asking(access=["read", "write"]))
    everyone = replace(ALLOWS, datasets={"corpus": Rights(execute=("tiny",), read=True, write=True)})
    assert judge(everyone, asking(access=["read", "write"]), NOW).accepted
