"""The coordinator's half of a masked round: what it shows the sites, and when a stage is over.

A masked round is a training round whose seats also answer in the stages of `core.masks`. While updates are
awaited, `rounds.judge` closes it as any other; then the survivors affirm and open (phase UNMASKING), and only
what they gave makes it an aggregation. A session is never mended: an attempt that fails is abandoned with
all its keys, seats and updates, and the next one begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import replace
from typing import TypeVar

from fedtrain.core import canonical, events as ev, masks, seats, uploads
from fedtrain.core.effects import Cancel, Effect, SetTimer, Speak, Unmasking
from fedtrain.core.rounds import abandon
from fedtrain.core.seats import AT_WORK, with_seat
from fedtrain.core.state import (
    MaskedRound,
    MaskStage,
    OpenRound,
    Phase,
    RunState,
    Seat,
    Standing,
    State,
    put,
)
from fedtrain.errors import RemoteError

Turn = tuple[RunState, tuple[Effect, ...]]
NOTHING: tuple[Effect, ...] = ()

Document = TypeVar("Document", masks.Advert, masks.Boxes, masks.Survivors, masks.Opened)

_KEY = re.compile(r"[0-9a-f]{64}")
_BOX = re.compile(r"[A-Za-z0-9+/=]{1,1024}")
_SHARE = re.compile(r"[0-9a-f]{2,256}")

_PHASES = (Phase.TRAINING, Phase.UNMASKING)

_PRESENT = AT_WORK | {Standing.LOST}
"""A lost site may be back before its update is missed."""


def begin(state: State, run: RunState, opened: OpenRound) -> tuple[OpenRound, tuple[Effect, ...]]:
    """The round with a session of its own, if its run is masked; the proposal goes to every seat."""
    first = next(iter(opened.seats.values())).order
    if not masks.is_masked(first):
        return opened, NOTHING
    keys = {site: state.members[site].message_key for site in first.cohort}
    proposal = masks.spelled(masks.propose(state.epoch, first, keys))
    until_ms = opened.opened_ms + run.spec.patience_ms
    session = MaskedRound(proposal, masks.digest_of(proposal), MaskStage.ADVERTISE, until_ms)
    opened = replace(opened, masks=session)
    return opened, standing(replace(run, round=opened))


def standing(run: RunState) -> tuple[Effect, ...]:
    """What the stage still calls for: its documents, and its timer."""
    opened = run.round
    if opened is None or opened.masks is None or run.phase not in _PHASES:
        return NOTHING
    told = tuple(effect for site in opened.seats for effect in tell(run, site))
    return (*told, *_timer(run, opened, opened.masks))


def consented(state: State, run: RunState, event: ev.ConsentGiven) -> Turn:
    """The site works on its order: now, and not before it has it in hand, it hears of the session."""
    before = run
    run, effects = seats.consented(state, run, event)
    if run is before:
        return run, effects
    found = uploads.seat_of(run, event.order)
    return run, (*effects, *(tell(run, found[0]) if found else NOTHING))


def tell(run: RunState, site: str) -> tuple[Effect, ...]:
    """The document that this site has to answer now."""
    opened = run.round
    if opened is None or opened.masks is None or run.phase not in _PHASES:
        return NOTHING
    held, seat = opened.masks, opened.seats[site]
    works = seat.standing is Standing.WORKING
    match held.stage:
        case MaskStage.ADVERTISE if works and site not in held.adverts:
            return (Speak(site, seat.order.id, "proposal", held.proposal),)
        case MaskStage.SHARE if works and site in held.adverts and site not in held.boxes:
            return (Speak(site, seat.order.id, "keys", held.keys),)
        case MaskStage.INPUT if works and site in held.sharers:
            boxes = {source: sealed[site] for source, sealed in held.boxes.items() if site in sealed}
            boxes = {source: box for source, box in boxes.items() if source in held.sharers}
            document = masks.spelled(masks.Delivery(held.session, held.sharers, boxes))
            return (Speak(site, seat.order.id, "delivery", document),)
        case MaskStage.AFFIRM if site in held.survivors and site not in held.affirmations:
            document = masks.spelled(masks.Survivors(held.session, held.survivors))
            return (Speak(site, seat.order.id, "survivors", document),)
        case MaskStage.OPEN if site in held.survivors and site not in held.opened:
            document = masks.spelled(masks.Unmask(held.session, held.survivors, held.affirmations))
            return (Speak(site, seat.order.id, "unmask", document),)
    return NOTHING


def heard(state: State, run: RunState, event: ev.StatementHeard) -> Turn:
    """A site's answer, its signature already held against its key. One that does not fit costs its seat."""
    opened = run.round
    if opened is None or opened.masks is None or run.phase not in _PHASES:
        return run, NOTHING
    seat = opened.seats.get(event.site)
    if seat is None or seat.order.id != event.order or event.topic not in _ANSWERS:
        return run, NOTHING
    stage, take = _ANSWERS[event.topic]
    if opened.masks.stage is not stage:
        return run, NOTHING
    try:
        held = take(opened.masks, event)
    except RemoteError as error:
        if seat.standing not in AT_WORK:
            return run, NOTHING  # a survivor that answers nonsense has not answered
        return _failed(run, event.site, f"its {event.topic} does not fit the masked session: {error}")
    return replace(run, round=replace(opened, masks=held)), NOTHING


