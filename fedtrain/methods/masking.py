"""Masks on and off, out of core: plain integers to a masked file, masked files to their mean.

    mask      y_i = levels_i, limbs(weight_i) + sum of +-streams, modulo 2^k      at the site
    unmask    sum y_i - what is left of the streams = sum of levels, sum of limbs  at the coordinator

Word number v of a stream belongs to value v of the vector. Streams that two survivors share cancel; the
caller hands over those that do not: the survivors' own, and those of lost sites, with the sign with which
they lie in the sum. Both jobs work on ranges of at most 2^17 elements; neither ever holds a whole vector.
The result depends on neither threads nor order.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.codecs import block_seed
from fedtrain.methods.files import StrPath, octet_view
from fedtrain.methods.maskedfile import MaskedHeader, MaskedReader, MaskedWriter, level_values, num_values
from fedtrain.methods.ranges import Range, cut, pass_through
from fedtrain.methods.ring import (
    GROUP_VALUES,
    Words,
    limb_count,
    packed_bytes,
    signed,
    weight_limbs,
    weight_sum,
)
from fedtrain.methods.summable import Summable, summable
from fedtrain.methods.updatefile import UpdateHeader, UpdateReader, UpdateWriter
from fedtrain.methods.vectors import CHUNK_ELEMENTS, chunk_count, norm_of, square_sums

RANGE_ELEMENTS = GROUP_VALUES * CHUNK_ELEMENTS
"""Per range: 32 chunks, so whatever a chunk's number of levels, ranges start at whole packed words."""

MEMORY_BYTES_MAX = 16 << 20
"""Of buffers, whatever the model, the number of sites and of threads."""

_PIECE_VALUES = 1 << 16
"""Words of a stream that are made and added at once: 256 KiB stay in a core's own cache."""

_BYTES_PER_ELEMENT = 24
"""Of a thread's buffers: words, levels or floats, packed and encoded bytes, temporaries of hashing."""


class Stream(Protocol):
    """A mask: uniform words that a seed determines. Safe in threads."""

    def words(self, start: int, out: Words) -> None:
        """Fill `out` ("<u4", contiguous) with the words from number `start` on."""


SignedStream = tuple[Stream, int]
"""(stream, +1 or -1): the sign with which it is, or was, added."""


@dataclass(frozen=True)
class Masking:
    """What `mask` is a function of, and where it writes.

    Attributes:
        update: the plain update file of a summable codec, whose header fits `header`.
        header: of the masked file.
        seed: the run's; with run and round it names the coordinates that `randk8` sends.
        weight: of this update, at most `header.weight_max`; what it is does not matter if that is 0.
        streams: to add.
        target: the file to write.
    """

    update: StrPath
    header: MaskedHeader
    seed: int
    weight: int
    streams: Sequence[SignedStream]
    target: StrPath


@dataclass(frozen=True)
class Unmasking:
    """What `unmask` is a function of, and where it writes.

    Attributes:
        masked: the survivors' masked files, one per site, in any order.
        header: what their headers must say, whichever the site.
        seed: the run's.
        streams: still in the sum, with the sign with which the sites added them.
        mean: header of the mean, codec float32.
        target: the update file to write.
        noise_max: how far noise of all sites together may carry a sum beyond what their levels reach; 0
            where the noise is inside the levels.
    """

    masked: Sequence[StrPath]
    header: MaskedHeader
    seed: int
    streams: Sequence[SignedStream]
    mean: UpdateHeader
    target: StrPath
    noise_max: int = 0


@dataclass(frozen=True)
class Unmasked:
    """The mean's file, and what was seen on the way.

    Attributes:
        digest, size_bytes: of the file; `norm` the L2 norm of the mean.
        weight: the sum of the weights, or the number of survivors where every site counts the same.
        sum_digest: SHA-256 over the sums of levels as little-endian int32: equals `plain_sum`.
    """

    digest: str
    size_bytes: int
    norm: float
    weight: int
    sum_digest: str


