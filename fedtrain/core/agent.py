"""A site's own machine: what its agent decides about orders, results and receipts.

The same shape as the coordinator's: `step(state, event) -> (state, effects)`, driven by the same
driver over the site's own journal. An order is held against the contract before anything is
fetched; every stage can be repeated after a crash, and `resume` says what to repeat.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fedtrain.core.contract import Contract, judge
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.state import put, without

# -- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentEvent:
    """Root of what can happen to an agent. `at_ms` is wall-clock UTC."""

    at_ms: int


@dataclass(frozen=True)
class AgentBooted(AgentEvent):
    """The agent started with this contract, read from its peer.yaml."""

    contract: Contract


@dataclass(frozen=True)
class EpochSeen(AgentEvent):
    """A coordinator showed a higher epoch than any before, or the evidence for the highest.

    `signed_ms` and `signature` are the evidence; a coordinator of protocol 1.0 shows none.
    """

    epoch: int
    signed_ms: int = 0
    signature: str = ""


@dataclass(frozen=True)
class OrderReceived(AgentEvent):
    """An invitation came, perhaps not for the first time."""

    order: Order


@dataclass(frozen=True)
class OrderCancelled(AgentEvent):
    """The coordinator no longer wants this order."""

    order: str
    reason: str


@dataclass(frozen=True)
class ResultTaken(AgentEvent):
    """The trainer's result was checked and lies in the agent's own folder."""

    result: Result


@dataclass(frozen=True)
class WorkAbandoned(AgentEvent):
    """The order cannot be done here: the model could not be had, or the trainer keeps dying."""

    order: str
    reason: str


@dataclass(frozen=True)
class UploadAcknowledged(AgentEvent):
    """The coordinator's signed receipt came; it is kept whole, as proof."""

    order: str
    blob: str
    outcome: str
    epoch: int
    signed_ms: int
    signature: str


@dataclass(frozen=True)
class AnswerDelivered(AgentEvent):
    """An answer without an upload (failure, evaluation) was taken by the coordinator's session."""

    order: str


@dataclass(frozen=True)
class UploadRefused(AgentEvent):
    """The coordinator will not take the upload: the round is over, or the update is not acceptable."""

    order: str
    reason: str


@dataclass(frozen=True)
class RoundPublished(AgentEvent):
    """The version of this round is out: updates that it counts will not be asked for again."""

    run: str
    round: int


@dataclass(frozen=True)
class HeadWitnessed(AgentEvent):
    """A signed head of the coordinator's journal; keeping it makes this site a witness."""

    consortium: str
    sequence: int
    hash: str
    signed_ms: int
    signature: str


AGENT_EVENTS: dict[str, type[AgentEvent]] = {
    kind.__name__: kind
    for kind in (
        AgentBooted,
        EpochSeen,
        OrderReceived,
        OrderCancelled,
        ResultTaken,
        WorkAbandoned,
        UploadAcknowledged,
        AnswerDelivered,
        UploadRefused,
        RoundPublished,
        HeadWitnessed,
    )
}

# -- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentEffect:
    """Root of what an agent's shell is to do; all of it may be repeated."""


@dataclass(frozen=True)
class Reply(AgentEffect):
    """Send the contract's answer."""

    order: str
    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Prepare(AgentEffect):
    """Bring the public model up to the order's version and post the order to the mailbox."""

    order: Order


@dataclass(frozen=True)
class Submit(AgentEffect):
    """Upload the result's file and commit it, signed."""

    order: Order
    result: Result


@dataclass(frozen=True)
class Report(AgentEffect):
    """Tell the coordinator about an answer that has no file: an evaluation, or a failure."""

    order: Order
    result: Result


@dataclass(frozen=True)
class Shelve(AgentEffect):
    """The trainer is done with this order; its answer's file stays in the outbox."""

    order: str


@dataclass(frozen=True)
class Discard(AgentEffect):
    """Nothing of this order is needed any more, in the mailbox or the outbox."""

    order: str


# -- state ----------------------------------------------------------------------------------------


class Stage(enum.StrEnum):
    """How far an accepted order has come."""

    WORKING = "working"
    ANSWERED = "answered"  # the result is here, the coordinator does not have it yet
    DELIVERED = "delivered"  # acknowledged; the bytes stay until a version counts them


@dataclass(frozen=True)
class Held:
    """An order in hand. `outcome` is the receipt's, once there is one."""

    order: Order
    stage: Stage
    result: Result | None = None
    outcome: str = ""


@dataclass(frozen=True)
class AgentState:
    """What an agent knows. A refused order is not held."""

    epoch: int = 0
    epoch_signed_ms: int = 0
    epoch_signature: str = ""
    contract: Contract = field(default_factory=Contract)
    held: Mapping[str, Held] = field(default_factory=dict)

    @property
    def in_hand(self) -> dict[str, Held]:
        """Orders that something is still to be done for."""
        return {name: held for name, held in self.held.items() if held.stage is not Stage.DELIVERED}


Turn = tuple[AgentState, tuple[AgentEffect, ...]]


def step(state: AgentState, event: AgentEvent) -> Turn:
    """What follows from one event."""
    handler = TABLE[type(event)]
    return handler(state, event)


def resume(state: AgentState) -> tuple[AgentEffect, ...]:
    """The effects that the held orders still call for."""
    effects: list[AgentEffect] = []
    for held in state.held.values():
        effects += _next_effect(held)
    return tuple(effects)


