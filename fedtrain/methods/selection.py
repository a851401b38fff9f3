"""Which coordinates `randk8` sends: the same at all sites, and known to whoever knows run, seed and round."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedtrain.methods.slabs import HASH_MIX, HASH_STEP
from fedtrain.methods.vectors import Octets

KEY_BYTES = 8


def selection_keys(seed: bytes, first_chunk: int, chunks: int) -> Octets:
    """(chunks, 8) selection keys of a block's chunks from `first_chunk` on.

    They come from the half of the block's seed that all sites share, so whoever knows run, seed and round
    knows them: `block_seed(run, seed, round, "", "up", block)` gives the same.
    """
    shared = seed[16:]
    digests = (
        hashlib.sha256(shared + chunk.to_bytes(8, "little")).digest()[:KEY_BYTES]
        for chunk in range(first_chunk, first_chunk + chunks)
    )
    keys: Octets = np.frombuffer(b"".join(digests), np.uint8).reshape(chunks, KEY_BYTES)
    return keys


def places(keys: Octets, length: int, keep: int) -> NDArray[np.int64]:
    """(chunks, groups) chosen elements of consecutive chunks of `length`, counted from the first.

    In group j of a chunk, j * keep + (hash24(keys, j) * width >> 24): uniform to 2^-12 of itself.
    """
    halves = keys.view("<u4").astype(np.uint32)
    begins = np.arange(0, length, keep)
    words = np.arange(len(begins), dtype=np.uint32) + halves[:, :1]
    words *= np.uint32(HASH_STEP)
    words ^= words >> 16
    words *= np.uint32(HASH_MIX)
    words ^= words >> 15
    words *= halves[:, 1:] | np.uint32(1)
    words >>= 8
    widths = np.minimum(keep, length - begins)
    chosen: NDArray[np.int64] = (words.astype(np.int64) * widths >> 24) + begins
    chosen += np.arange(len(keys))[:, None] * length
    return chosen
