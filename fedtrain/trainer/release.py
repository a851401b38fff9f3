"""From what a task did to the file that leaves: clip, noise, weight, residual, codec, in this order.

Never otherwise: what is clipped and noised comes first, so that nothing after it can leak more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedtrain.methods.updatefile import UpdateHeader
from fedtrain.trainer.feedback import Carried, UpdateFile, write_update
from fedtrain.trainer.privacy.permits import Promise
from fedtrain.trainer.tasks.task import Outcome


class Release:
    """One update on its way out.

    Args:
        promise: of the order; without any the pseudo-gradient goes out as it is.
        alive: called now and then; what it raises passes through.

    Attributes:
        within: with adaptive clipping, the noised bit for the result; known after `write`.
    """

    def __init__(
        self, promise: Promise, header: UpdateHeader, outcome: Outcome, alive: Callable[[], None]
    ) -> None:
        self._promise = promise
        self._header = header
        self._outcome = outcome
        self._alive = alive
        self.within: float | None = None

    @staticmethod
    def check(promise: Promise, header: UpdateHeader) -> None:
        """`ConfigError`, before any work, where the codec cannot carry what is promised."""
        if promise.site is not None and promise.site.noise == "distributed":
            from fedtrain.trainer.privacy.distributed import share_of

            share_of(promise.site, header.codec, promise.sites, header.num_elements)

    def write(self, target: Path, residual_target: Path, seed: int, carried: Carried) -> UpdateFile:
        """Write `target`, and `residual_target` where the codec loses something that may be kept."""
        site, masked = self._promise.site, self._promise.masked
        if site is not None and site.noise == "distributed":
            return self._write_levels(target)
        fill = self._outcome.pseudo_gradient
        if site is not None:
            # torch, which makes the noise, is not imported where there is none.
            from fedtrain.trainer.privacy.site import NoisedUpdate, measure

            measured = measure(fill, self._header.num_elements, site, self._alive)
            self.within = measured.within
            fill = NoisedUpdate(fill, self._header.num_elements, site, measured)
        if masked is not None and masked.weight_max:
            from fedtrain.trainer.privacy.site import weighted

            fill = weighted(fill, self._outcome.weight, masked.weight_max)
        return write_update(target, residual_target, self._header, seed, fill, carried, self._alive)

    def _write_levels(self, target: Path) -> UpdateFile:
        """Integer noise in the codec's levels, and no residual."""
        from fedtrain.trainer.privacy.distributed import share_of, write_levels
        from fedtrain.trainer.privacy.site import measure

        site, header = self._promise.site, self._header
        assert site is not None
        share = share_of(site, header.codec, self._promise.sites, header.num_elements)
        fill = self._outcome.pseudo_gradient
        measured = measure(fill, header.num_elements, site, self._alive)
        self.within = measured.within
        return UpdateFile(*write_levels(target, header, fill, measured, share, self._alive))
