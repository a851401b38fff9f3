"""`fedtrain privacy audit`: a run's promise under attack, from its file alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedtrain.trainer.privacy import noise
from fedtrain.trainer.privacy.step import PrivateStep

RUN = """
run: audited
task:
  name: classifier
  data: tables
  model: {features: 4, classes: 3, hidden: [8], low: 0.0, high: 8.0}
  training: {optimizer: sgd, learning_rate: 0.5, batch_size: 20}
rounds: {count: 5, steps: 4}
sites: {include: all, minimum: 2}
"""
PRIVATE = RUN + "privacy: {record: {epsilon: 8.0, clip: 1.0}}\n"

SURE = "0.9999999999"
"""The bound is then wrong once in 10^10 audits, and no test of a right step fails by chance."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "run.yaml"
    path.write_text(PRIVATE)
    return path


def audit(fedtrain: Any, config: Path, *more: str) -> Any:
    return fedtrain("privacy", "audit", config, "--runs", "400", "--seconds", "600", "--repeats", "2", *more)


@pytest.mark.slow
def test_right_step_holds(fedtrain: Any, config: Path) -> None:
    """The document names unit, claim and what was proven of it; data that come along are used and said so."""
    outcome = audit(fedtrain, config, "--confidence", SURE, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert list(found["units"]) == ["record"] and found["broken"] is False
    claim = found["units"]["record"]["claim"]
    assert (claim["epsilon"], claim["steps"], claim["units"]) == (8.0, 20, 120)
    for attack in found["units"]["record"]["attacks"].values():
        assert attack["runs"] == 400
        assert 0.0 <= attack["mu_lower"] <= attack["mu_claimed"]
        assert attack["epsilon_lower"] <= attack["epsilon_claimed"]
    assert set(found["extraction"]["trainings"]) == {"plain", "private"}
    assert "data that come along" in outcome.err and "step: 400 of 400" in outcome.err


@pytest.mark.slow
def test_too_little_noise_ends_with_3(fedtrain: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that adds a hundredth of its noise, its conditions taken away, is refused with both figures."""
    whole = PrivateStep.__init__

    def weak(self: PrivateStep, *given: Any, **named: Any) -> None:
        whole(self, *given, **named)
        self.add_noise = lambda stream, n, sigma, grid: noise.grid_noise(stream, n, sigma / 100, grid)
        self.conditions.noise = lambda *found: None  # type: ignore[method-assign]

    monkeypatch.setattr(PrivateStep, "__init__", weak)
    outcome = audit(fedtrain, config)
    assert outcome.code == 3 and "loses more than it claims for each record" in outcome.err
    assert "broken" in outcome.out


def test_site_level_noise_is_audited_by_itself(fedtrain: Any, config: Path) -> None:
    """A run that protects whole sites has its clip and noise attacked, under the unit `site`."""
    config.write_text(RUN + "privacy: {site: {clip: 1.0, noise_multiplier: 2.0}}\n")
    outcome = audit(fedtrain, config, "--confidence", SURE, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert list(found["units"]) == ["site"] and found["extraction"] is None
    attack = found["units"]["site"]["attacks"]["update"]
    assert 0.0 <= attack["mu_lower"] <= attack["mu_claimed"] == 0.5


def test_distributed_noise_is_said_to_be_out_of_reach(fedtrain: Any, config: Path) -> None:
    """What is complete only in the sum of all sites is refused with the reason, not passed."""
    more = "privacy: {masked: {range: 40.0}, site: {clip: 1.0, noise_multiplier: 2.0, noise: distributed}}\n"
    config.write_text(RUN.replace("minimum: 2", "minimum: 5") + "codec: {up: fixed16}\n" + more)
    outcome = audit(fedtrain, config)
    assert outcome.code == 2 and "complete only in the masked sum" in outcome.err


def test_without_a_promise_there_is_nothing_to_audit(fedtrain: Any, config: Path) -> None:
    """A run that promises no privacy of records ends with 2, and the key that would make it."""
    config.write_text(RUN)
    outcome = audit(fedtrain, config)
    assert outcome.code == 2
    assert (
        "nothing to audit" in outcome.err and "privacy.record" in outcome.err and str(config) in outcome.err
    )


def test_data_of_a_site_are_used_by_its_rights(fedtrain: Any, config: Path, tmp_path: Path) -> None:
    """`--data` takes the data set that the run names, and its rights refuse a task that they do not name."""
    peer = tmp_path / "peer.yaml"
    dataset = {"path": ["wine:1/1"], "format": "scikit-learn", "rights": {"execute": ["causal_lm"]}}
    peer.write_text(json.dumps({"site": "here", "datasets": {"tables": dataset}}))
    refused = audit(fedtrain, config, "--data", str(peer))
    assert refused.code == 3 and "does not allow the task" in refused.err
    unfit = config.read_text().replace("data: tables", "data: absent")
    config.write_text(unfit)
    assert audit(fedtrain, config, "--data", str(peer)).code == 2


def test_task_without_private_steps_is_refused(fedtrain: Any, config: Path) -> None:
    """A task that cannot be audited says so, and which methods it lacks or data it wants."""
    text = PRIVATE.replace("name: classifier", "name: synthetic")
    text = text.replace("{features: 4, classes: 3, hidden: [8], low: 0.0, high: 8.0}", "{parameters: 100}")
    config.write_text(text.replace("{optimizer: sgd, learning_rate: 0.5, batch_size: 20}", "{}"))
    outcome = audit(fedtrain, config)
    assert outcome.code == 2 and "no bundled data" in outcome.err


def test_interruption_leaves_quietly(fedtrain: Any, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of an attack ends with 130, without a result and without a traceback."""

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedtrain.trainer.audit.task_audit.solve_noise", interrupted)
    outcome = audit(fedtrain, config)
    assert outcome.code == 130 and outcome.out == "" and "Traceback" not in outcome.err
