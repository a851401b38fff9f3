"""What must hold of every private step, measured apart from the code that makes it so.

A library can train without privacy and not say so: a criterion that is not the private one, a parameter
unfrozen after wrapping, noise that misses a tensor. So each step is checked by what it did, and what
does not hold ends the training before the weights change. Bounds on chance hold with probability
1 - 10^-12 each, so that a right implementation is stopped about never.

What a fault says reaches the coordinator, so it names parameters and plans, and no number that was
measured on a record or a draw (the noise apart, which depends on neither).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedtrain.errors import LocalError
from fedtrain.trainer.privacy.noise import CLIP_TOLERANCE
from fedtrain.trainer.privacy.sampling import Indices
from fedtrain.trainer.privacy.weights import SeenWeight

MISS = math.log(2e12)
"""A bound on chance is missed by a right step once in 10^12; half of that at either end."""

_FINGERPRINT_VALUES, _FINGERPRINT_VALUES_MIN = 16, 8
"""Eight values that are all within 10^-3 of another step's: by chance once in 10^25 pairs of steps."""

_STEPS_REMEMBERED = 512

AGREEMENT_FLOAT32, AGREEMENT_BFLOAT16 = 2e-3, 5e-2
"""How far, in clips, two ways to one unit's clipped gradient may be apart in either precision."""


class PrivacyFault(LocalError):
    """A private step did not do what it promises; the training ends and nothing of it is handed in."""

    code = "privacy"


