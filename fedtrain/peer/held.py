"""Updates that wait for a person of the site: which there are, and what their numbers look like.

`approval: hold` keeps every result's file in the outbox until somebody lets it go. Here it is opened with
the decoder that the coordinator would use, tensor by tensor, so what is shown is what would leave.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedtrain.core.agent import AGENT_EVENTS, AgentState, Held, Stage, step
from fedtrain.core.orders import OrderKind, Result
from fedtrain.errors import BadUpdate, IntegrityError, LocalError, NotFoundError
from fedtrain.methods.files import open_source
from fedtrain.methods.flatfile import FlatFile, open_model, open_update
from fedtrain.methods.likeness import BINS, Likeness
from fedtrain.storage.filesystem import hash_of
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots

MEANING = {
    "norm": "L2 length of the tensor's change. One tensor with most of the whole norm deserves a question.",
    "zeros": "Share of values that are exactly 0.",
    "histogram": f"Counts in {BINS} equal parts from -|max| to |max|.",
    "entropy": "Of the values in 255 steps, over the largest possible; `entropy_noise` is Gaussian noise's. "
    "Far above it, the values use their room as packed bytes do; far below, few values repeat.",
    "kurtosis": "0 for Gaussian noise, -1.2 for evenly spread bytes, large where few values stand out.",
    "lag": "Correlation of each value with the next: 0 for noise, high where neighbours were written alike.",
    "flatness": "Of the spectrum: 0.56 for white noise, near 0 for a repeating pattern.",
    "sigmas": "How far the three above are from noise, in its standard deviations; beyond 4 it is not noise.",
    "cosine": "With the update of an earlier round that is still here: 1 the same direction, 0 unrelated.",
    "limits": "These numbers find gross things: an empty update, raw bytes or a pattern in place of a "
    "gradient. They cannot show what an update was learnt from: one that memorised records, or hides "
    "encrypted data, may look like any other. Against that stand clipping, noise and masks, not a look.",
}
"""What each number says, and what it cannot."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a held file."""

    name: str
    shape: tuple[int, ...]
    likeness: Likeness


@dataclass(frozen=True)
class Inspection:
    """A held file.

    Attributes:
        kind, codec: of the file; a model's values are float32 as they are.
        tensors: in the order of the layout; a single one where the layout is not known here.
        norm: L2 of everything together.
        cosine, beside: with the update of which order; None and "" if there is none.
    """

    order: str
    kind: str
    codec: str
    digest: str
    size_bytes: int
    norm: float
    tensors: tuple[Tensor, ...]
    cosine: float | None
    beside: str

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        tensors = [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                **asdict(tensor.likeness),
                "like_noise": tensor.likeness.like_noise,
            }
            for tensor in self.tensors
        ]
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**plain, "tensors": tensors, "meaning": MEANING}


def read_state(state: Path) -> AgentState:
    """What the agent of this state folder knows by its journal, whether it runs or not."""
    path = state / "journal.db"
    if not path.is_file():
        raise NotFoundError(f"{path} is not there: the agent of this folder has never run")
    journal = Journal.open(path, writer=False)
    try:
        return Snapshots(journal, AgentState).recover(step, AgentState(), AGENT_EVENTS)
    finally:
        journal.close()


def waiting(state: AgentState) -> dict[str, Held]:
    """Order -> what is held for a person's word, oldest round first."""
    held = {name: held for name, held in state.held.items() if held.stage is Stage.HELD}
    return dict(sorted(held.items(), key=lambda item: (item[1].order.run, item[1].order.round)))


def find(state: AgentState, order: str) -> Held:
    """The held update of this order; `NotFoundError` says what is held instead."""
    found = waiting(state).get(order)
    if found is None:
        others = ", ".join(waiting(state)) or "nothing"
        raise NotFoundError(f"no update of {order} is held here (held: {others})")
    return found


def inspect(folder: Path, state: AgentState, order: str) -> Inspection:
    """Open the held file and measure every tensor.

    Args:
        folder: the agent's state folder.

    Raises:
        NotFoundError: nothing is held for this order, or its file has not been taken over yet.
        IntegrityError: the file is not the one that the trainer handed in.
        BadUpdate: it is not a file that the coordinator would accept.
    """
    held = find(state, order)
    result = held.result
    if result is None:
        raise LocalError(f"{order} is held without a result")
    path = folder / "outbox" / order
    if not path.exists():
        raise NotFoundError(
            f"{path} is not there yet: the running agent puts it there, so start it, or wait a moment"
        )
    _check_digest(path, result)
    trained = held.order.kind is OrderKind.TRAIN
    with (open_update if trained else open_model)(path) as file:
        tensors = tuple(
            Tensor(name, shape, file.measure(start, start + math.prod(shape)))
            for name, shape, start in file.places(_models(folder, held.order.run) if trained else [path])
        )
        beside = _earlier(folder, state, held) if trained else ""
        cosine = _cosine(file, folder / "outbox" / beside) if beside else None
    return Inspection(
        order=order,
        kind="update" if trained else "model",
        codec=file.codec,
        digest=result.digest,
        size_bytes=result.size_bytes,
        norm=math.sqrt(sum(tensor.likeness.norm**2 for tensor in tensors)),
        tensors=tensors,
        cosine=cosine,
        beside=beside if cosine is not None else "",
    )


def _models(folder: Path, run: str) -> list[Path]:
    """The run's public models that are here."""
    return sorted((folder / "models" / run).glob("*.safetensors"))


def _earlier(folder: Path, state: AgentState, held: Held) -> str:
    """The newest earlier update of the run whose file is still here, "" if none is."""
    rounds = {
        other.order.round: name
        for name, other in state.held.items()
        if other.order.run == held.order.run
        and other.order.kind is OrderKind.TRAIN
        and other.order.round < held.order.round
        and (folder / "outbox" / name).is_file()
    }
    return rounds[max(rounds)] if rounds else ""


def _cosine(file: FlatFile, other: Path) -> float | None:
    """With another update; None if the two cannot be compared."""
    try:
        with open_update(other) as second:
            return file.cosine(second)
    except BadUpdate:
        return None


def _check_digest(path: Path, result: Result) -> None:
    descriptor, _ = open_source(path)
    try:
        found = hash_of(descriptor).hexdigest()
    finally:
        os.close(descriptor)
    if found != result.digest:
        raise IntegrityError(
            f"{path} has the digest {found}, the trainer handed in {result.digest}: withhold it, and find "
            "out who writes there"
        )
