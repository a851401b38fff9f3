"""How a coordinator makes versions: check what it counts, compute for a while, store, say so; and tidy up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtrain.core import effects as fx, events as ev
from fedtrain.core.rollback import NO_ATTEMPT, restoration, way_to
from fedtrain.core.state import ENDED, Phase
from fedtrain.core.versions import blobs_needed
from fedtrain.errors import RemoteError
from fedtrain.methods.vectors import Floats
from fedtrain.sim.numbers import Version, aggregate, digest_of, stepped, to_vector
from fedtrain.sim.process import Place
from fedtrain.sim.veils import mean_of, opened_sum

if TYPE_CHECKING:
    from fedtrain.sim.coordinator import Coordinator


class Making:
    """Of one life. What it stores lies on the owner's disk."""

    def __init__(self, owner: Coordinator) -> None:
        self._owner = owner
        self._computing: set[tuple[str, int, int]] = set()

    def aggregate(self, effect: fx.Aggregate) -> None:
        """Compute for a while; the answer is an event. One computation of a kind at a time."""
        owner, scene = self._owner, self._owner.scene
        place = (effect.run, effect.round, effect.attempt)
        if place in self._computing:
            return
        self._computing.add(place)

        def computed() -> None:
            self._computing.discard(place)
            run = owner.state.runs[effect.run]
            if run.phase is not Phase.AGGREGATING or run.round is None or run.round.attempt != effect.attempt:
                return
            damaged = self._damaged(effect)
            if damaged:
                owner.submit(*damaged)
            elif scene.strikes(scene.plan.rates.aggregation_fails, "aggregation failed", effect.run):
                owner.submit(ev.AggregationFailed(owner.now_ms, *place, "no space left"))
            else:
                made = self._make(effect)
                owner.fuse.reach(Place.BEFORE_ROW)
                owner.submit(made)

        owner.later(scene.chance.stream("aggregation", effect.run).randint(20, 1_500), computed)

    def restore(self, effect: fx.Restore) -> None:
        """Make an earlier version again from its snapshot and deltas, after a while."""
        owner, scene = self._owner, self._owner.scene
        place = (effect.run, effect.round, NO_ATTEMPT)

        def computed() -> None:
            run = owner.state.runs[effect.run]
            if run.phase is not Phase.RESTORING or restoration(run) != effect or run.model is None:
                return
            if scene.strikes(scene.plan.rates.aggregation_fails, "restoration failed", effect.run):
                owner.submit(ev.AggregationFailed(owner.now_ms, *place, "no space left"))
                return
            snapshot, *deltas = (
                owner.disk.store.blobs[blob] for _, blob, _ in way_to(run.model, effect.version)
            )
            public = to_vector(snapshot)
            for delta in deltas:
                public = public + to_vector(delta)
            data = public.tobytes()
            owner.disk.versions[effect.run, effect.round] = Version(public, public)
            owner.disk.store.blobs[digest_of(data)] = data
            owner.fuse.reach(Place.BEFORE_ROW)
            told = (digest_of(data), digest_of(data), len(data))
            owner.submit(ev.VersionRestored(owner.now_ms, effect.run, effect.round, *told))

        owner.later(scene.chance.stream("restoration", effect.run).randint(20, 1_500), computed)

    def _damaged(self, effect: fx.Aggregate) -> list[ev.Event]:
        """Every update is held against its digest once more before it is read."""
        owner = self._owner
        store = owner.disk.store
        found = [(item.blob, store.check(item.blob)) for item in effect.contributions]
        return [ev.BlobDamaged(owner.now_ms, effect.run, blob, wrong) for blob, wrong in found if wrong]

    def _make(self, effect: fx.Aggregate) -> ev.RoundAggregated | ev.SumRefused:
        """The version on disk before anybody hears of it; made again, it is the same again."""
        owner, disk = self._owner, self._owner.disk
        spec = owner.state.runs[effect.run].spec
        base = disk.versions[effect.run, effect.base_version]
        read_in = list(range(len(effect.contributions)))
        owner.scene.chance.stream("reading", effect.run).shuffle(read_in)
        if effect.masks is None:
            made = aggregate(spec, effect, base, disk.store.blobs, read_in)
        else:
            try:
                made = stepped(spec, effect, base, self._unmasked(effect, effect.masks))
            except RemoteError as error:
                return ev.SumRefused(owner.now_ms, effect.run, effect.round, effect.attempt, str(error))
        public = made.version.public.tobytes()
        disk.versions[effect.run, effect.base_version + 1] = made.version
        delta, snapshot = digest_of(made.delta), digest_of(public) if effect.snapshot else ""
        disk.store.blobs[delta] = made.delta
        if snapshot:
            disk.store.blobs[snapshot] = public
        return ev.RoundAggregated(
            at_ms=owner.now_ms,
            run=effect.run,
            round=effect.round,
            attempt=effect.attempt,
            model_digest=digest_of(public),
            delta=delta,
            delta_bytes=len(made.delta),
            snapshot=snapshot,
            snapshot_bytes=len(public) if snapshot else 0,
            update_norm=made.update_norm,
        )

    def _unmasked(self, effect: fx.Aggregate, asked: fx.Unmasking) -> Floats:
        """The mean of what lies under the masks."""
        owner, blobs = self._owner, self._owner.disk.store.blobs
        vectors = {item.site: np.frombuffer(blobs[item.blob], "<u4") for item in effect.contributions}
        task = owner.state.runs[effect.run].spec.task
        return mean_of(asked, task, opened_sum(asked, vectors), owner.scene.plan.num_elements)

    def collect(self, effect: fx.Collect) -> None:
        """Blobs that no run needs, and versions that are over; what is being taken in stays."""
        owner, disk = self._owner, self._owner.disk
        needed: set[str] = set(owner.intake.held)
        for run in owner.state.runs.values():
            needed |= blobs_needed(run)
        disk.store.collect(needed | owner.intake.offered)
        for run_name, version in tuple(disk.versions):
            if run_name == effect.run and version < effect.keep_version:
                del disk.versions[run_name, version]
        owner.history.collected(len(disk.store.blobs), len(disk.versions))

    def counted_blobs(self) -> list[str]:
        """Updates that lie here and wait to be counted, by rising digest.

        Without those that are a model as well: a liar may send one back, and no real update's file could
        be equal to a model's.
        """
        state, blobs = self._owner.state, self._owner.disk.store.blobs
        found: set[str] = set()
        models: set[str] = set()
        for run in state.runs.values():
            if run.phase not in ENDED:
                seats = run.round.seats.values() if run.round else ()
                found |= {seat.update.blob for seat in seats if seat.update}
                found |= {update.blob for update in run.late}
            if run.model is not None:
                models |= {blob for _, blob, _ in run.model.ref.chain}
        return sorted((found - models) & set(blobs))
