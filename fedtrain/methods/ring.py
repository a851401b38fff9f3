"""Arithmetic modulo 2^k for masked sums, and its k bits a value on the wire.

A *word* is a value modulo 2^k, k from 1 to 32, held in a uint32; bits above k may be anything until it is
packed. So sums need no reduction on the way: 2^k divides 2^32. Packed words are a stream of bits: value v
occupies the bits from v * k on, bit i of the stream is bit i % 8 of byte i // 8. Every 32 values are
whole uint32 words, so any range that starts at a multiple of 32 values can be read by itself.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedtrain.errors import BadUpdate, ConfigError, LocalError
from fedtrain.methods.vectors import Octets

Words = NDArray[np.uint32]
Signed = NDArray[np.int32]

RING_BITS_MAX = 32
GROUP_VALUES = 32
"""Packed ranges start at multiples of this."""

_SLAB_VALUES = 1 << 16  # 256 KiB of words: large against the cost of a call, small against a cache
_DIRECT: dict[int, str] = {8: "<u1", 16: "<u2", 32: "<u4"}


def ring_bits(bits: int, sites: int, noise_bits: int = 0) -> int:
    """Bits of the ring in which the levels of so many sites add up without wrapping.

    Levels have `bits` with sign; `noise_bits` is headroom on top. `ConfigError` above 32.
    """
    needed = bits + max(0, sites - 1).bit_length() + noise_bits
    if needed > RING_BITS_MAX:
        raise ConfigError(
            f"sums of {sites} sites with {bits} bits each and {noise_bits} bits of headroom need {needed}"
            f" bits, and there are {RING_BITS_MAX}: take a codec with fewer bits, or fewer sites"
        )
    return needed


def packed_bytes(values: int, bits: int) -> int:
    """Bytes of so many words at k bits each; the last byte is filled up with zeros."""
    return -(-values * bits // 8)


def pack(words: Words, bits: int, out: Octets | None = None) -> Octets:
    """The words (n,) modulo 2^bits as a stream of bits, in the front of `out`."""
    size = packed_bytes(len(words), bits)
    target: Octets = np.empty(size, np.uint8) if out is None else out[:size]
    if bits in _DIRECT:
        np.copyto(target.view(_DIRECT[bits]), words, casting="unsafe")
        return target
    period, places = _places(bits)
    full = len(words) // period * period
    body = target[: packed_bytes(full, bits)]
    for begin in range(0, full, _SLAB_VALUES):
        part = words[begin : min(begin + _SLAB_VALUES, full)]
        _pack_rows(part.reshape(-1, period), bits, places, body[begin * bits // 8 :])
    if full < len(words):
        rest = np.zeros((1, period), np.uint32)
        rest[0, : len(words) - full] = words[full:]
        octets = np.empty(period * bits // 8, np.uint8)
        _pack_rows(rest, bits, places, octets)
        target[len(body) :] = octets[: size - len(body)]
    return target


def unpack(octets: Octets, bits: int, out: Words) -> Words:
    """Fill `out` (n,) with words below 2^bits from exactly `packed_bytes(n, bits)` bytes."""
    if len(octets) != packed_bytes(len(out), bits):
        raise LocalError(f"{len(octets)} bytes do not hold {len(out)} words of {bits} bits")
    if bits in _DIRECT:
        np.copyto(out, octets.view(_DIRECT[bits]))
        return out
    period, places = _places(bits)
    full = len(out) // period * period
    for begin in range(0, full, _SLAB_VALUES):
        part = out[begin : min(begin + _SLAB_VALUES, full)]
        _unpack_rows(octets[begin * bits // 8 :], bits, places, part.reshape(-1, period))
    if full < len(out):
        padded = np.zeros(period * bits // 8, np.uint8)
        tail = octets[full * bits // 8 :]
        padded[: len(tail)] = tail
        rest = np.empty((1, period), np.uint32)
        _unpack_rows(padded, bits, places, rest)
        out[full:] = rest[0, : len(out) - full]
    return out


def signed(words: Words, bits: int) -> Signed:
    """The words, read as numbers from -2^(bits-1) on, in the same memory; higher bits are dropped."""
    numbers = words.view(np.int32)
    np.left_shift(numbers, RING_BITS_MAX - bits, out=numbers)
    np.right_shift(numbers, RING_BITS_MAX - bits, out=numbers)
    return numbers


def limb_count(weight_max: int, bits: int) -> int:
    """How many limbs of `bits` a weight up to `weight_max` is cut into; none for 0: no weights."""
    return -(-weight_max.bit_length() // bits)


def weight_limbs(weight: int, weight_max: int, bits: int) -> Words:
    """The weight, at most `weight_max`, as unsigned limbs of `bits`, the lowest first.

    Limbs have the bits of a level, so their sums fit wherever sums of levels do.
    """
    if not 0 <= weight <= weight_max:
        raise LocalError(f"a weight of {weight} is not between 0 and {weight_max}")
    mask = (1 << bits) - 1
    limbs = [weight >> bits * place & mask for place in range(limb_count(weight_max, bits))]
    return np.array(limbs, np.uint32)


def weight_sum(words: Words, weight_max: int, bits: int, ring: int, sites: int) -> int:
    """The sum of the weights of so many sites, from the sums of their limbs modulo 2^ring.

    `BadUpdate` if such a sum is impossible: what was masked was no weight.
    """
    limbs = [int(word) & ((1 << ring) - 1) for word in words]
    total = sum(limb << bits * place for place, limb in enumerate(limbs))
    if any(limb > sites * ((1 << bits) - 1) for limb in limbs) or total > sites * weight_max:
        raise BadUpdate(
            f"the weights of {sites} sites add up to more than {sites} x {weight_max}: garbage came in under"
            " the masks, and this sum cannot be used"
        )
    return total


def _places(bits: int) -> tuple[int, list[tuple[int, int]]]:
    """Values until the words' borders repeat, and of each its (word, shift) there."""
    if not 1 <= bits <= RING_BITS_MAX:
        raise LocalError(f"a ring of {bits} bits: from 1 to {RING_BITS_MAX} are possible")
    period = GROUP_VALUES // math.gcd(bits, GROUP_VALUES)
    return period, [divmod(value * bits, 32) for value in range(period)]