def mask(job: Masking, threads: int = 2, memory_bytes_max: int = MEMORY_BYTES_MAX) -> tuple[str, int]:
    """Write the masked file; (its SHA-256, its size).

    Raises `BadUpdate` if the plain update is not the header's, `LocalError` for a weight above the
    largest, `StorageError` from the disk; the target is then incomplete.
    """
    with contextlib.ExitStack() as stack:
        update = stack.enter_context(UpdateReader(job.update))
        _check_plain(update.header, job.header)
        writer = MaskedWriter(job.target, job.header)
        stack.callback(writer.abandon)
        ranges = _ranges(job.header)
        workers = [_MaskWorker(job, update, writer) for _ in range(_fitting(threads, memory_bytes_max))]
        pass_through(ranges, workers)
        return writer.close()


def unmask(job: Unmasking, threads: int = 2, memory_bytes_max: int = MEMORY_BYTES_MAX) -> Unmasked:
    """Write the mean of what lies under the masks: sum(levels) * step * (weight_max or 1) / weight.

    With weights, levels are taken to be of updates that each site multiplied by weight / weight_max.
    Raises `BadUpdate` if a file does not fit, or if the sum is one that honest sites cannot make: a mask
    that is left, or garbage under one, makes every value of the ring equally likely, and at most
    `survivors * level_max` of 2^(ring_bits - 1) are possible. Among thousands of values some are beyond,
    whatever the ring; a single false value may stay unseen.
    """
    if job.mean.codec != "float32" or job.mean.num_elements != job.header.num_elements:
        raise LocalError("the mean of masked updates is a float32 update of as many elements")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(MaskedReader(path)) for path in job.masked]
        _check_masked_files(files, job.header)
        writer = UpdateWriter(job.target, job.mean)
        stack.callback(writer.abandon)
        result = _Sums(job, files, writer)
        pass_through(
            _ranges(job.header),
            [_UnmaskWorker(job, result) for _ in range(_fitting(threads, memory_bytes_max))],
        )
        digest, size_bytes = writer.close()
    return Unmasked(digest, size_bytes, norm_of(result.squares), result.weight, result.hash.hexdigest())


def plain_sum(paths: Sequence[StrPath]) -> str:
    """What `Unmasked.sum_digest` must be, from the plain update files of all survivors."""
    found = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        updates = [stack.enter_context(UpdateReader(path)) for path in paths]
        header = updates[0].header
        row = summable(header.codec)
        levels = np.empty(row.level_count(RANGE_ELEMENTS), np.int32)
        total = np.empty_like(levels)
        scratch = np.empty(row.encoded_bytes(RANGE_ELEMENTS), np.uint8)
        for start, stop in _steps(header.num_elements):
            here = total[: row.level_count(stop - start)]
            here.fill(0)
            for update in updates:
                if (update.header.codec, update.header.num_elements) != (header.codec, header.num_elements):
                    raise LocalError("updates of other codecs or lengths have no sum")
                encoded = update.encoded_range(start, stop - start, scratch)
                here += row.levels(encoded, stop - start, levels)
            found.update(octet_view(here.astype("<i4", copy=False)))
    return found.hexdigest()


