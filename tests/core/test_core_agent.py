"""Transcripts of a site's own machine: orders, results, receipts, crashes and changed contracts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedtrain.core import agent
from fedtrain.core.contract import Contract, Rights
from fedtrain.core.driver import Driver, replay
from fedtrain.core.orders import ModelRef, Order, OrderKind, Result
from fedtrain.core.ports import MemoryActor, MemoryJournal

ALLOWS = Contract(("run-*",), ("tiny",), 2, {"corpus": Rights(execute=("tiny",))})
DENIES = replace(ALLOWS, runs=("other-*",))
MODEL = ModelRef(0, "m" * 64, "l" * 64, 0, ((0, "b" * 64, 40),))


def order(round_index: int = 1, attempt: int = 1, run: str = "run-1") -> Order:
    """An order for site a."""
    return Order(
        id=f"{run}.{round_index}.{attempt}.a",
        kind=OrderKind.TRAIN,
        run=run,
        round=round_index,
        attempt=attempt,
        site="a",
        seed=7,
        model=MODEL,
        steps=5,
        evaluate=False,
        parent="",
        returned=(),
        cohort=("a", "b"),
        task='{"data":"corpus","name":"tiny"}',
        codec="float32",
        block_elements=1 << 20,
        patience_ms=3_000,
    )


FIRST = order()
UPDATE = Result(order=FIRST.id, file="update.bin", digest="d" * 64, size_bytes=40, weight=3, norm=1.0)
FAILURE = Result(order=FIRST.id, failure="the loss is not finite")
EVALUATION = Result(order=FIRST.id, eval_loss=1.5, eval_count=10)
CLAUSE = "contract.runs does not allow run run-1 (allowed: other-*)"


class Site:
    """One agent's machine, by hand."""

    def __init__(self, contract: Contract = ALLOWS) -> None:
        self.journal = MemoryJournal()
        self.actor: MemoryActor[agent.AgentEffect] = MemoryActor()
        self.driver: Driver[agent.AgentState, agent.AgentEvent, agent.AgentEffect] = Driver(
            self.journal, self.actor, agent.step, agent.AgentState()
        )
        self.tell(agent.AgentBooted, contract=contract)

    def tell(self, kind: type[agent.AgentEvent], **fields: Any) -> list[agent.AgentEffect]:
        """One event; the effects that follow. The journal always replays to the live state."""
        self.actor.performed.clear()
        self.driver.handle(kind(at_ms=1, **fields))
        replayed = replay(self.journal, agent.step, agent.AgentState(), agent.AGENT_EVENTS)
        assert replayed == self.driver.state
        return list(self.actor.performed)

    @property
    def held(self) -> list[str]:
        """Names of the orders in hand."""
        return list(self.driver.state.held)


def accepted(name: str) -> agent.Reply:
    return agent.Reply(name, True, ())


RECEIPT = {"blob": "d" * 64, "epoch": 1, "signed_ms": 5, "signature": "s"}


def test_an_order_from_invitation_to_publication() -> None:
    """Consent before work, an upload, bytes kept behind the receipt, nothing left once they count."""
    site = Site()
    received = site.tell(agent.OrderReceived, order=FIRST)
    assert received == [accepted(FIRST.id), agent.Prepare(FIRST)]
    assert site.tell(agent.ResultTaken, result=UPDATE) == [agent.Submit(FIRST, UPDATE)]
    acknowledged = site.tell(agent.UploadAcknowledged, order=FIRST.id, outcome="stored", **RECEIPT)
    assert acknowledged == [agent.Shelve(FIRST.id)]
    assert site.tell(agent.RoundPublished, run="run-2", round=1) == []
    assert site.tell(agent.RoundPublished, run="run-1", round=1) == [agent.Discard(FIRST.id)]
    assert site.held == []


def test_a_forbidden_order_is_refused_and_not_held() -> None:
    """Default deny: nothing is fetched, the reason names the clause."""
    site = Site(DENIES)
    assert site.tell(agent.OrderReceived, order=FIRST) == [agent.Reply(FIRST.id, False, (CLAUSE,))]
    assert site.held == []


