"""A round from opening to its record: seats, when it closes, what is counted.

Three kinds of round share this: the seeding (index 0, one seat), training rounds (1 to the run's
count), and the last evaluation (one past the count). An attempt that cannot close is abandoned and
the round reopened; a site that has contributed or still works keeps its seat and its order, so no
acknowledged update is ever lost to an abandoned attempt.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedtrain.core import accounts, canonical, masks
from fedtrain.core.effects import Cancel, Contribution, Effect
from fedtrain.core.orders import ModelRef, Order, OrderKind, order_id
from fedtrain.core.quorum import shortfall
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import (
    SETTLED,
    Model,
    OpenRound,
    Phase,
    RoundRecord,
    RunState,
    Seat,
    SeatRecord,
    Standing,
    State,
    Update,
)


class Verdict(enum.Enum):
    """What is to become of an open round."""

    OPEN = "open"
    CLOSE = "close"
    ABANDON = "abandon"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason in words."""

    verdict: Verdict
    reason: str


def kind_of_round(spec: RunSpec, index: int) -> OrderKind:
    """What the round of this index asks of its sites."""
    if index == 0:
        return OrderKind.SEED
    return OrderKind.TRAIN if index <= spec.rounds else OrderKind.EVALUATE


def next_index(run: RunState) -> int:
    """The round that comes next: 0 until there is a model."""
    return 0 if run.model is None else run.model.ref.version + 1


def open_round(
    run: RunState, members: tuple[str, ...], reason: str, now_ms: int
) -> tuple[OpenRound, tuple[str, ...]]:
    """A new attempt with these members, and the names of those who need an invitation."""
    previous = run.round
    index = next_index(run)
    attempt = previous.attempt + 1 if previous else 1
    kept = _kept_seats(previous)
    cohort = members  # the initial weights are shared with all of them, though one site makes them
    if kind_of_round(run.spec, index) is OrderKind.SEED:
        members = tuple(kept) or (members[(attempt - 1) % len(members)],)
    fresh = tuple(site for site in members if site not in kept)
    seats = dict(kept)
    for site in fresh:
        seats[site] = Seat(_order(run, index, attempt, site, cohort), Standing.INVITED)
    opened = OpenRound(
        index=index,
        attempt=attempt,
        opened_ms=now_ms,
        deadline_ms=now_ms + run.spec.deadline_ms,
        base_version=run.model.ref.version if run.model else 0,
        reason=reason,
        seats={site: seats[site] for site in sorted(seats)},
        bound=previous.bound if previous else (),
    )
    return opened, fresh


def _kept_seats(previous: OpenRound | None) -> dict[str, Seat]:
    """Seats that outlive an abandoned attempt: work that is done or still going on."""
    if previous is None:
        return {}
    keep = {Standing.STORED, Standing.DONE, Standing.INVITED, Standing.WORKING}
    return {site: seat for site, seat in previous.seats.items() if seat.standing in keep}


def _order(run: RunState, index: int, attempt: int, site: str, cohort: tuple[str, ...]) -> Order:
    spec = run.spec
    kind = kind_of_round(spec, index)
    version = run.model.ref.version if run.model else 0
    evaluate = kind is OrderKind.EVALUATE or bool(spec.evaluate_every and version % spec.evaluate_every == 0)
    return Order(
        id=order_id(spec.run, index, attempt, site),
        kind=kind,
        run=spec.run,
        round=index,
        attempt=attempt,
        site=site,
        seed=spec.seed,
        model=run.model.ref if run.model else None,
        steps=spec.steps if kind is OrderKind.TRAIN else 0,
        evaluate=evaluate and kind is not OrderKind.SEED,
        parent=run.parents.get(site, ""),
        returned=run.returned.get(site, ()),
        cohort=cohort,
        task=accounts.task_of(run),
        codec=spec.codec_up,
        block_elements=spec.block_elements,
        patience_ms=spec.patience_ms,
    )


def judge(run: RunState, now_ms: int) -> Judgement:
    """Whether the open round closes, is abandoned, or goes on. Pure in (run, now)."""
    opened = run.round
    if opened is None:
        return Judgement(Verdict.OPEN, "no round is open")
    settled = all(seat.standing in SETTLED for seat in opened.seats.values())
    expired = now_ms >= opened.deadline_ms
    if not settled and not expired:
        return Judgement(Verdict.OPEN, "sites are at work")
    why = "every site has answered" if settled else "the deadline has passed"
    good = [site for site, seat in opened.seats.items() if seat.standing in (Standing.STORED, Standing.DONE)]
    kind = kind_of_round(run.spec, opened.index)
    if kind is OrderKind.EVALUATE:
        return Judgement(Verdict.CLOSE, why)
    if kind is OrderKind.SEED:
        verdict = Verdict.CLOSE if good else Verdict.ABANDON
        return Judgement(verdict, why if good else f"{why}, and no initial weights came: {_troubles(opened)}")
    missing = shortfall(good, tuple(opened.seats), run.weights, run.spec.quorum, run.spec.quorum_share)
    missing = missing or _too_few_for_masks(run.spec, opened, len(good))
    if missing:
        return Judgement(Verdict.ABANDON, f"{why}, but {missing}{_troubles(opened, prefix=': ')}")
    return Judgement(Verdict.CLOSE, f"{why}: {len(good)} of {len(opened.seats)} contributed")


def _too_few_for_masks(spec: RunSpec, opened: OpenRound, count: int) -> str:
    """Why the sum of so many masked updates may not be had; "" if it may, or nothing is masked."""
    terms = masks.mask_terms(spec.task)
    if opened.masks is None or terms is None:
        return ""
    if opened.bound and count < len(opened.bound):
        return f"the sum of {', '.join(opened.bound)} was to be opened before, and nobody opens another one"
    needed = masks.needed(canonical.decode(masks.Proposal, opened.masks.proposal), terms)
    return "" if count >= needed else f"{count} masked updates came, and {needed} are needed to unmask a sum"


