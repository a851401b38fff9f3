"""From a closed round to the next version: what to compute, what its publication changes.

The aggregation itself is numbers and happens elsewhere; here it is an effect that names its exact
inputs and an event that names its exact outputs.
"""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core import accounts, events as ev
from fedtrain.core.cohort import expected_sites
from fedtrain.core.effects import Aggregate, Collect, Effect, Publish
from fedtrain.core.masked_rounds import unmasking
from fedtrain.core.rounds import abandon, contributions, next_model, record_of, snapshot_due
from fedtrain.core.state import ENDED, OpenRound, Phase, RoundRecord, RunState, State

Turn = tuple[RunState, tuple[Effect, ...]]
NOTHING: tuple[Effect, ...] = ()


def seeding_record(state: State, run: RunState, opened: OpenRound, reason: str) -> RoundRecord:
    """The record of version 0: one site sent a whole model, and every site will fetch it."""
    assert run.model is not None, "a seeding closes with its model"
    _, _, size_bytes = run.model.ref.chain[0]
    return replace(
        record_of(opened, state.now_ms, version=0, reason=reason),
        model_digest=run.model.ref.digest,
        bytes_up=size_bytes,
        bytes_down=size_bytes * len(expected_sites(state, run.spec)),
    )


def aggregated(state: State, run: RunState, event: ev.RoundAggregated) -> Turn:
    """The next version is durable: publish it, write the record, let go of what it used."""
    opened, model = run.round, run.model
    if opened is None or model is None or (event.round, event.attempt) != (opened.index, opened.attempt):
        return run, NOTHING
    version = model.ref.version + 1
    keep = run.spec.snapshot_every
    delta, snapshot = (event.delta, event.delta_bytes), (event.snapshot, event.snapshot_bytes)
    model = next_model(model, version, event.model_digest, delta, snapshot, keep)
    record = replace(
        record_of(opened, state.now_ms, version=version),
        model_digest=event.model_digest,
        update_norm=event.update_norm,
        bytes_down=event.delta_bytes * len(opened.seats),
    )
    counted = set(opened.counted)
    run = replace(
        accounts.published(run, counted),
        phase=Phase.WAITING,
        reason=f"version {version} is out",
        model=model,
        round=None,
        records=(*run.records, record),
        late=tuple(update for update in run.late if update.order not in counted),
        parents={**run.parents, **_continued(opened)},
    )
    outcomes = tuple((site, seat.standing.value) for site, seat in record.seats.items())
    return run, (Publish(run.spec.run, version, outcomes), collection(run))


def _continued(opened: OpenRound) -> dict[str, str]:
    """Site -> the order of a masked round that it goes on from, now that its part is in a version."""
    if opened.masks is None:
        return {}
    return {site: opened.seats[site].order.id for site in opened.masks.survivors}


def sum_refused(state: State, run: RunState, event: ev.SumRefused) -> Turn:
    """The masks came off, and what lay beneath cannot be: a new attempt, with new keys."""
    if run.round is None or (event.round, event.attempt) != (run.round.index, run.round.attempt):
        return run, NOTHING
    return abandon(state, replace(run, round=replace(run.round, counted=())), run.round, event.reason)


def not_aggregated(state: State, run: RunState, event: ev.AggregationFailed) -> Turn:
    """The numbers could not be made: the run stays where it is until a person has helped."""
    if run.round is None or (event.round, event.attempt) != (run.round.index, run.round.attempt):
        return run, NOTHING
    return replace(run, paused=f"round {event.round} could not be aggregated: {event.reason}"), NOTHING


def aggregation(run: RunState, opened: OpenRound) -> Aggregate:
    warming = opened.index <= run.spec.outer_warmup_rounds
    return Aggregate(
        run=run.spec.run,
        round=opened.index,
        attempt=opened.attempt,
        base_version=opened.base_version,
        contributions=contributions(run, opened),
        outer="average" if warming else run.spec.outer,
        snapshot=snapshot_due(run.spec, opened.index),
        masks=unmasking(opened),
    )


def collection(run: RunState) -> Collect:
    """Everything of this run that is no longer needed may go."""
    return Collect(run.spec.run, run.rounds_done)


def blobs_needed(run: RunState) -> frozenset[str]:
    """Blobs that the run may still need: the ways to its newest versions, and updates to be counted.

    A run that has ended goes back no more.
    """
    past = run.model.past if run.model and run.phase not in ENDED else ()
    chain = {blob for _, blob, _ in (*run.model.ref.chain, *past)} if run.model else set()
    seats = {s.update.blob for s in run.round.seats.values() if s.update} if run.round else set()
    return frozenset(chain | seats | {update.blob for update in run.late})
