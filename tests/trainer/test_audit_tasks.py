"""The tasks' own private steps under attack: whom an audit picks, and that it attacks what trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedtrain.errors import ConfigError
from fedtrain.trainer.audit.demo_data import demo_source
from fedtrain.trainer.audit.exposure import Drawn
from fedtrain.trainer.audit.subjects import find_target, only, step_subject
from fedtrain.trainer.audit.task_audit import promised
from fedtrain.trainer.data import DataSource, read_datasets
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Units
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import build_task

torch.set_num_threads(1)

CLASSIFIER = TaskSpec(
    "classifier",
    "demo",
    {"features": 4, "classes": 3, "hidden": [8], "low": 0.0, "high": 8.0},
    {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 20},
    {"privacy": {"record": {}}},
)
LANGUAGE = TaskSpec(
    "causal_lm",
    "demo",
    {"layers": 1, "heads": 2, "width": 8, "context": 8},
    {"learning_rate": 0.01, "batch_size": 4},
)


def silent(step: Any) -> None:
    """A step without noise, and without the condition that would stop it."""
    step.add_noise = lambda stream, count, deviation, grid: torch.zeros(count, dtype=torch.float64)
    step.conditions.noise = lambda noise, deviation: None


@pytest.mark.parametrize("spec", [CLASSIFIER, LANGUAGE], ids=["classifier", "causal_lm"])
def test_without_noise_the_worlds_differ_by_the_canary(spec: TaskSpec) -> None:
    """What a task's step releases with the canary is what it releases without, and the canary's gradient."""
    source = demo_source(spec)
    tasks = build_task(spec, source), build_task(spec, source)
    start = Drawn(tasks[0], 1)
    plan = RecordPlan(0.1, 1.0, 1.0)
    target = find_target(tasks[0], start, plan)
    assert target.canary != target.company and target.length > 0
    assert float(target.signal.norm()) == pytest.approx(min(1.0, target.length) * plan.clip, rel=1e-4)
    subject = step_subject(tasks, start, plan, target)
    for step in subject._worlds:
        silent(step)
    found = subject.release(True) - subject.release(False)
    np.testing.assert_allclose(found, subject.signal, atol=1e-4 * plan.clip + 1e-6)
    subject.detach()


def test_group_is_attacked_with_all_its_records(tmp_path: Path) -> None:
    """With `unit: group` the canary is a person, whose records are summed before they are clipped."""
    rows = ["a,b,c,d,patient,label", *(f"{i % 7},{i % 3},1,2,p{i // 3},{i % 3}" for i in range(60))]
    (tmp_path / "visits.csv").write_text("\n".join(rows))
    dataset = {"path": ["visits.csv:group=patient"], "format": "csv", "rights": {"execute": ["classifier"]}}
    (tmp_path / "peer.yaml").write_text(json.dumps({"site": "here", "datasets": {"demo": dataset}}))
    source = DataSource("demo", "classifier", read_datasets(tmp_path / "peer.yaml"))
    tasks = build_task(CLASSIFIER, source), build_task(CLASSIFIER, source)
    start = Drawn(tasks[0], 1)
    plan = RecordPlan(0.1, 1.0, 1.0, unit="group", mode="per-example")
    subject = step_subject(tasks, start, plan, find_target(tasks[0], start, plan))
    for step in subject._worlds:
        silent(step)
    found = subject.release(True) - subject.release(False)
    np.testing.assert_allclose(found, subject.signal, atol=1e-5)


def test_choice_of_units_keeps_their_records() -> None:
    """Units 2 and 0 of three groups are two units with exactly those records, in that order."""
    units = Units.of_groups(np.array([5, 5, 7, 9, 9, 9]))
    chosen = only(2, 0)(units)
    records, place = chosen.records(np.arange(2))
    assert (chosen.count, records.tolist(), place.tolist()) == (2, [3, 4, 5, 0, 1], [0, 0, 0, 1, 1])


def test_terms_that_cannot_be_read_are_refused() -> None:
    """An unknown word in the terms is a fault, not a run without a promise."""
    task = {"name": "classifier", "data": "demo", "terms": {"privacy": {"records": {}}}}
    with pytest.raises(ConfigError, match="cannot be understood"):
        promised(json.dumps(task))
