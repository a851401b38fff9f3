"""What a run file's `privacy` becomes: resolved terms that travel inside the task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedtrain.config import load_run
from fedtrain.core.charges import GAUSSIAN, Mechanism
from fedtrain.core.privacy import AdaptiveTerms, MaskTerms, RecordTerms, SiteTerms
from fedtrain.core.spec import RunSpec
from fedtrain.core.terms import Asked, read_asked
from fedtrain.errors import ConfigError
from fedtrain.methods.accounting import epsilon_rdp, exact_gaussian_epsilon

RUN = """\
run: tiny
task: {name: synthetic, training: {batch_size: 8}}
sites: {minimum: 5}
rounds: {count: 100, steps: 20}
"""


def spec(folder: Path, text: str) -> RunSpec:
    path = folder / "run.yaml"
    path.write_text(RUN + text, encoding="utf-8")
    return load_run(path).spec()


def asked(folder: Path, text: str) -> Asked:
    found = read_asked(spec(folder, text).task)
    assert not found.fault
    return found


def test_totals_are_resolved(tmp_path: Path) -> None:
    """The whole run's steps travel with the promise, so that the task's digest binds them."""
    record = asked(tmp_path, "privacy: {record: {epsilon: 8, clip: 0.5, unit: group}}").record
    assert record == RecordTerms(8.0, 1e-5, 0.5, 2000, unit="group")


def test_nothing_promised_says_nothing(tmp_path: Path) -> None:
    """A run without privacy has the task that older sites know."""
    assert "terms" not in spec(tmp_path, "privacy: {}").task
    assert "terms" not in spec(tmp_path, "privacy: {masked: false}").task


@pytest.mark.parametrize("adaptive", ["", ", adaptive: {noise: 20.0}"])
def test_the_noise_of_a_site_is_solved(tmp_path: Path, adaptive: str) -> None:
    """An epsilon in the file becomes the noise with which all rounds, bits included, spend just that."""
    text = f"privacy: {{site: {{clip: 0.3, epsilon: 8, delta: 1.0e-5{adaptive}}}}}"
    site = asked(tmp_path, text).site
    assert site is not None and site.rounds_total == 100
    bits = (0.5 / 20) ** 2 if adaptive else 0.0
    mu = math.sqrt(100 * (1 / site.noise_multiplier**2 + bits))
    assert 7.999 < exact_gaussian_epsilon(mu, 1e-5) <= 8.0
    assert (site.adaptive is not None) == bool(adaptive)


def test_noise_in_shares_is_solved_by_its_own_accountant(tmp_path: Path) -> None:
    """Of a sum of shares only the Renyi curve is known, so the noise is what that needs: a little more."""
    text = (
        "codec: {up: fixed16}\nprivacy:\n  masked: true\n"
        "  site: {clip: 0.3, epsilon: 8, noise: distributed, dropouts_max: 1}\n"
    )
    site = asked(tmp_path, text).site
    assert site is not None
    mechanism = Mechanism(GAUSSIAN, "site", 0.3, site.noise_multiplier, steps=100)
    assert 7.99 < epsilon_rdp([(mechanism, 1)], 1e-5) <= 8.0


def test_bits_that_cost_all_are_refused(tmp_path: Path) -> None:
    """Adaptive clipping whose bits alone overdraw the epsilon is told so, with the remedy."""
    with pytest.raises(ConfigError) as caught:
        spec(tmp_path, "privacy: {site: {clip: 0.3, epsilon: 1, adaptive: true}}")
    assert "adaptive.noise" in str(caught.value)


def test_masked_and_distributed(tmp_path: Path) -> None:
    """The masks keep the noise's provision for lost sites, and a short codec gets its shared scale."""
    text = (
        "codec: {up: fixed16}\nprivacy:\n  masked: true\n"
        "  site: {clip: 1.0, noise_multiplier: 2.0, noise: distributed, dropouts_max: 1, adaptive: true}\n"
    )
    found = spec(tmp_path, text)
    asked = read_asked(found.task)
    assert asked.masked == MaskTerms(0, 1)
    assert asked.site == SiteTerms(1.0, 2.0, 1e-5, 100, "distributed", 1, AdaptiveTerms())
    # Range 1 + 6 * 2 / sqrt(5 - 1) = 7: the smallest power of two that reaches it in 32767 steps.
    assert found.codec_up == "fixed16s12" and 7 <= 32767 / 2**12 < 14


@pytest.mark.parametrize(
    ("codec", "masked", "expected"),
    [
        ("fixed12", "true", "fixed12s10"),
        ("fixed16", "{range: 1.0}", "fixed16s14"),
        ("fixed8", "{range: 100.0}", "fixed8s0"),
        ("randk8", "{keep: 7}", "randk8s6k7"),
        ("fixed12s11", "true", "fixed12s11"),
    ],
)
def test_short_codecs(tmp_path: Path, codec: str, masked: str, expected: str) -> None:
    """range <= level_max * step, with the smallest step of a power of two."""
    assert spec(tmp_path, f"codec: {{up: {codec}}}\nprivacy: {{masked: {masked}}}\n").codec_up == expected


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("privacy: {site: {clip: 1, epsilon: 8, noise: distributed}}", "privacy.site.noise", "masked: true"),
        (
            "codec: {up: fixed16}\nprivacy: {masked: true, record: {epsilon: 1},"
            " site: {clip: 1, epsilon: 8, noise: distributed}}",
            "privacy.record",
            "excludes",
        ),
        (
            "codec: {up: fixed16}\nprivacy: {masked: {weight_max: 5},"
            " site: {clip: 1, epsilon: 8, noise: distributed}}",
            "privacy.masked.weight_max",
            "equal weights",
        ),
        ("privacy: {site: {clip: 1, epsilon: 8, dropouts_max: 1}}", "privacy.site.dropouts_max", "noise:"),
        ("privacy: {record: {epsilon: 8, sampling: shuffle}}", "privacy.record.sampling", "poisson"),
        ("privacy: {record: {epsilon: 8, delta: 0.5}}", "privacy.record.delta", "0.01"),
        ("privacy: {record: {epsilon: .nan}}", "privacy.record.epsilon", ""),
        ("codec: {up: fixed25}", "codec.up", "fixed<bits>"),
        ("codec: {up: bfloat16}\nprivacy: {masked: true}", "codec.up", "randk8"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path: Path, text: str, key: str, words: str) -> None:
    """Each impossible promise names its key."""
    with pytest.raises(ConfigError) as caught:
        spec(tmp_path, text)
    assert caught.value.key == key and words in str(caught.value)


def test_masks_need_three_sites(tmp_path: Path) -> None:
    """The sum of two tells each the other's part."""
    path = tmp_path / "run.yaml"
    path.write_text(
        RUN.replace("minimum: 5", "minimum: 2") + "codec: {up: fixed16}\nprivacy: {masked: true}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert caught.value.key == "sites.minimum"
