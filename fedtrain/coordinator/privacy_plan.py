"""What a run's promise will cost and what its noise will do to the model, before it starts.

Noise for whole sites is told honestly: among few sites it is larger than what it protects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from fedtrain.core.charges import Mechanism, bit_mechanism, site_mechanism
from fedtrain.core.disclosure import assumptions
from fedtrain.core.masks import ring_bits, threshold
from fedtrain.core.privacy import PrivacyTerms, SiteTerms, plain
from fedtrain.core.spec import RunSpec
from fedtrain.core.terms import Asked, read_asked
from fedtrain.errors import FedtrainError
from fedtrain.methods.accounting import epsilon_rdp, exact_gaussian_epsilon, solve_noise
from fedtrain.methods.codecs import codec

ELEMENTS_UNKNOWN = 1_000_000
"""Numbers of a model that is not there yet, for the roundings of a grid."""

PARAMETERS_FEW = 100_000
"""A model that is worth a consortium has more."""


@dataclass(frozen=True)
class MeanNoise:
    """Noise on the mean of a round's updates.

    Attributes:
        std_clips: standard deviation of each number, in units of the clip norm.
        total_clips: after the whole run, of the sum of the means.
        parameters_max: of a model in whose case the run's noise, as a vector, is no longer than the sum of
            means that are all of full clip and one direction: the strongest signal that there can be.
    """

    std_clips: float
    total_clips: float
    parameters_max: int


def mean_noise(terms: SiteTerms, sites: int) -> MeanNoise:
    """Of a round in which `sites` contribute."""
    if terms.noise == "site":
        deviation = terms.noise_multiplier / math.sqrt(sites)
    else:
        # All shares are there; provisioned they are for fewer.
        provided = max(1, sites - terms.dropouts_max)
        deviation = terms.noise_multiplier * math.sqrt(sites / provided) / sites
    rounds = terms.rounds_total
    return MeanNoise(deviation, deviation * math.sqrt(rounds), math.floor(rounds / deviation**2))


def plan(spec: RunSpec, sites: int) -> dict[str, Any]:
    """The `privacy` of `run check`, for a round of so many sites. Takes a second or two.

    Empty where the run promises nothing.
    """
    asked = read_asked(spec.task)
    terms = asked.privacy
    if terms == PrivacyTerms():
        return {}
    document: dict[str, Any] = {"promised": plain(terms), "assumptions": list(assumptions(terms))}
    warnings: list[str] = []
    if terms.record is not None:
        document["record"] = _record_plan(asked)
    if terms.site is not None and sites:
        document["site"], found = _site_plan(spec, terms.site, sites)
        warnings += found
    if terms.masked is not None and sites:
        wanted = threshold(sites)
        document["masked"] = {
            "sites": sites,
            "threshold": wanted,
            "dropouts_max": sites - wanted,
            "ring_bits": ring_bits(spec.codec_up, sites),
        }
        if sites == wanted:
            warnings.append(f"with {sites} sites no site may drop out of a masked round: it begins anew")
    if terms.site is None and terms.record is None:
        warnings.append("masks hide single updates and add no noise: the sum may still give records away")
    return {**document, "warnings": warnings}


def _record_plan(asked: Asked) -> dict[str, Any]:
    record = asked.record
    assert record is not None
    document = {
        "unit": record.unit,
        "epsilon": record.epsilon,
        "delta": record.delta,
        "steps_total": record.steps_total,
        "sampling_rate": record.sampling_rate or f"{asked.batch_size} of each site's own {record.unit}s",
        "noise_multiplier": f"each site solves it for its own {record.unit}s",
    }
    if record.sampling_rate is not None:
        try:
            # By the quick accountant: the tight one will need a little less.
            noise = solve_noise(record.epsilon, record.delta, record.sampling_rate, record.steps_total, "rdp")
        except FedtrainError as error:
            return {**document, "noise_multiplier": f"none is enough: {error}"}
        document["noise_multiplier"] = f"at most {noise:.4g}"
    return document


def _site_plan(spec: RunSpec, terms: SiteTerms, sites: int) -> tuple[dict[str, Any], list[str]]:
    noise = mean_noise(terms, sites)
    row = codec(spec.codec_up)
    step = float(getattr(row, "step", 0.0)) if row.summable else 0.0
    each = [site_mechanism(terms, sites, step, ELEMENTS_UNKNOWN)]
    if (bit := bit_mechanism(terms)) is not None:
        each.append(bit)
    run = [(replace(mechanism, steps=terms.rounds_total), 1) for mechanism in each]
    document: dict[str, Any] = {
        "unit": "site",
        "delta": terms.delta,
        "epsilon_rdp": _finite(epsilon_rdp(run, terms.delta)),
        "noise_multiplier": terms.noise_multiplier,
        "sites": sites,
        "mean_noise_std_in_clips": noise.std_clips,
        "run_noise_std_in_clips": noise.total_clips,
        "parameters_max": noise.parameters_max,
    }
    if terms.noise == "site":
        document["epsilon_exact"] = exact_gaussian_epsilon(_mu(each, terms.rounds_total), terms.delta)
    if noise.parameters_max >= PARAMETERS_FEW:
        return document, []
    return document, [
        f"the noise drowns the signal: on the mean of {sites} sites each number has noise of "
        f"{noise.std_clips:.2g} times the clip norm of a whole update, so a model of more than "
        f"{noise.parameters_max} parameters learns nothing in {terms.rounds_total} rounds. This is not "
        "useful: take privacy.record, more sites, or a larger epsilon"
    ]


def _mu(mechanisms: list[Mechanism], rounds: int) -> float:
    return math.sqrt(rounds * sum(1 / mechanism.noise_multiplier**2 for mechanism in mechanisms))


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
