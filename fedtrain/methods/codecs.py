"""Float32 values to bytes and back: one interface, four codecs, the same bits on every machine.

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
import threading
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedtrain.core import canonical
from fedtrain.errors import BadUpdate, LocalError
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, Octets, chunk_count, square_sums, unknown_name

VALUE_MAX = 2.0**126
"""No codec encodes a larger magnitude: 127 steps of `int8` and rounding up in `bfloat16` stay finite."""

FLOAT16_MAX = 65504.0
STEP_MIN = 2.0**-100
STEP_MAX = 2.0**120
PER_127 = np.float32(1) / np.float32(127)
FIXED_ONE = 2.0**24 - 8
"""One in the fixed point of `int8`, units of 2^-24, less 2^-21 of itself; see there."""

# The counter hash's odd multipliers: the golden ratio's for the Weyl sequence, then the first one
# of MurmurHash3's finaliser (Austin Appleby, public domain). The last one is the block's own key.
HASH_STEP = 0x9E3779B1
HASH_MIX = 0x85EBCA6B

_SLAB_CHUNKS = 16  # 16 chunks are 256 KiB: the temporaries of one pass stay in a core's own cache


class Codec(Protocol):
    """What every row of `CODECS` offers. All methods are pure and safe in threads."""

    name: str

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
    if name not in CODECS:
        raise unknown_name("codec", name, CODECS)
    return CODECS[name]


def block_seed(run: str, seed: int, round_index: int, site: str, direction: str, block: int) -> bytes:
    """32 bytes that all chance in one block of one update derives from.

    `direction` is "up" (a site's update) or "down" (a delta, with site ""). Attempt and time are
    left out on purpose: the repeated encoding of the same values must have the same bytes.
    """
    return hashlib.sha256(canonical.encode((run, seed, round_index, site, direction, block))).digest()


def seed_keys(seed: bytes) -> tuple[int, int]:
    """The two 32-bit keys of the counter hash: the first 8 bytes of the block's seed, little endian."""
    return int.from_bytes(seed[:4], "little"), int.from_bytes(seed[4:8], "little")


class _PlainCodec:
    """Shared by the codecs whose elements are independent of one another."""

    name: str
    element_bytes: int

    def encoded_bytes(self, num_elements: int) -> int:
        return self.element_bytes * num_elements

    def _target(self, values: Floats, out: Octets | None) -> Octets:
        _check_encodable(values)
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
        for begin, part in _slabs(values):
            bits = part.view(np.uint32)
            odd = _scratch.words[: len(part)]
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
        for begin, part in _slabs(values):
            clamped = _scratch.floats[: len(part)]
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
            for first in range(0, len(rows), _SLAB_CHUNKS):
                slab = slice(first, first + _SLAB_CHUNKS)
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
            for first in range(0, len(rows), _SLAB_CHUNKS):
                slab = slice(first, first + _SLAB_CHUNKS)
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


class _Scratch(threading.local):
    """Temporaries of one slab, made once per thread: fresh memory would cost more than the work."""

    def __init__(self) -> None:
        elements = _SLAB_CHUNKS * CHUNK_ELEMENTS
        self.floats = np.empty(elements, np.float32)
        self.words = np.empty(elements, np.uint32)
        self.shifted = np.empty(elements, np.uint32)


_scratch = _Scratch()
_WEYL = np.arange(_SLAB_CHUNKS * CHUNK_ELEMENTS, dtype=np.uint32) * np.uint32(HASH_STEP)


def _slabs(values: Floats) -> list[tuple[int, Floats]]:
    """(begin, view) of cache-sized parts; a last short chunk is a part of its own."""
    full = len(values) // CHUNK_ELEMENTS * CHUNK_ELEMENTS
    size = _SLAB_CHUNKS * CHUNK_ELEMENTS
    parts = [(begin, values[begin : min(begin + size, full)]) for begin in range(0, full, size)]
    if full < len(values):
        parts.append((full, values[full:]))
    return parts


def _chances(keys: tuple[int, int], index: int, count: int) -> NDArray[np.int32]:
    """(count,) `hash24` of the elements from `index` on, in this thread's scratch."""
    words, shifted = _scratch.words[:count], _scratch.shifted[:count]
    np.add(_WEYL[:count], np.uint32((index + keys[0]) * HASH_STEP & 0xFFFFFFFF), out=words)
    np.right_shift(words, 16, out=shifted)
    np.bitwise_xor(words, shifted, out=words)
    np.multiply(words, np.uint32(HASH_MIX), out=words)
    np.right_shift(words, 15, out=shifted)
    np.bitwise_xor(words, shifted, out=words)
    np.multiply(words, np.uint32(keys[1] | 1), out=words)
    np.right_shift(words, 8, out=words)
    return words.view(np.int32)


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
        raise _not_encodable()
    steps: Floats = absmax * PER_127
    steps[steps < STEP_MIN] = 0
    return steps


def _int8_levels(
    rows: Floats, inverses: Floats, keys: tuple[int, int], index: int, levels: NDArray[np.int8]
) -> None:
    """Fill `levels` for at most a slab of rows whose first element has this index in the block."""
    scaled = _scratch.floats[: rows.size].reshape(rows.shape)
    np.multiply(rows, inverses, out=scaled)
    chances = _chances(keys, index, rows.size).reshape(rows.shape)
    fixed = _scratch.shifted[: rows.size].view(np.int32).reshape(rows.shape)
    np.copyto(fixed, scaled, casting="unsafe")
    np.add(fixed, chances, out=fixed)
    np.right_shift(fixed, 24, out=fixed)
    np.copyto(levels, fixed, casting="unsafe")


def _checked(row: Codec, data: memoryview | bytes | Octets, out: Floats) -> Octets:
    octets: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    expected = row.encoded_bytes(len(out))
    if len(octets) != expected:
        raise BadUpdate(f"{row.name}: {len(octets)} bytes for {len(out)} values, {expected} are right")
    return octets


def _check_encodable(values: Floats) -> None:
    for _, part in _slabs(values):
        if not (part.max() <= VALUE_MAX and part.min() >= -VALUE_MAX):
            raise _not_encodable()


def _check_finite(values: Floats) -> None:
    if not np.all(np.isfinite(square_sums(values))) and not np.all(np.isfinite(values)):
        raise BadUpdate("holds values that are not finite")


def _not_encodable() -> BadUpdate:
    return BadUpdate("values to encode are not finite or beyond 2^126: the training diverged")
