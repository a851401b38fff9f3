"""What the simulation's worlds led to in the machines, each as the shortest list of events that shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_script import Script

from fedtrain.core import agent, events as ev
from fedtrain.core.contract import Contract
from fedtrain.core.orders import ModelRef, Order, OrderKind, Result
from fedtrain.core.spec import LatePolicy

OLD = Order(
    id="run-1.2.1.a",
    kind=OrderKind.TRAIN,
    run="run-1",
    round=2,
    attempt=1,
    site="a",
    seed=7,
    model=ModelRef(1, "1" * 64, "f" * 64, 0, ((0, "0" * 64, 40), (1, "d" * 64, 40))),
    steps=5,
    evaluate=False,
    parent="run-1.1.1.a",
    returned=(),
    cohort=("a", "b"),
    task='{"name":"tiny"}',
    codec="float32",
    block_elements=1 << 20,
    patience_ms=3_000,
)
"""Handed out by a coordinator that has been taken over since."""

assert OLD.model is not None, "it trains from a model"
NEW = replace(OLD, model=replace(OLD.model, digest="2" * 64))
"""The same round and attempt in the history that goes on, where version 1 came to be another one."""

RESULT = Result(order=OLD.id, file="update.bin", digest="a" * 64, size_bytes=40, weight=3, norm=1.0)


def told(*events: agent.AgentEvent) -> tuple[agent.AgentState, tuple[agent.AgentEffect, ...]]:
    """The state after these events, and the effects of the last one."""
    state, effects = agent.step(
        agent.AgentState(), agent.AgentBooted(1, Contract(("run-*",), ("tiny",), 1, {}))
    )
    for event in events:
        state, effects = agent.step(state, event)
    return state, effects


@pytest.mark.parametrize("got", ["working", "answered", "delivered"])
def test_an_order_of_another_history_is_other_work(got: str) -> None:
    """After a take-over an order may come with a known id and another base model: the site works on the
    new one from its start, and never answers it with bytes that were made for the old one.
    """
    events: list[agent.AgentEvent] = [agent.OrderReceived(2, OLD)]
    if got != "working":
        events.append(agent.ResultTaken(3, RESULT))
    if got == "delivered":
        events.append(agent.UploadAcknowledged(4, OLD.id, RESULT.digest, "stored", 1, 4, ""))
    state, effects = told(*events, agent.OrderReceived(5, NEW))
    assert effects == (agent.Reply(NEW.id, True, ()), agent.Discard(NEW.id), agent.Prepare(NEW))
    assert state.held == {NEW.id: agent.Held(NEW, agent.Stage.WORKING)}


def test_the_same_order_again_is_answered_with_the_same_bytes() -> None:
    """The other side of it: a copy that asks for what the old coordinator had acknowledged gets just that."""
    acknowledged = agent.UploadAcknowledged(4, OLD.id, RESULT.digest, "stored", 1, 4, "")
    _, effects = told(
        agent.OrderReceived(2, OLD), agent.ResultTaken(3, RESULT), acknowledged, agent.OrderReceived(5, OLD)
    )
    assert effects == (agent.Reply(OLD.id, True, ()), agent.Submit(OLD, RESULT))


def test_a_late_refusal_is_a_refusal() -> None:
    """A site whose no arrives while its closed round is aggregated is not asked again in this session."""
    script = Script("abc", late=LatePolicy.DROP).begin()
    script.seed()
    script.store("a"), script.store("b")
    script.wait(script.spec.deadline_ms)
    assert script.standings == "a stored, b stored, c late"
    script.tell(ev.ConsentRefused, order=script.order("c").id, reasons=("not today",))
    assert script.standings == "a stored, b stored, c late"
    assert [line for line in script.aggregate() if line.startswith("invite")] == [
        "invite a run.2.1.a",
        "invite b run.2.1.b",
    ]