def test_a_repeated_order_goes_on_where_it_is() -> None:
    """The same invitation again gets the same answer; work in hand goes on, a result is sent again."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    assert site.tell(agent.OrderReceived, order=FIRST) == [accepted(FIRST.id), agent.Prepare(FIRST)]
    site.tell(agent.ResultTaken, result=UPDATE)
    again = site.tell(agent.OrderReceived, order=FIRST)
    assert again == [accepted(FIRST.id), agent.Submit(FIRST, UPDATE)]


def test_a_later_attempt_replaces_the_earlier_one() -> None:
    """Of two attempts at one round the later is worked on; another run's order is left alone."""
    site = Site()
    other = order(run="run-2")
    site.tell(agent.OrderReceived, order=other)
    site.tell(agent.OrderReceived, order=FIRST)
    second = order(attempt=2)
    assert site.tell(agent.OrderReceived, order=second) == [
        accepted(second.id),
        agent.Discard(FIRST.id),
        agent.Prepare(second),
    ]
    assert site.held == [other.id, second.id]


def test_orders_of_different_rounds_stand_side_by_side() -> None:
    """A late order is not thrown away by the next round's."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.OrderReceived, order=order(2))
    assert site.held == ["run-1.1.1.a", "run-1.2.1.a"]


def test_failures_and_evaluations_are_reported() -> None:
    """An answer without a file goes through the session, and is over once it was delivered."""
    for result in (FAILURE, EVALUATION):
        site = Site()
        site.tell(agent.OrderReceived, order=FIRST)
        assert site.tell(agent.ResultTaken, result=result) == [agent.Report(FIRST, result)]
        assert site.tell(agent.AnswerDelivered, order=FIRST.id) == [agent.Discard(FIRST.id)]


def test_abandoned_work_is_a_failure() -> None:
    """A trainer that keeps dying is reported with its reason, once; a result counts more."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    report = site.tell(agent.WorkAbandoned, order=FIRST.id, reason="died 3 times")
    assert report == [agent.Report(FIRST, Result(FIRST.id, failure="died 3 times"))]
    assert site.tell(agent.WorkAbandoned, order=FIRST.id, reason="again") == []
    assert site.tell(agent.WorkAbandoned, order="run-1.9.1.a", reason="unknown") == []
    assert site.tell(agent.ResultTaken, result=UPDATE) == []


def test_results_of_unknown_orders_are_discarded() -> None:
    """Yesterday's trainer may still publish: nothing is uploaded for it."""
    assert Site().tell(agent.ResultTaken, result=UPDATE) == [agent.Discard(FIRST.id)]


def test_cancelled_and_refused_orders_are_over() -> None:
    """The coordinator may call an order off, or not take its upload: either way it is let go."""
    for kind in (agent.OrderCancelled, agent.UploadRefused):
        site = Site()
        site.tell(agent.OrderReceived, order=FIRST)
        assert site.tell(kind, order=FIRST.id, reason="the round is over") == [agent.Discard(FIRST.id)]
        assert site.held == []


def test_restart_repeats_every_stage() -> None:
    """After a crash each held order goes on from its stage: prepare, submit or report."""
    site = Site()
    third, second = order(3), order(2)
    for each in (FIRST, second, third):
        site.tell(agent.OrderReceived, order=each)
    site.tell(agent.ResultTaken, result=UPDATE)
    failure = replace(FAILURE, order=second.id)
    site.tell(agent.ResultTaken, result=failure)
    assert site.tell(agent.AgentBooted, contract=ALLOWS) == [
        agent.Submit(FIRST, UPDATE),
        agent.Report(second, failure),
        agent.Prepare(third),
    ]


def test_restart_with_another_contract() -> None:
    """What the contract no longer allows is refused and let go before anything of it is sent."""
    site = Site()
    other = order(run="other-1")
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.ResultTaken, result=UPDATE)
    both = replace(ALLOWS, runs=("*",))
    site.tell(agent.AgentBooted, contract=both)
    site.tell(agent.OrderReceived, order=other)
    assert site.tell(agent.AgentBooted, contract=DENIES) == [
        agent.Reply(FIRST.id, False, (CLAUSE,)),
        agent.Discard(FIRST.id),
        agent.Prepare(other),
    ]
    assert site.held == [other.id]


