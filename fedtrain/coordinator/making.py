"""How versions come about: at most one of a run at a time, and only what the run still waits for.

An aggregation that was called off goes on computing until it is done: threads cannot be stopped. Its
successor waits for it, since both write the same folder, and what it made is told to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from fedtrain.coordinator.clock import Clock
from fedtrain.coordinator.versions import Versions
from fedtrain.core import effects as fx, events as ev
from fedtrain.core.advance import standing_effects
from fedtrain.core.rollback import NO_ATTEMPT
from fedtrain.core.state import State
from fedtrain.errors import BadUpdate, FedtrainError

_log = logging.getLogger(__name__)


class Office(Protocol):
    """What the making of versions needs of the hub."""

    versions: Versions
    clock: Clock
    held: set[str]

    @property
    def state(self) -> State:
        """What the coordinator knows now."""

    def submit(self, *events: ev.Event) -> None:
        """Journal, step, act."""


class Making:
    """Carries out `Aggregate` and `Restore`."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def aggregate(self, effect: fx.Aggregate) -> None:
        """Make the version, once every update has been held against its digest again."""
        office, place = self._office, (effect.run, effect.round, effect.attempt)
        async with self._turns[effect.run]:
            if not self._wanted(effect):
                return
            with self._holding() as hold:
                try:
                    damaged = await asyncio.to_thread(office.versions.check, effect.contributions)
                    if damaged:
                        self._ask_again(effect, damaged)
                        return
                    run = office.state.runs[effect.run]
                    made = await asyncio.to_thread(office.versions.make, run, effect, hold)
                except (FedtrainError, MemoryError) as error:
                    if effect.masks is not None and isinstance(error, BadUpdate):
                        self._refused(effect, error)
                    else:
                        what = f"round {effect.round} cannot be aggregated"
                        self._failed(effect, effect.attempt, what, error)
                    return
                if self._wanted(effect):
                    office.submit(ev.RoundAggregated(office.clock.now_ms(), *place, **vars(made)))

    async def restore(self, effect: fx.Restore) -> None:
        """Make an earlier version again, as the newest."""
        office = self._office
        async with self._turns[effect.run]:
            if not self._wanted(effect):
                return
            with self._holding() as hold:
                try:
                    run = office.state.runs[effect.run]
                    made = await asyncio.to_thread(office.versions.restore, run, effect, hold)
                except (FedtrainError, MemoryError) as error:
                    self._failed(effect, NO_ATTEMPT, f"version {effect.version} cannot be restored", error)
                    return
                if self._wanted(effect):
                    now_ms = office.clock.now_ms()
                    office.submit(ev.VersionRestored(now_ms, effect.run, effect.round, **vars(made)))

    def _wanted(self, effect: fx.Aggregate | fx.Restore) -> bool:
        """Whether the run still waits for exactly this."""
        run = self._office.state.runs[effect.run]
        wanted = effect in standing_effects(run)
        if not wanted:
            _log.info("%s: what was to be version %d was called off", effect.run, effect.base_version + 1)
        return wanted

    @contextmanager
    def _holding(self) -> Iterator[Callable[[str], None]]:
        """Blobs that appear meanwhile are not collected before their event is journaled."""
        new: set[str] = set()

        def hold(blob: str) -> None:
            new.add(blob)
            self._office.held.add(blob)

        try:
            yield hold
        finally:
            self._office.held -= new

    def _failed(
        self, effect: fx.Aggregate | fx.Restore, attempt: int, what: str, error: FedtrainError | MemoryError
    ) -> None:
        reason = str(error) or "memory ran out"
        _log.error("%s: %s: %s", effect.run, what, reason)
        now_ms = self._office.clock.now_ms()
        self._office.submit(ev.AggregationFailed(now_ms, effect.run, effect.round, attempt, reason))

    def _refused(self, effect: fx.Aggregate, error: BadUpdate) -> None:
        """Whose fault it was cannot be told from a sum: nothing is released, and the round begins anew."""
        _log.error("%s: the sum of round %d is refused: %s", effect.run, effect.round, error)
        if self._wanted(effect):
            now_ms = self._office.clock.now_ms()
            refused = ev.SumRefused(now_ms, effect.run, effect.round, effect.attempt, str(error))
            self._office.submit(refused)

    def _ask_again(self, effect: fx.Aggregate, damaged: dict[str, str]) -> None:
        """Updates that the disk has lost are asked for again; nothing is aggregated without them."""
        for blob, reason in sorted(damaged.items()):
            _log.error(
                "%s: the update in blob %s is %s: check the disk; it is asked for again",
                effect.run,
                blob,
                reason,
            )
        now_ms = self._office.clock.now_ms()
        self._office.submit(
            *(ev.BlobDamaged(now_ms, effect.run, blob, reason) for blob, reason in sorted(damaged.items()))
        )
