"""The coordinator's machine: `step(state, event) -> (state, effects)`.

Theory of operation. A run is always in one phase, and `TABLE` says which function answers which
event there; an event without an entry changes nothing (it is stale, and it is in the journal). A
handler changes one run; `advance.settle` then asks the two standing questions, in this order: does the
open round close, and can the next one open? All that needs the outside is an effect. Effects can
be repeated: `resume` lists those that a state still calls for, and `Booted` asks for it.

    WAITING -> SEEDING -> WAITING -> TRAINING -> AGGREGATING -> WAITING ... -> EVALUATING -> DONE
                  |                     |
                  +---- abandoned ------+--> WAITING, with the seats of those who worked

A masked round is UNMASKING between TRAINING and AGGREGATING; abandoned, it leaves no seat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedtrain.core import (
    accounts,
    conduct,
    events as ev,
    masked_rounds,
    removal,
    rollback,
    seats,
    uploads,
    versions,
)
from fedtrain.core.advance import NOTHING, Turn, end, settle, standing_effects
from fedtrain.core.effects import Cancel, Effect, Invite
from fedtrain.core.membership import MEMBERSHIP, resume as resume
from fedtrain.core.rounds import abandon
from fedtrain.core.seats import AT_WORK
from fedtrain.core.state import (
    ENDED,
    Excluded,
    Phase,
    RunState,
    Standing,
    State,
    put,
)


def step(state: State, event: ev.Event) -> tuple[State, tuple[Effect, ...]]:
    """What follows from one event. Pure: same state and event, same answer."""
    state = replace(state, now_ms=max(state.now_ms, event.at_ms))
    if state.fenced and not isinstance(event, ev.Booted):
        return state, NOTHING
    if isinstance(event, ev.StatementHeard) and accounts.is_account(event):
        return accounts.heard(state, event), NOTHING
    own = MEMBERSHIP.get(type(event))
    if own is not None:
        return own(state, event)
    if isinstance(event, ev.RunSubmitted):
        return _submit(state, event)
    name = _run_name(event)
    run = state.runs.get(name)
    if run is None:
        return state, NOTHING
    if (run.phase, type(event)) not in TABLE:
        return state, NOTHING
    # First, so that no round counts or invites a site that this very event takes out.
    state, effects = conduct.note(state, event)
    run = state.runs[name]
    handler = TABLE.get((run.phase, type(event)))
    if handler is None:
        return state, effects
    state, more = settle(state, name, handler(state, run, event))
    return state, effects + more


def _submit(state: State, event: ev.RunSubmitted) -> tuple[State, tuple[Effect, ...]]:
    name = event.spec.run
    if name in state.runs:
        return state, NOTHING
    run = RunState(event.spec, Phase.WAITING, "submitted", event.at_ms, event.at_ms)
    return settle(state, name, (run, NOTHING))


def _pause(state: State, run: RunState, event: ev.RunPaused) -> Turn:
    return replace(run, paused=f"paused by {event.by}"), NOTHING


def _unpause(state: State, run: RunState, event: ev.RunResumed) -> Turn:
    """Go on, and ask again whatever had refused or failed."""
    run = replace(run, paused="", waiting_since_ms=event.at_ms, excluded={})
    waits_for_numbers = run.phase in (Phase.AGGREGATING, Phase.RESTORING)
    return run, standing_effects(run) if waits_for_numbers else NOTHING


def _stop(state: State, run: RunState, event: ev.RunStopped) -> Turn:
    opened = run.round
    # Who has delivered under masks keeps secrets until it hears that nobody will ask for them.
    over = AT_WORK | {Standing.STORED} if opened and opened.masks else AT_WORK
    cancels = tuple(
        Cancel(site, seat.order.id, "the run was stopped")
        for site, seat in (opened.seats.items() if opened else ())
        if seat.standing in over
    )
    return end(state, run, Phase.STOPPED, f"stopped by {event.by}", cancels)


def _damaged(state: State, run: RunState, event: ev.BlobDamaged) -> Turn:
    """The attempt is made again with the same seats; the site sends the same bytes once more."""
    closed = run.phase in (Phase.UNMASKING, Phase.AGGREGATING)
    run, lost = uploads.damaged(run, event)
    again = () if lost is None or (closed and run.round and run.round.masks) else (Invite(lost),)
    if not closed or run.round is None:
        return run, again
    if lost is None:
        return run, standing_effects(run)
    run, effects = abandon(state, run, run.round, f"the stored update of {lost.site} is {event.reason}")
    return run, (*again, *effects)


def _withdrawn(state: State, run: RunState, event: ev.ConsentWithdrawn) -> Turn:
    """The site is out of this run, until it attaches anew and its contract says yes again."""
    attached = state.attached.get(event.site)
    reason = f"consent withdrawn: {event.reason}"
    exclusion = Excluded(reason, attached.session if attached else "")
    run = replace(run, excluded=put(run.excluded, event.site, exclusion))
    return removal.take_out(state, run, event.site, Standing.REFUSED, reason)


def _tick(state: State, run: RunState, event: ev.TimerFired) -> Turn:
    """A timer only makes the standing questions be asked again."""
    return run, NOTHING


def _run_name(event: ev.Event) -> str:
    """The run that an event is about: its own field, or the head of its order's id."""
    run = getattr(event, "run", "")
    return run or str(getattr(event, "order", "")).split(".", 1)[0]


# -- the table -----------------------------------------------------------------------------------

Handler = Callable[[State, RunState, Any], Turn]

_WHILE_A_ROUND_IS_OPEN: dict[type[ev.Event], Handler] = {
    ev.ConsentGiven: masked_rounds.consented,
    ev.ConsentRefused: seats.refused,
    ev.WorkFailed: seats.failed,
    ev.UpdateRejected: seats.failed,
    ev.UpdateStored: uploads.stored,
    ev.BlobDamaged: _damaged,
    ev.TimerFired: _tick,
    ev.RunPaused: _pause,
    ev.RunResumed: _unpause,
    ev.RunStopped: _stop,
    ev.RunRolledBack: rollback.begin,
    ev.ConsentWithdrawn: _withdrawn,
    ev.StatementHeard: masked_rounds.heard,
}

TABLE: dict[tuple[Phase, type[ev.Event]], Handler] = {
    **{(phase, kind): f for phase in set(Phase) - ENDED for kind, f in _WHILE_A_ROUND_IS_OPEN.items()},
    (Phase.SEEDING, ev.ModelSeeded): seats.seeded,
    (Phase.WAITING, ev.ModelSeeded): seats.seeded,
    (Phase.AGGREGATING, ev.RoundAggregated): versions.aggregated,
    (Phase.AGGREGATING, ev.AggregationFailed): versions.not_aggregated,
    (Phase.AGGREGATING, ev.SumRefused): versions.sum_refused,
    (Phase.EVALUATING, ev.EvaluationStored): seats.evaluated,
    (Phase.RESTORING, ev.VersionRestored): rollback.finish,
    (Phase.RESTORING, ev.AggregationFailed): rollback.fail,
}
"""(phase, event) -> what answers it. Whatever is not here changes nothing."""
