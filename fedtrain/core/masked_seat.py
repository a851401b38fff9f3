"""A site's half of a masked round: which document it answers, and when it burns its session instead.

Every document comes in its turn, fits what came before, and is answered once; the same one again gets the
same answer again. Anything else ends the session here: its secrets are destroyed, and the order fails with
the reason. Once a site has opened its shares it says nothing more in that session, and it opens no other
session of the same round for another set of sites: two such sums would differ by single updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from fedtrain.core import canonical, masks
from fedtrain.core.agent_events import (
    AgentEffect,
    BurnMasks,
    MaskUpdate,
    Report,
    SayMasked,
    StatementReceived,
)
from fedtrain.core.agent_state import AgentState, Held, MaskSeat, SeatStage, Stage, Unmasked
from fedtrain.core.orders import Result
from fedtrain.core.state import put, without
from fedtrain.errors import RemoteError

Turn = tuple[AgentState, tuple[AgentEffect, ...]]

ANSWERS = {"proposal": "advert", "keys": "boxes", "survivors": "affirmation", "unmask": "opened"}
"""What the coordinator says -> what a site answers. A delivery is answered by the masked update."""

_TURNS = {
    None: "proposal",
    SeatStage.ADVERTISED: "keys",
    SeatStage.SHARED: "delivery",
    SeatStage.READY: "survivors",
    SeatStage.AFFIRMED: "unmask",
}
"""Which document's turn it is."""


def heard(state: AgentState, event: StatementReceived) -> Turn:
    """A document of the coordinator about a masked round. `event.fault` is what its signatures lack."""
    held, seat = state.held.get(event.order), state.masks.get(event.order)
    if held is None or (seat is not None and seat.stage is SeatStage.BURNT):
        return state, ()
    digest = masks.digest_of(event.document)
    if seat is not None and seat.heard.get(event.topic) == digest:
        return state, _again(held, seat, event.topic)
    if seat is not None and seat.stage is SeatStage.OPENED:
        return state, ()  # replayed with other words: nothing more is said in this session
    turn = _TURNS[seat.stage if seat else None]
    if event.fault or event.topic != turn:
        return burn(state, held, event.fault or f"a {event.topic} came where its {turn} was due")
    try:
        after = _READERS[event.topic](state, held, seat, event.document)
    except RemoteError as error:
        return burn(state, held, str(error))
    after = replace(after, heard={**after.heard, event.topic: digest})
    state = replace(state, masks=put(state.masks, event.order, after))
    if event.topic == "unmask":
        before, index = state.unmasked.get(held.order.run), held.order.round
        sets = put(before.sets if before else {}, str(index), _set_digest(after.survivors))
        opened = Unmasked(index, after.survivors, sets)
        state = replace(state, unmasked=put(state.unmasked, held.order.run, opened))
    return state, _again(held, after, event.topic)


def _again(held: Held, seat: MaskSeat, topic: str) -> tuple[AgentEffect, ...]:
    """What this document calls for, now or once more."""
    if topic in ANSWERS:
        return (SayMasked(held.order.id, ANSWERS[topic]),)
    return masking(held, seat)


def masking(held: Held, seat: MaskSeat | None) -> tuple[AgentEffect, ...]:
    """The masks go on as soon as both are here: the update, and the word who masks with whom."""
    ready = seat is not None and seat.stage is SeatStage.READY
    if ready and held.stage is Stage.MASKING and held.result is not None:
        return (MaskUpdate(held.order, held.result),)
    return ()


def leave(state: AgentState, orders: Iterable[str]) -> AgentState:
    """Without its part in the sessions of these orders, which are over here.

    None of them is entered again: its secrets are gone, and other words would be said in it.
    """
    gone = [order for order in orders if order in state.masks]
    if not gone:
        return state
    left = {order.split(".", 1)[0]: state.masks[order].session for order in gone}
    return replace(state, masks=without(state.masks, *gone), left={**state.left, **left})


def burn(state: AgentState, held: Held, reason: str) -> Turn:
    """The session ends here, and the coordinator hears why. What was delivered stays masked for ever."""
    order = held.order.id
    seat = state.masks.get(order, MaskSeat())
    reason = f"the masked session was burnt: {reason}"
    state = replace(state, masks=put(state.masks, order, MaskSeat(seat.session, stage=SeatStage.BURNT)))
    effects: tuple[AgentEffect, ...] = (BurnMasks(order, reason),)
    held = replace(held, stage=Stage.ANSWERED, result=Result(order=order, failure=reason))
    state = replace(state, held=put(state.held, order, held))
    return state, (*effects, Report(held.order, held.result or Result(order)))


def _proposal(state: AgentState, held: Held, seat: MaskSeat | None, document: str) -> MaskSeat:
    proposal = canonical.decode(masks.Proposal, document)
    if fault := masks.fault_of(proposal, held.order) or _stranger(state, proposal.sites):
        raise RemoteError(fault)
    if state.left.get(held.order.run) == masks.digest_of(document):
        raise RemoteError("this site has left this very session before")
    if fault := _too_small(state, held, proposal, tuple(proposal.sites)):
        raise RemoteError(fault)
    return MaskSeat(masks.digest_of(document), document, SeatStage.ADVERTISED)


def _keys(state: AgentState, held: Held, seat: MaskSeat | None, document: str) -> MaskSeat:
    seat, proposal = _known(seat)
    keys = canonical.decode(masks.Keys, document)
    members = _members(seat, keys.session, keys.adverts, proposal.sites, held.order.site)
    for site in members:
        advert = canonical.decode(masks.Advert, keys.adverts[site].document)
        if (advert.session, advert.site) != (seat.session, site):
            raise RemoteError(f"the advert of {site} is another site's, or of another session")
    if fault := _too_small(state, held, proposal, members) or _too_lonely(seat, held, proposal, members):
        raise RemoteError(fault)
    return replace(seat, stage=SeatStage.SHARED, members=members)


