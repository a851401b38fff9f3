"""Gaussian noise on an integer grid, from a key of the operating system that is used once.

A step's noise comes from 256 bits of the system's generator, expanded by AES-256 in counter mode and
turned into normal values by the transform of Box & Muller (A Note on the Generation of Random Normal
Deviates, 1958). The key is never stored, so no noise can be drawn twice.

Values are multiples of a grid, 2^-40 of the noise's standard deviation (rounded down to a power of
two). The sum that is to be hidden is rounded to the same grid *before* the noise is added, so what is
released is an integer of which no low-order bit depends on anything but the rounded sum plus noise:

    round(S / g) + round(Z / g) = round(round(S / g) + Z / g)

Hence the released value is a function of `g round(S / g) + Z`, the Gaussian mechanism on a sum whose
sensitivity rounding enlarged by at most `g sqrt(elements)`, which `sensitivity` counts. (Mironov, On
Significance of the Least Significant Bits for Differential Privacy, 2012, shows what leaks otherwise.)

What is assumed: AES in counter mode is indistinguishable from chance, and 52-bit uniforms are as good
as real ones. They end the noise at 8.49 standard deviations, beyond which lie 2e-17 of each value.
"""

from __future__ import annotations

import math
import os

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

GRID_BITS = 40
"""So fine that a single value is 0 less than once in 2 10^12 draws (a missing noise is then told from
chance), so coarse that 8.5 standard deviations and sums of 2^9 clips stay exact in a float64."""

CLIP_TOLERANCE = 1e-4
"""Of the norm after clipping: what float32 loses in norms, factors and sums. The noise covers it."""

_BLOCK_VALUES = 1 << 15  # temporaries of a block stay in a core's own cache
_NOUGHT = bytes(1 << 14)  # the cipher's input in counter mode: what comes out is the stream itself
_FRACTION, _ONE = (1 << 52) - 1, 0x3FF << 52  # of a float64: the bits behind the point, and 1.0


def fresh_key() -> bytes:
    """256 bits of the operating system."""
    return os.urandom(32)


class KeyStream:
    """Chance from one key: a sequence of 64-bit words, each given out once."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> Tensor:
        """The next words as int64 `(count,)`, whatever their sign."""
        return self._words_into(bytearray(8 * count), count)

    def _words_into(self, buffer: bytearray, count: int) -> Tensor:
        """The next words, in the memory of `buffer`."""
        if not count:
            return torch.empty(0, dtype=torch.int64)
        view = memoryview(buffer)
        for start in range(0, 8 * count, len(_NOUGHT)):
            size = min(len(_NOUGHT), 8 * count - start)
            self._cipher.update_into(_NOUGHT[:size], view[start : start + size])
        return torch.frombuffer(buffer, dtype=torch.int64, count=count)

    def uniforms(self, count: int) -> Tensor:
        """Float64 `(count,)`: multiples of 2^-52 in [0, 1)."""
        return _above_one(self.words(count)).sub_(1.0)

    def normals(self, count: int, deviation: float = 1.0) -> Tensor:
        """Normal values of this standard deviation, float64 `(count,)`."""
        buffer = bytearray(8 * min(count + 1, _BLOCK_VALUES))
        out = torch.empty(count, dtype=torch.float64)
        for start in range(0, count, _BLOCK_VALUES):
            self._fill(out[start : start + _BLOCK_VALUES], deviation, buffer)
        return out

    def whole_normals(self, count: int, deviation: float) -> Tensor:
        """As `normals`, rounded to whole numbers."""
        buffer = bytearray(8 * min(count + 1, _BLOCK_VALUES))
        out = torch.empty(count, dtype=torch.float64)
        for start in range(0, count, _BLOCK_VALUES):
            part = out[start : start + _BLOCK_VALUES]
            self._fill(part, deviation, buffer)
            part.round_()
        return out

    def _fill(self, part: Tensor, deviation: float, buffer: bytearray) -> None:
        pairs = (len(part) + 1) // 2
        chance = _above_one(self._words_into(buffer, 2 * pairs))
        # What is missing to 2 is in (0, 1], so that its logarithm is finite.
        radius = chance[:pairs].neg_().add_(2.0).log_().mul_(-2.0 * deviation**2).sqrt_()
        angle = chance[pairs:].mul_(2 * math.pi)  # a whole turn too many
        torch.mul(torch.cos(angle), radius, out=part[:pairs])
        rest = len(part) - pairs
        torch.mul(angle[:rest].sin_(), radius[:rest], out=part[pairs:])


def _above_one(words: Tensor) -> Tensor:
    """Float64 in [1, 2), in place: 52 bits of chance put behind the point, which costs no conversion."""
    return words.bitwise_and_(_FRACTION).bitwise_or_(_ONE).view(torch.float64)


def grid_of(deviation: float) -> float:
    """The power of two that noise of this standard deviation is a multiple of."""
    return math.ldexp(1.0, math.frexp(deviation)[1] - 1 - GRID_BITS)


def sensitivity(clip: float, noise_multiplier: float, elements: int) -> float:
    """Largest L2 distance of the rounded sums of neighbours: the clip, float32's errors, the rounding.

    The noise is this times the multiplier, so the promised ratio of noise to sensitivity holds.
    """
    return clip * (1 + CLIP_TOLERANCE) + grid_of(noise_multiplier * clip) * math.sqrt(elements)


def on_grid(values: Tensor, grid: float) -> Tensor:
    """`values` in units of the grid, rounded to whole ones, float64; in place where `values` are."""
    # A grid is a power of two, so its inverse is exact.
    return values.double().mul_(1 / grid).round_()


def grid_noise(stream: KeyStream, count: int, deviation: float, grid: float) -> Tensor:
    """Noise of this standard deviation in whole units of the grid, float64 `(count,)`."""
    return stream.whole_normals(count, deviation / grid)
