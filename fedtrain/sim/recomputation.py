"""I2, I3 and I11: the auditor's own arithmetic of every version, written out once more.

It shares no code with `methods`: the mean and the two outer steps that the worlds use are spelled
here in full, in the order that the project prescribes (by site, the freshest first).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from fedtrain.core.effects import Aggregate
from fedtrain.core.spec import RunSpec
from fedtrain.methods.vectors import Floats
from fedtrain.sim.violation import demand


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


class Chain:
    """All versions of one run, as they must be.

    Attributes:
        digests: of the public models, by version.
        blobs: every upload that crossed the network, by its digest, shared with the auditor.
    """

    def __init__(self, spec: RunSpec, blobs: Mapping[str, bytes]) -> None:
        self.digests: list[str] = []
        self._spec = spec
        self._blobs = blobs
        self._velocity: Floats | None = None
        self._pending: tuple[Floats, Floats, Floats | None, str] | None = None
        self._publics: list[Floats] = []

    def seed(self, blob: str) -> None:
        """Version 0 is exactly what was uploaded."""
        demand(not self.digests, "I3", f"{self._spec.run} was seeded twice")
        self._public = np.frombuffer(self._blobs[blob], np.float32)
        self._exact = self._public
        self.digests.append(blob)
        self._publics.append(self._public)

    def compute(self, effect: Aggregate, mean: Floats | None = None) -> None:
        """What the next version has to be, from what the effect counts, or from the mean under masks."""
        combined = self._combined(effect) if mean is None else mean
        exact, velocity = self._outer_step(effect.round, combined)
        delta = exact - self._public
        public = self._public + delta
        self._pending = (exact, public, velocity, sha256(delta.tobytes()))

    def _combined(self, effect: Aggregate) -> Floats:
        counted = [np.frombuffer(self._blobs[item.blob], np.float32) for item in effect.contributions]
        weights = [item.weight for item in effect.contributions]
        total = math.fsum(weights)
        combined = np.zeros_like(self._exact)
        for index, (values, weight) in enumerate(zip(counted, weights, strict=True)):
            norm = math.sqrt(sum(float(value) ** 2 for value in values))
            bound = self._spec.norm_max
            scale = 1.0 if bound is None or norm <= bound else bound / norm
            term = values * np.float32(weight / total * scale)
            combined = term if index == 0 else combined + term
        return combined

    def _outer_step(self, round_index: int, combined: Floats) -> tuple[Floats, Floats | None]:
        """The model and the velocity behind it. A warm-up round averages and keeps no velocity."""
        settings = self._spec.outer_params
        if self._spec.outer == "average":
            return self._exact - combined * np.float32(settings["eta"]), None
        if round_index <= self._spec.outer_warmup_rounds:
            return self._exact - combined, None
        eta, momentum = np.float32(settings["eta"]), np.float32(settings["mu"])
        velocity = np.zeros_like(combined) if self._velocity is None else self._velocity
        velocity = (velocity * momentum + combined).astype(np.float32, copy=False)
        step = (combined + velocity * momentum) * eta
        return (self._exact - step).astype(np.float32, copy=False), velocity

    def publish(self, version: int, model_digest: str, delta: str) -> None:
        """The coordinator says that it has computed this version: it must be ours."""
        demand(version == len(self.digests), "I3", f"version {version} came after {len(self.digests) - 1}")
        demand(self._pending is not None, "I2", f"version {version} was computed without being asked for")
        assert self._pending is not None, "demanded above"
        self._exact, self._public, self._velocity, expected_delta = self._pending
        self._pending = None
        expected = sha256(self._public.tobytes())
        demand(model_digest == expected, "I2", f"version {version} is not the sum of what its record names")
        demand(delta == expected_delta, "I2", f"the delta to version {version} does not lead there")
        self.digests.append(expected)
        self._publics.append(self._public)

    def restore(self, version: int, model_digest: str, snapshot: str) -> None:
        """An earlier public model is the newest again: exact, and without what was behind its path."""
        demand(model_digest == self.digests[version], "I2", f"version {version} came back with other bits")
        demand(snapshot == sha256(self._publics[version].tobytes()), "I2", f"{snapshot} is no snapshot of it")
        self._exact = self._public = self._publics[version]
        self._velocity, self._pending = None, None
        self.digests.append(model_digest)
        self._publics.append(self._public)

    def holds(self, site: str, version: int, digest: str) -> None:
        """A site has built this version."""
        known = version < len(self.digests) and self.digests[version] == digest
        demand(known, "I11", f"{site} holds another version {version} of {self._spec.run}")
