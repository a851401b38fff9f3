"""The `privacy` of a run file: what a person writes, and the resolved terms that sites are told.

Totals, noise and scales are worked out here, before anybody is asked, so that one document says all and its
digest binds it.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedtrain.config.section import Section, fault, nearest
from fedtrain.core import privacy as core

CODEC_SHORT = re.compile(r"fixed([1-9]\d?)|randk8")
RANDK_BITS = 8
RANGE_DEVIATIONS = 6.0
"""So many standard deviations of a site's own noise fit into the range beside its clip."""

_SOLVE_STEPS = 200

_SITE_EPSILON = ("privacy", "site", "epsilon")
"""Where a run's file has it: it is solved with the run's rounds, so the whole run is looked at."""

Epsilon = Annotated[float, Field(gt=0, le=core.EPSILON_MAX)]
Delta = Annotated[float, Field(ge=core.DELTA_MIN, le=core.DELTA_MAX)]
Clip = Annotated[float, Field(ge=core.CLIP_MIN, le=core.CLIP_MAX)]
Noise = Annotated[float, Field(ge=core.NOISE_MIN, le=core.NOISE_MAX)]


def _defaults_for_true(value: object) -> object:
    """`true` is the section with its defaults, `false` none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


class RecordSection(Section):
    """Noise in every step of the training. `epsilon` is the whole run's, at each site."""

    epsilon: Epsilon
    delta: Delta = 1e-5
    clip: Clip = 1.0
    unit: Literal["record", "group"] = "record"
    sampling: Literal["poisson"] = "poisson"
    accountant: Literal["pld", "rdp"] = "pld"
    mode: Literal["auto", "ghost", "per-example"] = "auto"
    sampling_rate: float | None = Field(default=None, ge=core.RATE_MIN, le=1)


class AdaptiveSection(Section):
    """The clip follows the norms: this quantile of the sites should be within it."""

    quantile: float = Field(default=0.5, ge=0, le=1)
    rate: float = Field(default=0.2, gt=0, le=2)
    noise: Noise = 1.0


