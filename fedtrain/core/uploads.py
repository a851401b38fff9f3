"""What becomes of an upload: may it come in, does it count, and where.

`admit` is asked by the shell before a byte is accepted and again at the commit; `stored` answers
the journaled event. An acknowledged update counts exactly once: in its round, in a later round
(`late: next_round`), or, as the run's file says, back in its site's residual or not at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from fedtrain.core import events as ev
from fedtrain.core.effects import Acknowledge, Effect
from fedtrain.core.orders import Order, parse_order_id
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import (
    ENDED,
    Acknowledged,
    MaskStage,
    Phase,
    RunState,
    Seat,
    Standing,
    State,
    Update,
    put,
    without,
)
from fedtrain.errors import RemoteError


class Admission(enum.Enum):
    """The answer to an offered upload."""

    WELCOME = "welcome"
    REPEATED = "repeated"  # acknowledged before: the same receipt again
    STALE = "stale"
    UNKNOWN = "unknown"
    EQUIVOCATION = "equivocation"


@dataclass(frozen=True)
class Answer:
    """An admission with its reason, and what it is about where that is known."""

    admission: Admission
    reason: str = ""
    order: Order | None = None
    acknowledged: Acknowledged | None = None


def admit(state: State, site: str, order_id: str, blob: str) -> Answer:
    """Whether this site's blob may answer this order. Decides nothing by itself."""
    try:
        name, _, _, owner = parse_order_id(order_id)
    except RemoteError as error:
        return Answer(Admission.UNKNOWN, str(error))
    run = state.runs.get(name)
    if run is None or owner != site:
        return Answer(Admission.UNKNOWN, f"{site} has no order {order_id}")
    receipt = run.receipts.get(site)
    if receipt is not None and receipt.order == order_id:
        if receipt.blob == blob:
            return Answer(Admission.REPEATED, acknowledged=receipt)
        return Answer(Admission.EQUIVOCATION, f"{order_id} was answered with another blob before")
    found = awaited(run, order_id)
    if found is not None:
        return Answer(Admission.WELCOME, order=found[1].order)
    late = run.busy.get(site)
    if late is not None and late.id == order_id and run.phase not in ENDED:
        return Answer(Admission.WELCOME, order=late)
    return Answer(Admission.STALE, f"order {order_id} is over ({run.reason})")


_CLOSED = (Phase.UNMASKING, Phase.AGGREGATING)
_MAY_UPLOAD = frozenset({Standing.INVITED, Standing.WORKING, Standing.LOST})


def seat_of(run: RunState, order_id: str) -> tuple[str, Seat] | None:
    """The open round's seat that holds this very order."""
    if run.round is None:
        return None
    for site, seat in run.round.seats.items():
        if seat.order.id == order_id:
            return site, seat
    return None


def awaited(run: RunState, order_id: str) -> tuple[str, Seat] | None:
    """The seat that this order's upload would fill. Once the round has closed there is none."""
    found = seat_of(run, order_id)
    if found is None or found[1].standing not in _MAY_UPLOAD or run.phase in _CLOSED:
        return None
    masks = run.round.masks if run.round else None
    if masks is not None and (masks.stage is not MaskStage.INPUT or found[0] not in masks.sharers):
        return None  # nobody masks before it has been told with whom
    return found


def stored(state: State, run: RunState, event: ev.UpdateStored) -> tuple[RunState, tuple[Effect, ...]]:
    """A verified update is durable: count it once, or treat it as late."""
    found = awaited(run, event.order)
    if found is not None:
        site, seat = found
        assert run.round is not None, "a seat belongs to an open round"
        seat = replace(seat, standing=Standing.STORED, reason="", update=_update(event, seat.order))
        run = replace(run, round=replace(run.round, seats=put(run.round.seats, site, seat)))
        return _accept(state, run, seat.order, event, "stored")
    for order in run.busy.values():
        if order.id == event.order:
            return _late(state, run, order, event)
    return run, ()


def _late(
    state: State, run: RunState, order: Order, event: ev.UpdateStored
) -> tuple[RunState, tuple[Effect, ...]]:
    """An update of a closed round: it counts in the next one, or goes back to its site."""
    site = order.site
    run = replace(run, busy=without(run.busy, site))
    if run.spec.late is LatePolicy.RESIDUAL:
        run, effects = _accept(state, run, order, event, "late_residual")
        back = (*run.returned.get(site, ()), order.id)
        return replace(run, returned=put(run.returned, site, back)), effects
    run = replace(run, late=(*run.late, _update(event, order)))
    return _accept(state, run, order, event, "late_next_round")


def damaged(run: RunState, event: ev.BlobDamaged) -> tuple[RunState, Order | None]:
    """An acknowledged update is not on the disk any more: take back that it is.

    Returns the order that has to be answered again, None where none has to: a late update goes back
    into its site's residual, from where the site's next update brings it.
    """
    back = {update.site: update.order for update in run.late if update.blob == event.blob}
    for site, order in back.items():
        run = replace(run, returned=put(run.returned, site, (*run.returned.get(site, ()), order)))
    run = replace(run, late=tuple(update for update in run.late if update.blob != event.blob))
    opened = run.round
    if opened is None:
        return run, None
    opened = replace(opened, counted=tuple(order for order in opened.counted if order not in back.values()))
    for site, seat in opened.seats.items():
        if seat.update is not None and seat.update.blob == event.blob:
            seats = put(opened.seats, site, Seat(seat.order, Standing.WORKING))
            receipt = run.receipts.get(site)
            if receipt is not None and receipt.order == seat.order.id:
                run = replace(run, receipts=without(run.receipts, site))
            return replace(run, round=replace(opened, seats=seats, counted=())), seat.order
    return replace(run, round=opened), None


def _accept(
    state: State, run: RunState, order: Order, event: ev.UpdateStored, outcome: str
) -> tuple[RunState, tuple[Effect, ...]]:
    """An update that is ours now: the site's next order continues from this one.

    Under masks it is ours only in a sum: from what it did for a session that fails, a site does not go on.
    """
    site = order.site
    masked = run.round is not None and run.round.masks is not None
    back = tuple(name for name in run.returned.get(site, ()) if name not in order.returned)
    run = replace(
        run,
        parents=run.parents if masked else put(run.parents, site, order.id),
        weights=put(run.weights, site, event.weight),
        returned=put(run.returned, site, back) if back else without(run.returned, site),
    )
    if event.eval_loss is not None and order.model is not None:
        value = (order.model.version, event.eval_loss, event.eval_count)
        run = replace(run, evaluations=put(run.evaluations, site, value))
    return acknowledge(state, run, order, event.blob, outcome)


def acknowledge(
    state: State, run: RunState, order: Order, blob: str, outcome: str
) -> tuple[RunState, tuple[Effect, ...]]:
    """Remember what the site was told, so that it can be told again, and tell it."""
    receipt = Acknowledged(order.id, blob, outcome, state.epoch, state.now_ms)
    run = replace(run, receipts=put(run.receipts, order.site, receipt))
    return run, (Acknowledge(order.site, order.id, blob, outcome, state.epoch, state.now_ms),)


def _update(event: ev.UpdateStored, order: Order) -> Update:
    return Update(
        site=order.site,
        order=order.id,
        round=order.round,
        base_version=order.model.version if order.model else 0,
        blob=event.blob,
        size_bytes=event.size_bytes,
        weight=event.weight,
        steps=event.steps,
        norm=event.norm,
        train_loss=event.train_loss,
        eval_loss=event.eval_loss,
        eval_count=event.eval_count,
        seconds=event.seconds,
    )