def _troubles(opened: OpenRound, prefix: str = "") -> str:
    """Who did not contribute and why, in words."""
    parts = [
        f"{site} {seat.standing.value}{f' ({seat.reason})' if seat.reason else ''}"
        for site, seat in opened.seats.items()
        if seat.standing not in (Standing.STORED, Standing.DONE)
    ]
    return prefix + "; ".join(parts) if parts else ""


def contributions(run: RunState, opened: OpenRound) -> tuple[Contribution, ...]:
    """What goes into the next version, in canonical order: by site name, of one site the freshest first.

    A late update weighs (1 + staleness)^-1/2 of its data (Nguyen et al., Federated Learning with
    Buffered Asynchronous Aggregation, 2022, arXiv:2106.06639).
    """
    updates = {update.order: update for update in (*_stored(opened.seats), *run.late)}
    return tuple(
        Contribution(
            site=update.site,
            order=update.order,
            blob=update.blob,
            weight=update.weight / math.sqrt(1 + opened.base_version - update.base_version),
            norm=update.norm,
        )
        for update in (updates[order] for order in opened.counted)
    )


def close_round(run: RunState, reason: str) -> OpenRound:
    """The round with what it counts fixed, and everybody still at work marked late."""
    opened = run.round
    assert opened is not None, "only an open round can close"
    seats = {
        site: replace(seat, standing=Standing.LATE, reason="still at work when the round closed")
        if seat.standing in (Standing.INVITED, Standing.WORKING)
        else seat
        for site, seat in opened.seats.items()
    }
    updates = sorted((*_stored(opened.seats), *run.late), key=lambda update: (update.site, -update.round))
    return replace(opened, seats=seats, counted=tuple(update.order for update in updates), reason=reason)


def _stored(seats: Mapping[str, Seat]) -> list[Update]:
    return [seat.update for seat in seats.values() if seat.update and seat.standing is Standing.STORED]


def record_of(opened: OpenRound, now_ms: int, *, version: int | None = None, reason: str = "") -> RoundRecord:
    """The lasting account of an attempt: every invited site with its standing and reason."""
    seats = {site: _seat_record(seat) for site, seat in opened.seats.items()}
    return RoundRecord(
        index=opened.index,
        attempt=opened.attempt,
        opened_ms=opened.opened_ms,
        closed_ms=now_ms,
        reason=reason or opened.reason,
        seats=seats,
        counted=opened.counted if version is not None else (),
        version=version,
        bytes_up=sum(seat.size_bytes for seat in seats.values()) if version is not None else 0,
    )


def _seat_record(seat: Seat) -> SeatRecord:
    update = seat.update
    if update is None:
        return SeatRecord(seat.standing, seat.reason)
    return SeatRecord(
        standing=seat.standing,
        reason=seat.reason,
        weight=update.weight,
        steps=update.steps,
        size_bytes=update.size_bytes,
        train_loss=update.train_loss,
        eval_loss=update.eval_loss,
        eval_count=update.eval_count,
    )


def abandon(
    state: State, run: RunState, opened: OpenRound, reason: str
) -> tuple[RunState, tuple[Effect, ...]]:
    """This attempt cannot close. Whoever contributed or still works keeps its seat in the next.

    Not so under masks: a session's keys are good for one attempt, so everybody begins anew.
    """
    record = record_of(opened, state.now_ms, reason=f"abandoned: {reason}")
    paused = run.paused
    if opened.attempt % run.spec.attempts_max == 0 and not paused:
        paused = f"round {opened.index} was abandoned {opened.attempt} times, last because {reason}"
    over: tuple[Effect, ...] = ()
    if opened.masks is not None:
        why = f"its masked session was given up: {reason}"
        seats = {
            site: seat
            if seat.standing in (Standing.REFUSED, Standing.FAILED)
            else replace(seat, standing=Standing.FAILED, reason=why)
            for site, seat in opened.seats.items()
        }
        over = tuple(Cancel(s, seat.order.id, why) for s, seat in seats.items() if seat != opened.seats[s])
        opened = replace(opened, seats=seats, counted=())
    return replace(
        run,
        phase=Phase.WAITING,
        reason=reason,
        round=opened,
        records=(*run.records, record),
        paused=paused,
    ), over


def snapshot_due(spec: RunSpec, version: int) -> bool:
    """Whether this version is stored as a whole model: every k-th, and the last one."""
    return version % spec.snapshot_every == 0 or version == spec.rounds


def next_model(
    model: Model, version: int, digest: str, delta: tuple[str, int], snapshot: tuple[str, int], keep: int
) -> Model:
    """The model one version on. `delta` and `snapshot` are (blob, bytes), blob "" for no snapshot.

    The chain keeps the newest snapshot, the deltas behind it, and `keep` deltas in all so that a
    site which missed some versions catches up without a whole model.
    """
    ref, past = model.ref, model.past
    base, deltas = ref.chain[0], (*ref.chain[1:], (version, delta[0], delta[1]))
    snapshot_version = ref.snapshot_version
    if snapshot[0]:
        past = (base, *(link for link in ref.chain[1:] if link[0] > snapshot_version))
        base, snapshot_version = (version, snapshot[0], snapshot[1]), version
    oldest = min(snapshot_version, version - keep)
    chain = (base, *(link for link in deltas if link[0] > oldest))
    return replace(
        model, ref=ModelRef(version, digest, ref.layout_digest, snapshot_version, chain), past=past
    )