class _MaskWorker:
    """One thread's buffers for `mask`."""

    def __init__(self, job: Masking, update: UpdateReader, writer: MaskedWriter) -> None:
        self._job = job
        self._update = update
        self._writer = writer
        self._row = summable(job.header.codec)
        limbs = limb_count(job.header.weight_max, self._row.bits)
        values = self._row.level_count(RANGE_ELEMENTS) + limbs
        self._words = np.empty(values, "<u4")
        self._stream = np.empty(min(_PIECE_VALUES, values), "<u4")
        self._encoded = np.empty(self._row.encoded_bytes(RANGE_ELEMENTS), np.uint8)
        self._packed_bytes = np.empty(packed_bytes(values, job.header.ring_bits), np.uint8)
        self._packed = self._packed_bytes

    def compute(self, start: int, stop: int) -> None:
        """Levels of the range, masks on top, packed and written; the digest is left to `absorb`."""
        header, row = self._job.header, self._row
        encoded = self._update.encoded_range(start, stop - start, self._encoded)
        for first, last, seed, inside in _parts(header, self._job.seed, start, stop):
            piece = encoded[row.encoded_bytes(first - start) : row.encoded_bytes(last - start)]
            row.check_selection(piece, last - first, seed, inside)
        count = row.level_count(stop - start)
        row.levels(encoded, stop - start, self._words[:count].view(np.int32))
        if stop == header.num_elements and header.weight_max:
            limbs = weight_limbs(self._job.weight, header.weight_max, row.bits)
            self._words[count : count + len(limbs)] = limbs
            count += len(limbs)
        place = row.level_count(start)
        _add_streams(self._job.streams, 1, place, self._words[:count], self._stream)
        self._packed = self._writer.place(place, self._words[:count], self._packed_bytes)

    def absorb(self, start: int, stop: int) -> None:
        self._writer.absorb(self._packed)


class _Sums:
    """What the threads of `unmask` share.

    Attributes:
        weight, scale: the sum of weights, and what a sum of levels is multiplied by.
        hash: over the sums of levels, in order; `squares` per chunk of the mean.
    """

    def __init__(self, job: Unmasking, files: list[MaskedReader], writer: UpdateWriter) -> None:
        self.files = files
        self.writer = writer
        self.hash = hashlib.sha256()
        self.squares: NDArray[np.float64] = np.zeros(chunk_count(job.header.num_elements))
        row = summable(job.header.codec)
        self.sum_max = len(files) * row.level_max + job.noise_max
        if self.sum_max >= 1 << (job.header.ring_bits - 1):
            raise LocalError(f"sums up to {self.sum_max} do not fit a ring of {job.header.ring_bits} bits")
        self.weight = self._weight(job, row)
        self.scale = row.step * (job.header.weight_max or 1) / self.weight

    def _weight(self, job: Unmasking, row: Summable) -> int:
        """From the vector's end, which is read before all else because every mean needs it."""
        header = job.header
        if not header.weight_max:
            return len(self.files)
        levels = level_values(header)
        start = levels // GROUP_VALUES * GROUP_VALUES
        words = np.zeros(num_values(header) - start, "<u4")
        _add_files(self.files, start, words, np.empty_like(words), np.empty(4 * len(words), np.uint8))
        _add_streams(job.streams, -1, start, words, np.empty_like(words))
        total = weight_sum(
            words[levels - start :], header.weight_max, row.bits, header.ring_bits, len(self.files)
        )
        if total == 0:
            raise BadUpdate("the weights under the masks add up to 0: there is nothing to take the mean of")
        return total


