"""How sites behave: rejected updates are counted, claims are held against what was declared.

A site whose updates are rejected again and again is put in quarantine by rule: it has no part in any run
until an operator releases it. The rows of its rejected updates are the reason, in the journal.
"""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core import events as ev, removal
from fedtrain.core.effects import Effect
from fedtrain.core.orders import Order
from fedtrain.core.state import Declared, Quarantine, Standing, State, put, without
from fedtrain.core.terms import read_asked

STRIKES_MAX = 3
"""Rejected updates in a row. One may be a broken disk or a bad version; three are not worth a fourth."""

PASSES_MAX = 100
"""How often an order may go over a data set. Inner loops of a round pass a fraction of it, or a few times."""

RULE = "rule"
"""Who quarantines when no operator does."""


def note(state: State, event: ev.Event) -> tuple[State, tuple[Effect, ...]]:
    """Count a rejected update against its site; a good one wipes the slate."""
    if isinstance(event, ev.UpdateStored):
        return replace(state, strikes=without(state.strikes, _site(event.order))), ()
    if not isinstance(event, ev.UpdateRejected):
        return state, ()
    site = _site(event.order)
    strikes = state.strikes.get(site, 0) + 1
    state = replace(state, strikes=put(state.strikes, site, strikes))
    if strikes < STRIKES_MAX:
        return state, ()
    reason = f"{strikes} updates in a row were rejected, the last because {event.reason}"
    return quarantine(state, site, Quarantine(reason, RULE, event.at_ms))


def quarantine(state: State, site: str, why: Quarantine) -> tuple[State, tuple[Effect, ...]]:
    """The site has no part in any run from now on, and what is not in a version yet does not get there."""
    if site in state.quarantined or site not in state.members:
        return state, ()
    state = replace(state, quarantined=put(state.quarantined, site, why))
    return removal.from_every_run(state, site, Standing.FAILED, f"in quarantine: {why.reason}")


def implausible(declared: Declared | None, order: Order, weight: int, steps: int) -> str:
    """Why a claimed weight cannot be, in words; "" if it can.

    Held against the site's own signed declaration; a site that declares nothing of the data set is held
    to its order alone.
    """
    if steps > order.steps:
        return f"it claims {steps} steps, its order asked for {order.steps}"
    examples = 0 if declared is None else declared.examples.get(read_asked(order.task).dataset, 0)
    if examples and weight > PASSES_MAX * examples:
        return (
            f"it claims a weight of {weight}, more than {PASSES_MAX} passes over the {examples} examples "
            "that the site has declared"
        )
    return ""


def _site(order_id: str) -> str:
    return order_id.rsplit(".", 1)[-1]
