"""Updates that wait for a person of the site: which there are, and what their numbers look like.

`approval: hold` keeps every result's file in the outbox until somebody lets it go. Here it is opened with
the decoder that the coordinator would use, tensor by tensor, so what is shown is what would leave.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedtrain.core.agent import AGENT_EVENTS, AgentState, Held, Stage, step
from fedtrain.core.orders import OrderKind, Result
from fedtrain.errors import BadUpdate, FedtrainError, IntegrityError, LocalError, NotFoundError
from fedtrain.methods.codecs import codec
from fedtrain.methods.files import open_source
from fedtrain.methods.likeness import BINS, Extent, Likeness, Measure
from fedtrain.methods.modelfile import ModelReader
from fedtrain.methods.updatefile import UpdateReader
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats
from fedtrain.storage.filesystem import hash_of
from fedtrain.storage.journal import Journal
from fedtrain.storage.snapshots import Snapshots

SLAB_ELEMENTS = 64 * CHUNK_ELEMENTS
"""Decoded at a time: 1 MiB."""

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
    with contextlib.ExitStack() as files:
        vector, layout_digest = _open(path, held.order.kind, files)
        tensors = []
        named = [path] if held.order.kind is OrderKind.SEED else _models(folder, held.order.run)
        for name, shape, start in _places(named, layout_digest, vector):
            stop = start + math.prod(shape)
            tensors.append(Tensor(name, shape, _measure(vector, start, stop)))
        beside = _earlier(folder, state, held) if held.order.kind is OrderKind.TRAIN else ""
        cosine = _cosine(vector, folder / "outbox" / beside, files) if beside else None
    return Inspection(
        order=order,
        kind="update" if held.order.kind is OrderKind.TRAIN else "model",
        codec=vector.codec,
        digest=result.digest,
        size_bytes=result.size_bytes,
        norm=math.sqrt(sum(tensor.likeness.norm**2 for tensor in tensors)),
        tensors=tuple(tensors),
        cosine=cosine,
        beside=beside if cosine is not None else "",
    )


class _Vector:
    """A file's flat vector; what was decoded last is kept, because small tensors lie side by side."""

    def __init__(self, count: int, codec_name: str, decode: Callable[[int, Floats], None]) -> None:
        self.count = count
        self.codec = codec_name
        self._decode = decode
        self._start = -1
        self._slab: Floats = np.empty(0, np.float32)

    def pieces(self, start: int, stop: int) -> Iterator[Floats]:
        """The values from `start` to `stop`, as views that hold until the next one."""
        while start < stop:
            first = start // SLAB_ELEMENTS * SLAB_ELEMENTS
            last = min(first + SLAB_ELEMENTS, self.count)
            if first != self._start:
                slab = np.empty(last - first, np.float32)
                self._decode(first, slab)
                self._start, self._slab = first, slab
            end = min(stop, last)
            yield self._slab[start - first : end - first]
            start = end


def _open(path: Path, kind: OrderKind, files: contextlib.ExitStack) -> tuple[_Vector, str]:
    """(vector, digest of its layout) of a file that was handed in."""
    if kind is OrderKind.SEED:
        model = files.enter_context(ModelReader(path))
        return _Vector(model.num_elements, "float32", model.read), model.layout_digest
    update = files.enter_context(UpdateReader(path))
    header = update.header
    scratch = np.empty(codec(header.codec).encoded_bytes(SLAB_ELEMENTS), np.uint8)

    def decode(start: int, out: Floats) -> None:
        update.decode_range(start, out, scratch)

    return _Vector(header.num_elements, header.codec, decode), header.layout_digest


def _models(folder: Path, run: str) -> list[Path]:
    """The run's public models that are here."""
    return sorted((folder / "models" / run).glob("*.safetensors"))


def _places(
    models: Iterable[Path], layout_digest: str, vector: _Vector
) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, start) of the tensors, from the first model file of the same layout."""
    for path in models:
        with contextlib.suppress(FedtrainError), ModelReader(path) as model:
            if model.layout_digest == layout_digest and model.num_elements == vector.count:
                start = 0
                for name, shape in zip(model.names, model.shapes, strict=True):
                    yield name, shape, start
                    start += math.prod(shape)
                return
    yield "(all tensors)", (vector.count,), 0


def _measure(vector: _Vector, start: int, stop: int) -> Likeness:
    extent = Extent()
    for piece in vector.pieces(start, stop):
        extent.take(piece)
    measure = Measure(extent)
    for piece in vector.pieces(start, stop):
        measure.take(piece)
    return measure.done()


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


def _cosine(vector: _Vector, other: Path, files: contextlib.ExitStack) -> float | None:
    """None if the two cannot be compared."""
    try:
        second, _ = _open(other, OrderKind.TRAIN, files)
    except BadUpdate:
        return None
    if second.count != vector.count:
        return None
    sums = np.zeros(3)
    for ours, theirs in zip(vector.pieces(0, vector.count), second.pieces(0, vector.count), strict=True):
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        sums += np.dot(a, b), np.dot(a, a), np.dot(b, b)
    product, first, last = map(float, sums)
    return product / math.sqrt(first * last) if first > 0 and last > 0 else None


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