def _pack_rows(rows: Words, bits: int, places: list[tuple[int, int]], octets: Octets) -> None:
    """Write the rows (r, period) of words to the front of `octets`."""
    period = len(places)
    columns = rows.T.copy()  # never a view: one row transposed is contiguous already
    np.bitwise_and(columns, np.uint32((1 << bits) - 1), out=columns)
    packed = np.zeros((period * bits // 32, len(rows)), np.uint32)
    shifted = np.empty(len(rows), np.uint32)
    for column, (word, shift) in zip(columns, places, strict=True):
        np.left_shift(column, np.uint32(shift), out=shifted)
        np.bitwise_or(packed[word], shifted, out=packed[word])
        if shift + bits > 32:
            np.right_shift(column, np.uint32(32 - shift), out=shifted)
            np.bitwise_or(packed[word + 1], shifted, out=packed[word + 1])
    np.copyto(octets[: rows.size * bits // 8].view("<u4").reshape(len(rows), -1), packed.T)


def _unpack_rows(octets: Octets, bits: int, places: list[tuple[int, int]], rows: Words) -> None:
    """Fill the rows (r, period) with words from the front of `octets`."""
    stored = octets[: rows.size * bits // 8].view("<u4").reshape(len(rows), -1)
    packed = np.ascontiguousarray(stored.T, np.uint32)
    columns = np.empty((len(places), len(rows)), np.uint32)
    high = np.empty(len(rows), np.uint32)
    for column, (word, shift) in zip(columns, places, strict=True):
        np.right_shift(packed[word], np.uint32(shift), out=column)
        if shift + bits > 32:
            np.left_shift(packed[word + 1], np.uint32(32 - shift), out=high)
            np.bitwise_or(column, high, out=column)
    np.bitwise_and(columns, np.uint32((1 << bits) - 1), out=columns)
    np.copyto(rows, columns.T)
