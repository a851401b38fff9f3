"""Baselines of a private run: the health example's, a few steps long."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedtrain.trainer.baseline import main

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "configs" / "health-dp.yaml"
CLINICS = [str(ROOT / "peers" / "health" / f"clinic-{number}" / "peer.yaml") for number in (1, 4)]
PLAN = {"clip": 1.0, "noise_multiplier": 0.5, "sampling_rate": 0.5, "unit": "record", "mode": "auto"}


def baseline(capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    """The document of forty steps on two clinics' records."""
    words = ("--run", str(RUN), "--name", "x", "--train", *CLINICS, "--evaluate", *CLINICS, "--steps", "40")
    assert main([*words, *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_classifier_is_told_by_its_accuracy_too(capsys):
    """Each clinic's held-out records have a loss and a share that is classified rightly."""
    found = baseline(capsys)
    assert sorted(found["accuracy"]) == sorted(found["loss"]) == ["clinic-1", "clinic-4"]
    assert sum(found["accuracy"].values()) / 2 > 0.7
    assert found["train_loss"] is not None


def test_private_steps_have_fresh_noise_and_tell_no_training_loss(capsys):
    """With a plan the same seed ends at other weights each time, and nothing is said of the draws."""
    first, second = (baseline(capsys, "--private", json.dumps(PLAN)) for _ in range(2))
    assert first["loss"] != second["loss"]
    assert first["train_loss"] is None
    # The expected number of records, whatever was drawn.
    assert first["tokens"] == second["tokens"] > 0
