"""The standing questions of a run: does the open round close, and can the next one open?

Whatever an event has changed, `settle` asks them again, so no handler has to know what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedtrain.core import masked_rounds, rollback, versions
from fedtrain.core.cohort import choose_cohort
from fedtrain.core.effects import Cancel, Effect, Finish, Invite, SetTimer
from fedtrain.core.orders import OrderKind
from fedtrain.core.rounds import (
    Verdict,
    abandon,
    close_round,
    judge,
    kind_of_round,
    next_index,
    open_round,
    record_of,
)
from fedtrain.core.seats import AT_WORK
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import ENDED, MaskStage, OpenRound, Phase, RunState, Standing, State, put

Turn = tuple[RunState, tuple[Effect, ...]]
NOTHING: tuple[Effect, ...] = ()

PHASE_OF = {
    OrderKind.SEED: Phase.SEEDING,
    OrderKind.TRAIN: Phase.TRAINING,
    OrderKind.EVALUATE: Phase.EVALUATING,
}


def settle(state: State, name: str, turn: Turn) -> tuple[State, tuple[Effect, ...]]:
    """The state with one run as a handler left it, and what follows from that."""
    run, effects = _advance(state, turn)
    return replace(state, runs=put(state.runs, name, run)), effects


def every_run(state: State, change: Callable[[RunState], Turn]) -> tuple[State, tuple[Effect, ...]]:
    """Apply a change to every run that has not ended."""
    effects: tuple[Effect, ...] = NOTHING
    for name in sorted(state.runs):
        if state.runs[name].phase not in ENDED:
            state, more = settle(state, name, change(state.runs[name]))
            effects += more
    return state, effects


def _advance(state: State, turn: Turn) -> Turn:
    """Close what can close, open what can open, until neither can.

    An attempt may open complete, with seats of an abandoned one that have all contributed: it closes
    at once.
    """
    run, effects = turn
    for question in (_unmask_if_due, _close_if_due, _open_if_possible, _unmask_if_due, _close_if_due):
        run, more = question(state, run)
        effects += more
    return run, effects


def _close_if_due(state: State, run: RunState) -> Turn:
    opened = run.round
    if opened is None or run.phase not in PHASE_OF.values():
        return run, NOTHING
    judgement = judge(run, state.now_ms)
    if judgement.verdict is Verdict.OPEN:
        return run, NOTHING
    if judgement.verdict is Verdict.ABANDON:
        return abandon(state, run, opened, judgement.reason)
    if run.phase is Phase.SEEDING:
        record = versions.seeding_record(state, run, opened, judgement.reason)
        return replace(run, phase=Phase.WAITING, round=None, records=(*run.records, record)), NOTHING
    closed = close_round(run, judgement.reason)
    run, cancels = _mark_late(replace(run, reason=judgement.reason, round=closed))
    if run.phase is Phase.EVALUATING:
        return end(state, run, Phase.DONE, f"{run.rounds_done} rounds done", cancels)
    if closed.masks is not None:
        run, asked = masked_rounds.close(state, run)
        return run, (*cancels, *asked)
    run = replace(run, phase=Phase.AGGREGATING)
    return run, (*cancels, versions.aggregation(run, closed))


def _unmask_if_due(state: State, run: RunState) -> Turn:
    """The stages of a masked round; the last one leads to the aggregation."""
    run, effects = masked_rounds.look(state, run)
    opened = run.round
    if run.phase is not Phase.UNMASKING or opened is None or opened.masks is None:
        return run, effects
    if opened.masks.stage is not MaskStage.BARE:
        return run, effects
    return replace(run, phase=Phase.AGGREGATING), (*effects, versions.aggregation(run, opened))


def _mark_late(run: RunState) -> Turn:
    """Sites still at work when a round closes: their work is remembered, or called off.

    After the last round nothing could count a late update, so none is waited for; and none can come after
    the masks of its round are off.
    """
    assert run.round is not None, "called with the round that closes"
    late = {s: seat.order for s, seat in run.round.seats.items() if seat.standing is Standing.LATE}
    counts_late = run.round.masks is None and run.spec.late is not LatePolicy.DROP
    if counts_late and run.round.index < run.spec.rounds:
        return replace(run, busy={**run.busy, **late}), NOTHING
    off = {**run.busy, **late}
    cancels = tuple(Cancel(s, order.id, "the round closed without it") for s, order in off.items())
    return replace(run, busy={}), cancels


def _open_if_possible(state: State, run: RunState) -> Turn:
    if run.phase is not Phase.WAITING or run.paused:
        return run, NOTHING
    choice = choose_cohort(state, run)
    if choice.members is None:
        timer = () if choice.wake_ms is None else (SetTimer(run.spec.run, "waiting", choice.wake_ms),)
        return replace(run, reason=choice.reason), timer
    opened, fresh = open_round(run, choice.members, choice.reason, state.now_ms)
    phase = PHASE_OF[kind_of_round(run.spec, next_index(run))]
    run = replace(run, phase=phase, reason=choice.reason, round=opened)
    invites = tuple(Invite(opened.seats[site].order) for site in fresh)
    opened, proposals = masked_rounds.begin(state, run, opened)
    return replace(run, round=opened), (*invites, *proposals, _deadline(run, opened))


def _deadline(run: RunState, opened: OpenRound) -> SetTimer:
    return SetTimer(run.spec.run, f"deadline.{opened.index}.{opened.attempt}", opened.deadline_ms)


def end(state: State, run: RunState, phase: Phase, reason: str, effects: tuple[Effect, ...]) -> Turn:
    """The run is over; an attempt that was still open gets its record too."""
    records = run.records
    if run.round is not None and run.phase is not Phase.WAITING:
        records = (*records, record_of(run.round, state.now_ms, reason=reason))
    ended = replace(run, phase=phase, reason=reason, records=records, round=None, late=(), busy={}, paused="")
    return ended, (*effects, Finish(run.spec.run, phase.value, reason), versions.collection(ended))


def standing_effects(run: RunState) -> tuple[Effect, ...]:
    """Timers, invitations and the aggregation that the run waits for."""
    opened = run.round
    if run.phase is Phase.RESTORING:
        return (rollback.restoration(run),)
    if run.phase in ENDED or opened is None:
        return NOTHING
    if run.phase is Phase.AGGREGATING:
        return (versions.aggregation(run, opened),)
    return (
        *(Invite(seat.order) for seat in opened.seats.values() if seat.standing in AT_WORK),
        *((_deadline(run, opened),) if run.phase is not Phase.WAITING else NOTHING),
        *masked_rounds.standing(run),
    )
