"""The process that sees the data: works for a while, and sometimes dies, fails, hangs, or sends NaN.

It outlives its agent's crashes, and its results wait in the mailbox until the agent takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedtrain.core.charges import Permit, permit_fault
from fedtrain.core.masks import is_masked
from fedtrain.core.orders import Order, OrderKind, Progress, Result
from fedtrain.sim.numbers import LAYOUT, digest_of, drawn, initial_weights, norm_of, update_of
from fedtrain.sim.plan import SitePlan
from fedtrain.sim.scene import Scene
from fedtrain.sim.veils import levels_of

DEATHS_MAX = 3
OVERHEAD_MS = 100
TICK_MS = 500
"""How often the progress counter grows."""

LEASE_MS = 3_000
"""A claim of which nothing is heard for so long is given back, if its work was charged for."""


class Agent(Protocol):
    """Whom a trainer works for."""

    def begins(self, order: Order, permit: Permit | None) -> None:
        """An execution begins."""

    def has_result(self, order: str) -> None:
        """A result lies in the mailbox."""

    def gave_back(self, order: str) -> None:
        """A claim has expired: the order is in the mailbox no longer."""

    def gave_up(self, order: str, reason: str) -> None:
        """The trainer keeps dying."""


@dataclass
class Job:
    """An order at work. `end_ms` is None while it hangs."""

    order: Order
    begin_ms: int
    end_ms: int | None
    deaths: int = 0
    permit: Permit | None = None


@dataclass(frozen=True)
class Finished:
    """What lies in the mailbox: the result and the bytes of its file."""

    result: Result
    payload: bytes


class Trainer:
    """One site's trainer and mailbox. What is charged for is begun once for each permit."""

    def __init__(self, scene: Scene, site: SitePlan, agent: Agent) -> None:
        self.results: dict[str, Finished] = {}
        self._jobs: dict[str, Job] = {}
        self._scene = scene
        self._site = site
        self._agent = agent
        self._deaths: dict[str, int] = {}

    def has(self, order: str) -> bool:
        """Whether it is at work or done."""
        return order in self._jobs or order in self.results

    def post(self, order: Order, permit: Permit | None = None) -> None:
        """Work on this order, unless it is at work or done already."""
        if order.id in self._jobs:
            return
        if order.id in self.results:
            self._agent.has_result(order.id)
            return
        fault = permit_fault(permit, order) if order.kind is OrderKind.TRAIN else ""
        if fault:
            self.results[order.id] = Finished(Result(order.id, failure=fault), b"")
            self._agent.has_result(order.id)
            return
        now_ms = self._scene.clock.now_ms
        self._attempt(Job(order, now_ms, now_ms, self._deaths.pop(order.id, 0), permit))

    def discard(self, order: str) -> None:
        """Stop, and throw away what there is."""
        self._deaths.pop(order, None)
        self._jobs.pop(order, None)
        self.results.pop(order, None)

    def lose(self, order: str) -> None:
        """A loss of power took the result."""
        self.results.pop(order, None)

    def progress(self, orders: tuple[str, ...], fetched_bytes: int) -> tuple[Progress, ...]:
        """Signs of life of these orders; a hanging one shows the same counter for ever.

        Bytes of its model are progress too.
        """
        now_ms = self._scene.clock.now_ms
        found = []
        for name in orders:
            job = self._jobs.get(name)
            ticks = 0 if job is None or job.end_ms is None else (now_ms - job.begin_ms) // TICK_MS
            found.append(Progress(name, fetched_bytes + ticks))
        return tuple(found)

    def _attempt(self, job: Job) -> None:
        """Begin to work on it, from the start."""
        scene, rates = self._scene, self._scene.plan.rates
        self._agent.begins(job.order, job.permit)
        self._jobs[job.order.id] = job
        work_ms = OVERHEAD_MS + job.order.steps * self._site.step_ms
        if how := scene.strikes(rates.trainer_hangs, "trainer hangs", job.order.id):
            if job.permit is not None and how.random() < 0.5:
                self._due(job, LEASE_MS, self._give_back)
            job.end_ms = None
            return
        if how := scene.strikes(rates.trainer_dies, "trainer died", job.order.id):
            self._due(job, int(work_ms * how.random()), self._die)
            return
        self._due(job, work_ms, self._finish)

    def _due(self, job: Job, delay_ms: int, action: Callable[[Job], None]) -> None:
        job.end_ms = self._scene.clock.now_ms + delay_ms

        def due() -> None:
            if self._jobs.get(job.order.id) is job:
                action(job)

        self._scene.clock.after(delay_ms, due)

    def _die(self, job: Job) -> None:
        """Killed; its agent starts another one, but not for ever."""
        job.deaths += 1
        if job.deaths >= DEATHS_MAX:
            del self._jobs[job.order.id]
            self._agent.gave_up(job.order.id, f"the trainer died {job.deaths} times")
        elif job.permit is None:
            self._attempt(job)
        else:
            self._give_back(job)

    def _give_back(self, job: Job) -> None:
        """The claim expires, and the permit with it."""
        del self._jobs[job.order.id]
        self._deaths[job.order.id] = job.deaths
        self._agent.gave_back(job.order.id)

    def _finish(self, job: Job) -> None:
        order = job.order
        del self._jobs[order.id]
        self.results[order.id] = self._work(order)
        self._agent.has_result(order.id)

    def _work(self, order: Order) -> Finished:
        """The result, honest or not."""
        scene, rates = self._scene, self._scene.plan.rates
        if scene.strikes(rates.trainer_fails, "trainer failed", order.id):
            return Finished(Result(order.id, failure="the loss is not finite"), b"")
        base = order.model.digest if order.model else ""
        loss = float(drawn(1, self._site.name, base)[0]) + 2.0
        eval_loss, eval_count = (loss, 100) if order.evaluate else (None, 0)
        if order.kind is OrderKind.EVALUATE:
            return Finished(Result(order.id, eval_loss=eval_loss, eval_count=eval_count), b"")
        num_elements = scene.plan.num_elements
        if order.kind is OrderKind.SEED:
            values = initial_weights(order, num_elements)
        else:
            values = update_of(order, num_elements)
        norm = norm_of(values)
        seeds = order.kind is OrderKind.SEED
        veils = is_masked(order)
        if scene.strikes(rates.not_finite, "NaN sent", order.id):
            if veils:
                return Finished(Result(order.id, failure="a value is not finite, and has no level"), b"")
            values = values.copy()
            values[0] = np.nan
        payload = values.tobytes()
        if veils:
            payload = levels_of(order, values, self._site.weight).astype("<i4").tobytes()
        result = Result(
            order=order.id,
            file="model.bin" if seeds else "update.bin",
            digest=digest_of(payload),
            size_bytes=len(payload),
            weight=0 if seeds else self._site.weight,
            steps=order.steps,
            norm=norm,
            train_loss=None if seeds else loss,
            eval_loss=eval_loss,
            eval_count=eval_count,
            layout=LAYOUT if seeds else "",
            seconds=0.5,
        )
        return Finished(result, payload)
