"""Events that concern the coordinator itself and its members: each changes the whole state.

Runs are changed through `advance.every_run`, so that what follows from a member's coming and going is
decided in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedtrain.core import accounts, conduct, events as ev, masked_rounds, removal, uploads
from fedtrain.core.advance import NOTHING, Turn, every_run, standing_effects
from fedtrain.core.effects import Cancel, Effect, Expel, Invite, Retire
from fedtrain.core.rounds import abandon
from fedtrain.core.seats import AT_WORK, with_seat
from fedtrain.core.state import (
    ENDED,
    Attached,
    Declared,
    Member,
    PendingInvite,
    Phase,
    Quarantine,
    RunState,
    Standing,
    State,
    put,
    without,
)


def resume(state: State) -> tuple[Effect, ...]:
    """The effects that this state still calls for, after a crash at any point."""
    effects: list[Effect] = []
    for run in state.runs.values():
        effects += standing_effects(run)
    return tuple(effects)


def _booted(state: State, event: ev.Booted) -> tuple[State, tuple[Effect, ...]]:
    """A new life: nobody is attached yet, and whatever was under way is asked for again."""
    if event.epoch <= state.fenced:
        return state, (Retire(state.fenced),)
    moved = bool(state.place) and event.place != state.place
    state = replace(state, epoch=event.epoch, place=event.place, fenced=0, booted_ms=event.at_ms, attached={})
    effects = resume(state)
    state, more = every_run(state, lambda run: _burnt(state, run) if moved else (run, NOTHING))
    return state, (*effects, *more)


def _burnt(state: State, run: RunState) -> Turn:
    """A copy goes on: what masks the original took off since is not known here, so none come off here."""
    opened = run.round
    if opened is None or opened.masks is None or run.phase not in (Phase.TRAINING, Phase.UNMASKING):
        return run, NOTHING
    return abandon(state, run, opened, "this coordinator runs from a copy of its state")


def _fenced(state: State, event: ev.Fenced) -> tuple[State, tuple[Effect, ...]]:
    """Somebody has taken over: from here on only a new life with a higher epoch changes anything."""
    if event.epoch <= state.epoch:
        return state, NOTHING
    return replace(state, fenced=event.epoch), (Retire(event.epoch),)


def _invited(state: State, event: ev.MemberInvited) -> tuple[State, tuple[Effect, ...]]:
    invite = PendingInvite(event.name, event.role, event.expires_ms, organisation=event.organisation)
    return replace(state, invites=put(state.invites, event.invite, invite)), NOTHING


def _enrolled(state: State, event: ev.MemberEnrolled) -> tuple[State, tuple[Effect, ...]]:
    """A new member; or a known one with new keys, after which the old ones are nobody's."""
    invite = state.invites.get(event.invite)
    invites = _without_open_invites(state, event.name, event.invite)
    if invite is not None:
        invites = put(invites, event.invite, replace(invite, used_by=event.key_digest))
    member = Member(
        name=event.name,
        role=event.role,
        invite=event.invite,
        key_digest=event.key_digest,
        certificate=event.certificate,
        message_key=event.message_key,
        organisation=event.organisation or (invite.organisation if invite else "") or event.name,
    )
    state = replace(state, members=put(state.members, event.name, member), invites=invites)
    return every_run(state, lambda run: (run, NOTHING))


def _without_open_invites(state: State, name: str, used: str = "") -> Mapping[str, PendingInvite]:
    """Invites that were handed out for a name before it joined, or before it was revoked, are dead."""
    dead = (
        key
        for key, invite in state.invites.items()
        if invite.name == name and not invite.used_by and key != used
    )
    return without(state.invites, *dead)


def _renewed(state: State, event: ev.MemberRenewed) -> tuple[State, tuple[Effect, ...]]:
    """The key before stays good until its certificate's own end, so nothing under way is lost."""
    member = state.members.get(event.name)
    if member is None or member.revoked or member.key_digest == event.key_digest:
        return state, NOTHING
    member = replace(
        member,
        key_digest=event.key_digest,
        certificate=event.certificate,
        previous_key=member.key_digest,
    )
    return replace(state, members=put(state.members, event.name, member)), NOTHING