def _delivery(state: AgentState, held: Held, seat: MaskSeat | None, document: str) -> MaskSeat:
    seat, proposal = _known(seat)
    delivery = canonical.decode(masks.Delivery, document)
    sharers = _members(seat, delivery.session, delivery.sharers, seat.members, held.order.site)
    near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, held.order.site)
    if set(delivery.boxes) != set(near) & set(sharers):
        raise RemoteError("the delivery does not hold one box of each neighbour that has shared")
    if fault := _too_small(state, held, proposal, sharers) or _too_lonely(seat, held, proposal, sharers):
        raise RemoteError(fault)
    return replace(seat, stage=SeatStage.READY, sharers=sharers)


def _survivors(state: AgentState, held: Held, seat: MaskSeat | None, document: str) -> MaskSeat:
    seat, proposal = _known(seat)
    said = canonical.decode(masks.Survivors, document)
    survivors = _members(seat, said.session, said.survivors, seat.sharers, held.order.site)
    if held.stage not in (Stage.ANSWERED, Stage.DELIVERED):
        raise RemoteError("this site is named a survivor, and has handed no update over")
    if fault := _too_small(state, held, proposal, survivors):
        raise RemoteError(fault)
    before, index = state.unmasked.get(held.order.run), held.order.round
    if before is not None and before.sets.get(str(index), "") not in ("", _set_digest(survivors)):
        whose = f" for {', '.join(before.survivors)}" if before.round == index else ""
        raise RemoteError(
            f"the sum of round {index} was opened{whose} before; another set would tell single updates apart"
        )
    return replace(seat, stage=SeatStage.AFFIRMED, survivors=survivors)


def _unmask(state: AgentState, held: Held, seat: MaskSeat | None, document: str) -> MaskSeat:
    seat, proposal = _known(seat)
    asked = canonical.decode(masks.Unmask, document)
    if asked.session != seat.session or asked.survivors != seat.survivors:
        raise RemoteError("the shares of another set are asked for than this site has affirmed")
    if not set(asked.signatures) <= set(seat.survivors) or len(asked.signatures) < proposal.threshold:
        raise RemoteError(f"the set is affirmed by fewer than {proposal.threshold} of its survivors")
    return replace(seat, stage=SeatStage.OPENED)


_READERS: dict[str, Callable[[AgentState, Held, MaskSeat | None, str], MaskSeat]] = {
    "proposal": _proposal,
    "keys": _keys,
    "delivery": _delivery,
    "survivors": _survivors,
    "unmask": _unmask,
}


def _set_digest(survivors: tuple[str, ...]) -> str:
    return masks.digest_of(" ".join(survivors))


def _known(seat: MaskSeat | None) -> tuple[MaskSeat, masks.Proposal]:
    assert seat is not None, "only a proposal comes first"
    return seat, canonical.decode(masks.Proposal, seat.proposal)


def _members(seat: MaskSeat, session: str, named: Any, of: Any, own: str) -> tuple[str, ...]:
    """The named sites, sorted: each once, all of those before, this one among them."""
    names = tuple(named)
    if session != seat.session:
        raise RemoteError("the document is of another session")
    if sorted(set(names)) != sorted(names):
        raise RemoteError("a site is named twice")
    if not set(names) <= set(of):
        raise RemoteError("a site is named that was not named before")
    if own not in names:
        raise RemoteError("this site is left out, and spoken to all the same")
    return tuple(sorted(names))


def _stranger(state: AgentState, sites: Mapping[str, str]) -> str:
    """Whose message key is not the one that this site knows; "" if all are."""
    for site, key in sites.items():
        known = state.contract.partners.get(site) or state.partners.get(site, key)
        if known != key:
            return (
                f"{site} comes with another message key ({key[:16]}) than the one known here ({known[:16]}): "
                f"if it has joined anew, write its key at contract.partners.{site}"
            )
    return ""


def _too_lonely(seat: MaskSeat, held: Held, proposal: masks.Proposal, sites: tuple[str, ...]) -> str:
    """Why this site's own neighbours among these cannot hide it; "" if they can.

    On the complete graph all are neighbours, and the threshold says the same.
    """
    near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, held.order.site)
    count = len(set(near) & set(sites)) + 1
    return (
        ""
        if count >= proposal.shares
        else f"{count} of its neighbours are left, {proposal.shares} are needed"
    )


def _too_small(state: AgentState, held: Held, proposal: masks.Proposal, sites: tuple[str, ...]) -> str:
    """The clause, or the threshold, that a sum over these sites would break; "" if none."""
    contract, roster = state.contract, state.roster
    terms = masks.mask_terms(held.order.task)
    least = masks.needed(proposal, terms) if terms else proposal.threshold
    if len(sites) < least:
        return f"{len(sites)} sites are left, the session needs {least}"
    members = [site for site in sites if site in roster] if roster else list(sites)
    if len(members) < contract.cohort_min:
        return f"contract.cohort_min is {contract.cohort_min}, {len(members)} sites are left"
    organisations = {roster[site] for site in members if site in roster}
    if contract.organisations_min > 1 and len(organisations) < contract.organisations_min:
        return (
            f"contract.organisations_min is {contract.organisations_min}, {len(organisations)} are left "
            "in the masked session"
        )
    return ""
