"""From a pseudo-gradient to the update file, with error feedback: what is not sent now is kept.

    a = residual + returned updates + (start - end);  send encode(a);  residual <- a - decode(encode(a))

Source: Seide et al., 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
Distributed Training of Speech DNNs, Interspeech 2014. Works range by range: memory does not grow
with the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedtrain.errors import BadUpdate
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.updatefile import UpdateHeader, UpdateReader, UpdateWriter
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, norm_of, square_sums
from fedtrain.trainer.residual import ResidualFile

RANGE_ELEMENTS = 1 << 18
"""1 MiB of float32: four such buffers stay in a core's cache."""

LOSSLESS = "float32"
"""The one codec that leaves no residual."""


@dataclass(frozen=True)
class Carried:
    """What goes into an update beside the fresh pseudo-gradient.

    Attributes:
        residual: file of the parent checkpoint, None for zeros.
        returned: update files of earlier orders that did not count.
    """

    residual: Path | None
    returned: Sequence[Path]


@dataclass(frozen=True)
class UpdateFile:
    """A finished update: its SHA-256, size, and the L2 norm of its decoded values."""

    digest: str
    size_bytes: int
    norm: float


def write_update(
    target: Path,
    residual_target: Path,
    header: UpdateHeader,
    seed: int,
    pseudo_gradient: Callable[[int, Floats], None],
    carried: Carried,
    alive: Callable[[], None],
) -> UpdateFile:
    """Write `target`, and `residual_target` unless the codec is lossless.

    Args:
        seed: the run's, for the chance in the codec.
        pseudo_gradient: fills its second argument with the elements from the first on.
        alive: called now and then; what it raises passes through.

    Raises `BadUpdate` where a value is not finite: the training diverged.
    """
    num_elements = header.num_elements
    sums = np.empty(-(-num_elements // CHUNK_ELEMENTS), np.float64)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(UpdateReader(path)) for path in carried.returned]
        before = carried.residual and stack.enter_context(ResidualFile.open(carried.residual, num_elements))
        after = None
        if header.codec != LOSSLESS:
            after = stack.enter_context(ResidualFile.create(residual_target, num_elements))
        writer = UpdateWriter(target, header)
        stack.callback(writer.abandon)
        buffers = _Buffers(header, readers)
        for start, stop in _ranges(num_elements, header.block_elements):
            alive()
            values = buffers.values[: stop - start]
            pseudo_gradient(start, values)
            if before:
                before.read(start, buffers.other[: stop - start])
                np.add(values, buffers.other[: stop - start], out=values)
            for reader in readers:
                np.add(
                    values,
                    reader.decode_range(start, buffers.other[: stop - start], buffers.scratch),
                    out=values,
                )
            decoded = buffers.send(writer, start, values, seed)
            squares = square_sums(decoded)
            sums[start // CHUNK_ELEMENTS : start // CHUNK_ELEMENTS + len(squares)] = squares
            if after:
                np.subtract(values, decoded, out=values)
                after.write(start, values)
        digest, size_bytes = writer.close()
    norm = norm_of(sums)
    if not math.isfinite(norm):
        raise BadUpdate("the update is not finite: the training diverged; lower the learning rate")
    return UpdateFile(digest, size_bytes, norm)


class _Buffers:
    """Memory for one range, made once per update."""

    def __init__(self, header: UpdateHeader, readers: Sequence[UpdateReader]) -> None:
        elements = min(RANGE_ELEMENTS, header.num_elements, header.block_elements)
        self._header = header
        self._codec = codec(header.codec)
        self.values = np.empty(elements, np.float32)
        self.other = np.empty(elements, np.float32)
        names = {header.codec, *(reader.header.codec for reader in readers)}
        self.scratch = np.empty(max(codec(name).encoded_bytes(elements) for name in names), np.uint8)

    def send(self, writer: UpdateWriter, start: int, values: Floats, seed: int) -> Floats:
        """Append the encoding of `values` to the file; what the receiver will decode from it."""
        header = self._header
        block, inside = divmod(start, header.block_elements)
        chance = block_seed(header.run, seed, header.round, header.site, header.direction, block)
        encoded = self._codec.encode(values, chance, inside, self.scratch)
        writer.write_block(encoded)
        if header.codec == LOSSLESS:
            return values
        decoded = self.other[: len(values)]
        self._codec.decode(encoded, decoded)
        return decoded


def _ranges(num_elements: int, block_elements: int) -> list[tuple[int, int]]:
    """Ranges of at most `RANGE_ELEMENTS` that never cross a block's border."""
    ranges = []
    for block in range(0, num_elements, block_elements):
        end = min(block + block_elements, num_elements)
        ranges += [(start, min(start + RANGE_ELEMENTS, end)) for start in range(block, end, RANGE_ELEMENTS)]
    return ranges