def _revoked(state: State, event: ev.MemberRevoked) -> tuple[State, tuple[Effect, ...]]:
    """The member is out at once: its calls are cut, and what is not yet in a version does not get there."""
    state = replace(state, invites=_without_open_invites(state, event.name))
    member = state.members.get(event.name)
    if member is None or member.revoked:
        return state, NOTHING
    reason = f"its membership was revoked by {event.by}: {event.reason}"
    state = replace(
        state,
        members=put(state.members, event.name, replace(member, revoked=reason)),
        attached=without(state.attached, event.name),
    )
    state, effects = removal.from_every_run(state, event.name, Standing.FAILED, reason)
    return state, (Expel(event.name, reason), *effects)


def _authority(
    state: State, event: ev.AuthorityAdded | ev.AuthorityRetired
) -> tuple[State, tuple[Effect, ...]]:
    return state, NOTHING


def _declared(state: State, event: ev.SiteDeclared) -> tuple[State, tuple[Effect, ...]]:
    declared = Declared(event.contract, event.examples)
    return replace(state, declared=put(state.declared, event.site, declared)), NOTHING


def _quarantined(state: State, event: ev.SiteQuarantined) -> tuple[State, tuple[Effect, ...]]:
    return conduct.quarantine(state, event.site, Quarantine(event.reason, event.by, event.at_ms))


def _released(state: State, event: ev.SiteReleased) -> tuple[State, tuple[Effect, ...]]:
    """Its record is clean again, and runs that waited for a site may go on."""
    state = replace(
        state,
        quarantined=without(state.quarantined, event.site),
        strikes=without(state.strikes, event.site),
    )
    return every_run(state, lambda run: (run, NOTHING))


def _misused(state: State, event: ev.InviteMisused) -> tuple[State, tuple[Effect, ...]]:
    return state, NOTHING


def _attached(state: State, event: ev.SiteAttached) -> tuple[State, tuple[Effect, ...]]:
    """A site is here: it hears which of its orders are over, and gets the others again."""
    if event.site in state.members and state.members[event.site].revoked:
        return state, NOTHING  # it attached at the moment in which its membership ended
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
        if run.phase is Phase.UNMASKING:
            return run, masked_rounds.tell(run, event.site)
        if seat.standing is Standing.LOST:
            seat = replace(seat, standing=Standing.INVITED, reason="")
            run = with_seat(run, event.site, seat)
        if seat.standing not in AT_WORK:
            return run, NOTHING
        return run, (Invite(seat.order), *masked_rounds.tell(run, event.site))

    over = tuple(
        Cancel(event.site, order, "it is over") for order in event.holding if not _wanted(state, order)
    )
    state, effects = every_run(state, welcome)
    return state, (*accounts.hand_back(state, event.site), *over, *effects)


def _wanted(state: State, order_id: str) -> bool:
    """Whether an answer to this order is awaited, or is here and not yet in a version."""
    run = state.runs.get(order_id.split(".", 1)[0])
    if run is None or run.phase in ENDED:
        return False
    late = {update.order for update in run.late} | {order.id for order in run.busy.values()}
    found = uploads.seat_of(run, order_id)
    if found is not None and run.round is not None and run.round.masks is not None:
        return found[1].standing is not Standing.FAILED  # its session is over, and its keys with it
    return found is not None or order_id in late


def _lost(state: State, event: ev.SiteLost) -> tuple[State, tuple[Effect, ...]]:
    """A site is given up: rounds stop waiting for it."""
    state = replace(state, attached=without(state.attached, event.site))

    def give_up(run: RunState) -> Turn:
        run = replace(run, busy=without(run.busy, event.site))
        seat = run.round.seats.get(event.site) if run.round else None
        if seat is None or seat.standing not in AT_WORK:
            return run, NOTHING
        return with_seat(run, event.site, replace(seat, standing=Standing.LOST, reason=event.reason)), NOTHING

    return every_run(state, give_up)


MEMBERSHIP: dict[type[ev.Event], Callable[[State, Any], tuple[State, tuple[Effect, ...]]]] = {
    ev.Booted: _booted,
    ev.Fenced: _fenced,
    ev.MemberInvited: _invited,
    ev.MemberEnrolled: _enrolled,
    ev.MemberRenewed: _renewed,
    ev.MemberRevoked: _revoked,
    ev.AuthorityAdded: _authority,
    ev.AuthorityRetired: _authority,
    ev.InviteMisused: _misused,
    ev.SiteAttached: _attached,
    ev.SiteLost: _lost,
    ev.SiteDeclared: _declared,
    ev.SiteQuarantined: _quarantined,
    ev.SiteReleased: _released,
}
"""Events that concern the whole coordinator."""
