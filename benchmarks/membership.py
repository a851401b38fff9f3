"""Was this record in the training data? Two attacks on a small classifier, trained with and without noise.

    python benchmarks/membership.py [--quick]

Models of the task `classifier` are trained on random halves of scikit-learn's digits, a tenth of them with
a wrong class (what a model cannot learn from others' records it has to remember). Each model is attacked
in turn, with the others as shadows:

    loss    the lower the loss, the likelier a member (Yeom et al., 2018, arXiv 1709.01604)
    LiRA    the likelihood ratio of the record's confidence under normal distributions that the shadows with
            and without it give (Carlini et al., Membership inference attacks from first principles, 2022,
            arXiv 2112.03570)

Printed are the area under the ROC curve (0.5: a coin) and, what counts for the most exposed, the share of
members found at 1 % false alarms (0.01: a coin). One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.accounting import solve_noise
from fedtrain.trainer.audit.exposure import Drawn, RecordForm, Trained
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tables import Record, bundled_records, read_record, write_record
from fedtrain.trainer.tasks.classifier import Classifier
from fedtrain.trainer.tasks.task import Weights, Work

MODEL = {"features": 64, "classes": 10, "hidden": [64], "low": 0.0, "high": 16.0}
BATCH, DELTA, CLIP = 64, 1e-5, 1.0
PLAIN = {"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.9, "batch_size": BATCH, "clip_norm": 10.0}
PRIVATE = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9, "batch_size": BATCH}
EPSILONS = (None, 8.0, 1.0)
WRONG = 0.1
FALSE_ALARMS = 0.01

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How much work: records in all, models, steps of each with and without noise."""

    records: int
    models: int
    private_steps: int
    plain_steps: int


class Listed(DataSource):
    """Records that are all trained on, with one of `spare` at every place that is held out."""

    def __init__(self, records: Sequence[bytes], spare: Sequence[bytes]) -> None:
        super().__init__("digits", "", {})
        self._records = records
        self._spare = spare

    def documents(self) -> Iterator[bytes]:
        return RecordForm(dict(MODEL)).mix(self._records, iter(self._spare))


def pool(count: int) -> tuple[list[bytes], list[bytes]]:
    """(records that may be members, a tenth of them with a wrong class; records to measure accuracy on)."""
    chance = np.random.default_rng(1)
    found = list(bundled_records(("digits:1/1",), Path()))
    found = [found[i] for i in chance.permutation(len(found))]
    records = [read_record(document) for document in found[:count]]
    wrong = chance.random(count) < WRONG
    shift = chance.integers(1, MODEL["classes"], count)
    spoilt = [
        Record((record.label + int(by)) % MODEL["classes"] if bad else record.label, "", record.features)
        for record, bad, by in zip(records, wrong, shift, strict=True)
    ]
    return [write_record(record) for record in spoilt], found[count:]


class Shadows:
    """Models on random halves, and what each of them says of every record."""

    def __init__(self, size: Size, epsilon: float | None) -> None:
        records, spare = pool(size.records)
        self.members = np.random.default_rng(2).random((size.models, size.records)) < 0.5
        training, steps = (PLAIN, size.plain_steps) if epsilon is None else (PRIVATE, size.private_steps)
        spec = TaskSpec("classifier", "digits", MODEL, training)
        judge = Classifier(spec, Listed(records, spare))
        self.confidence = np.empty((size.models, size.records))
        accuracies = []
        plan = _plan(BATCH / (size.records / 2), steps, epsilon)
        for number, members in enumerate(self.members):
            own = [record for record, member in zip(records, members, strict=True) if member]
            task = Classifier(spec, Listed(own, spare))
            weights = _trained(task, number, plan, steps)
            loss = judge.record_losses(weights)[: size.records].astype(np.float64)
            # log(p / (1 - p)) with p = e^-loss, kept finite where p is 0 or 1.
            self.confidence[number] = -np.log(np.expm1(np.clip(loss, 1e-9, 500)))
            accuracies.append(judge.accuracy(weights)[0])
        self.accuracy, self.steps = float(np.mean(accuracies)), steps


