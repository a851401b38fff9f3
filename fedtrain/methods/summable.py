"""Codecs whose integers may be added up: one step that all sites share, a power of two.

    fixed<bits>s<exp>        integers of 8 to 24 bits, step 2^-exp, e.g. fixed12s11
    randk8s<exp>k<keep>      of every `keep` neighbours one, chosen alike at all sites, 8 bits, step 2^-exp

A value becomes the *level* q = floor(x / step + u), u = hash24(keys, index) * 2^-24 as in `int8`, after
x / step was clamped to +-(2^(bits-1) - 1). So rounding is unbiased (to 2^-24 of a step) inside that
range, and what lies outside is cut off. Since the step is a power of two, x / step, the level as a
float and level * step are exact, and so is the mean of sums of levels.

`randk8` sends of each group of `keep` consecutive elements of a chunk (the last one perhaps shorter) one
element, which a key of the chunk chooses uniformly; the others decode to zero. Nothing is scaled up: what
was not sent stays in the sender's residual and follows later. The idea of random coordinates with error
feedback: Stich, Cordonnier, Jaggi, Sparsified SGD with memory, 2018, arXiv 1809.07599. One of each group,
and not any few of the chunk, needs no sorting and leaves no gap longer than 2 * keep - 2.
"""

from __future__ import annotations

import abc
import functools
import re

import numpy as np
from numpy.typing import NDArray

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.selection import KEY_BYTES, places, selection_keys
from fedtrain.methods.slabs import (
    SLAB_CHUNKS,
    SLAB_ELEMENTS,
    chances,
    check_encodable,
    checked_octets,
    scratch,
    seed_keys,
)
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, Octets

Levels = NDArray[np.int32]

PATTERNS = ("fixed<bits>s<exp>", "randk8s<exp>k<keep>")
"""How the names are built, for messages: bits 8 to 24, exp -20 to 60, keep 2 to 4096."""

BITS_MIN = 8
BITS_MAX = 24
EXPONENT_MIN = -20
EXPONENT_MAX = 60
KEEP_MAX = CHUNK_ELEMENTS

_FIXED = re.compile(r"fixed([1-9][0-9]?)s(0|-?[1-9][0-9]?)")
_RANDK = re.compile(r"randk8s(0|-?[1-9][0-9]?)k([1-9][0-9]{0,3})")


class Summable(abc.ABC):
    """What all summable codecs do, in terms of how many levels a range has and where they lie.

    All methods are pure and safe in threads; `start` is always a multiple of 4096 and counts elements of
    the block that `seed` belongs to.

    Attributes:
        name, summable: as for every codec.
        bits: of a level; exponent: the step is 2^-exponent.
        level_max: no level is larger in magnitude: 2^(bits-1) - 1.
    """

    summable = True

    def __init__(self, name: str, bits: int, exponent: int) -> None:
        self.name = name
        self.bits = bits
        self.exponent = exponent
        self.step = 2.0**-exponent
        self.level_max = (1 << (bits - 1)) - 1

    @abc.abstractmethod
    def level_count(self, num_elements: int) -> int:
        """How many levels stand for the first `num_elements` elements; additive over whole chunks."""

    @abc.abstractmethod
    def encoded_bytes(self, num_elements: int) -> int:
        """Exact size of the encoding of `num_elements` values."""

    @abc.abstractmethod
    def quantise(self, values: Floats, seed: bytes, start: int, out: Levels) -> Levels:
        """The levels of `values`, in the front of `out`; `BadUpdate` as `encode`."""

    @abc.abstractmethod
    def from_levels(
        self, levels: Levels, num_elements: int, seed: bytes, start: int = 0, out: Octets | None = None
    ) -> Octets:
        """The encoding of `num_elements` values with these levels: what `encode` makes of `quantise`.

        For who adds noise to levels. One beyond `level_max` is a `LocalError`.
        """

    @abc.abstractmethod
    def levels(self, data: memoryview | bytes | Octets, num_elements: int, out: Levels) -> Levels:
        """The levels of an encoding, in the front of `out`; `BadUpdate` for one beyond `level_max`."""

    @abc.abstractmethod
    def place(self, levels: Levels, scale: float, seed: bytes, start: int, out: Floats) -> None:
        """Fill `out` (n,) with `scale` times the levels (or sums of them), zero where none stands."""

    @abc.abstractmethod
    def check_selection(self, data: Octets, num_elements: int, seed: bytes, start: int) -> None:
        """`BadUpdate` unless the encoding stands for the elements that `seed` chooses."""

    @abc.abstractmethod
    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        """See `codecs.Codec`."""

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        """See `codecs.Codec`."""
        size = self.encoded_bytes(len(values))
        target = np.empty(size, np.uint8) if out is None else out[:size]
        for begin in range(0, len(values), SLAB_ELEMENTS):
            part = values[begin : begin + SLAB_ELEMENTS]
            levels = self.quantise(part, seed, start + begin, scratch.levels)
            place = self.encoded_bytes(begin)
            self.from_levels(levels, len(part), seed, start + begin, target[place:])
        return target

    def error_bound(self, values: Floats) -> Floats:
        """See `codecs.Codec`: one step, or what is cut off."""
        beyond = np.abs(values) - np.float32(self.level_max * self.step)
        # 2^-22 covers the rounding of the difference.
        bound: Floats = np.maximum(beyond * np.float32(1 + 2.0**-22), np.float32(self.step))
        return bound