def _next_effect(held: Held) -> tuple[AgentEffect, ...]:
    if held.stage is Stage.DELIVERED:
        return (Shelve(held.order.id),)
    if held.result is None:
        return (Prepare(held.order),)
    if held.result.file:
        return (Submit(held.order, held.result),)
    return (Report(held.order, held.result),)


def _booted(state: AgentState, event: AgentBooted) -> Turn:
    """Go on with what is held, as far as the contract, which may have changed, still allows it."""
    effects: list[AgentEffect] = []
    allowed = {}
    for name, held in state.held.items():
        decision = judge(event.contract, held.order)
        if decision.accepted or held.stage is Stage.DELIVERED:
            allowed[name] = held
        else:
            effects += (Reply(name, False, decision.reasons), Discard(name))
    state = replace(state, contract=event.contract, held=MappingProxyType(allowed))
    return state, (*effects, *resume(state))


def _epoch(state: AgentState, event: EpochSeen) -> Turn:
    higher = event.epoch > state.epoch
    if not higher and (event.epoch < state.epoch or not event.signature):
        return state, ()
    return replace(
        state, epoch=event.epoch, epoch_signed_ms=event.signed_ms, epoch_signature=event.signature
    ), ()


def _received(state: AgentState, event: OrderReceived) -> Turn:
    """Judge by the contract as it is now; a repeated order gets the same answer and goes on."""
    order = event.order
    decision = judge(state.contract, order)
    reply = Reply(order.id, decision.accepted, decision.reasons)
    known = state.held.get(order.id)
    if not decision.accepted:
        return replace(state, held=without(state.held, order.id)), (reply, *_discard(known))
    if known is not None and known.order == order:
        if known.stage is Stage.DELIVERED:
            # The coordinator lost it (its disk, or it took over from an older copy): the same bytes again.
            known = replace(known, stage=Stage.ANSWERED, outcome="")
        return replace(state, held=put(state.held, order.id, known)), (reply, *_next_effect(known))
    older = [
        held
        for held in state.held.values()
        if held.order.run == order.run and (_replaces(order, held) or _counted_before(order.round, held))
    ]
    remaining = without(state.held, *(held.order.id for held in older))
    held = Held(order, Stage.WORKING)
    effects = [effect for old in older for effect in _discard(old)]
    return replace(state, held=put(remaining, order.id, held)), (reply, *effects, Prepare(order))


def _replaces(order: Order, held: Held) -> bool:
    """A later attempt at the same round replaces the earlier one. So does the same one with another
    content: it comes from a coordinator whose history has forked, and asks for other work.
    """
    return held.order.round == order.round and held.order.attempt <= order.attempt


def _counted_before(round_index: int, held: Held) -> bool:
    """Whether a version of a round before this one holds the update, so that nobody asks for it again."""
    counted_in = held.order.round + (1 if held.outcome == "late_next_round" else 0)
    return held.stage is Stage.DELIVERED and counted_in < round_index


def _discard(held: Held | None) -> tuple[AgentEffect, ...]:
    return () if held is None else (Discard(held.order.id),)


def _acknowledged(state: AgentState, event: UploadAcknowledged) -> Turn:
    """The coordinator has it. An update's bytes are kept until they are part of a version."""
    held = state.held.get(event.order)
    if held is None or held.order.kind is not OrderKind.TRAIN or event.outcome == "late_residual":
        return replace(state, held=without(state.held, event.order)), (Discard(event.order),)
    held = replace(held, stage=Stage.DELIVERED, outcome=event.outcome)
    return replace(state, held=put(state.held, event.order, held)), (Shelve(event.order),)


def _published(state: AgentState, event: RoundPublished) -> Turn:
    """Updates that this version counts are let go."""
    gone = [
        name
        for name, held in state.held.items()
        if held.order.run == event.run and _counted_before(event.round + 1, held)
    ]
    return replace(state, held=without(state.held, *gone)), tuple(Discard(name) for name in gone)


def _dropped(state: AgentState, event: OrderCancelled | UploadRefused | AnswerDelivered) -> Turn:
    """The order is over, one way or the other."""
    return replace(state, held=without(state.held, event.order)), (Discard(event.order),)


def _taken(state: AgentState, event: ResultTaken) -> Turn:
    held = state.held.get(event.result.order)
    if held is None or held.stage is not Stage.WORKING:
        return state, () if held else (Discard(event.result.order),)
    held = replace(held, stage=Stage.ANSWERED, result=event.result)
    return replace(state, held=put(state.held, event.result.order, held)), _next_effect(held)


def _abandoned(state: AgentState, event: WorkAbandoned) -> Turn:
    return _taken_failure(state, event.order, event.reason)


def _taken_failure(state: AgentState, order: str, reason: str) -> Turn:
    held = state.held.get(order)
    if held is None or held.stage is not Stage.WORKING:
        return state, ()
    held = replace(held, stage=Stage.ANSWERED, result=Result(order=order, failure=reason))
    return replace(state, held=put(state.held, order, held)), _next_effect(held)


def _witnessed(state: AgentState, event: HeadWitnessed) -> Turn:
    return state, ()


TABLE: dict[type[AgentEvent], Callable[[AgentState, Any], Turn]] = {
    AgentBooted: _booted,
    EpochSeen: _epoch,
    OrderReceived: _received,
    OrderCancelled: _dropped,
    ResultTaken: _taken,
    WorkAbandoned: _abandoned,
    UploadAcknowledged: _acknowledged,
    AnswerDelivered: _dropped,
    UploadRefused: _dropped,
    RoundPublished: _published,
    HeadWitnessed: _witnessed,
}
"""Event -> what answers it."""
