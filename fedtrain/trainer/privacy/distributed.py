"""A site's share of noise that is complete only in the masked sum of all sites.

    clip -> rounding to the codec's step, again until short enough -> discrete Gaussian noise -> levels

Source: Kairouz, Liu and Steinke, The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation, 2021, arXiv 2102.06387. Rounding is unbiased but for the condition on the norm, which
holds without exception: the accounting of the sum rests on it. There is no error feedback, because a
residual would carry what was not noised into a later update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedtrain.errors import ConfigError
from fedtrain.methods.accounting.discrete import Grid
from fedtrain.methods.discretegaussian import SIGMA_MAX, sample
from fedtrain.methods.summable import Fixed, summable
from fedtrain.methods.updatefile import UpdateHeader, UpdateWriter
from fedtrain.methods.vectors import Floats
from fedtrain.storage.mailbox import SiteTerms
from fedtrain.trainer.privacy.conditions import PrivacyFault
from fedtrain.trainer.privacy.noise import KeyStream, fresh_key
from fedtrain.trainer.privacy.site import RANGE_ELEMENTS, Fill, Measured, check_scatter

DEVIATION_MIN = 1.0
"""In levels. Below, integers are too coarse: noise of that parameter would scatter less."""

DEVIATIONS_SPARE = 12
"""Room for noise in a level; more occurs once in 10^32."""

ATTEMPTS_MAX = 200
"""Each succeeds with a probability of at least 0.39."""

Levels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """One site's part in the noise: its codec, the bound on rounded norms and the deviation, in levels."""

    row: Fixed
    clip: float
    norm_max: float
    deviation: float


def share_of(terms: SiteTerms, codec: str, sites: int, num_elements: int) -> Share:
    """The plan; `ConfigError` where the codec cannot carry clip and noise without being cut off."""
    row = summable(codec)
    if not isinstance(row, Fixed):
        raise ConfigError(f"distributed noise goes into every number; {codec} sends some", key="codec.up")
    counted = sites - terms.dropouts_max
    if counted < 1:
        raise ConfigError(
            f"noise from {sites} sites cannot be complete without {terms.dropouts_max} of them",
            key="privacy.site.dropouts_max",
        )
    clip = terms.clip / row.step
    deviation = terms.noise_multiplier * clip / math.sqrt(counted)
    needed = clip + 1 + DEVIATIONS_SPARE * deviation
    if needed > row.level_max:
        raise ConfigError(
            f"{codec} has levels up to {row.level_max}, and clip and noise need {needed:.0f}: widen"
            " privacy.masked.range or take more bits",
            key="codec.up",
        )
    if not DEVIATION_MIN <= deviation <= SIGMA_MAX:
        raise ConfigError(
            f"a site's noise would be {deviation:.3g} levels of {codec}, and {DEVIATION_MIN:g} to"
            f" {SIGMA_MAX:g} are needed: take more bits or a smaller range",
            key="codec.up",
        )
    grid = Grid(row.step, num_elements, sites, terms.dropouts_max, terms.clip, 1.0)
    return Share(row, clip, grid.norm, deviation)


def write_levels(
    target: Path,
    header: UpdateHeader,
    fill: Fill,
    measured: Measured,
    share: Share,
    alive: Callable[[], None],
) -> tuple[str, int, float]:
    """Write the update file; (digest, size in bytes, L2 norm of the noised values)."""
    rounding = _accepted_key(header, fill, measured, share, alive)
    stream = KeyStream(fresh_key())
    squares = 0.0
    writer = UpdateWriter(target, header)
    try:
        for start, rounded in _rounded(header, fill, measured, share, rounding):
            alive()
            noise = sample(share.deviation, len(rounded), lambda n: stream.words(n).numpy().view(np.uint64))
            levels = rounded + noise
            added = (levels - rounded).astype(np.float64)
            check_scatter(float(np.dot(added, added)), len(added), share.deviation)
            if int(np.abs(levels).max()) > share.row.level_max:
                raise PrivacyFault("a noised level does not fit the codec, and cutting it off would be seen")
            wide = levels.astype(np.float64)
            squares += float(np.dot(wide, wide))
            writer.write_block(share.row.from_levels(levels.astype(np.int32), len(levels), b"", start))
        digest, size_bytes = writer.close()
    finally:
        writer.abandon()
    return digest, size_bytes, math.sqrt(squares) * share.row.step


def _accepted_key(
    header: UpdateHeader, fill: Fill, measured: Measured, share: Share, alive: Callable[[], None]
) -> bytes:
    """A key with which the rounded update is short enough; the second use of it rounds alike."""
    for _ in range(ATTEMPTS_MAX):
        key = fresh_key()
        squares = 0.0
        for _, rounded in _rounded(header, fill, measured, share, key):
            alive()
            wide = rounded.astype(np.float64)
            squares += float(np.dot(wide, wide))
        if squares <= share.norm_max**2:
            return key
    raise PrivacyFault(f"rounding {ATTEMPTS_MAX} times never kept the norm: the update is not clipped")


def _rounded(
    header: UpdateHeader, fill: Fill, measured: Measured, share: Share, key: bytes
) -> Iterator[tuple[int, Levels]]:
    """(first element, levels) of each range of the clipped update, rounded by chance."""
    stream = KeyStream(key)
    buffer: Floats = np.empty(min(header.num_elements, RANGE_ELEMENTS), np.float32)
    for block in range(0, header.num_elements, header.block_elements):
        end = min(block + header.block_elements, header.num_elements)
        for start in range(block, end, RANGE_ELEMENTS):
            part = buffer[: min(RANGE_ELEMENTS, end - start)]
            fill(start, part)
            scaled = part.astype(np.float64) * (measured.factor / share.row.step)
            scaled += stream.uniforms(len(part)).numpy()
            yield start - block, np.floor(scaled).astype(np.int64)
