"""The coordinator's machine: `step(state, event) -> (state, effects)`.

Theory of operation. A run is always in one phase, and `TABLE` says which function answers which
event there; an event without an entry changes nothing (it is stale, and it is in the journal). A
handler changes one run; `_advance` then asks the two standing questions, in this order: does the
open round close, and can the next one open? All that needs the outside is an effect. Effects can
be repeated: `resume` lists those that a state still calls for, and `Booted` asks for it.

    WAITING -> SEEDING -> WAITING -> TRAINING -> AGGREGATING -> WAITING ... -> EVALUATING -> DONE
                  |                     |
                  +---- abandoned ------+--> WAITING, with the seats of those who worked
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedtrain.core import events as ev, seats, uploads, versions
from fedtrain.core.cohort import choose_cohort
from fedtrain.core.effects import Cancel, Effect, Finish, Invite, Retire, SetTimer
from fedtrain.core.orders import OrderKind
from fedtrain.core.rounds import (
    Verdict,
    close_round,
    judge,
    kind_of_round,
    next_index,
    open_round,
    record_of,
)
from fedtrain.core.seats import AT_WORK, with_seat
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import (
    ENDED,
    Attached,
    Member,
    OpenRound,
    PendingInvite,
    Phase,
    RunState,
    Standing,
    State,
    put,
    without,
)

Turn = tuple[RunState, tuple[Effect, ...]]
NOTHING: tuple[Effect, ...] = ()

PHASE_OF = {
    OrderKind.SEED: Phase.SEEDING,
    OrderKind.TRAIN: Phase.TRAINING,
    OrderKind.EVALUATE: Phase.EVALUATING,
}


def step(state: State, event: ev.Event) -> tuple[State, tuple[Effect, ...]]:
    """What follows from one event. Pure: same state and event, same answer."""
    state = replace(state, now_ms=max(state.now_ms, event.at_ms))
    if state.fenced and not isinstance(event, ev.Booted):
        return state, NOTHING
    own = MEMBERSHIP.get(type(event))
    if own is not None:
        return own(state, event)
    if isinstance(event, ev.RunSubmitted):
        return _submit(state, event)
    name = _run_name(event)
    run = state.runs.get(name)
    if run is None:
        return state, NOTHING
    handler = TABLE.get((run.phase, type(event)))
    if handler is None:
        return state, NOTHING
    return _settle(state, name, handler(state, run, event))


def resume(state: State) -> tuple[Effect, ...]:
    """The effects that this state still calls for, after a crash at any point."""
    effects: list[Effect] = []
    for run in state.runs.values():
        effects += _standing_effects(run)
    return tuple(effects)


def _standing_effects(run: RunState) -> tuple[Effect, ...]:
    """Timers, invitations and the aggregation that the run waits for."""
    opened = run.round
    if run.phase in ENDED or opened is None:
        return NOTHING
    if run.phase is Phase.AGGREGATING:
        return (versions.aggregation(run, opened),)
    return (
        *(Invite(seat.order) for seat in opened.seats.values() if seat.standing in AT_WORK),
        *((_deadline(run, opened),) if run.phase is not Phase.WAITING else NOTHING),
    )


# -- the coordinator and its members -------------------------------------------------------------


def _booted(state: State, event: ev.Booted) -> tuple[State, tuple[Effect, ...]]:
    """A new life: nobody is attached yet, and whatever was under way is asked for again."""
    if event.epoch <= state.fenced:
        return state, (Retire(state.fenced),)
    state = replace(state, epoch=event.epoch, place=event.place, fenced=0, booted_ms=event.at_ms, attached={})
    effects = resume(state)
    state, more = _every_run(state, lambda run: (run, NOTHING))
    return state, (*effects, *more)


def _fenced(state: State, event: ev.Fenced) -> tuple[State, tuple[Effect, ...]]:
    """Somebody has taken over: from here on only a new life with a higher epoch changes anything."""
    if event.epoch <= state.epoch:
        return state, NOTHING
    return replace(state, fenced=event.epoch), (Retire(event.epoch),)


def _invited(state: State, event: ev.MemberInvited) -> tuple[State, tuple[Effect, ...]]:
    invite = PendingInvite(event.name, event.role, event.expires_ms)
    return replace(state, invites=put(state.invites, event.invite, invite)), NOTHING


def _enrolled(state: State, event: ev.MemberEnrolled) -> tuple[State, tuple[Effect, ...]]:
    member = Member(
        event.name, event.role, event.invite, event.key_digest, event.certificate, event.message_key
    )
    invites = state.invites
    if event.invite in invites:
        invites = put(invites, event.invite, replace(invites[event.invite], used_by=event.key_digest))
    state = replace(state, members=put(state.members, event.name, member), invites=invites)
    return _every_run(state, lambda run: (run, NOTHING))


def _misused(state: State, event: ev.InviteMisused) -> tuple[State, tuple[Effect, ...]]:
    return state, NOTHING


def _attached(state: State, event: ev.SiteAttached) -> tuple[State, tuple[Effect, ...]]:
    """A site is here: it hears which of its orders are over, and gets the others again."""
    session = Attached(event.session, event.version, event.at_ms)
    state = replace(state, attached=put(state.attached, event.site, session))

    def welcome(run: RunState) -> Turn:
        busy = run.busy.get(event.site)
        if busy is not None and busy.id in event.holding:
            return run, (Invite(busy),)  # its progress is expected again, also after a restart
        run = replace(run, busy=without(run.busy, event.site))
        seat = run.round.seats.get(event.site) if run.round else None
        if run.round is None or seat is None or run.phase is Phase.AGGREGATING:
            return run, NOTHING
        if seat.standing is Standing.LOST:
            seat = replace(seat, standing=Standing.INVITED, reason="")
            run = with_seat(run, event.site, seat)
        return run, (Invite(seat.order),) if seat.standing in AT_WORK else NOTHING

    over = tuple(
        Cancel(event.site, order, "it is over") for order in event.holding if not _wanted(state, order)
    )
    state, effects = _every_run(state, welcome)
    return state, (*over, *effects)


def _wanted(state: State, order_id: str) -> bool:
    """Whether an answer to this order is awaited, or is here and not yet in a version."""
    run = state.runs.get(order_id.split(".", 1)[0])
    if run is None or run.phase in ENDED:
        return False
    late = {update.order for update in run.late} | {order.id for order in run.busy.values()}
    return uploads.seat_of(run, order_id) is not None or order_id in late


def _lost(state: State, event: ev.SiteLost) -> tuple[State, tuple[Effect, ...]]:
    """A site is given up: rounds stop waiting for it."""
    state = replace(state, attached=without(state.attached, event.site))

    def give_up(run: RunState) -> Turn:
        run = replace(run, busy=without(run.busy, event.site))
        seat = run.round.seats.get(event.site) if run.round else None
        if seat is None or seat.standing not in AT_WORK:
            return run, NOTHING
        return with_seat(run, event.site, replace(seat, standing=Standing.LOST, reason=event.reason)), NOTHING

    return _every_run(state, give_up)


MEMBERSHIP: dict[type[ev.Event], Callable[[State, Any], tuple[State, tuple[Effect, ...]]]] = {
    ev.Booted: _booted,
    ev.Fenced: _fenced,
    ev.MemberInvited: _invited,
    ev.MemberEnrolled: _enrolled,
    ev.InviteMisused: _misused,
    ev.SiteAttached: _attached,
    ev.SiteLost: _lost,
}
"""Events that concern the whole coordinator."""


# -- a run: submitted, paused, stopped ---------------------------------------------------------


def _submit(state: State, event: ev.RunSubmitted) -> tuple[State, tuple[Effect, ...]]:
    name = event.spec.run
    if name in state.runs:
        return state, NOTHING
    run = RunState(event.spec, Phase.WAITING, "submitted", event.at_ms, event.at_ms)
    return _settle(state, name, (run, NOTHING))


def _pause(state: State, run: RunState, event: ev.RunPaused) -> Turn:
    return replace(run, paused=f"paused by {event.by}"), NOTHING


def _unpause(state: State, run: RunState, event: ev.RunResumed) -> Turn:
    """Go on, and ask again whatever had refused or failed."""
    run = replace(run, paused="", waiting_since_ms=event.at_ms, excluded={})
    return run, _standing_effects(run) if run.phase is Phase.AGGREGATING else NOTHING


def _stop(state: State, run: RunState, event: ev.RunStopped) -> Turn:
    opened = run.round
    cancels = tuple(
        Cancel(site, seat.order.id, "the run was stopped")
        for site, seat in (opened.seats.items() if opened else ())
        if seat.standing in AT_WORK
    )
    return _end(state, run, Phase.STOPPED, f"stopped by {event.by}", cancels)


def _end(state: State, run: RunState, phase: Phase, reason: str, effects: tuple[Effect, ...]) -> Turn:
    """The run is over; an attempt that was still open gets its record too."""
    records = run.records
    if run.round is not None and run.phase is not Phase.WAITING:
        records = (*records, record_of(run.round, state.now_ms, reason=reason))
    ended = replace(run, phase=phase, reason=reason, records=records, round=None, late=(), busy={}, paused="")
    return ended, (*effects, Finish(run.spec.run, phase.value, reason), versions.collection(ended))


# -- the standing questions ----------------------------------------------------------------------


def _tick(state: State, run: RunState, event: ev.TimerFired) -> Turn:
    """A timer only makes the standing questions be asked again."""
    return run, NOTHING


def _settle(state: State, name: str, turn: Turn) -> tuple[State, tuple[Effect, ...]]:
    run, effects = _advance(state, turn)
    return replace(state, runs=put(state.runs, name, run)), effects


def _every_run(state: State, change: Callable[[RunState], Turn]) -> tuple[State, tuple[Effect, ...]]:
    """Apply a change to every run that has not ended."""
    effects: tuple[Effect, ...] = NOTHING
    for name in sorted(state.runs):
        if state.runs[name].phase not in ENDED:
            state, more = _settle(state, name, change(state.runs[name]))
            effects += more
    return state, effects


def _advance(state: State, turn: Turn) -> Turn:
    """Close what can close, open what can open, until neither can.

    An attempt may open complete, with seats of an abandoned one that have all contributed: it closes
    at once.
    """
    run, effects = turn
    for question in (_close_if_due, _open_if_possible, _close_if_due):
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
        return _abandon(state, run, opened, judgement.reason)
    if run.phase is Phase.SEEDING:
        record = versions.seeding_record(state, run, opened, judgement.reason)
        return replace(run, phase=Phase.WAITING, round=None, records=(*run.records, record)), NOTHING
    closed = close_round(run, judgement.reason)
    run, cancels = _mark_late(replace(run, reason=judgement.reason, round=closed))
    if run.phase is Phase.EVALUATING:
        return _end(state, run, Phase.DONE, f"{run.rounds_done} rounds done", cancels)
    run = replace(run, phase=Phase.AGGREGATING)
    return run, (*cancels, versions.aggregation(run, closed))


def _mark_late(run: RunState) -> Turn:
    """Sites still at work when a round closes: their work is remembered, or called off.

    After the last round nothing could count a late update, so none is waited for.
    """
    assert run.round is not None, "called with the round that closes"
    late = {s: seat.order for s, seat in run.round.seats.items() if seat.standing is Standing.LATE}
    if run.spec.late is not LatePolicy.DROP and run.round.index < run.spec.rounds:
        return replace(run, busy={**run.busy, **late}), NOTHING
    off = {**run.busy, **late}
    cancels = tuple(Cancel(s, order.id, "the round closed without it") for s, order in off.items())
    return replace(run, busy={}), cancels


def _abandon(state: State, run: RunState, opened: OpenRound, reason: str) -> Turn:
    """This attempt cannot close. Whoever contributed or still works keeps its seat in the next."""
    record = record_of(opened, state.now_ms, reason=f"abandoned: {reason}")
    paused = run.paused
    if opened.attempt % run.spec.attempts_max == 0 and not paused:
        paused = f"round {opened.index} was abandoned {opened.attempt} times, last because {reason}"
    return replace(
        run, phase=Phase.WAITING, reason=reason, records=(*run.records, record), paused=paused
    ), NOTHING


def _damaged(state: State, run: RunState, event: ev.BlobDamaged) -> Turn:
    """The attempt is made again with the same seats; the site sends the same bytes once more."""
    run, lost = uploads.damaged(run, event)
    again = () if lost is None else (Invite(lost),)
    if run.phase is not Phase.AGGREGATING or run.round is None:
        return run, again
    if lost is None:
        return run, (versions.aggregation(run, run.round),)
    run, effects = _abandon(state, run, run.round, f"the stored update of {lost.site} is {event.reason}")
    return run, (*again, *effects)


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
    return run, (*(Invite(opened.seats[site].order) for site in fresh), _deadline(run, opened))


def _deadline(run: RunState, opened: OpenRound) -> SetTimer:
    return SetTimer(run.spec.run, f"deadline.{opened.index}.{opened.attempt}", opened.deadline_ms)


def _run_name(event: ev.Event) -> str:
    """The run that an event is about: its own field, or the head of its order's id."""
    run = getattr(event, "run", "")
    return run or str(getattr(event, "order", "")).split(".", 1)[0]


