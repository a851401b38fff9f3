"""What the encoders share: cache-sized parts of a vector, temporaries for one, and the counter hash.

Only integer operations and single IEEE float32 operations happen here and in the codecs above, so a
result has the same bits on every machine.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from fedtrain.errors import BadUpdate
from fedtrain.methods.vectors import CHUNK_ELEMENTS, Floats, Octets

VALUE_MAX = 2.0**126
"""No codec encodes a larger magnitude: 127 steps of `int8` and rounding up in `bfloat16` stay finite."""

# The counter hash's odd multipliers: the golden ratio's for the Weyl sequence, then the first one
# of MurmurHash3's finaliser (Austin Appleby, public domain). The last one is the block's own key.
HASH_STEP = 0x9E3779B1
HASH_MIX = 0x85EBCA6B

SLAB_CHUNKS = 16  # 16 chunks are 256 KiB: the temporaries of one pass stay in a core's own cache
SLAB_ELEMENTS = SLAB_CHUNKS * CHUNK_ELEMENTS


class _Scratch(threading.local):
    """Temporaries of one slab, made once per thread: fresh memory would cost more than the work."""

    def __init__(self) -> None:
        self.floats = np.empty(SLAB_ELEMENTS, np.float32)
        self.words = np.empty(SLAB_ELEMENTS, np.uint32)
        self.shifted = np.empty(SLAB_ELEMENTS, np.uint32)
        self.levels = np.empty(SLAB_ELEMENTS, np.int32)


scratch = _Scratch()
_WEYL = np.arange(SLAB_ELEMENTS, dtype=np.uint32) * np.uint32(HASH_STEP)


def seed_keys(seed: bytes) -> tuple[int, int]:
    """The two 32-bit keys of the counter hash: the first 8 bytes of the block's seed, little endian."""
    return int.from_bytes(seed[:4], "little"), int.from_bytes(seed[4:8], "little")


def slabs(values: Floats) -> list[tuple[int, Floats]]:
    """(begin, view) of cache-sized parts; a last short chunk is a part of its own."""
    full = len(values) // CHUNK_ELEMENTS * CHUNK_ELEMENTS
    parts = [
        (begin, values[begin : min(begin + SLAB_ELEMENTS, full)]) for begin in range(0, full, SLAB_ELEMENTS)
    ]
    if full < len(values):
        parts.append((full, values[full:]))
    return parts


def chances(keys: tuple[int, int], index: int, count: int) -> NDArray[np.int32]:
    """(count,) `hash24` of the elements from `index` on, at most a slab, in this thread's scratch."""
    words, shifted = scratch.words[:count], scratch.shifted[:count]
    np.add(_WEYL[:count], np.uint32((index + keys[0]) * HASH_STEP & 0xFFFFFFFF), out=words)
    np.right_shift(words, 16, out=shifted)
    np.bitwise_xor(words, shifted, out=words)
    np.multiply(words, np.uint32(HASH_MIX), out=words)
    np.right_shift(words, 15, out=shifted)
    np.bitwise_xor(words, shifted, out=words)
    np.multiply(words, np.uint32(keys[1] | 1), out=words)
    np.right_shift(words, 8, out=words)
    return words.view(np.int32)


def check_encodable(values: Floats) -> None:
    """`BadUpdate` if a value is not finite or beyond 2^126."""
    for _, part in slabs(values):
        if not (part.max() <= VALUE_MAX and part.min() >= -VALUE_MAX):
            raise not_encodable()


def not_encodable() -> BadUpdate:
    """The sentence for values that no codec takes."""
    return BadUpdate("values to encode are not finite or beyond 2^126: the training diverged")


def checked_octets(name: str, data: memoryview | bytes | Octets, expected: int, count: int) -> Octets:
    """`data` as bytes if there are exactly as many as `count` values need in this codec."""
    octets: Octets = np.frombuffer(data, np.uint8)
    if len(octets) != expected:
        raise BadUpdate(f"{name}: {len(octets)} bytes for {count} values, {expected} are right")
    return octets
