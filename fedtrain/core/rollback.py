"""A run goes on from an earlier version, and history stays: the way back is a step forward.

Version N+1 gets the public model of version V, as a snapshot; versions V+1 to N stay in the records. The
sites start afresh from it, since their optimisers and residuals belong to the path that was left. The
run gets as many rounds more as were undone.
"""

from __future__ import annotations

from dataclasses import replace

from fedtrain.core import events as ev, versions
from fedtrain.core.effects import Cancel, Effect, Publish, Restore
from fedtrain.core.orders import ModelRef
from fedtrain.core.rounds import next_index, record_of
from fedtrain.core.seats import AT_WORK
from fedtrain.core.state import Link, Model, Phase, RoundRecord, RunState, State

Turn = tuple[RunState, tuple[Effect, ...]]

NO_ATTEMPT = 0
"""In the place of an attempt's number, where a version is restored and no round is held."""


def restorable(model: Model) -> tuple[int, ...]:
    """Earlier versions that can be made again: from the snapshot before the newest one on."""
    oldest = model.past[0][0] if model.past else model.ref.snapshot_version
    return tuple(range(oldest, model.ref.version))


def way_to(model: Model, version: int) -> tuple[Link, ...]:
    """How a restorable version is made again: its snapshot, then the deltas behind that."""
    chain = model.ref.chain if version >= model.ref.snapshot_version else model.past
    snapshot, *deltas = chain
    return (snapshot, *(link for link in deltas if snapshot[0] < link[0] <= version))


def digest_of(run: RunState, version: int) -> str:
    """The model digest of a published version."""
    return next(record.model_digest for record in run.records if record.version == version)


def restoration(run: RunState) -> Restore:
    """What a run in `Phase.RESTORING` waits for."""
    assert run.model is not None and run.restoring is not None, "restoring has a version"
    newest = run.model.ref.version
    return Restore(run.spec.run, newest + 1, newest, run.restoring)


def begin(state: State, run: RunState, event: ev.RunRolledBack) -> Turn:
    """Call off what is under way, and have the earlier version made again."""
    if run.model is None or event.version not in restorable(run.model):
        return run, ()
    reason = f"going back to version {event.version}, asked for by {event.by}"
    opened = run.round
    at_work = {
        **{site: order.id for site, order in run.busy.items()},
        **{
            s: seat.order.id
            for s, seat in (opened.seats if opened else {}).items()
            if seat.standing in AT_WORK
        },
    }
    records = run.records
    if opened is not None and run.phase is not Phase.WAITING:
        records = (*records, record_of(opened, state.now_ms, reason=f"abandoned: {reason}"))
    run = replace(
        run,
        phase=Phase.RESTORING,
        restoring=event.version,
        reason=reason,
        round=None,
        records=records,
        parents={},
        returned={},
        late=(),
        busy={},
    )
    cancels = tuple(Cancel(site, order, reason) for site, order in at_work.items())
    return run, (*cancels, restoration(run))


def finish(state: State, run: RunState, event: ev.VersionRestored) -> Turn:
    """The earlier version is the newest again: the next round starts from it."""
    model, restored = run.model, run.restoring
    if model is None or restored is None or event.round != next_index(run):
        return run, ()
    if event.model_digest != digest_of(run, restored):
        return run, ()  # an answer to an older question: somebody has asked for another version since
    ref = ModelRef(
        version=event.round,
        digest=event.model_digest,
        layout_digest=model.ref.layout_digest,
        snapshot_version=event.round,
        chain=((event.round, event.snapshot, event.snapshot_bytes),),
    )
    attempts = [record.attempt for record in run.records if record.index == event.round]
    record = RoundRecord(
        index=event.round,
        attempt=max(attempts, default=0) + 1,
        opened_ms=state.now_ms,
        closed_ms=state.now_ms,
        reason=f"version {restored} again: {run.reason}",
        seats={},
        version=event.round,
        model_digest=event.model_digest,
        restored=restored,
    )
    run = replace(
        run,
        spec=replace(run.spec, rounds=run.spec.rounds + event.round - restored),
        phase=Phase.WAITING,
        restoring=None,
        reason=f"version {event.round} is out: version {restored} again",
        waiting_since_ms=state.now_ms,
        model=replace(model, ref=ref, past=way_to(model, model.ref.version)),
        records=(*run.records, record),
    )
    return run, (Publish(run.spec.run, event.round, ()), versions.collection(run))


def fail(state: State, run: RunState, event: ev.AggregationFailed) -> Turn:
    """It could not be made: the run stays where it is until a person has helped.

    An aggregation that was called off may still fail, with the attempt that it was for.
    """
    if (event.round, event.attempt) != (next_index(run), NO_ATTEMPT):
        return run, ()
    return replace(run, paused=f"version {run.restoring} could not be restored: {event.reason}"), ()