# -- the table -----------------------------------------------------------------------------------

Handler = Callable[[State, RunState, Any], Turn]

_WHILE_A_ROUND_IS_OPEN: dict[type[ev.Event], Handler] = {
    ev.ConsentGiven: seats.consented,
    ev.ConsentRefused: seats.refused,
    ev.WorkFailed: seats.failed,
    ev.UpdateRejected: seats.failed,
    ev.UpdateStored: uploads.stored,
    ev.BlobDamaged: _damaged,
    ev.TimerFired: _tick,
    ev.RunPaused: _pause,
    ev.RunResumed: _unpause,
    ev.RunStopped: _stop,
}

TABLE: dict[tuple[Phase, type[ev.Event]], Handler] = {
    **{(phase, kind): f for phase in set(Phase) - ENDED for kind, f in _WHILE_A_ROUND_IS_OPEN.items()},
    (Phase.SEEDING, ev.ModelSeeded): seats.seeded,
    (Phase.WAITING, ev.ModelSeeded): seats.seeded,
    (Phase.AGGREGATING, ev.RoundAggregated): versions.aggregated,
    (Phase.AGGREGATING, ev.AggregationFailed): versions.not_aggregated,
    (Phase.EVALUATING, ev.EvaluationStored): seats.evaluated,
}
"""(phase, event) -> what answers it. Whatever is not here changes nothing."""
