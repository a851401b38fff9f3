"""One order, from start to result.

The result follows from the order, its model file, the parent's checkpoint and the site's data. What
stays in memory between orders (the task, its optimiser) is used only where it is exactly what the
named checkpoint holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from fedtrain.errors import BadOrder, FedtrainError, StorageError
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.methods.updatefile import UpdateHeader, UpdateReader
from fedtrain.storage.mailbox import MODEL_FILE, Claim, Order, OrderKind, Result
from fedtrain.trainer.checkpoints import RESIDUAL, UPDATE, Checkpoint, Checkpoints, Facts
from fedtrain.trainer.data import Dataset, DataSource
from fedtrain.trainer.feedback import Carried
from fedtrain.trainer.privacy.permits import Promise, promise_of
from fedtrain.trainer.release import Release
from fedtrain.trainer.residual import ResidualFile
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.task import Abandoned, Context, Task, Work

log = logging.getLogger(__name__)

MODEL_RESULT = "model.bin"
FAILURE_CHARACTERS_MAX = 2000


class OrderContext(Context, Protocol):
    """What a session needs of the process around it, beside what tasks need."""

    def phase(self, name: str) -> None:
        """A new part of the work begins: `load`, `evaluate`, `train`, `encode`."""

    def alive(self) -> None:
        """Show progress where no steps are counted. Raises `Abandoned`."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What an order starts from, beside the public model."""

    steps: int
    carried: Carried
    notes: tuple[str, ...]


class Session:
    """Carries out orders, one at a time.

    Args:
        datasets: the site's data sets by name.
        checkpoints: where the site's state between rounds lies.
        threads: for the task's arithmetic; results on a CPU depend on it.
    """

    def __init__(self, datasets: Mapping[str, Dataset], checkpoints: Checkpoints, threads: int) -> None:
        self._datasets = datasets
        self._checkpoints = checkpoints
        self._threads = threads
        self._task: Task | None = None
        self._task_key = ("", "")
        self._state_of: str | None = None  # order whose checkpoint the task's memory equals, "" for fresh

    def work(self, claim: Claim, context: OrderContext) -> tuple[Result, Path | None]:
        """The result, and the file to hand in with it. Only `Abandoned` is raised."""
        order, began = claim.order, time.monotonic()
        try:
            result, file = self._carry_out(claim, context)
        except Abandoned:
            self._state_of = None
            raise
        except FedtrainError as error:
            return self._failed(order, str(error)), None
        except Exception as error:
            # A task may be anybody's code, and memory may run out: the trainer has to survive both.
            log.exception("order %s", order.id)
            return self._failed(order, f"the task failed with {type(error).__name__}: {error}"), None
        return dataclasses.replace(result, seconds=round(time.monotonic() - began, 6)), file

    def _failed(self, order: Order, reason: str) -> Result:
        self._state_of = None
        return Result(order.id, failure=reason[:FAILURE_CHARACTERS_MAX])

    def _carry_out(self, claim: Claim, context: OrderContext) -> tuple[Result, Path | None]:
        order, model = claim.order, claim.folder / MODEL_FILE
        task = self._prepared(order)
        if order.kind == OrderKind.SEED:
            return self._seed(task, order, context)
        if order.kind == OrderKind.TRAIN:
            return self._train(task, claim, context)
        with _opened(task, order, model) as weights:
            context.phase("evaluate")
            loss, count = task.evaluate(weights)
        return Result(order.id, eval_loss=loss, eval_count=count), None

    def _prepared(self, order: Order) -> Task:
        """The run's task, built anew only where the run or its settings are not the last ones."""
        key = (order.run, _lasting(order.task))
        if self._task is None or key != self._task_key:
            self._task, self._state_of = None, None  # frees the old one's memory first
            spec = TaskSpec.from_json(order.task)
            self._task = build_task(spec, DataSource(spec.data, spec.name, self._datasets))
            self._task_key, self._state_of = key, ""
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)
        return self._task

    def _seed(self, task: Task, order: Order, context: OrderContext) -> tuple[Result, Path]:
        layout = task.layout()
        with self._checkpoints.draft(order.run, order.id) as draft:
            writer = ModelWriter(draft / MODEL_RESULT, layout, order.run, 0, hash_file=True)
            try:
                for piece in task.initial_weights(order.seed):
                    context.alive()
                    writer.write(piece)
                _, digest, size_bytes = writer.close()
            finally:
                writer.abandon()
            # Out of the draft, which goes now, to a name that the next clean-up knows.
            file = draft.rename(draft.with_name(draft.name + "-out")) / MODEL_RESULT
        result = Result(
            order.id, file=MODEL_RESULT, digest=digest, size_bytes=size_bytes, layout=layout.to_json()
        )
        return result, file

    def _train(self, task: Task, claim: Claim, context: OrderContext) -> tuple[Result, Path]:
        order, fingerprint = claim.order, _fingerprint(claim.order)
        done = self._checkpoints.find(order.run, order.id)
        if done is None or done.facts.fingerprint != fingerprint or not done.update.exists():
            if done is not None:  # of an earlier run of the same name
                self._checkpoints.remove(order.run, order.id)
            done = self._make(task, claim, fingerprint, context)
        file = self._checkpoints.outgoing(done)
        self._checkpoints.keep(order.run, {order.id, order.parent, *order.returned})
        return done.facts.result, file

    def _make(self, task: Task, claim: Claim, fingerprint: str, context: OrderContext) -> Checkpoint:
        """Do the work and keep its checkpoint."""
        order, model = claim.order, claim.folder / MODEL_FILE
        if order.steps < 1:
            raise BadOrder(f"an order to train asks for {order.steps} steps; at least one is needed")
        promise = promise_of(claim)
        _check_private(task, order, promise)
        context.phase("load")
        start = self._restore(task, order, promise.digest)
        with _opened(task, order, model) as weights, self._checkpoints.draft(order.run, order.id) as draft:
            header = _header(task, order)
            Release.check(promise, header)
            eval_loss, eval_count = None, 0
            if order.evaluate:
                context.phase("evaluate")
                eval_loss, eval_count = task.evaluate(weights)
            context.phase("train")
            self._state_of = None  # until the work is kept, memory equals no checkpoint
            work = Work(
                order.run, order.seed, order.round, order.site, order.steps, start.steps, promise.record
            )
            outcome = task.train(weights, work, _Quiet(context) if promise.digest else context)
            context.phase("encode")
            release = Release(promise, header, outcome, context.alive)
            update = release.write(draft / UPDATE, draft / RESIDUAL, order.seed, start.carried)
            result = Result(
                order.id,
                file=UPDATE,
                digest=update.digest,
                size_bytes=update.size_bytes,
                weight=outcome.weight,
                steps=outcome.steps,
                norm=update.norm,
                train_loss=None if promise.digest else outcome.loss,
                eval_loss=eval_loss,
                eval_count=eval_count,
                notes=start.notes,
                within=release.within,
            )
            steps = start.steps + outcome.steps
            facts = Facts(order.id, fingerprint, task.layout().digest, steps, result, promise.digest)
            if self._checkpoints.commit(draft, facts, task.state()):
                self._state_of = order.id
        kept = self._checkpoints.find(order.run, order.id)
        if kept is None:
            raise StorageError(f"the checkpoint of {order.id} cannot be read back; check the mailbox's disk")
        return kept

    def _restore(self, task: Task, order: Order, promise: str) -> Start:
        """Bring the task to the parent's state, or to a fresh one with a note where that is lost.

        What was made under another promise about noise counts as lost: nothing un-noised may come along.
        """
        notes: list[str] = []
        digest = task.layout().digest
        parent: Checkpoint | None = None
        state: Mapping[str, npt.NDArray[Any]] = {}
        if order.parent:
            parent = self._checkpoints.find(order.run, order.parent)
            try:
                if parent is None or parent.facts.layout_digest != digest:
                    raise StorageError("it is not in the mailbox")
                if parent.facts.promise != promise and promise:
                    raise StorageError("it was made under another promise of privacy")
                if parent.residual is not None:
                    ResidualFile.open(parent.residual, task.layout().num_elements).close()
                if self._state_of != order.parent:
                    state = parent.state()
            except FedtrainError as error:
                parent = None
                notes.append(
                    f"the checkpoint of the parent order {order.parent} is missing ({error});"
                    " optimiser state and residual start afresh"
                )
        wanted = order.parent if parent else ""
        if self._state_of != wanted:
            task.restore(state)
            self._state_of = wanted
        returned = []
        for order_id in order.returned:
            path = self._returned(order, order_id, digest, promise)
            if path is None:
                notes.append(
                    f"the update of {order_id} is no longer here, so it cannot go back into the residual"
                )
            else:
                returned.append(path)
        carried = Carried(parent.residual if parent else None, returned)
        return Start(parent.facts.steps if parent else 0, carried, tuple(notes))

    def _returned(self, order: Order, order_id: str, layout_digest: str, promise: str) -> Path | None:
        checkpoint = self._checkpoints.find(order.run, order_id)
        if checkpoint is None or (checkpoint.facts.promise != promise and promise):
            return None
        try:
            with UpdateReader(checkpoint.update) as reader:
                fits = reader.header.layout_digest == layout_digest
        except FedtrainError:
            return None
        return checkpoint.update if fits else None