def _advert(held: MaskedRound, event: ev.StatementHeard) -> MaskedRound:
    advert = _document(masks.Advert, held, event)
    fields = (advert.mask_key, advert.share_key, advert.seed_digest)
    if advert.site != event.site or not all(_KEY.fullmatch(field) for field in fields):
        raise RemoteError("it is another site's, or holds no keys")
    signed = masks.Signed(event.document, event.signature)
    if held.adverts.get(event.site, signed) != signed:
        raise RemoteError("it is the second one, and not the first")
    return replace(held, adverts=put(held.adverts, event.site, signed))


def _boxes(held: MaskedRound, event: ev.StatementHeard) -> MaskedRound:
    answer = _document(masks.Boxes, held, event)
    keys = canonical.decode(masks.Keys, held.keys)
    near = set(_near(held, event.site)) & set(keys.adverts)
    if event.site not in keys.adverts or answer.keys != masks.digest_of(held.keys):
        raise RemoteError("it is of other keys")
    if set(answer.boxes) != near or not all(_BOX.fullmatch(box) for box in answer.boxes.values()):
        raise RemoteError("it does not hold one box for each neighbour")
    return replace(held, boxes=put(held.boxes, event.site, answer.boxes))


def _affirmation(held: MaskedRound, event: ev.StatementHeard) -> MaskedRound:
    answer = _document(masks.Survivors, held, event)
    if event.site not in held.survivors or answer.survivors != held.survivors:
        raise RemoteError("it is of another set")
    return replace(held, affirmations=put(held.affirmations, event.site, event.signature))


def _opened(held: MaskedRound, event: ev.StatementHeard) -> MaskedRound:
    answer = _document(masks.Opened, held, event)
    near = {event.site, *_near(held, event.site)}
    survivors, dropped = set(held.survivors), set(held.sharers) - set(held.survivors)
    if event.site not in survivors:
        raise RemoteError("it is no survivor's")
    if set(answer.seeds) != survivors & near or set(answer.keys) != dropped & near:
        raise RemoteError("it does not hold one share per peer")
    if not all(_SHARE.fullmatch(share) for share in (*answer.seeds.values(), *answer.keys.values())):
        raise RemoteError("it holds what is no share")
    return replace(held, opened=put(held.opened, event.site, answer))


_ANSWERS: dict[str, tuple[MaskStage, Callable[[MaskedRound, ev.StatementHeard], MaskedRound]]] = {
    "advert": (MaskStage.ADVERTISE, _advert),
    "boxes": (MaskStage.SHARE, _boxes),
    "affirmation": (MaskStage.AFFIRM, _affirmation),
    "opened": (MaskStage.OPEN, _opened),
}


def _document(kind: type[Document], held: MaskedRound, event: ev.StatementHeard) -> Document:
    document = canonical.decode(kind, event.document)
    if document.session != held.session:
        raise RemoteError("it is of another session")
    return document


