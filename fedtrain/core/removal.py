"""A site leaves a run: what it sent and is not part of a version yet does not become one.

Whoever withdraws its consent, is quarantined or is revoked goes through here. What a version counts
already stays: no model can forget, and saying otherwise would be a lie.
"""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core.advance import Turn, every_run
from fedtrain.core.effects import Cancel, Effect
from fedtrain.core.orders import OrderKind
from fedtrain.core.rounds import abandon
from fedtrain.core.seats import AT_WORK, with_seat
from fedtrain.core.state import Phase, RunState, Seat, Standing, State, without

_AWAITED = AT_WORK | {Standing.LOST}
"""An answer to these would still be taken: a lost site may come back with its update."""


def from_every_run(
    state: State, site: str, standing: Standing, reason: str
) -> tuple[State, tuple[Effect, ...]]:
    """The site is out of all runs that go on."""
    return every_run(state, lambda run: take_out(state, run, site, standing, reason))


def take_out(state: State, run: RunState, site: str, standing: Standing, reason: str) -> Turn:
    """The run without the site's part in its open round, its late updates and its unfinished work.

    A round that is being unmasked or aggregated with it is abandoned and made again without it.
    """
    run, gone, effects = _forget_late(run, site, reason)
    opened = run.round
    seat = opened.seats.get(site) if opened else None
    if opened is None:
        return run, effects
    if seat is not None and (seat.standing in _AWAITED or _is_uncounted(seat)):
        if seat.standing in AT_WORK:
            effects = (*effects, Cancel(site, seat.order.id, reason))
        gone |= {seat.order.id}
        run = with_seat(run, site, Seat(seat.order, standing, reason))
    if run.phase not in (Phase.UNMASKING, Phase.AGGREGATING) or not gone & set(opened.counted):
        return run, effects
    assert run.round is not None, "an aggregation has its round"
    run = replace(run, round=replace(run.round, counted=()))
    run, more = abandon(state, run, run.round or opened, f"{site} is out of it ({reason})")
    return run, (*effects, *more)


def _forget_late(
    run: RunState, site: str, reason: str
) -> tuple[RunState, frozenset[str], tuple[Effect, ...]]:
    """Without the site's late updates (whose orders are returned) and the late work that it is still at.

    What was to go back into its residual is forgotten too: it would come again inside a later update.
    """
    gone = frozenset(update.order for update in run.late if update.site == site)
    busy = run.busy.get(site)
    run = replace(
        run,
        busy=without(run.busy, site),
        returned=without(run.returned, site),
        late=tuple(update for update in run.late if update.site != site),
    )
    return run, gone, () if busy is None else (Cancel(site, busy.id, reason),)


def _is_uncounted(seat: Seat) -> bool:
    """Whether the seat holds an update; initial weights and evaluations are no part of the mean."""
    return seat.standing is Standing.STORED and seat.order.kind is OrderKind.TRAIN
