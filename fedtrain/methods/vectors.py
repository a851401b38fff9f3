"""The types and the two measures that every module of this room shares.

A *chunk* is 4096 consecutive elements: the unit of scales in codecs and of partial sums in
norms. Every block starts at a chunk, so results do not depend on how work is cut into ranges.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedtrain.errors import ConfigError

Floats = NDArray[np.float32]
Octets = NDArray[np.uint8]

CHUNK_ELEMENTS = 4096
ELEMENT_BYTES = 4


def chunk_count(num_elements: int) -> int:
    """How many chunks hold `num_elements`, the last one perhaps shorter."""
    return -(-num_elements // CHUNK_ELEMENTS)


def square_sums(values: Floats) -> Floats:
    """Sum of squares of each chunk, shape (chunks,); not finite if a value is not.

    One float32 dot product per chunk: relative error about 1e-6, one pass, and it finds NaN and
    infinity on the way. A chunk whose sum exceeds float32 (values beyond 1e17) counts as infinite.
    """
    full = len(values) // CHUNK_ELEMENTS * CHUNK_ELEMENTS
    rows = values[:full].reshape(-1, CHUNK_ELEMENTS)
    with np.errstate(over="ignore", invalid="ignore"):
        sums: Floats = np.vecdot(rows, rows)
        if full < len(values):
            tail = values[full:]
            sums = np.append(sums, np.dot(tail, tail))
    return sums


def norm_of(sums: NDArray[np.float64]) -> float:
    """L2 norm from all chunks' sums of squares, added in float64 in their order."""
    return math.sqrt(float(np.sum(sums)))


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that a table does not hold: what is valid, and the nearest."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{name!r} is not a known {kind} (valid: {', '.join(names)}){hint}")