class _UnmaskWorker:
    """One thread's buffers for `unmask`."""

    def __init__(self, job: Unmasking, sums: _Sums) -> None:
        self._job = job
        self._sums = sums
        self._row = summable(job.header.codec)
        values = self._row.level_count(RANGE_ELEMENTS) + GROUP_VALUES
        self._words = np.empty(values, "<u4")
        self._stream = np.empty(min(_PIECE_VALUES, values), "<u4")
        self._one = np.empty(values, "<u4")
        self._packed = np.empty(packed_bytes(values, job.header.ring_bits), np.uint8)
        self._mean = np.empty(RANGE_ELEMENTS, np.float32)
        self._levels = self._words.view(np.int32)

    def compute(self, start: int, stop: int) -> None:
        """Sum of the range without its masks, held against what is possible, and its mean on disk."""
        header, row, sums = self._job.header, self._row, self._sums
        place, count = row.level_count(start), row.level_count(stop - start)
        # The last range has the limbs behind it, and packed words end where the file ends.
        whole = num_values(header) - place if stop == header.num_elements else count
        words = self._words[:whole]
        words.fill(0)
        _add_files(sums.files, place, words, self._one, self._packed)
        _add_streams(self._job.streams, -1, place, words, self._stream)
        self._levels = signed(words, header.ring_bits)[:count]
        if max(int(self._levels.max()), -int(self._levels.min())) > sums.sum_max:
            raise BadUpdate(
                f"a sum under the masks is beyond {sums.sum_max}, which {len(sums.files)} honest sites cannot"
                f" exceed (elements {start} to {stop}): garbage came in under the masks, or a mask is left"
            )
        mean = self._mean[: stop - start]
        for first, last, seed, inside in _parts(header, self._job.seed, start, stop):
            levels = self._levels[row.level_count(first - start) : row.level_count(last - start)]
            row.place(levels, sums.scale, seed, inside, mean[first - start : last - start])
        squares = square_sums(mean)
        sums.squares[start // CHUNK_ELEMENTS : start // CHUNK_ELEMENTS + len(squares)] = squares
        sums.writer.place(start, mean.view(np.uint8))

    def absorb(self, start: int, stop: int) -> None:
        self._sums.writer.absorb(self._mean[: stop - start].view(np.uint8))
        self._sums.hash.update(octet_view(self._levels.astype("<i4", copy=False)))


def _add_files(
    files: Sequence[MaskedReader], start: int, words: Words, one: Words, packed: NDArray[np.uint8]
) -> None:
    for file in files:
        np.add(words, file.read(start, one[: len(words)], packed), out=words)


def _add_streams(
    streams: Sequence[SignedStream], sign: int, start: int, words: Words, scratch: Words
) -> None:
    """Add `sign` times each stream to the values from `start` on, cache-sized piece by piece."""
    for begin in range(0, len(words), len(scratch)):
        part = words[begin : begin + len(scratch)]
        mine = scratch[: len(part)]
        for stream, its_sign in streams:
            stream.words(start + begin, mine)
            (np.add if sign * its_sign > 0 else np.subtract)(part, mine, out=part)


def _parts(header: MaskedHeader, seed: int, start: int, stop: int) -> Iterator[tuple[int, int, bytes, int]]:
    """(first, last, block's seed, first within the block) of the blocks' parts in a range.

    The seed is what all sites share of it: its first half, a site's own, is not used here.
    """
    while start < stop:
        block, inside = divmod(start, header.block_elements)
        last = min(stop, (block + 1) * header.block_elements)
        yield start, last, block_seed(header.run, seed, header.round, "", "up", block), inside
        start = last


def _ranges(header: MaskedHeader) -> list[Range]:
    return _steps(header.num_elements)


def _steps(num_elements: int) -> list[Range]:
    return cut(num_elements, num_elements, RANGE_ELEMENTS)


def _fitting(threads: int, memory_bytes_max: int) -> int:
    """How many of the threads' buffers fit the memory; one always works."""
    return max(1, min(threads, memory_bytes_max // (_BYTES_PER_ELEMENT * RANGE_ELEMENTS)))


def _check_plain(plain: UpdateHeader, header: MaskedHeader) -> None:
    for name in ("run", "round", "site", "codec", "num_elements", "block_elements"):
        if getattr(plain, name) != getattr(header, name):
            raise BadUpdate(
                f"the update to mask: its {name} is {getattr(plain, name)!r}, expected"
                f" {getattr(header, name)!r}"
            )


def _check_masked_files(files: Sequence[MaskedReader], header: MaskedHeader) -> None:
    """Each file is of this session and of a site of its own."""
    seen: set[str] = set()
    for file in files:
        found = file.header
        if found.site in seen:
            raise BadUpdate(f"two masked updates of {found.site}: each site counts once")
        seen.add(found.site)
        for name, value in vars(replace(header, site=found.site)).items():
            if getattr(found, name) != value:
                raise BadUpdate(
                    f"masked update of {found.site}: its {name} is {getattr(found, name)!r}, expected"
                    f" {value!r}"
                )
    if not files:
        raise LocalError("without masked updates there is no sum")