class _Quiet:
    """A task's line to the process on which no training loss goes out: nobody noised it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Steps and weight only."""
        self._context.step_done(steps, None, weight)

    def pause(self, seconds: float) -> None:
        """As the context."""
        self._context.pause(seconds)


def _check_private(task: Task, order: Order, promise: Promise) -> None:
    if promise.record is not None and not hasattr(task, "units"):
        raise BadOrder(
            f"{order.id} promises privacy of records, and the task cannot train with it: it has no `units`"
        )


def _lasting(task: str) -> str:
    """The task section without what is promised of whole updates: a clip may adapt from round to round, and
    no task works by it."""
    try:
        plain = json.loads(task)
        plain["terms"]["privacy"].pop("site", None)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return task
    return json.dumps(plain, sort_keys=True)


def _opened(task: Task, order: Order, path: Path) -> ModelReader:
    """The order's public model. Its digest is the agent's to check: it wrote the file."""
    if order.model is None:
        raise BadOrder(f"an order to {order.kind} names no model to start from")
    layout = task.layout()
    if order.model.layout_digest != layout.digest:
        raise BadOrder(
            f"the order's model has layout {order.model.layout_digest[:16]}, the task builds"
            f" {layout.digest[:16]}: is another version of the task installed here?"
        )
    reader = ModelReader(path)
    try:
        reader.check_layout(layout)
    except FedtrainError:
        reader.close()
        raise
    return reader


def _header(task: Task, order: Order) -> UpdateHeader:
    layout = task.layout()
    assert order.model is not None
    return UpdateHeader(
        run=order.run,
        round=order.round,
        site=order.site,
        direction="up",
        base_version=order.model.version,
        layout_digest=layout.digest,
        codec=order.codec,
        block_elements=order.block_elements,
        num_elements=layout.num_elements,
        clip_norm=None,
    )


def _fingerprint(order: Order) -> str:
    """SHA-256 of the whole order: an order of the same id from another run of that name differs."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(order), sort_keys=True).encode()).hexdigest()
