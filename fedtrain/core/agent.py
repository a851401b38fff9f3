"""A site's own machine: what its agent decides about orders, results and receipts.

The same shape as the coordinator's: `step(state, event) -> (state, effects)`, driven by the same
driver over the site's own journal. An order is held against the contract before anything is
fetched; every stage can be repeated after a crash, and `resume` says what to repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from fedtrain.core import canonical
from fedtrain.core.agent_events import (
    AGENT_EVENTS as AGENT_EVENTS,
    AgentBooted as AgentBooted,
    AgentEffect as AgentEffect,
    AgentEvent as AgentEvent,
    AnswerDelivered as AnswerDelivered,
    BurnMasks as BurnMasks,
    BytesSent as BytesSent,
    ChargeMade as ChargeMade,
    ContractSigned as ContractSigned,
    DataCounted as DataCounted,
    Discard as Discard,
    EpochSeen as EpochSeen,
    HeadWitnessed as HeadWitnessed,
    MaskUpdate as MaskUpdate,
    OrderCancelled as OrderCancelled,
    OrderReceived as OrderReceived,
    Prepare as Prepare,
    PrivacyReckoned as PrivacyReckoned,
    Reattach as Reattach,
    Reconsidered as Reconsidered,
    Reply as Reply,
    Report as Report,
    ResultTaken as ResultTaken,
    RosterReceived as RosterReceived,
    RoundPublished as RoundPublished,
    RunDecided as RunDecided,
    SayMasked as SayMasked,
    Shelve as Shelve,
    StatementReceived as StatementReceived,
    Submit as Submit,
    UpdateMasked as UpdateMasked,
    UpdateReleased as UpdateReleased,
    UpdateWithheld as UpdateWithheld,
    UploadAcknowledged as UploadAcknowledged,
    UploadRefused as UploadRefused,
    Withdraw as Withdraw,
    WorkAbandoned as WorkAbandoned,
)
from fedtrain.core.agent_state import (
    AgentState as AgentState,
    Held as Held,
    LedgerHead,
    Reckoned,
    Refused as Refused,
    SeatStage as SeatStage,
    Stage as Stage,
    Usage as Usage,
    circumstances as circumstances,
    in_progress as in_progress,
    leaving,
    uploaded_on,
    worked,
)
from fedtrain.core.contract import Approval, Word
from fedtrain.core.judgement import Moment, judge, upload_fault
from fedtrain.core.masked_seat import heard, leave, masking
from fedtrain.core.masks import Proposal, is_masked
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.state import put, without

Turn = tuple[AgentState, tuple[AgentEffect, ...]]


def step(state: AgentState, event: AgentEvent) -> Turn:
    """What follows from one event."""
    state, effects = TABLE[type(event)](state, event)
    return leave(state, [order for order in state.masks if order not in state.held]), effects


def resume(state: AgentState) -> tuple[AgentEffect, ...]:
    """The effects that the held orders still call for."""
    effects: list[AgentEffect] = []
    for held in state.held.values():
        effects += _next_effect(state, held)
    return tuple(effects)


def _next_effect(state: AgentState, held: Held) -> tuple[AgentEffect, ...]:
    if held.stage is Stage.DELIVERED:
        return (Shelve(held.order.id),)
    if held.result is None:
        return (Prepare(held.order),)
    if held.stage is Stage.HELD:
        return (Shelve(held.order.id),)
    if held.stage is Stage.MASKING:
        return (Shelve(held.order.id), *masking(held, state.masks.get(held.order.id)))
    if held.result.file:
        return (Submit(held.order, held.result),)
    return (Report(held.order, held.result),)


def _booted(state: AgentState, event: AgentBooted) -> Turn:
    """Go on with what is held, as far as the contract, which may have changed, still allows it."""
    effects: list[AgentEffect] = []
    allowed = {}
    for name, held in state.held.items():
        decision = judge(event.contract, held.order, in_progress(state))
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
    order, known = event.order, state.held.get(event.order.id)
    begun = event.minute < 0 or (known is not None and known.order == order)
    moment = Moment(event.day, event.minute)
    now = in_progress(state) if begun else circumstances(state, moment, event.spending)
    decision = judge(state.contract, order, now)
    reply = Reply(order.id, decision.accepted, decision.reasons)
    if not decision.accepted:
        no = Refused(order, decision.reasons, decision.pending, event.spending)
        refused = put(state.refused, order.run, no)
        state = replace(state, held=without(state.held, order.id), refused=refused)
        return state, (reply, *_discard(known))
    state = replace(state, refused=without(state.refused, order.run))
    if known is not None and known.order == order:
        if known.stage is Stage.DELIVERED and known.result is not None:
            # The coordinator lost it (its disk, or it took over from an older copy): the same bytes again,
            # which leave again as far as the bounds on traffic go.
            state, again = _send(state, replace(known, outcome=""), known.result, event.day)
            return state, (reply, *again)
        return replace(state, held=put(state.held, order.id, known)), (reply, *_next_effect(state, known))
    older = [
        held
        for held in state.held.values()
        if held.order.run == order.run and (_replaces(order, held) or _counted_before(order.round, held))
    ]
    gone = [held.order.id for held in older]
    remaining, held = without(state.held, *gone), Held(order, Stage.WORKING)
    # Under the same name other work may come: it is none of the masked session's that was agreed to.
    state = leave(state, gone)
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
    """The work is done. Its file leaves at once, after a person has looked at it, or not at all."""
    result = event.result
    held = state.held.get(result.order)
    if held is None or held.stage is not Stage.WORKING:
        return state, () if held else (Discard(result.order),)
    state = worked(state, result, event.devices)
    if result.file and state.contract.approval is Approval.HOLD:
        held = replace(held, stage=Stage.HELD, result=result)
        return replace(state, held=put(state.held, result.order, held)), (Shelve(result.order),)
    return _let_go(state, held, result, event.day)


def _let_go(state: AgentState, held: Held, result: Result, day: int) -> Turn:
    """The answer is sent; under masks when they are on."""
    if not result.file or not is_masked(held.order):
        return _send(state, held, result, day)
    held = replace(held, stage=Stage.MASKING, result=result)
    state = replace(state, held=put(state.held, held.order.id, held))
    return state, _next_effect(state, held)


def _masked(state: AgentState, event: UpdateMasked) -> Turn:
    """Of the update nothing but its steps is told any more."""
    held = state.held.get(event.order)
    if held is None or held.stage is not Stage.MASKING or held.result is None:
        return state, ()
    result = replace(held.result, digest=event.digest, size_bytes=event.size_bytes, weight=1, norm=0.0)
    return _send(state, held, result, event.day)


def _statement(state: AgentState, event: StatementReceived) -> Turn:
    """A masked round's next document; partners are remembered by the keys that they first came with."""
    state, effects = heard(state, event)
    seat = state.masks.get(event.order)
    if event.topic != "proposal" or seat is None or seat.stage is not SeatStage.ADVERTISED:
        return state, effects
    sites = canonical.decode(Proposal, seat.proposal).sites
    return replace(state, partners={**sites, **state.partners}), effects


