"""A site's clipped and noised update under attack: it passes; half its noise, or no clip, is caught."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest

from fedtrain.storage.mailbox import SiteTerms
from fedtrain.trainer.audit.distinguish import distinguish
from fedtrain.trainer.audit.subjects import UpdateSubject
from fedtrain.trainer.privacy import noise, site
from fedtrain.trainer.privacy.conditions import PrivacyFault

TERMS = SiteTerms(clip=2.0, noise_multiplier=1.0, delta=1e-5, rounds_total=1)
RUNS = 1200


@pytest.fixture(autouse=True)
def counted_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of a test has the same numbers each time."""
    count = itertools.count()
    monkeypatch.setattr(noise, "fresh_key", lambda: hashlib.sha256(str(next(count)).encode()).digest())


def half_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.grid_noise
    monkeypatch.setattr(noise, "grid_noise", lambda stream, n, sigma, grid: whole(stream, n, sigma / 2, grid))


def no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedtrain.trainer.audit.subjects.measure", lambda *given: site.Measured(1.0, None))


FAULTS = [pytest.param(half_noise, id="half noise"), pytest.param(no_clip, id="no clip")]


def test_right_update_passes() -> None:
    """With all conditions on, the audit proves less than the claimed mu = 1, but not nothing (fixed keys)."""
    assert 0.3 < distinguish(UpdateSubject(TERMS), RUNS).mu_lower < 1.0


@pytest.mark.parametrize("plant", FAULTS)
def test_condition_stops_the_fault(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's own conditions end the work before anything is encoded."""
    plant(monkeypatch)
    with pytest.raises(PrivacyFault):
        UpdateSubject(TERMS).release(True)


@pytest.mark.parametrize("plant", FAULTS)
def test_audit_catches_what_no_condition_stops(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the conditions taken away each fault is proven to lose more than the claim (fixed keys)."""
    plant(monkeypatch)
    monkeypatch.setattr(site.NoisedUpdate, "_check", lambda self, released, clipped: None)
    assert distinguish(UpdateSubject(TERMS), RUNS).mu_lower > 1.0