class Coverage:
    """The parameters that are trained, as planned when the training began.

    Attributes:
        names: of the trainable parameters, in the module's order; `parameters`: they themselves.
        slices: where each lies in a flat vector of all of them, `(elements,)`.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not found:
            raise PrivacyFault("the model has no trainable parameter, so there is nothing to train privately")
        self._model = model
        self.names = tuple(name for name, _ in found)
        self.parameters = tuple(parameter for _, parameter in found)
        ends = np.cumsum([parameter.numel() for parameter in self.parameters]).tolist()
        self.slices = tuple(slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True))
        self.elements = int(ends[-1])

    def check(self) -> None:
        """The same parameters as planned are trained, no more and no fewer."""
        now = tuple(name for name, p in self._model.named_parameters() if p.requires_grad)
        if now != self.names:
            more, fewer = sorted(set(now) - set(self.names)), sorted(set(self.names) - set(now))
            raise PrivacyFault(
                "other parameters are trained than when the private training was set up (now also:"
                f" {', '.join(more) or 'none'}; no longer: {', '.join(fewer) or 'none'}): set it up anew"
            )


class Conditions:
    """The conditions of one training; it remembers what only several steps together can show."""

    def __init__(self, coverage: Coverage, clip: float, count: int, rate: float) -> None:
        self._coverage = coverage
        self._clip = clip
        self._count = count
        self._rate = rate
        self._keys: set[bytes] = set()
        self._seen: deque[npt.NDArray[np.float64]] = deque(maxlen=_STEPS_REMEMBERED)
        self._first_size: int | None = None
        self._equal_sizes = 0

    def draw(self, drawn: Indices) -> None:
        """No unit twice, none that does not exist, and as many as independent draws would give."""
        if len(drawn) and (np.any(np.diff(drawn) <= 0) or drawn[0] < 0 or drawn[-1] >= self._count):
            raise PrivacyFault("a unit was drawn twice or does not exist: its part would exceed the clip")
        if not plausible_count(len(drawn), self._count, self._rate):
            raise PrivacyFault(
                f"the number of units drawn does not fit a rate of {self._rate:g}: independent draws"
                " give it less than once in 10^12 steps"
            )
        self._watch_size(len(drawn))

    def _watch_size(self, size: int) -> None:
        """Equal sizes step after step are a shuffle, not independent draws."""
        if self._first_size is None:
            self._first_size = size
            return
        self._equal_sizes = self._equal_sizes + 1 if size == self._first_size else 0
        if not self._equal_sizes:
            self._first_size = size
        # The likeliest size of a binomial has at most this probability (Herzog, 1947).
        variance = self._count * self._rate * (1 - self._rate)
        likeliest = min(1.0, 1 / math.sqrt(2 * math.e * variance)) if variance > 0 else 1.0
        if -self._equal_sizes * math.log(likeliest) > MISS:
            raise PrivacyFault(
                f"{self._equal_sizes + 1} steps in turn drew equally many units: that is a shuffle in"
                " batches, and the accounting holds for independent draws only"
            )

    def independent(self, together: Tensor, alone: Tensor, agreement: float) -> None:
        """Losses of the same records in one batch and one by one are the same, where they are finite."""
        apart = ~torch.isclose(together, alone, rtol=agreement, atol=agreement)
        if bool((apart & torch.isfinite(alone)).any()):
            raise PrivacyFault(
                "a record's loss depends on the records beside it, so none has a gradient of its own: a layer"
                " mixes the records of a batch"
            )

    def counted(self, parts: int, drawn: int) -> None:
        """Every drawn unit entered the sum exactly once."""
        if parts != drawn:
            raise PrivacyFault(
                "other units entered the sum than were drawn, or some of them more than once: a unit's part"
                " would exceed the clip"
            )

    def unit(self, clipped: Tensor, explicit: Tensor, agreement: float) -> None:
        """One unit's part in the sum: within the clip, and what clipping its own gradient gives.

        Args:
            clipped: from the clipping code, that unit alone; `explicit`: its whole gradient by plain
                backpropagation; both `(elements,)`.
            agreement: how far apart they may be, in clips.
        """
        part = clipped.float()
        norm = float(torch.linalg.vector_norm(part))
        if not norm <= self._clip * (1 + CLIP_TOLERANCE):
            raise PrivacyFault(
                f"one unit's gradient is longer than {self._clip:g} after clipping: it is not clipped"
            )
        size = float(torch.linalg.vector_norm(explicit))
        # One whose norm is no number takes no part, as a broken record.
        factor = min(1.0, self._clip / max(size, 1e-30)) if math.isfinite(size) else 0.0
        difference = part.sub_(explicit, alpha=factor)
        apart = float(torch.linalg.vector_norm(difference))
        if not apart <= self._clip * agreement:
            worst = max(self._coverage.slices, key=lambda part: float(difference[part].abs().sum()))
            name = self._coverage.names[self._coverage.slices.index(worst)]
            raise PrivacyFault(
                "one unit's clipped gradient is not its gradient by plain backpropagation, clipped; they"
                f" differ most in {name}: the gradients of single units are wrong, as with a layer that"
                " shares a parameter behind the library's back or mixes records"
            )

    def weight(self, seen: SeenWeight | None, explicit: Tensor, agreement: float) -> None:
        """One unit's part in the sum, where it is a weight times its own gradient: as `unit`.

        Args:
            seen: what its loss was weighed by in the batch; `explicit`, `agreement`: see `unit`.
        """
        if seen is None:
            raise PrivacyFault("no gradient was taken of one unit's loss: the clipping code left it out")
        if not seen.clean:
            raise PrivacyFault(
                "the gradients held something before the clipped sum was taken: it would enter unclipped"
            )
        size = float(torch.linalg.vector_norm(explicit))
        if not math.isfinite(size) or size == 0.0:
            return  # a broken record, which takes no part, or one that has none; `total` sees a sum in pieces
        if not seen.weight * size <= self._clip * (1 + CLIP_TOLERANCE):
            raise PrivacyFault(
                f"one unit's gradient is longer than {self._clip:g} after clipping: it is not clipped"
            )
        if not abs(seen.weight - min(1.0, self._clip / size)) * size <= self._clip * agreement:
            raise PrivacyFault(
                "one unit's gradient was clipped to another length than its gradient by plain backpropagation"
                " asks for: the norms of single units are wrong, as with a layer that shares a parameter"
                " behind the library's back or mixes records"
            )

    def total(self, total: Tensor, parts: int) -> None:
        """The sum of so many clipped gradients is finite and no longer than it can be."""
        norm = float(torch.linalg.vector_norm(total))
        if not norm <= parts * self._clip * (1 + CLIP_TOLERANCE):
            raise PrivacyFault(
                f"the sum of gradients that were clipped to {self._clip:g} is longer than so many can be, or"
                " not finite: they are not clipped"
            )

    def noise(self, noise: Tensor, deviation: float) -> None:
        """The noise that the optimiser will see, per parameter: as strong as planned, in each of them.

        Args:
            noise: what is released less the clipped sum, float64 `(elements,)`.
            deviation: the planned standard deviation.
        """
        for name, part in zip(self._coverage.names, self._coverage.slices, strict=True):
            values = noise[part]
            mean_square = float(torch.dot(values, values)) / (deviation**2 * len(values))
            low, high = mean_square_band(len(values))
            if not low <= mean_square <= high:
                raise PrivacyFault(
                    f"the noise in {name} has {math.sqrt(mean_square):.3g} of the planned standard deviation"
                    f" (possible by chance: {math.sqrt(low):.3g} to {math.sqrt(high):.3g})"
                )
        if len(noise) >= _FINGERPRINT_VALUES_MIN:
            self._fresh((noise[:_FINGERPRINT_VALUES] / deviation).numpy())

    def key(self, key: bytes) -> None:
        """A key serves once, for one draw or one noise."""
        if key in self._keys:
            raise PrivacyFault("a key was given out twice: draws or noise would repeat")
        self._keys.add(key)

    def _fresh(self, values: npt.NDArray[np.float64]) -> None:
        """Not the noise of one of the last steps, however it came to be the same."""
        # What is released passed through float32, so equal noise is equal to about 10^-4 only.
        if self._seen and bool(np.any(np.all(np.abs(np.array(self._seen) - values) < 1e-3, axis=1))):
            raise PrivacyFault("the noise of this step was used before: two releases would cancel it")
        self._seen.append(values)


def plausible_count(size: int, count: int, rate: float) -> bool:
    """Whether a binomial draw may have this size, by the bound of Chernoff (1952)."""
    if rate >= 1:
        return size == count
    share = size / count
    divergence = 0.0
    if share > 0:
        divergence += share * math.log(share / rate)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - rate))
    return count * divergence <= MISS


_bands: dict[int, tuple[float, float]] = {}


def mean_square_band(count: int) -> tuple[float, float]:
    """Between what the mean square of so many standard normal values lies, by Chernoff's bound.

    P(mean square beyond r) <= (r e^(1 - r))^(count / 2), for r below 1 as for r above.
    """
    if count not in _bands:
        _bands[count] = (_solve(count, below=True), _solve(count, below=False))
    return _bands[count]


def _solve(count: int, *, below: bool) -> float:
    """The r where the bound's logarithm is -MISS; on a logarithmic scale below, a linear one above."""
    wanted = -2 * MISS / count
    low, high = (wanted - 2, 0.0) if below else (1.0, 4 + 4 * MISS / count)
    for _ in range(200):
        middle = (low + high) / 2
        ratio = math.exp(middle) if below else middle
        inside = math.log(max(ratio, 1e-300)) + 1 - ratio > wanted
        low, high = (low, middle) if inside == below else (middle, high)
    return math.exp(high) if below else low
