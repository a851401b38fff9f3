"""What the site's people say: yes before work, no at any time, a look before anything leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_core_agent import ALLOWS, FIRST, RECEIPT, UPDATE, Site, accepted, order

from fedtrain.core import agent
from fedtrain.core.contract import Approval, Hours, Verdict, Word

MANUAL = replace(ALLOWS, approval=Approval.MANUAL)
HOLD = replace(ALLOWS, approval=Approval.HOLD)
YES, NO, BACK = (Verdict(word, "why", "ada") for word in (Word.APPROVED, Word.DENIED, Word.WITHDRAWN))


def kinds(effects: list[agent.AgentEffect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_nothing_is_begun_before_a_person_has_said_yes() -> None:
    """The order is refused with the clause, and asked for again once the word is there."""
    site = Site(MANUAL)
    (reply,) = site.tell(agent.OrderReceived, order=FIRST)
    assert isinstance(reply, agent.Reply) and not reply.accepted
    assert "contract.approval is manual" in reply.reasons[0]
    assert site.driver.state.refused["run-1"].pending
    assert kinds(site.tell(agent.RunDecided, run="run-1", verdict=YES)) == ["Reattach"]
    assert site.tell(agent.OrderReceived, order=FIRST) == [accepted(FIRST.id), agent.Prepare(FIRST)]


def test_a_no_is_told_and_ends_the_work() -> None:
    """Withdrawn from in any stage: nothing is kept, nothing is sent, and a new order is refused."""
    for events in ((), ((agent.ResultTaken, {"result": UPDATE}),)):
        site = Site()
        site.tell(agent.OrderReceived, order=FIRST)
        for kind, fields in events:
            site.tell(kind, **fields)
        effects = site.tell(agent.RunDecided, run="run-1", verdict=BACK)
        assert effects == [agent.Withdraw("run-1", "why"), agent.Discard(FIRST.id)]
        assert site.held == []
        (reply,) = site.tell(agent.OrderReceived, order=order(2))
        assert isinstance(reply, agent.Reply) and not reply.accepted


def test_acknowledged_bytes_are_withdrawn_too() -> None:
    """What the coordinator has and no version counts is what a withdrawal is about."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.ResultTaken, result=UPDATE)
    site.tell(agent.UploadAcknowledged, order=FIRST.id, outcome="stored", **RECEIPT)
    effects = site.tell(agent.RunDecided, run="run-1", verdict=NO)
    assert effects == [agent.Withdraw("run-1", "why"), agent.Discard(FIRST.id)]


def test_a_no_to_what_was_begun_stays_a_withdrawal() -> None:
    """It is told again in every session, so the agent knows that it was one, also after a second no."""
    site = Site()
    assert site.tell(agent.RunDecided, run="run-1", verdict=NO) == []
    assert site.driver.state.verdicts["run-1"].word is Word.DENIED
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    for _ in range(2):
        site.tell(agent.RunDecided, run="run-1", verdict=NO)
        assert site.driver.state.verdicts["run-1"].word is Word.WITHDRAWN


def test_a_yes_after_a_withdrawal_begins_anew() -> None:
    """The coordinator asks nothing of that session any more: a new one begins at once."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.RunDecided, run="run-1", verdict=BACK)
    assert kinds(site.tell(agent.RunDecided, run="run-1", verdict=YES)) == ["Reattach"]
    assert site.tell(agent.OrderReceived, order=FIRST) == [accepted(FIRST.id), agent.Prepare(FIRST)]


@pytest.mark.parametrize("verdict", [NO, BACK], ids=["denied", "withdrawn"])
def test_a_no_outlives_the_agent(verdict: Verdict) -> None:
    """A restart with the same contract refuses what was refused, and has nothing in hand."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.RunDecided, run="run-1", verdict=verdict)
    assert site.tell(agent.AgentBooted, contract=ALLOWS) == []
    (reply,) = site.tell(agent.OrderReceived, order=FIRST)
    assert isinstance(reply, agent.Reply) and not reply.accepted


def test_other_runs_are_not_meant() -> None:
    """A no is about one run."""
    site = Site()
    other = order(run="run-2")
    site.tell(agent.OrderReceived, order=other)
    assert site.tell(agent.RunDecided, run="run-1", verdict=BACK) == [agent.Withdraw("run-1", "why")]
    assert site.held == [other.id]


def test_an_update_is_looked_at_before_it_leaves() -> None:
    """It is shelved, also at a repeated order and after a restart; then it leaves, or stays for good."""
    site = Site(HOLD)
    site.tell(agent.OrderReceived, order=FIRST)
    shelved = agent.Shelve(FIRST.id)
    assert site.tell(agent.ResultTaken, result=UPDATE) == [shelved]
    assert site.tell(agent.OrderReceived, order=FIRST) == [accepted(FIRST.id), shelved]
    assert site.tell(agent.AgentBooted, contract=HOLD) == [shelved]
    assert site.tell(agent.ResultTaken, result=UPDATE) == []
    submitted = site.tell(agent.UpdateReleased, order=FIRST.id, by="ada", day=3)
    assert submitted == [agent.Submit(FIRST, UPDATE)]
    assert site.tell(agent.UpdateReleased, order=FIRST.id, by="ada", day=3) == []
    site = Site(HOLD)
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.ResultTaken, result=UPDATE)
    (report,) = site.tell(agent.UpdateWithheld, order=FIRST.id, by="ada", reason="too clear")
    assert isinstance(report, agent.Report) and "too clear" in report.result.failure
    assert site.tell(agent.UpdateReleased, order=FIRST.id, by="ada", day=3) == []


def test_hours_open_while_it_waits() -> None:
    """Refused at night; once the hour has come a new session has the coordinator ask again."""
    site = Site(replace(ALLOWS, hours=Hours(8 * 60, 18 * 60, "UTC")))
    (reply,) = site.tell(agent.OrderReceived, order=FIRST, day=1, minute=7 * 60)
    assert isinstance(reply, agent.Reply) and "contract.hours" in reply.reasons[0]
    assert site.tell(agent.Reconsidered, day=1, minute=7 * 60 + 59) == []
    assert kinds(site.tell(agent.Reconsidered, day=1, minute=8 * 60)) == ["Reattach"]
    assert site.tell(agent.Reconsidered, day=1, minute=8 * 60 + 1) == []
    effects = site.tell(agent.OrderReceived, order=FIRST, day=1, minute=8 * 60 + 1)
    assert effects == [accepted(FIRST.id), agent.Prepare(FIRST)]