def _plan(rate: float, steps: int, epsilon: float | None) -> RecordPlan | None:
    """The same sampling rate for all models, whatever the size of their halves."""
    if epsilon is None:
        return None
    return RecordPlan(CLIP, solve_noise(epsilon, DELTA, rate, steps), rate)


def _trained(task: Classifier, number: int, plan: RecordPlan | None, steps: int) -> Weights:
    work = Work("membership", number, 1, f"site-{number}", steps, 0, plan)
    return Trained(task, Drawn(task, number), work, lambda done: None)


def by_loss(shadows: Shadows, target: int) -> Floats:
    """Scores of all records for one target model: its own confidence."""
    return shadows.confidence[target]


def by_likelihood(shadows: Shadows, target: int) -> Floats:
    """Log likelihood ratio, means per record and, with few shadows, spreads over all records."""
    others = np.arange(len(shadows.members)) != target
    inside = np.where(shadows.members[others], shadows.confidence[others], np.nan)
    outside = np.where(shadows.members[others], np.nan, shadows.confidence[others])
    found = shadows.confidence[target]
    scores = np.zeros_like(found)
    for values, sign in ((inside, 1.0), (outside, -1.0)):
        present = np.isfinite(values)
        count = present.sum(axis=0)
        filled = np.where(present, values, 0.0)
        # A record that no shadow has, or that all have, is judged by the mean over all records.
        mean = np.where(count > 0, filled.sum(axis=0) / np.maximum(count, 1), filled.sum() / present.sum())
        spread = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum() / present.sum())
        scores += sign * (-0.5 * ((found - mean) / spread) ** 2 - np.log(spread))
    return scores


ATTACKS = {"loss": by_loss, "LiRA": by_likelihood}


def curve(scores: Floats, members: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(area under the ROC curve, share of members found at 1 % false alarms)."""
    ranks = np.empty(len(scores))
    ranks[scores.argsort()] = np.arange(1, len(scores) + 1)
    inside = int(members.sum())
    area = (ranks[members].sum() - inside * (inside + 1) / 2) / (inside * (len(scores) - inside))
    threshold = np.quantile(scores[~members], 1 - FALSE_ALARMS, method="higher")
    return float(area), float((scores[members] > threshold).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Membership inference with and without noise.")
    parser.add_argument("--quick", action="store_true", help="fewer models and steps")
    size = Size(400, 8, 80, 600) if parser.parse_args().quick else Size(800, 16, 300, 1500)
    torch.set_num_threads(1)
    lines = []
    for epsilon in EPSILONS:
        began = time.perf_counter()
        shadows = Shadows(size, epsilon)
        for name, attack in ATTACKS.items():
            found = [curve(attack(shadows, i), shadows.members[i]) for i in range(size.models)]
            area, hits = np.mean(found, axis=0)
            lines.append(
                {
                    "benchmark": "membership",
                    "epsilon": epsilon,
                    "delta": None if epsilon is None else DELTA,
                    "unit": "record",
                    "attack": name,
                    "auc": round(float(area), 3),
                    "found_at_1_percent": round(float(hits), 4),
                    "accuracy": round(shadows.accuracy, 3),
                    "models": size.models,
                    "records": size.records,
                    "steps": shadows.steps,
                    "seconds": round(time.perf_counter() - began, 1),
                }
            )
            print(json.dumps(lines[-1]), flush=True)
    print(f"\n{'epsilon':>8} {'attack':7} {'AUC':>6} {'found at 1 % false alarms':>26} {'accuracy':>9}")
    for line in lines:
        epsilon = "none" if line["epsilon"] is None else f"{line['epsilon']:g}"
        print(
            f"{epsilon:>8} {line['attack']:7} {line['auc']:6.3f} {line['found_at_1_percent']:26.2%}"
            f" {line['accuracy']:9.3f}"
        )


if __name__ == "__main__":
    main()