def look(state: State, run: RunState) -> Turn:
    """The standing question of a masked round: is its stage over, and what comes next?"""
    opened = run.round
    if opened is None or opened.masks is None or run.phase not in _PHASES:
        return run, NOTHING
    return _ENDS[opened.masks.stage](state, run, opened, opened.masks)


def _end_adverts(state: State, run: RunState, opened: OpenRound, held: MaskedRound) -> Turn:
    silent = [s for s, seat in opened.seats.items() if seat.standing in AT_WORK and s not in held.adverts]
    if silent and state.now_ms < held.until_ms:
        return run, NOTHING
    run, effects = _without(run, silent, "it sent no keys for the masked session in time")
    present = _present(run, held.adverts)
    if too_few := _too_few(run, held, len(present), "sent keys"):
        return _given_up(state, run, too_few, effects)
    adverts = {site: held.adverts[site] for site in present}
    held = replace(held, keys=masks.spelled(masks.Keys(held.session, adverts)))
    return _enter(state, run, replace(held, stage=MaskStage.SHARE), effects)


def _end_shares(state: State, run: RunState, opened: OpenRound, held: MaskedRound) -> Turn:
    silent = [s for s, seat in opened.seats.items() if seat.standing in AT_WORK and s not in held.boxes]
    if silent and state.now_ms < held.until_ms:
        return run, NOTHING
    run, effects = _without(run, silent, "it shared no secrets in the masked session in time")
    present = _present(run, held.boxes)
    if too_few := _too_few(run, held, len(present), "shared their secrets"):
        return _given_up(state, run, too_few, effects)
    return _enter(state, run, replace(held, stage=MaskStage.INPUT, sharers=tuple(present)), effects)


def _no_end(state: State, run: RunState, opened: OpenRound, held: MaskedRound) -> Turn:
    """Updates are awaited as in any round; and what is bare waits for its numbers."""
    return run, NOTHING


def close(state: State, run: RunState) -> Turn:
    """The round has just closed: the sites whose updates count are asked to affirm that they are these."""
    assert run.round is not None and run.round.masks is not None, "a masked round closes"
    stored = tuple(s for s, seat in run.round.seats.items() if seat.standing is Standing.STORED)
    held = replace(run.round.masks, stage=MaskStage.AFFIRM, survivors=tuple(sorted(stored)))
    # The version's lineage tells the reason, and with it whose digests stand for masked bytes.
    opened = replace(run.round, reason=f"{run.round.reason}, masked in session {held.session}")
    return _enter(state, replace(run, phase=Phase.UNMASKING, round=opened), held, NOTHING)


def _end_affirmations(state: State, run: RunState, opened: OpenRound, held: MaskedRound) -> Turn:
    missing = [site for site in held.survivors if site not in held.affirmations]
    if missing and state.now_ms < held.until_ms and _may_come(state, missing, len(held.affirmations), held):
        return run, NOTHING
    if too_few := _too_few(run, held, len(held.affirmations), "affirmed who survives"):
        return _given_up(state, run, too_few, NOTHING)
    run = replace(run, round=replace(opened, bound=held.survivors))
    return _enter(state, run, replace(held, stage=MaskStage.OPEN), NOTHING)


def _end_opening(state: State, run: RunState, opened: OpenRound, held: MaskedRound) -> Turn:
    missing = [site for site in held.survivors if site not in held.opened]
    lacking = _lacking(held)
    if missing and state.now_ms < held.until_ms and (lacking or any(s in state.attached for s in missing)):
        return run, NOTHING
    if lacking:
        return _given_up(state, run, f"the masks cannot be taken off: {lacking}", NOTHING)
    return replace(run, round=replace(opened, masks=replace(held, stage=MaskStage.BARE))), NOTHING


_ENDS: dict[MaskStage, Callable[[State, RunState, OpenRound, MaskedRound], Turn]] = {
    MaskStage.ADVERTISE: _end_adverts,
    MaskStage.SHARE: _end_shares,
    MaskStage.INPUT: _no_end,
    MaskStage.AFFIRM: _end_affirmations,
    MaskStage.OPEN: _end_opening,
    MaskStage.BARE: _no_end,
}


