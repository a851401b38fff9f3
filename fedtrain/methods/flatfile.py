"""The flat vector of a file that a trainer handed in, opened to be looked at: by tensor, a slab at a time.

Updates are decoded as the coordinator decodes them; a model's values are as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fedtrain.errors import FedtrainError
from fedtrain.methods.codecs import codec
from fedtrain.methods.likeness import Extent, Likeness, Measure
from fedtrain.methods.modelfile import ModelReader
from fedtrain.methods.updatefile import UpdateReader
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats

SLAB_ELEMENTS = 64 * CHUNK_ELEMENTS
"""Decoded at a time: 1 MiB."""

UNKNOWN = "(all tensors)"
"""Name of the whole vector where the layout is not known."""

Place = tuple[str, tuple[int, ...], int]
"""(name, shape, start in the flat vector) of a tensor."""


class FlatFile:
    """An open file's vector; what was decoded last is kept, because small tensors lie side by side.

    Attributes:
        count: of elements.
        codec: name of the codec.
        layout_digest: of the layout that the file says it has.
    """

    def __init__(
        self, count: int, codec_name: str, layout_digest: str, decode: Callable[[int, Floats], None]
    ) -> None:
        self.count = count
        self.codec = codec_name
        self.layout_digest = layout_digest
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

    def measure(self, start: int, stop: int) -> Likeness:
        """What the values from `start` to `stop` look like."""
        extent = Extent()
        for piece in self.pieces(start, stop):
            extent.take(piece)
        second = Measure(extent)
        for piece in self.pieces(start, stop):
            second.take(piece)
        return second.done()

    def places(self, models: Iterable[Path]) -> list[Place]:
        """Its tensors, as the first of these model files names them that has the same layout."""
        for path in models:
            with contextlib.suppress(FedtrainError), ModelReader(path) as model:
                if (model.layout_digest, model.num_elements) == (self.layout_digest, self.count):
                    stops = np.cumsum([math.prod(shape) for shape in model.shapes])
                    starts = (0, *map(int, stops[:-1]))
                    return list(zip(model.names, model.shapes, starts, strict=True))
        return [(UNKNOWN, (self.count,), 0)]

    def cosine(self, other: FlatFile) -> float | None:
        """Of the angle between the two; None if they cannot be compared, or one is zero."""
        if self.count != other.count:
            return None
        sums = np.zeros(3)
        for ours, theirs in zip(self.pieces(0, self.count), other.pieces(0, self.count), strict=True):
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            sums += np.dot(a, b), np.dot(a, a), np.dot(b, b)
        product, first, last = map(float, sums)
        return product / math.sqrt(first * last) if first > 0 and last > 0 else None


@contextlib.contextmanager
def open_update(path: Path) -> Iterator[FlatFile]:
    """An update; `BadUpdate` if it is not one."""
    with UpdateReader(path) as update:
        header = update.header
        scratch = np.empty(codec(header.codec).encoded_bytes(SLAB_ELEMENTS), np.uint8)

        def decode(start: int, out: Floats) -> None:
            update.decode_range(start, out, scratch)

        yield FlatFile(header.num_elements, header.codec, header.layout_digest, decode)


@contextlib.contextmanager
def open_model(path: Path) -> Iterator[FlatFile]:
    """Initial weights; `BadUpdate` if it is no model of ours."""
    with ModelReader(path) as model:
        yield FlatFile(model.num_elements, "float32", model.layout_digest, model.read)