class Fixed(Summable):
    """Every element, as int16 little endian up to 16 bits and int32 above."""

    def __init__(self, name: str, bits: int, exponent: int) -> None:
        super().__init__(name, bits, exponent)
        self._level_bytes = 2 if bits <= 16 else 4
        self._level_type = f"<i{self._level_bytes}"

    def level_count(self, num_elements: int) -> int:
        return num_elements

    def encoded_bytes(self, num_elements: int) -> int:
        return self._level_bytes * num_elements

    def quantise(self, values: Floats, seed: bytes, start: int, out: Levels) -> Levels:
        _check_start(start)
        for begin in range(0, len(values), SLAB_ELEMENTS):
            part = values[begin : begin + SLAB_ELEMENTS]
            _round(part, self, seed_keys(seed), start + begin, out[begin : begin + len(part)])
        return out[: len(values)]

    def from_levels(
        self, levels: Levels, num_elements: int, seed: bytes, start: int = 0, out: Octets | None = None
    ) -> Octets:
        size = self.encoded_bytes(num_elements)
        target = np.empty(size, np.uint8) if out is None else out[:size]
        _check_writable(self, levels)
        np.copyto(target.view(self._level_type), levels, casting="same_kind")
        return target

    def levels(self, data: memoryview | bytes | Octets, num_elements: int, out: Levels) -> Levels:
        octets = checked_octets(self.name, data, self.encoded_bytes(num_elements), num_elements)
        stored = octets.view(self._level_type)
        _check_readable(self, stored)
        np.copyto(out[:num_elements], stored)
        return out[:num_elements]

    def place(self, levels: Levels, scale: float, seed: bytes, start: int, out: Floats) -> None:
        np.multiply(levels, scale, out=out, dtype=np.float64, casting="unsafe")

    def check_selection(self, data: Octets, num_elements: int, seed: bytes, start: int) -> None:
        """Every element is sent: nothing is chosen."""

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        """See `codecs.Codec`."""
        octets = checked_octets(self.name, data, self.encoded_bytes(len(out)), len(out))
        stored = octets.view(self._level_type)
        _check_readable(self, stored)
        np.copyto(out, stored, casting="unsafe")  # exact: no level has more than 24 bits
        np.multiply(out, np.float32(self.step), out=out)


