"""One site's seat in the open round: consent, refusal, failure, seeding, evaluation.

Each handler answers one event of `transitions.TABLE` and changes one run. An event about a seat
that no longer exists, or has got further already, changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core import events as ev, uploads
from fedtrain.core.effects import Cancel, Effect
from fedtrain.core.orders import ModelRef
from fedtrain.core.state import Excluded, Model, Phase, RunState, Seat, Standing, State, put, without

Turn = tuple[RunState, tuple[Effect, ...]]
NOTHING: tuple[Effect, ...] = ()

AT_WORK = frozenset({Standing.INVITED, Standing.WORKING})
"""Standings that a round waits for."""


def consented(state: State, run: RunState, event: ev.ConsentGiven) -> Turn:
    """The site works on its order."""
    found = uploads.seat_of(run, event.order)
    if found is None or found[1].standing is not Standing.INVITED:
        return run, NOTHING
    site, seat = found
    return with_seat(run, site, replace(seat, standing=Standing.WORKING)), NOTHING


def refused(state: State, run: RunState, event: ev.ConsentRefused) -> Turn:
    """The site's contract says no: the round goes on without it, and it is not asked again soon."""
    run, site, seat = _given_up(run, event.order, AT_WORK | {Standing.LATE})
    if not site:
        return run, NOTHING
    reason = "; ".join(event.reasons) or "no reason given"
    attached = state.attached.get(site)
    exclusion = Excluded(reason, attached.session if attached else "")
    run = replace(run, excluded=put(run.excluded, site, exclusion))
    if seat is not None and seat.standing in AT_WORK:  # a late one's round is closed; it still said no
        run = with_seat(run, site, replace(seat, standing=Standing.REFUSED, reason=reason))
    return run, NOTHING


def failed(state: State, run: RunState, event: ev.WorkFailed | ev.UpdateRejected) -> Turn:
    """The site could not do it, or sent something that cannot be used."""
    run, site, seat = _given_up(run, event.order, AT_WORK | {Standing.LOST})
    if not site:
        return _told_why(run, event), NOTHING
    if seat is not None:
        run = with_seat(run, site, replace(seat, standing=Standing.FAILED, reason=event.reason))
    return run, (Cancel(site, event.order, event.reason),)


def _told_why(run: RunState, event: ev.WorkFailed | ev.UpdateRejected) -> RunState:
    """A site whose masked update is here has burnt its session: the record will say so."""
    found = uploads.seat_of(run, event.order)
    masked = run.round is not None and run.round.masks is not None
    if found is None or not masked or found[1].standing is not Standing.STORED:
        return run
    return with_seat(run, found[0], replace(found[1], reason=event.reason))


def _given_up(
    run: RunState, order_id: str, waiting: frozenset[Standing]
) -> tuple[RunState, str, Seat | None]:
    """Whose answer this is, and the seat that was `waiting` for it; "" for nobody's.

    A late order holds no seat, but its site counts as busy: from here on it does not. Its round may
    still be aggregating, with a seat of the same order that is not changed any more.
    """
    for site, order in run.busy.items():
        if order.id == order_id:
            return replace(run, busy=without(run.busy, site)), site, None
    found = uploads.seat_of(run, order_id)
    if found is None or found[1].standing not in waiting:
        return run, "", None
    return run, *found


def seeded(state: State, run: RunState, event: ev.ModelSeeded) -> Turn:
    """The initial weights are here: version 0, a snapshot."""
    found = uploads.awaited(run, event.order)
    if found is None:
        return run, NOTHING
    site, seat = found
    chain = ((0, event.blob, event.size_bytes),)
    ref = ModelRef(0, event.model_digest, event.layout_digest, 0, chain)
    model = Model(ref, event.layout, event.num_elements)
    run = with_seat(run, site, replace(seat, standing=Standing.DONE))
    # Weights that come after their attempt was abandoned are as good: the round closes with them.
    run = replace(run, model=model, phase=Phase.SEEDING)
    return uploads.acknowledge(state, run, seat.order, event.blob, "stored")


def evaluated(state: State, run: RunState, event: ev.EvaluationStored) -> Turn:
    """The last version was measured at this site, unless its seat was settled before."""
    found = uploads.seat_of(run, event.order)
    if found is None or run.model is None or found[1].standing not in AT_WORK | {Standing.LOST}:
        return run, NOTHING
    site, seat = found
    value = (run.model.ref.version, event.loss, event.count)
    run = replace(run, evaluations=put(run.evaluations, site, value))
    return with_seat(run, site, replace(seat, standing=Standing.DONE, reason="")), NOTHING


def with_seat(run: RunState, site: str, seat: Seat) -> RunState:
    """The run with one seat of its open round replaced."""
    assert run.round is not None, "a seat belongs to an open round"
    return replace(run, round=replace(run.round, seats=put(run.round.seats, site, seat)))
