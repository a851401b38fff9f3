"""What a run promises about privacy: the `terms.privacy` of an order's task, read strictly.

    record  noise in every training step, so that no record (or group of records) shows in an update
    site    the whole update clipped and noised, so that no site's part shows
    masked  nobody but the site sees its update; the coordinator learns the sum

Everything is resolved before a run is submitted, totals included, so the task's digest binds it. Every
number has bounds: nobody agrees to a word, or to a number, that cannot have been meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedtrain.core import canonical

UNITS = ("record", "group")
"""What record-level privacy can protect: one record, or all records of one person."""

SITE_UNIT = "site"
ACCOUNTANTS = ("pld", "rdp")
SAMPLINGS = ("poisson",)
MODES = ("auto", "ghost", "per-example")
NOISES = ("site", "distributed")

EPSILON_MAX = 1_000.0
DELTA_MIN, DELTA_MAX = 1e-15, 1e-2
CLIP_MIN, CLIP_MAX = 1e-9, 1e9
NOISE_MIN, NOISE_MAX = 1e-3, 1e6
STEPS_MAX = 10**9
RATE_MIN = 1e-12
WEIGHT_MAX = 2**53
SITES_MAX = 1_000_000
_WORD_CHARACTERS_MAX = 80


class Misfit(ValueError):
    """A section does not have its form; says where."""


@dataclass(frozen=True)
class RecordTerms:
    """Privacy of records, by noise in every step.

    Attributes:
        epsilon, delta: of the whole run at each site, `steps_total` steps long.
        clip: L2 norm that one unit's gradient is clipped to.
        unit: `record` or `group`.
        sampling_rate: each step takes each unit with this probability; None for the batch size divided by
            the site's units.
        mode: how gradients of single units are had; `auto` leaves it to the trainer.
    """

    epsilon: float
    delta: float
    clip: float
    steps_total: int
    unit: str = "record"
    sampling: str = "poisson"
    accountant: str = "pld"
    mode: str = "auto"
    sampling_rate: float | None = None


@dataclass(frozen=True)
class AdaptiveTerms:
    """The clip follows a quantile of the sites' norms (Andrew et al., Differentially Private Learning with
    Adaptive Clipping, 2021, arXiv:1905.03871).

    Attributes:
        quantile: share of sites whose norm should be within the clip.
        rate: of the geometric steps.
        noise: standard deviation of the noise on one site's bit, which is 1 or 0.
    """

    quantile: float = 0.5
    rate: float = 0.2
    noise: float = 1.0


@dataclass(frozen=True)
class SiteTerms:
    """Privacy of whole sites, by a clipped and noised update.

    Attributes:
        clip: L2 norm that the update is clipped to; with `adaptive` the order of each round has its own.
        noise_multiplier: standard deviation of the noise divided by `clip`: on each update where `noise` is
            `site`; on the sum of all updates, with `dropouts_max` of them missing, where it is `distributed`.
        delta: at which the run's epsilon is told.
        rounds_total: updates that a site gives in the run.
    """

    clip: float
    noise_multiplier: float
    delta: float
    rounds_total: int
    noise: str = "site"
    dropouts_max: int = 0
    adaptive: AdaptiveTerms | None = None


@dataclass(frozen=True)
class MaskTerms:
    """Sums under masks.

    Attributes:
        weight_max: largest weight of an update; 0 where every site counts the same.
        dropouts_max: sites that may be lost between key exchange and sum; -1 for what the threshold allows.
            With distributed noise it is the number that the noise is provisioned for.
    """

    weight_max: int = 0
    dropouts_max: int = -1


@dataclass(frozen=True)
class PrivacyTerms:
    """All that a run promises."""

    record: RecordTerms | None = None
    site: SiteTerms | None = None
    masked: MaskTerms | None = None

    @property
    def units(self) -> tuple[str, ...]:
        """What is protected by noise; empty where nothing is."""
        record = (self.record.unit,) if self.record else ()
        return (*record, SITE_UNIT) if self.site else record


def plain(terms: PrivacyTerms | RecordTerms | SiteTerms | MaskTerms | AdaptiveTerms) -> dict[str, Any]:
    """As an order's task spells it: what is absent is not mentioned."""
    found: dict[str, Any] = _without_none(canonical.to_plain(terms))
    return found


def read_privacy(value: Any, place: str = "terms.privacy") -> PrivacyTerms:
    """The section of an order's task; `Misfit` says what is wrong with it."""
    section = _Section(value, place, ("record", "site", "masked"))
    record, site = section.get("record"), section.get("site")
    terms = PrivacyTerms(
        record=_record(record, f"{place}.record") if record is not None else None,
        site=_site(site, f"{place}.site") if site is not None else None,
        masked=_masked(section.get("masked", False), f"{place}.masked"),
    )
    if fault := combination_fault(terms):
        raise Misfit(f"{place}: {fault}")
    return terms