class RandK(Summable):
    """One element of every `keep`: per chunk the 8 bytes of its selection key, then one int8 a level."""

    def __init__(self, name: str, exponent: int, keep: int) -> None:
        super().__init__(name, 8, exponent)
        self.keep = keep
        self._chunk_levels = -(-CHUNK_ELEMENTS // keep)

    def level_count(self, num_elements: int) -> int:
        full, rest = divmod(num_elements, CHUNK_ELEMENTS)
        return full * self._chunk_levels - (-rest // self.keep)

    def encoded_bytes(self, num_elements: int) -> int:
        chunks = -(-num_elements // CHUNK_ELEMENTS)
        return KEY_BYTES * chunks + self.level_count(num_elements)

    def quantise(self, values: Floats, seed: bytes, start: int, out: Levels) -> Levels:
        _check_start(start)
        for begin, length, chunks in _row_groups(len(values)):
            part = values[begin : begin + length * chunks]
            check_encodable(part)
            keys = selection_keys(seed, (start + begin) // CHUNK_ELEMENTS, chunks)
            chosen = part[places(keys, length, self.keep)].ravel()
            first = self.level_count(begin)
            levels = out[first : first + len(chosen)]
            _round(chosen, self, seed_keys(seed), self.level_count(start + begin), levels)
        return out[: self.level_count(len(values))]

    def from_levels(
        self, levels: Levels, num_elements: int, seed: bytes, start: int = 0, out: Octets | None = None
    ) -> Octets:
        _check_start(start)
        _check_writable(self, levels)
        size = self.encoded_bytes(num_elements)
        target = np.empty(size, np.uint8) if out is None else out[:size]
        for begin, rows, mine in self._rows(target, levels, num_elements):
            rows[:, :KEY_BYTES] = selection_keys(seed, (start + begin) // CHUNK_ELEMENTS, len(rows))
            np.copyto(rows[:, KEY_BYTES:].view(np.int8), mine, casting="same_kind")
        return target

    def levels(self, data: memoryview | bytes | Octets, num_elements: int, out: Levels) -> Levels:
        octets = checked_octets(self.name, data, self.encoded_bytes(num_elements), num_elements)
        levels = out[: self.level_count(num_elements)]
        for _, rows, mine in self._rows(octets, levels, num_elements):
            stored = rows[:, KEY_BYTES:].view(np.int8)
            _check_readable(self, stored)
            np.copyto(mine, stored)
        return levels

    def place(self, levels: Levels, scale: float, seed: bytes, start: int, out: Floats) -> None:
        _check_start(start)
        out.fill(0)
        for begin, length, chunks in _row_groups(len(out)):
            keys = selection_keys(seed, (start + begin) // CHUNK_ELEMENTS, chunks)
            chosen = places(keys, length, self.keep)
            first = self.level_count(begin)
            mine = levels[first : first + chosen.size].reshape(chosen.shape)
            out[begin : begin + length * chunks][chosen] = mine * scale

    def check_selection(self, data: Octets, num_elements: int, seed: bytes, start: int) -> None:
        for begin, rows, _ in self._rows(data, np.empty(0, np.int32), num_elements):
            expected = selection_keys(seed, (start + begin) // CHUNK_ELEMENTS, len(rows))
            if not np.array_equal(rows[:, :KEY_BYTES], expected):
                raise BadUpdate(
                    f"{self.name}: stands for other coordinates than this round's: it was made for another"
                    " run, seed or round, and cannot be added to the others"
                )

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        """See `codecs.Codec`. The selection is read from the data, whichever it is."""
        octets = checked_octets(self.name, data, self.encoded_bytes(len(out)), len(out))
        out.fill(0)
        for begin, rows, _ in self._rows(octets, np.empty(0, np.int32), len(out)):
            stored = rows[:, KEY_BYTES:].view(np.int8)
            _check_readable(self, stored)
            length = min(CHUNK_ELEMENTS, len(out) - begin)
            chosen = places(np.ascontiguousarray(rows[:, :KEY_BYTES]), length, self.keep)
            values = stored.astype(np.float32)
            np.multiply(values, np.float32(self.step), out=values)
            out[begin : begin + length * len(rows)][chosen] = values

    def error_bound(self, values: Floats) -> Floats:
        """As large as the value where that is more than a step: it may not be chosen."""
        bound: Floats = np.maximum(np.abs(values), np.float32(self.step))
        return bound

    def _rows(
        self, octets: Octets, levels: Levels, num_elements: int
    ) -> list[tuple[int, Octets, NDArray[np.int32]]]:
        """(first element, encoded chunks as rows, their levels as rows); `levels` may be empty."""
        parts = []
        for begin, length, chunks in _row_groups(num_elements):
            each = self.level_count(length)
            place, first = self.encoded_bytes(begin), self.level_count(begin)
            rows = octets[place : place + chunks * (KEY_BYTES + each)].reshape(chunks, -1)
            mine = levels[first : first + chunks * each]
            parts.append((begin, rows, mine.reshape(chunks, -1) if len(mine) else mine))
        return parts


def parameterised(name: str) -> Summable | None:
    """The summable codec of this name, None if it follows no pattern or its numbers are out of range."""
    return _parameterised(name) if len(name) <= 40 else None


@functools.lru_cache(maxsize=64)
def _parameterised(name: str) -> Summable | None:
    if (match := _FIXED.fullmatch(name)) is not None:
        bits, exponent = int(match[1]), int(match[2])
        if BITS_MIN <= bits <= BITS_MAX and EXPONENT_MIN <= exponent <= EXPONENT_MAX:
            return Fixed(name, bits, exponent)
    elif (match := _RANDK.fullmatch(name)) is not None:
        exponent, keep = int(match[1]), int(match[2])
        if EXPONENT_MIN <= exponent <= EXPONENT_MAX and 2 <= keep <= KEEP_MAX:
            return RandK(name, exponent, keep)
    return None


def summable(name: str) -> Summable:
    """The codec of this name if its integers may be added up; `ConfigError` lists those that may."""
    row = parameterised(name)
    if row is None:
        raise ConfigError(
            f"updates encoded as {name[:40]!r} cannot be added up under masks; those that can be are"
            f" {' and '.join(PATTERNS)} (bits {BITS_MIN} to {BITS_MAX}, exp {EXPONENT_MIN} to"
            f" {EXPONENT_MAX}, keep 2 to {KEEP_MAX}), e.g. 'fixed12s11'"
        )
    return row


def exponent_for(bits: int, largest: float) -> int:
    """The exponent of the finest step with which levels of `bits` reach the magnitude `largest`.

    `ConfigError` where no exponent between -20 and 60 does.
    """
    level_max = (1 << (bits - 1)) - 1
    for exponent in range(EXPONENT_MAX, EXPONENT_MIN - 1, -1):
        if 0 < largest <= level_max * 2.0**-exponent:
            return exponent
    raise ConfigError(
        f"no step reaches {largest:g} with {bits} bits: give a positive range of at most"
        f" {level_max * 2.0**-EXPONENT_MIN:g}, or more bits"
    )


def _row_groups(num_elements: int) -> list[tuple[int, int, int]]:
    """(first element, elements per chunk, chunks): at most a slab of whole chunks, then a short one."""
    full = num_elements // CHUNK_ELEMENTS
    groups = [
        (first * CHUNK_ELEMENTS, CHUNK_ELEMENTS, min(SLAB_CHUNKS, full - first))
        for first in range(0, full, SLAB_CHUNKS)
    ]
    rest = num_elements - full * CHUNK_ELEMENTS
    return [*groups, (full * CHUNK_ELEMENTS, rest, 1)] if rest else groups


def _round(values: Floats, row: Summable, keys: tuple[int, int], index: int, out: Levels) -> None:
    """Fill `out` with the levels of at most a slab of values, the first of which is level `index`."""
    check_encodable(values)
    count = len(values)
    parts, floors = scratch.floats[:count], scratch.words[:count].view(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(values, np.float32(2.0**row.exponent), out=parts)
    np.clip(parts, -row.level_max, row.level_max, out=parts)
    np.floor(parts, out=floors)
    np.copyto(out, floors, casting="unsafe")
    np.subtract(parts, floors, out=parts)
    np.multiply(parts, np.float32(2.0**24), out=parts)
    drawn = chances(keys, index, count)
    fixed = scratch.shifted[:count].view(np.int32)
    np.copyto(fixed, parts, casting="unsafe")
    np.add(fixed, drawn, out=fixed)
    np.right_shift(fixed, 24, out=fixed)
    np.add(out, fixed, out=out)


def _check_start(start: int) -> None:
    if start % CHUNK_ELEMENTS:
        raise LocalError(f"encoding starts at element {start}, which is no multiple of {CHUNK_ELEMENTS}")


def _check_writable(row: Summable, levels: Levels) -> None:
    if len(levels) and max(int(levels.max()), -int(levels.min())) > row.level_max:
        raise LocalError(f"{row.name}: a level to write is beyond {row.level_max}")


def _check_readable(row: Summable, stored: NDArray[np.signedinteger]) -> None:
    if stored.size and (int(stored.max()) > row.level_max or int(stored.min()) < -row.level_max):
        raise BadUpdate(f"{row.name}: holds a level beyond {row.level_max}, which no encoder writes")
