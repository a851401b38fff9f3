"""`run check` on privacy: what the noise does to the mean, before anything is trained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedtrain.config.privacy import SiteSection
from fedtrain.coordinator.privacy_plan import mean_noise, plan
from fedtrain.core.privacy import AdaptiveTerms, MaskTerms, PrivacyTerms, RecordTerms, SiteTerms, plain
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.methods.accounting import exact_gaussian_epsilon

SPEC = RunSpec(
    run="tiny",
    seed=1,
    task="",
    sites=(),
    minimum=2,
    rounds=100,
    steps=5,
    quorum=2,
    quorum_share=0.5,
    deadline_ms=10_000,
    patience_ms=3_000,
    heartbeat_ms=500,
    late=LatePolicy.NEXT_ROUND,
    outer="average",
    outer_params={},
    outer_warmup_rounds=0,
    codec_up="fixed16s14",
    codec_down="int8",
    aggregator="mean",
    norm_max=None,
    evaluate_every=0,
)


def spec(terms: PrivacyTerms) -> RunSpec:
    section: dict[str, Any] = {"name": "tiny", "data": "corpus", "training": {"batch_size": 8}}
    return replace(SPEC, task=json.dumps({**section, "terms": {"privacy": plain(terms)}}))


@pytest.mark.parametrize(("sites", "expected"), [(3, 2.0), (5, 1.2), (10, 0.6)])
def test_few_sites_drown_in_noise(sites: int, expected: float) -> None:
    """TRUST.md: at 100 rounds and epsilon 8 the noise on the mean is 2.0, 1.2 and 0.6 of the clip norm for 3,
    5 and 10 sites. `run check` says so and does not call it useful."""
    exact = SiteSection(clip=0.7, epsilon=8.0, delta=1e-5).terms(100)
    terms = replace(exact, noise="distributed")
    assert round(mean_noise(terms, sites).std_clips, 1) == expected
    found = plan(spec(PrivacyTerms(site=terms, masked=MaskTerms(0, 0))), sites)
    assert round(found["site"]["mean_noise_std_in_clips"], 1) == expected
    assert any("drowns the signal" in text and "not useful" in text for text in found["warnings"])
    assert 8.0 < found["site"]["epsilon_rdp"] < 8.7, (
        "the Renyi curve of a sum is a little above the exact one"
    )


def test_the_noise_is_the_one_that_is_made() -> None:
    """Shares as the sites add them, and whole noise at each site: the mean's deviation, measured on 200,000
    numbers of a fixed seed, is the one that is told."""
    random, sites = np.random.default_rng(5), 5
    shares = SiteTerms(2.0, 3.0, 1e-5, 100, "distributed", 2)
    own = SiteTerms(2.0, 3.0, 1e-5, 100)
    for terms, deviation in ((shares, 3.0 * 2.0 / math.sqrt(sites - 2)), (own, 3.0 * 2.0)):
        noise = random.normal(0, deviation, (sites, 200_000)).mean(axis=0)
        told = mean_noise(terms, sites)
        assert noise.std() / terms.clip == pytest.approx(told.std_clips, rel=0.01)
        assert told.total_clips == pytest.approx(10 * told.std_clips)
        assert told.parameters_max == math.floor(100 / told.std_clips**2)


def test_many_sites_are_not_warned_of() -> None:
    """With enough sites the noise leaves room for a model, and no warning is made up."""
    terms = SiteTerms(1.0, 6.0, 1e-5, 100, "distributed", 1)
    found = plan(spec(PrivacyTerms(site=terms, masked=MaskTerms(0, 1))), 1000)
    assert not found["warnings"] and found["site"]["parameters_max"] > 100_000


def test_what_each_mechanism_will_cost() -> None:
    """Records: epsilon, delta, unit and steps; sites: by two accountants; masks: threshold and ring."""
    record = RecordTerms(8.0, 1e-5, 1.0, 500, sampling_rate=0.02)
    site = SiteTerms(1.0, 20.0, 1e-6, 100, adaptive=AdaptiveTerms(noise=50.0))
    found = plan(spec(PrivacyTerms(record, site, MaskTerms())), 5)
    assert (found["record"]["unit"], found["record"]["epsilon"], found["record"]["steps_total"]) == (
        "record",
        8.0,
        500,
    )
    assert found["record"]["noise_multiplier"].startswith("at most ")
    mu = math.sqrt(100 * (1 / 20**2 + 1 / 100**2))
    assert found["site"]["epsilon_exact"] == pytest.approx(exact_gaussian_epsilon(mu, 1e-6))
    assert found["site"]["epsilon_exact"] <= found["site"]["epsilon_rdp"]
    assert found["masked"] == {"sites": 5, "threshold": 4, "dropouts_max": 1, "ring_bits": 19}
    own = plan(spec(PrivacyTerms(replace(record, sampling_rate=None))), 5)
    assert "each site" in own["record"]["noise_multiplier"] and "8 of" in own["record"]["sampling_rate"]


def test_masks_alone_are_no_protection_of_records() -> None:
    """A run that only masks is told what that leaves open; one that promises nothing has no plan."""
    found = plan(spec(PrivacyTerms(masked=MaskTerms())), 3)
    assert any("no noise" in text for text in found["warnings"])
    assert any("no site may drop out" in text for text in found["warnings"])
    assert plan(spec(PrivacyTerms()), 3) == {}
