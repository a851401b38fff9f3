"""A site's public models: brought from the version that is held to the one that is ordered, byte by byte."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import numpy as np

from fedtrain.core import agent
from fedtrain.core.orders import ModelRef, Order, OrderKind
from fedtrain.errors import IntegrityError, RemoteError
from fedtrain.methods.vectors import Floats
from fedtrain.sim.asking import Answer
from fedtrain.sim.calls import Fetch, Part, Refusal
from fedtrain.sim.disk import Store, flipped
from fedtrain.sim.numbers import digest_of, to_vector
from fedtrain.sim.process import Place

if TYPE_CHECKING:
    from fedtrain.sim.site import Site

Link = tuple[int, str, int]
"""(version that it leads to, blob digest, size in bytes), as in `ModelRef.chain`."""


class Models:
    """Models and blobs on one site's disk: not synced, so each is held against its digest before use.

    Attributes:
        fetched_bytes: grows while something moves.
    """

    def __init__(self, owner: Site) -> None:
        self._owner = owner
        self._versions: dict[str, tuple[int, Floats]] = {}
        self._store = Store()
        self.fetched_bytes = 0

    def prepare(self, order: Order) -> None:
        """Bring the model up to the order's version, one blob at a time, then let the trainer work."""
        owner = self._owner
        held = owner.held.get(order.id)
        if order.id in owner.calls.busy or held is None or held.order != order:
            return
        if order.kind is not OrderKind.SEED and order.model is not None:
            missing = self._missing(order.run, order.model)
            if missing:
                self._fetch(order, missing[0])
                return
            digest = digest_of(self._versions[order.run][1].tobytes())
            if digest != order.model.digest:
                self._drop(order, missing_from=order.model)
                return
            owner.auditor.holds(owner.name, order, digest)
        owner.purse.post(order)

    def _missing(self, run: str, wanted: ModelRef) -> tuple[Link, ...]:
        """Links of the chain still to be fetched: deltas from what is here, or the snapshot first."""
        version = self._versions[run][0] if run in self._versions else -1
        if version == wanted.version:
            return ()
        snapshot, *deltas = wanted.chain
        ahead = tuple(link for link in deltas if link[0] > version)
        if version >= 0 and ahead and ahead[0][0] == version + 1:
            return ahead
        return (snapshot, *(link for link in deltas if link[0] > snapshot[0]))

    def _drop(self, order: Order, missing_from: ModelRef) -> None:
        """Another model than the order's: a bit flipped, or it is from a coordinator that was fenced."""
        owner = self._owner
        owner.scene.note(owner.name, "drops", f"its version {missing_from.version} of {order.run}")
        owner.scene.faults["model fetched anew"] += 1
        del self._versions[order.run]
        self.prepare(order)

    def _fetch(self, order: Order, link: Link) -> None:
        owner = self._owner
        version, digest, _ = link

        def answered(answer: Answer) -> None:
            owner.calls.busy.discard(order.id)
            if order.id not in owner.held:
                return
            if isinstance(answer, Part):
                self.prepare(order)
            else:
                reason = answer.reason if isinstance(answer, Refusal) else "no blob came"
                owner.submit(agent.WorkAbandoned(owner.now_ms, order.id, reason))

        if digest in self._store.blobs:
            self._apply(order, version, digest)
            self.prepare(order)
            return
        owner.calls.ask(order.id, Fetch(digest, self._store.received(digest)), answered)

    def take(self, part: Part) -> None:
        """Some bytes came, perhaps for an order that is over: the next one goes on from there."""
        self._owner.fuse.reach(Place.AMID_TRANSFER)
        self.fetched_bytes += len(part.data)
        # Other bytes than what is here, or than the digest: the next fetch begins where that is known.
        with contextlib.suppress(RemoteError, IntegrityError):
            received = self._store.write(part.digest, part.size_bytes, part.offset, part.data)
            if received == part.size_bytes:
                self._store.commit(part.digest, part.size_bytes)

    def _apply(self, order: Order, version: int, digest: str) -> None:
        """A snapshot replaces the model; a delta is added to the version below, bit for bit."""
        assert order.model is not None, "only orders with a model fetch"
        values = to_vector(self._store.blobs.pop(digest))
        here = self._versions.get(order.run)
        if digest == order.model.chain[0][1]:
            self._versions[order.run] = (version, values)
        elif here is not None and here[0] == version - 1:
            with np.errstate(all="ignore"):  # a flipped bit may make any number of one; its digest tells
                self._versions[order.run] = (version, np.add(here[1], values))

    def lose_power(self, how: random.Random) -> None:
        """Partial blobs are cut short, and a model may come back with other bytes."""
        self._store.lose_power(how)
        for run in list(self._versions):
            if how.random() < 0.5:
                self.flip(run, how)

    def flip(self, run: str, how: random.Random) -> None:
        """One bit of this run's model turns over."""
        if run in self._versions:
            version, values = self._versions[run]
            self._versions[run] = (version, to_vector(flipped(values.tobytes(), how)))

    @property
    def runs(self) -> list[str]:
        """Runs of which a model is here."""
        return sorted(self._versions)