def combination_fault(terms: PrivacyTerms) -> str:
    """Why these mechanisms cannot be had together, "" if they can."""
    site, masked = terms.site, terms.masked
    if site is None or site.noise != "distributed":
        return ""
    if masked is None:
        return "site.noise is distributed, which hides no single update unless the sum is masked"
    if terms.record is not None:
        return "record-level noise and distributed noise exclude each other: the update has its noise already"
    if masked.weight_max:
        return "distributed noise is made for updates that count the same, and masked.weight_max is not 0"
    if masked.dropouts_max != site.dropouts_max:
        return f"site.dropouts_max is {site.dropouts_max} and masked.dropouts_max is {masked.dropouts_max}"
    return ""


def _record(value: Any, place: str) -> RecordTerms:
    section = _Section(value, place, tuple(RecordTerms.__dataclass_fields__))
    rate = section.get("sampling_rate")
    return RecordTerms(
        epsilon=section.number("epsilon", 0.0, EPSILON_MAX, above=True),
        delta=section.number("delta", DELTA_MIN, DELTA_MAX),
        clip=section.number("clip", CLIP_MIN, CLIP_MAX),
        steps_total=section.whole("steps_total", 1, STEPS_MAX),
        unit=section.word("unit", UNITS),
        sampling=section.word("sampling", SAMPLINGS),
        accountant=section.word("accountant", ACCOUNTANTS),
        mode=section.word("mode", MODES),
        sampling_rate=None if rate is None else section.number("sampling_rate", RATE_MIN, 1.0),
    )


def _site(value: Any, place: str) -> SiteTerms:
    section = _Section(value, place, tuple(SiteTerms.__dataclass_fields__))
    adaptive = section.get("adaptive")
    return SiteTerms(
        clip=section.number("clip", CLIP_MIN, CLIP_MAX),
        noise_multiplier=section.number("noise_multiplier", NOISE_MIN, NOISE_MAX),
        delta=section.number("delta", DELTA_MIN, DELTA_MAX),
        rounds_total=section.whole("rounds_total", 1, STEPS_MAX),
        noise=section.word("noise", NOISES),
        dropouts_max=section.whole("dropouts_max", 0, SITES_MAX, default=0),
        adaptive=None if adaptive is None else _adaptive(adaptive, f"{place}.adaptive"),
    )


def _adaptive(value: Any, place: str) -> AdaptiveTerms:
    section = _Section(value, place, tuple(AdaptiveTerms.__dataclass_fields__))
    return AdaptiveTerms(
        quantile=section.number("quantile", 0.0, 1.0),
        rate=section.number("rate", 0.0, 2.0, above=True),
        noise=section.number("noise", NOISE_MIN, NOISE_MAX),
    )


def _masked(value: Any, place: str) -> MaskTerms | None:
    if value is False:
        return None
    section = _Section(value, place, tuple(MaskTerms.__dataclass_fields__))
    return MaskTerms(
        weight_max=section.whole("weight_max", 0, WEIGHT_MAX, default=0),
        dropouts_max=section.whole("dropouts_max", -1, SITES_MAX, default=-1),
    )


class _Section:
    """One mapping, read key by key."""

    def __init__(self, value: Any, place: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping):
            raise Misfit(f"{place} is no section of keys and values")
        for key in value:
            if key not in known:
                raise Misfit(f"{place}.{_shown(str(key))} is a word that this version does not know")
        self._values: Mapping[str, Any] = value
        self._place = place

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def number(self, key: str, low: float, high: float, *, above: bool = False) -> float:
        """A number of [low, high], or of (low, high] with `above`."""
        value = self._values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise Misfit(f"{self._place}.{key} is no number")
        # An integer of a thousand digits has no float.
        inside = low <= value <= high and (value > low or not above)
        if not inside or not math.isfinite(value):
            raise Misfit(f"{self._place}.{key} is not from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise Misfit(f"{self._place}.{key} is no whole number from {low} to {high}")
        return value

    def word(self, key: str, valid: tuple[str, ...]) -> str:
        value = self._values.get(key, valid[0])
        if not isinstance(value, str) or value not in valid:
            raise Misfit(f"{self._place}.{key} is {_shown(str(value))}, valid are {', '.join(valid)}")
        return value


def _shown(text: str) -> str:
    return ascii(text[: _WORD_CHARACTERS_MAX + 1])[1:-1][:_WORD_CHARACTERS_MAX]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