def _send(state: AgentState, held: Held, result: Result, day: int) -> Turn:
    """Upload it, as far as the contract's bounds on traffic allow its file."""
    if result.file:
        fault = upload_fault(state.contract, result.size_bytes, uploaded_on(state, day))
        if fault:
            result = Result(order=result.order, failure=fault, seconds=result.seconds)
        else:
            state = leaving(state, result.size_bytes, day)
    held = replace(held, stage=Stage.ANSWERED, result=result)
    return replace(state, held=put(state.held, result.order, held)), _next_effect(state, held)


def _released(state: AgentState, event: UpdateReleased) -> Turn:
    held = state.held.get(event.order)
    if held is None or held.stage is not Stage.HELD or held.result is None:
        return state, ()
    return _let_go(state, held, held.result, event.day)


def _withheld(state: AgentState, event: UpdateWithheld) -> Turn:
    """The file stays here; the coordinator hears that there will be none."""
    why = f": {event.reason}" if event.reason else ""
    reason = f"contract.approval is hold, and a person of this site withholds the update{why}"
    return _failed(state, event.order, Stage.HELD, reason)


def _decided(state: AgentState, event: RunDecided) -> Turn:
    """A person's word. No is told at once, and ends what is in hand; yes has the coordinator ask again.

    A no to what was agreed to before is a withdrawal, and kept as one: it is told again in every session.
    """
    run, verdict, before = event.run, event.verdict, state.verdicts.get(event.run)
    gone = [name for name, held in state.held.items() if held.order.run == run]
    withdrawn = before is not None and before.word is Word.WITHDRAWN
    if verdict.word is Word.DENIED and (gone or withdrawn):
        verdict = replace(verdict, word=Word.WITHDRAWN)
    state = replace(state, verdicts=put(state.verdicts, run, verdict))
    if verdict.word is Word.APPROVED:
        reason = f"{verdict.by} approves run {run}"
        if withdrawn:
            # The coordinator asks nothing of this session any more, whether or not it was refused since.
            return replace(state, refused=without(state.refused, run)), (Reattach(reason),)
        return _ask_again(state, None, reason)
    state = replace(state, held=without(state.held, *gone))
    effects = (Withdraw(run, verdict.reason),) if verdict.word is Word.WITHDRAWN else ()
    return state, (*effects, *(Discard(name) for name in gone))