def unmasking(opened: OpenRound) -> Unmasking | None:
    """What takes the masks off a sum; None for a plain round."""
    held = opened.masks
    if held is None:
        return None
    proposal = canonical.decode(masks.Proposal, held.proposal)
    return Unmasking(
        session=held.session,
        codec=proposal.codec,
        ring_bits=proposal.ring_bits,
        shares=proposal.shares,
        sharers=held.sharers,
        survivors=held.survivors,
        neighbours={site: _near(held, site) for site in held.sharers},
        adverts={site: canonical.decode(masks.Advert, s.document) for site, s in held.adverts.items()},
        opened=held.opened,
    )


def _enter(state: State, run: RunState, held: MaskedRound, effects: tuple[Effect, ...]) -> Turn:
    """A stage begins: its documents go out, and its clock starts."""
    assert run.round is not None
    held = replace(held, until_ms=state.now_ms + run.spec.patience_ms)
    run = replace(run, round=replace(run.round, masks=held))
    return run, (*effects, *standing(run))


def _timer(run: RunState, opened: OpenRound, held: MaskedRound) -> tuple[Effect, ...]:
    if held.stage in (MaskStage.INPUT, MaskStage.BARE):
        return NOTHING
    name = f"masks.{opened.index}.{opened.attempt}.{held.stage}"
    return (SetTimer(run.spec.run, name, held.until_ms),)


def _without(run: RunState, sites: list[str], reason: str) -> Turn:
    effects: tuple[Effect, ...] = NOTHING
    for site in sites:
        run, more = _failed(run, site, reason)
        effects += more
    return run, effects


def _failed(run: RunState, site: str, reason: str) -> Turn:
    assert run.round is not None
    seat: Seat = run.round.seats[site]
    run = with_seat(run, site, replace(seat, standing=Standing.FAILED, reason=reason))
    return run, (Cancel(site, seat.order.id, reason),)


def _given_up(state: State, run: RunState, reason: str, effects: tuple[Effect, ...]) -> Turn:
    assert run.round is not None
    run, more = abandon(state, run, run.round, reason)
    return run, (*effects, *more)


def _present(run: RunState, answered: Container[str]) -> list[str]:
    """Sites that have answered and still have a seat, sorted."""
    assert run.round is not None
    seats = run.round.seats
    return sorted(s for s, seat in seats.items() if s in answered and seat.standing in _PRESENT)


def _too_few(run: RunState, held: MaskedRound, count: int, what: str) -> str:
    """Why these cannot carry the session; "" if they can."""
    proposal = canonical.decode(masks.Proposal, held.proposal)
    terms = masks.mask_terms(run.spec.task)
    least = masks.needed(proposal, terms) if terms else proposal.threshold
    least = proposal.threshold if held.stage is MaskStage.AFFIRM else max(least, run.spec.quorum)
    if count >= least:
        return ""
    return f"{count} of {len(proposal.sites)} sites {what}, the masked session needs {least}"


def _may_come(state: State, missing: list[str], count: int, held: MaskedRound) -> bool:
    """Whether it is worth to wait for those who are missing: they are here, or there are too few without."""
    enough = count >= canonical.decode(masks.Proposal, held.proposal).threshold
    return not enough or any(site in state.attached for site in missing)


def _near(held: MaskedRound, site: str) -> tuple[str, ...]:
    proposal = canonical.decode(masks.Proposal, held.proposal)
    return masks.neighbours(held.session, tuple(proposal.sites), proposal.degree, site)


def _lacking(held: MaskedRound) -> str:
    """Whose secret has too few shares so far; "" if none."""
    least = canonical.decode(masks.Proposal, held.proposal).shares
    for site in held.sharers:
        survives = site in held.survivors
        given = sum(site in (o.seeds if survives else o.keys) for o in held.opened.values())
        if given < least:
            what = "own mask" if survives else "masks with others"
            return f"{given} shares of {site}'s {what} came, {least} are needed"
    return ""