def test_a_repeated_order_is_judged_by_the_contract_of_today() -> None:
    """An order in hand that is forbidden by now is refused when it comes again."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    smaller = replace(FIRST, cohort=("a",))
    answer = site.tell(agent.OrderReceived, order=smaller)
    assert answer == [
        agent.Reply(FIRST.id, False, ("contract.cohort_min is 2, this order is shared by 1",)),
        agent.Discard(FIRST.id),
    ]
    assert site.held == []


def test_epochs_only_rise() -> None:
    """The highest epoch is remembered, also when a lower one is shown later."""
    site = Site()
    assert site.tell(agent.EpochSeen, epoch=4) == site.tell(agent.EpochSeen, epoch=3) == []
    assert site.driver.state.epoch == 4


def test_the_evidence_for_an_epoch_belongs_to_the_highest() -> None:
    """It may come after the epoch itself, is not lost to an unsigned repetition, and never stays behind."""
    site = Site()

    def evidence() -> tuple[int, int, str]:
        state = site.driver.state
        return state.epoch, state.epoch_signed_ms, state.epoch_signature

    site.tell(agent.EpochSeen, epoch=4)
    assert evidence() == (4, 0, "")
    site.tell(agent.EpochSeen, epoch=4, signed_ms=9, signature="aa")
    site.tell(agent.EpochSeen, epoch=4)
    site.tell(agent.EpochSeen, epoch=3, signed_ms=8, signature="bb")
    assert evidence() == (4, 9, "aa")
    site.tell(agent.EpochSeen, epoch=5)
    assert evidence() == (5, 0, "")


def test_heads_are_kept_in_the_journal() -> None:
    """A signed head changes no decision: being journaled makes the site a witness."""
    site = Site()
    before = site.driver.state
    head = {"consortium": "c", "sequence": 9, "hash": "h", "signed_ms": 5, "signature": "s"}
    assert site.tell(agent.HeadWitnessed, **head) == []
    assert site.driver.state == before
    assert site.journal.entries[-1].kind == "HeadWitnessed"


def test_every_event_has_an_answer_and_a_name() -> None:
    """The table and the list of events that a journal may hold are the same."""
    assert set(agent.TABLE) == set(agent.AGENT_EVENTS.values())
    assert agent.step(agent.AgentState(), agent.EpochSeen(1, 2))[0].epoch == 2


def delivered(outcome: str = "stored") -> Site:
    """A site whose first update was acknowledged."""
    site = Site()
    site.tell(agent.OrderReceived, order=FIRST)
    site.tell(agent.ResultTaken, result=UPDATE)
    site.tell(agent.UploadAcknowledged, order=FIRST.id, outcome=outcome, **RECEIPT)
    return site


def test_an_acknowledged_update_is_sent_again_when_it_is_asked_for() -> None:
    """A coordinator whose disk lost it, or one that took over from an older copy, gets the same bytes."""
    site = delivered()
    assert site.tell(agent.OrderReceived, order=FIRST) == [
        accepted(FIRST.id),
        agent.Submit(FIRST, UPDATE),
    ]
    assert site.tell(agent.AgentBooted, contract=ALLOWS) == [agent.Submit(FIRST, UPDATE)]


def test_a_late_update_is_kept_for_one_round_more() -> None:
    """It counts in the version after its own round's, so the next order finds it still here."""
    site = delivered("late_next_round")
    assert site.tell(agent.RoundPublished, run="run-1", round=1) == []
    second, third = order(2), order(3)
    assert site.tell(agent.OrderReceived, order=second) == [accepted(second.id), agent.Prepare(second)]
    received = site.tell(agent.OrderReceived, order=third)
    assert received == [accepted(third.id), agent.Discard(FIRST.id), agent.Prepare(third)]


def test_an_update_that_went_back_into_the_residual_is_not_kept() -> None:
    """The trainer's checkpoint holds it; nobody will ask for its bytes."""
    assert delivered("late_residual").held == []


def test_a_kept_update_survives_a_contract_that_changed() -> None:
    """It was delivered under the old contract; to send it again the new one is asked."""
    site = delivered()
    assert site.tell(agent.AgentBooted, contract=DENIES) == [agent.Shelve(FIRST.id)]
    assert site.tell(agent.OrderReceived, order=FIRST) == [
        agent.Reply(FIRST.id, False, (CLAUSE,)),
        agent.Discard(FIRST.id),
    ]