class SiteSection(Section):
    """A clipped and noised update: one of `epsilon` and `noise_multiplier` says with how much noise."""

    clip: Clip
    epsilon: Epsilon | None = None
    noise_multiplier: Noise | None = None
    delta: Delta = 1e-5
    noise: Literal["site", "distributed"] = "site"
    dropouts_max: int = Field(default=0, ge=0, le=core.SITES_MAX)
    adaptive: Annotated[AdaptiveSection | None, BeforeValidator(_defaults_for_true)] = None

    @model_validator(mode="after")
    def _one_measure(self) -> SiteSection:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise fault("needs one of `epsilon` and `noise_multiplier`, and not both")
        if self.noise == "site" and self.dropouts_max:
            raise fault("is for `noise: distributed`; each site has all its noise here", "dropouts_max")
        return self

    def terms(self, rounds_total: int) -> core.SiteTerms:
        """Resolved for a run of so many rounds."""
        adaptive = self.adaptive
        return core.SiteTerms(
            clip=self.clip,
            noise_multiplier=self._multiplier(rounds_total),
            delta=self.delta,
            rounds_total=rounds_total,
            noise=self.noise,
            dropouts_max=self.dropouts_max,
            adaptive=core.AdaptiveTerms(adaptive.quantile, adaptive.rate, adaptive.noise)
            if adaptive
            else None,
        )

    def _multiplier(self, rounds_total: int) -> float:
        """The noise that `epsilon` needs, by the accountant that will be asked about it: sums of shares are
        known by their Renyi curve. What the bits of adaptive clipping cost is taken off first."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        if self.noise == "site":
            left = _mu(self.epsilon, self.delta) ** 2 / rounds_total
        else:
            from fedtrain.methods.accounting import solve_noise

            left = solve_noise(self.epsilon, self.delta, 1.0, rounds_total, "rdp") ** -2
        if self.adaptive is not None:
            left -= (0.5 / self.adaptive.noise) ** 2
            if left <= 0:
                raise fault(
                    f"the bits of adaptive clipping alone cost more than this in {rounds_total} rounds; raise"
                    " `adaptive.noise`",
                    *_SITE_EPSILON,
                )
        found = math.sqrt(1 / left) * (1 + 1e-9)  # the last digits on the safe side
        if not core.NOISE_MIN <= found <= core.NOISE_MAX:
            raise fault(f"would need a noise multiplier of {found:g}", *_SITE_EPSILON)
        return found


class MaskedSection(Section):
    """Sums under masks. `range` and `keep` complete a short `codec.up`: the largest magnitude of a number,
    and of how many neighbours one is sent."""

    weight_max: int = Field(default=0, ge=0, le=core.WEIGHT_MAX)
    dropouts_max: int = Field(default=-1, ge=-1, le=core.SITES_MAX)
    range: float | None = Field(default=None, gt=0, le=1e6)
    keep: int = Field(default=10, ge=2, le=4096)


class PrivacySection(Section):
    """What the run promises; `privacy: {}` promises nothing."""

    record: RecordSection | None = None
    site: SiteSection | None = None
    masked: Annotated[MaskedSection | None, BeforeValidator(_defaults_for_true)] = None

    @model_validator(mode="after")
    def _fit_together(self) -> PrivacySection:
        site, masked = self.site, self.masked
        if site is None or site.noise != "distributed":
            return self
        if masked is None:
            raise fault("distributed noise hides no single update: add `masked: true`", "site", "noise")
        if self.record is not None:
            raise fault("excludes `noise: distributed`: the update would have its noise twice", "record")
        if masked.weight_max:
            raise fault("must be 0: distributed noise is for equal weights", "masked", "weight_max")
        if masked.dropouts_max not in (-1, site.dropouts_max):
            raise fault(f"found another number than site.dropouts_max ({site.dropouts_max})", "masked")
        return self

    def terms(self, rounds: int, steps: int) -> core.PrivacyTerms:
        """Resolved for a run of so many rounds of so many steps each."""
        record, masked = self.record, self.masked
        site = self.site.terms(rounds) if self.site else None
        lost = masked.dropouts_max if masked else -1
        if site is not None and site.noise == "distributed":
            lost = site.dropouts_max
        return core.PrivacyTerms(
            record=core.RecordTerms(**record.model_dump(), steps_total=rounds * steps) if record else None,
            site=site,
            masked=core.MaskTerms(masked.weight_max, lost) if masked else None,
        )

    def plain(self, rounds: int, steps: int) -> dict[str, Any]:
        """The terms as an order's task spells them; empty where nothing is promised."""
        return core.plain(self.terms(rounds, steps))

    def codec(self, name: str, rounds: int, sites: int) -> str:
        """The codec with its parameters, where `name` is a short one. `sites`: the fewest of a round."""
        match = CODEC_SHORT.fullmatch(name)
        if match is None:
            return name
        bits = int(match[1]) if match[1] else RANDK_BITS
        masked = self.masked or MaskedSection()
        extent = masked.range if masked.range is not None else self._extent(rounds, sites)
        exponent = math.floor(math.log2(((1 << (bits - 1)) - 1) / extent))
        return f"fixed{bits}s{exponent}" if match[1] else f"randk8s{exponent}k{masked.keep}"

    def _extent(self, rounds: int, sites: int) -> float:
        """The largest magnitude that a number can be expected to have: 1 where nothing is clipped."""
        if self.site is None:
            return 1.0
        terms = self.site.terms(rounds)
        deviation = terms.noise_multiplier
        if terms.noise == "distributed":
            deviation /= math.sqrt(max(1, sites - terms.dropouts_max))
        return terms.clip * (1 + RANGE_DEVIATIONS * deviation)


def summable_codec(name: str) -> None:
    """Raises a fault unless updates of this codec can be added under masks."""
    from fedtrain.errors import ConfigError
    from fedtrain.methods.summable import summable

    try:
        summable(name)
    except ConfigError as error:
        raise fault(f"{error}, or short: fixed12, randk8 (privacy.masked)", "codec", "up") from error


def known_codec(value: str) -> str:
    """A codec's name, short ones included, or a fault that lists what there is."""
    from fedtrain.errors import ConfigError
    from fedtrain.methods.codecs import codec, codec_names

    match = CODEC_SHORT.fullmatch(value)
    if match is not None and (not match[1] or 8 <= int(match[1]) <= 24):
        return value
    try:
        codec(value)
    except ConfigError as error:
        names = nearest(value, [*codec_names(), "fixed<bits>", "randk8"])
        raise fault(f"{value!r} is not available in this version; {names}") from error
    return value


def _mu(epsilon: float, delta: float) -> float:
    """The largest mu (sensitivity over deviation, all rounds together) that keeps this promise."""
    from fedtrain.methods.accounting import exact_gaussian_delta

    low, high = 1e-6, 1e4
    for _ in range(_SOLVE_STEPS):
        middle = math.sqrt(low * high)
        if exact_gaussian_delta(middle, epsilon) > delta:
            high = middle
        else:
            low = middle
    return low
