"""Planted secrets: how they get into the data, and how much of them a model is found to remember."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fedtrain.errors import ConfigError
from fedtrain.trainer.audit.demo_data import demo_source
from fedtrain.trainer.audit.exposure import (
    CANARIES,
    CHANCE_BITS,
    Drawn,
    Extraction,
    RecordForm,
    TextForm,
    Trained,
    exposure_of,
)
from fedtrain.trainer.data import DataSource, read_datasets
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tables import read_record
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.corpus import Corpus
from fedtrain.trainer.tasks.records import Table
from fedtrain.trainer.tasks.task import Work

torch.set_num_threads(1)

TABLE = {"features": 4, "classes": 3, "hidden": [32], "low": 0.0, "high": 8.0}
TRAINING = {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": 40}


def spec(name: str, model: dict[str, object]) -> TaskSpec:
    return TaskSpec(name, "demo", model, TRAINING)


def test_first_of_all_has_all_bits_and_the_last_none() -> None:
    """With 1,023 candidates a secret that is easier than all has 10 bits, a harder one 0, equal ones 0."""
    others = np.linspace(1, 2, 1023, dtype=np.float32)
    for loss, bits in ((0.5, 10.0), (3.0, 0.0)):
        losses = np.concatenate([np.full(CANARIES, loss, np.float32), others])
        assert exposure_of(losses).mean_bits == pytest.approx(bits)
    assert exposure_of(np.ones(CANARIES + 1023, np.float32)).most_bits == 0.0


def test_chance_gives_the_bits_that_are_called_chance() -> None:
    """Over 500 draws without memory the mean is 1 / ln 2, within 0.1 bit (fixed seed)."""
    chance = np.random.default_rng(3)
    found = [exposure_of(chance.random(CANARIES + 1023).astype(np.float32)).mean_bits for _ in range(500)]
    assert math.isclose(float(np.mean(found)), CHANCE_BITS, abs_tol=0.1)


def test_planted_records_are_all_trained_on() -> None:
    """No planted record falls to the held-out fifth, and their order stays."""
    form = RecordForm(TABLE)
    chance = random.Random(1)
    planted = [form.draw(chance) for _ in range(30)]
    table = Table([form.mix(planted, iter([form.draw(chance) for _ in range(50)]))], 4, 3)
    found = iter(tuple(map(float, row)) for row in table.train[0])
    wanted = [tuple(map(float, np.float32(read_record(document).features))) for document in planted]
    assert all(any(row == one for row in found) for one in wanted)


def test_planted_texts_are_records_of_their_own() -> None:
    """A planted sentence and its separator are exactly one window of the training text."""
    form = TextForm({"context": 32})
    planted = [form.draw(random.Random(seed)) for seed in range(20)]
    corpus = Corpus([list(form.mix(planted, iter([b"x" * 50_000])))], 32)
    starts, documents = corpus.records(within_documents=True)
    assert documents[:20].tolist() == list(range(20))
    assert [bytes(row[:-1]) for row in corpus.windows(starts[:20])] == planted


def test_model_that_saw_a_secret_often_remembers_it(tmp_path: Path) -> None:
    """Trained on little else, a classifier knows its secrets far better than a fresh one (fixed seeds)."""
    peer = tmp_path / "peer.yaml"
    part = {"path": ["wine:1/20"], "format": "scikit-learn", "rights": {"execute": ["classifier"]}}
    peer.write_text(json.dumps({"site": "here", "datasets": {"demo": part}}))
    wide = {**TABLE, "features": 13, "high": [15, 6, 4, 30, 170, 4, 6, 1, 4, 14, 2, 4, 1700], "hidden": [64]}
    section = spec("classifier", wide)
    extraction = Extraction(section, DataSource("demo", "classifier", read_datasets(peer)), 16, 1)
    task = build_task(section, extraction.source)
    start = Drawn(task, 1)
    assert extraction.exposure(start).mean_bits < 2.5
    trained = Trained(task, start, Work("run", 1, 1, "here", 400, 0), lambda steps: None)
    assert extraction.exposure(trained).mean_bits > 4


def test_task_without_a_form_of_secrets_is_refused() -> None:
    """What cannot be planted is said, with the tasks for which it can be."""
    with pytest.raises(ConfigError, match="causal_lm, classifier"):
        Extraction(TaskSpec("synthetic", "", {}, {}), DataSource("", "", {}), 1, 1)


def test_bundled_data_fit_the_model_or_are_refused() -> None:
    """Features and classes choose among the bundled tables; where none fits, a site's data are asked for."""
    assert sum(1 for _ in demo_source(spec("classifier", TABLE)).documents()) == 150
    with pytest.raises(ConfigError, match="--data"):
        demo_source(spec("classifier", {**TABLE, "features": 5}))