def _roster(state: AgentState, event: RosterReceived) -> Turn:
    if event.signed_ms < state.roster_ms:
        return state, ()
    state = replace(state, roster=event.members, roster_ms=event.signed_ms)
    return _ask_again(state, None, "the roster has changed")


def _reconsidered(state: AgentState, event: Reconsidered) -> Turn:
    return _ask_again(state, Moment(event.day, event.minute), "what was refused may be allowed by now")


def _ask_again(state: AgentState, moment: Moment | None, reason: str) -> Turn:
    """Attach anew if an order that was refused would be accepted now; it is then asked once more."""
    allowed = allowed_by_now(state, moment)
    if not allowed:
        return state, ()
    return replace(state, refused=without(state.refused, *allowed)), (Reattach(reason),)


def allowed_by_now(state: AgentState, moment: Moment | None) -> tuple[str, ...]:
    """Runs whose refused order the contract would accept; None for the hours and bounds as they were."""

    def allowed(refused: Refused) -> bool:
        spending = refused.spending
        now = circumstances(state, moment, spending) if moment is not None else in_progress(state, spending)
        return judge(state.contract, refused.order, now).accepted

    return tuple(run for run, refused in state.refused.items() if allowed(refused))


def _counted(state: AgentState, event: DataCounted) -> Turn:
    return replace(state, examples=event.examples), ()


def _reckoned(state: AgentState, event: PrivacyReckoned) -> Turn:
    found = Reckoned(event.terms, event.units, event.noise_multiplier)
    return replace(state, reckoned=put(state.reckoned, event.run, found)), ()


def _charged(state: AgentState, event: ChargeMade) -> Turn:
    """What is in the ledger is spent, whatever became of the order meanwhile."""
    missing = tuple(dict.fromkeys((*state.missing, *event.missing)))
    state = replace(state, ledger=LedgerHead(event.sequence, event.hash), missing=missing)
    held = state.held.get(event.order)
    if held is None:
        return state, ()
    return replace(state, held=put(state.held, event.order, replace(held, execution=event.execution))), ()


def _abandoned(state: AgentState, event: WorkAbandoned) -> Turn:
    return _failed(state, event.order, Stage.WORKING, event.reason)


def _failed(state: AgentState, order: str, stage: Stage, reason: str) -> Turn:
    """An order at this stage is answered with a failure instead of a file."""
    held = state.held.get(order)
    if held is None or held.stage is not stage:
        return state, ()
    held = replace(held, stage=Stage.ANSWERED, result=Result(order=order, failure=reason))
    return replace(state, held=put(state.held, order, held)), _next_effect(state, held)


def _noted(state: AgentState, event: HeadWitnessed | ContractSigned | BytesSent) -> Turn:
    """Kept in the journal, as evidence; nothing follows from it."""
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
    HeadWitnessed: _noted,
    RosterReceived: _roster,
    RunDecided: _decided,
    Reconsidered: _reconsidered,
    UpdateReleased: _released,
    UpdateWithheld: _withheld,
    ContractSigned: _noted,
    DataCounted: _counted,
    PrivacyReckoned: _reckoned,
    ChargeMade: _charged,
    StatementReceived: _statement,
    UpdateMasked: _masked,
    BytesSent: _noted,
}
"""Event -> what answers it."""
