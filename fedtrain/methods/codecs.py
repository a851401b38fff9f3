"""Float32 values to bytes and back: one interface, the same bits on every machine.

`CODECS` holds the codecs that have a name; those of `summable`, whose integers may be added up under
masks, carry their parameters in theirs (`fixed12s11`). `codec` finds both.

A vector's encoding is the concatenation of its chunks' encodings (4096 elements each, the last
one perhaps shorter). So any range that starts at a chunk is decodable by itself, and its place is
`encoded_bytes(start)`. Only integer operations and single IEEE float32 operations are used, never
a fused multiply-add; the torch twins of these encoders give the same bytes.

Chance (stochastic rounding in `int8`) is a pure function of the block's seed and the element's
index in the block, so a repeated encoding has equal bytes. Rounding errors are meant to be fed
back by the sender: a = e + Delta; send encode(a); e <- a - decode(encode(a)).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtrain.core import canonical
from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.slabs import (
    SLAB_CHUNKS,
    VALUE_MAX,
    chances,
    check_encodable,
    checked_octets,
    not_encodable,
    scratch,
    seed_keys,
    slabs,
)
from fedtrain.methods.summable import PATTERNS, parameterised
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, Octets, chunk_count, square_sums, unknown_name

FLOAT16_MAX = 65504.0
STEP_MIN = 2.0**-100
STEP_MAX = 2.0**120
PER_127 = np.float32(1) / np.float32(127)
FIXED_ONE = 2.0**24 - 8
"""One in the fixed point of `int8`, units of 2^-24, less 2^-21 of itself; see there."""


class Codec(Protocol):
    """What every codec offers. All methods are pure and safe in threads.

    `summable` codecs add those of `summable.Summable`.
    """

    name: str
    summable: bool

    def encoded_bytes(self, num_elements: int) -> int:
        """Exact size of the encoding of `num_elements` values."""

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        """Encode `values` (n,), which begin at element `start` (a multiple of 4096) of their block.

        `seed` is the block's, 32 bytes. The result is a view of `out` if that is given.
        Raises `BadUpdate` if a value is not finite or beyond 2^126.
        """

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        """Fill `out` (n,) from exactly `encoded_bytes(n)` bytes, else `BadUpdate`.

        A decoded value is finite, or `BadUpdate` is raised.
        """

    def error_bound(self, values: Floats) -> Floats:
        """Worst-case absolute error of each element when `values` are encoded and decoded, (n,)."""


def codec(name: str) -> Codec:
    """The codec of this name; `ConfigError` names the valid ones and the nearest."""
    row: Codec | None = CODECS.get(name) or parameterised(name)
    if row is None:
        raise unknown_name("codec", name, codec_names())
    return row


def codec_names() -> tuple[str, ...]:
    """What may stand for a codec: all names of the table, and the patterns of those with parameters."""
    return (*CODECS, *PATTERNS)


def block_seed(run: str, seed: int, round_index: int, site: str, direction: str, block: int) -> bytes:
    """32 bytes that all chance in one block of one update derives from.

    `direction` is "up" (a site's update) or "down" (a delta, with site ""). Attempt and time are
    left out on purpose: the repeated encoding of the same values must have the same bytes.

    The first 16 bytes are the site's own, for rounding. The last 16 are the same at every site, for what
    all must choose alike: those of the block's seed with site "".
    """
    own, shared = (
        hashlib.sha256(canonical.encode((run, seed, round_index, name, direction, block))).digest()
        for name in (site, "")
    )
    return own[:16] + shared[16:]


class _PlainCodec:
    """Shared by the codecs whose elements are independent of one another."""

    name: str
    summable = False
    element_bytes: int

    def encoded_bytes(self, num_elements: int) -> int:
        return self.element_bytes * num_elements

    def _target(self, values: Floats, out: Octets | None) -> Octets:
        check_encodable(values)
        size = self.encoded_bytes(len(values))
        return np.empty(size, np.uint8) if out is None else out[:size]


class _Float32(_PlainCodec):
    """The values as they are, little endian."""

    name = "float32"
    element_bytes = 4

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        target = self._target(values, out)
        target.view("<f4")[:] = values
        return target

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        out[:] = _checked(self, data, out).view("<f4")
        _check_finite(out)

    def error_bound(self, values: Floats) -> Floats:
        return np.zeros_like(values)


class _BFloat16(_PlainCodec):
    """The upper half of a float32, rounded to nearest, ties to even, by integer arithmetic."""

    name = "bfloat16"
    element_bytes = 2

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        target = self._target(values, out)
        halves = target.view("<u2")
        for begin, part in slabs(values):
            bits = part.view(np.uint32)
            odd = scratch.words[: len(part)]
            np.right_shift(bits, 16, out=odd)
            np.bitwise_and(odd, 1, out=odd)
            np.add(odd, 0x7FFF, out=odd)
            np.add(odd, bits, out=odd)
            np.right_shift(odd, 16, out=odd)
            np.copyto(halves[begin : begin + len(part)], odd, casting="unsafe")
        return target

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        bits = out.view(np.uint32)
        bits[:] = _checked(self, data, out).view("<u2")
        np.left_shift(bits, 16, out=bits)
        _check_finite(out)

    def error_bound(self, values: Floats) -> Floats:
        # Half a unit in the last of 8 significant bits; 2^-134 is half a unit among denormals.
        bound: Floats = np.maximum(np.abs(values) * np.float32(2.0**-8), np.float32(2.0**-134))
        return bound


class _Float16(_PlainCodec):
    """IEEE half precision, nearest even. Magnitudes beyond 65504 are sent as 65504.

    Clamping and not refusing: the rest stays in the sender's residual and follows in later rounds.
    """

    name = "float16"
    element_bytes = 2

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        target = self._target(values, out)
        halves = target.view("<f2")
        for begin, part in slabs(values):
            clamped = scratch.floats[: len(part)]
            np.clip(part, -FLOAT16_MAX, FLOAT16_MAX, out=clamped)
            np.copyto(halves[begin : begin + len(part)], clamped, casting="same_kind")
        return target

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        out[:] = _checked(self, data, out).view("<f2")
        _check_finite(out)

    def error_bound(self, values: Floats) -> Floats:
        # Half a unit in the last of 11 significant bits, 2^-25 among denormals, and what is clamped.
        size = np.abs(values)
        rounding = np.maximum(np.minimum(size, FLOAT16_MAX) * np.float32(2.0**-11), np.float32(2.0**-25))
        clamped = np.maximum(size - np.float32(FLOAT16_MAX), 0) * np.float32(1 + 2.0**-22)
        bound: Floats = rounding + clamped
        return bound


class _Int8:
    """Stochastic rounding to 255 levels per chunk, unbiased up to the clamp; 8.008 bits a value.

    A chunk is its step as float32, then one signed byte a value:

        step = absmax * fp32(1/127), and 0 (the whole chunk) where that is below 2^-100
        inv  = 1 / step, one float32 division; 0 where step is 0
        q    = floor(x * inv + u), u = hash24(keys, index in block) * 2^-24

    and decoding is one multiplication q * step. The sum is taken in integers, units of 2^-24:
    q = (int32(x * (inv * FIXED_ONE)) + hash24) >> 24 with an arithmetic shift. FIXED_ONE lies below
    2^24 by more than the five float32 roundings on the way, so |q| never exceeds 127, nothing wraps,
    and the clamp that 127.00001 would need is built in. `hash24` in wrapping 32-bit arithmetic, >> logical:

        h = (index + key0) * HASH_STEP;  h = (h ^ (h >> 16)) * HASH_MIX
        h = (h ^ (h >> 15)) * (key1 | 1);  hash24 = h >> 8

    Smaller steps are taken as zero because their inverse may overflow, and some accelerators flush
    denormals; what is lost (at most 127 * 2^-100) stays in the residual.
    The byte -128 is never written, and refused.
    """

    name = "int8"
    summable = False

    def encoded_bytes(self, num_elements: int) -> int:
        return 4 * chunk_count(num_elements) + num_elements

    def encode(self, values: Floats, seed: bytes, start: int = 0, out: Octets | None = None) -> Octets:
        if start % CHUNK_ELEMENTS:
            raise LocalError(f"encoding starts at element {start}, which is no multiple of {CHUNK_ELEMENTS}")
        size = self.encoded_bytes(len(values))
        target = np.empty(size, np.uint8) if out is None else out[:size]
        for begin, rows, encoded in _int8_rows(values, target):
            steps = _int8_steps(rows)
            inverses = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
            inverses *= np.float32(FIXED_ONE)
            encoded[:, :4] = steps.astype("<f4", copy=False).view(np.uint8)
            levels = encoded[:, 4:].view(np.int8)
            for first in range(0, len(rows), SLAB_CHUNKS):
                slab = slice(first, first + SLAB_CHUNKS)
                index = start + begin + first * CHUNK_ELEMENTS
                _int8_levels(rows[slab], inverses[slab], seed_keys(seed), index, levels[slab])
        return target

    def decode(self, data: memoryview | bytes | Octets, out: Floats) -> None:
        octets = _checked(self, data, out)
        for _, rows, encoded in _int8_rows(out, octets):
            steps = np.ascontiguousarray(encoded[:, :4]).view("<f4")
            levels = encoded[:, 4:].view(np.int8)
            if not np.all((steps == 0) | ((steps >= STEP_MIN) & (steps <= STEP_MAX))):
                raise BadUpdate("int8: a chunk's step is negative, not finite or out of range")
            if levels.min() == -128:
                raise BadUpdate("int8: holds the byte -128, which no encoder writes")
            for first in range(0, len(rows), SLAB_CHUNKS):
                slab = slice(first, first + SLAB_CHUNKS)
                np.copyto(rows[slab], levels[slab])
                np.multiply(rows[slab], steps[slab], out=rows[slab])

    def error_bound(self, values: Floats) -> Floats:
        bound = np.empty_like(values)
        for begin in range(0, len(values), CHUNK_ELEMENTS):
            chunk = values[begin : begin + CHUNK_ELEMENTS]
            absmax = np.max(np.abs(chunk))
            step = absmax * PER_127
            # One step; 2^-14 of it covers the float32 roundings of x * inv and q * step.
            bound[begin : begin + len(chunk)] = (
                step * np.float32(1 + 2.0**-14) if step >= STEP_MIN else absmax
            )
        return bound


CODECS: dict[str, Codec] = {row.name: row for row in (_Float32(), _BFloat16(), _Float16(), _Int8())}


def _int8_rows(values: Floats, octets: Octets) -> list[tuple[int, Floats, Octets]]:
    """(first element, chunks as rows, their encodings as rows); a last short chunk comes by itself."""
    full = len(values) // CHUNK_ELEMENTS
    begin = full * CHUNK_ELEMENTS
    place = full * (4 + CHUNK_ELEMENTS)
    parts = []
    if full:
        parts.append((0, values[:begin].reshape(full, -1), octets[:place].reshape(full, -1)))
    if begin < len(values):
        parts.append((begin, values[begin:].reshape(1, -1), octets[place:].reshape(1, -1)))
    return parts


def _int8_steps(rows: Floats) -> Floats:
    """The step of each row, (rows, 1), 0 where it is too small."""
    absmax = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    if not np.all(absmax <= VALUE_MAX):
        raise not_encodable()
    steps: Floats = absmax * PER_127
    steps[steps < STEP_MIN] = 0
    return steps


def _int8_levels(
    rows: Floats, inverses: Floats, keys: tuple[int, int], index: int, levels: NDArray[np.int8]
) -> None:
    """Fill `levels` for at most a slab of rows whose first element has this index in the block."""
    scaled = scratch.floats[: rows.size].reshape(rows.shape)
    np.multiply(rows, inverses, out=scaled)
    drawn = chances(keys, index, rows.size).reshape(rows.shape)
    fixed = scratch.shifted[: rows.size].view(np.int32).reshape(rows.shape)
    np.copyto(fixed, scaled, casting="unsafe")
    np.add(fixed, drawn, out=fixed)
    np.right_shift(fixed, 24, out=fixed)
    np.copyto(levels, fixed, casting="unsafe")


def _checked(row: Codec, data: memoryview | bytes | Octets, out: Floats) -> Octets:
    return checked_octets(row.name, data, row.encoded_bytes(len(out)), len(out))


def _check_finite(values: Floats) -> None:
    if not np.all(np.isfinite(square_sums(values))) and not np.all(np.isfinite(values)):
        raise BadUpdate("holds values that are not finite")
