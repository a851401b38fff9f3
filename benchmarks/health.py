"""What record-level privacy costs in accuracy: federated, all data in one place, and each site alone.

    python -m benchmarks.health [--quick] [--tune] [--epsilon E ...] [--seeds N ...]

The run of `configs/health-dp.yaml`: five sites, uneven classes (skew 0.8), logistic regression. Every
way of training takes as many steps with the same sampling rate, so a record is drawn as often, and has the
same epsilon; the noise is solved once and is the same, too:

    federated    each site's own steps, the mean of the updates after every round
    central      all records in one place; each step draws from five times as many
    local        each site alone; told are the mean and the worst of five

Accuracy is that on the held-out records of all sites together. It all happens in this process, with the
trainer's task and private step, the aggregator, the outer step and the accountants of the product. A seed
changes the split, the first weights and the plain batches; noise and private draws are the system's own.

Learning rates were chosen with `--tune` on splits of other seeds, for each way and epsilon by itself, so no
way of training is handed another's. Choosing on private data costs privacy; the epsilons here leave that out.
One JSON line a cell, then a table.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.consortium import REPOSITORY, emit
from fedtrain.core.charges import POISSON_GAUSSIAN, Mechanism
from fedtrain.methods.accounting import epsilon_pld, epsilon_rdp, solve_noise
from fedtrain.methods.aggregators import aggregator, normalised_weights
from fedtrain.methods.outer import outer
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tables import Record, bundled_records, read_record, share, write_record
from fedtrain.trainer.tasks.classifier import Classifier
from fedtrain.trainer.tasks.task import Vector, Work

SITES = 5
SKEW = 0.8
ROUNDS, STEPS = 20, 5
RATE = 0.2
CLIP = 1.0
DELTA = 1e-4
PLAIN_BATCH = 16
ACCOUNTANT_S = 300.0
"""So that a busy machine does not make the tight accountant give up, which would cost accuracy."""

EPSILONS = (1.0, 3.0, 8.0, None)
"""None: without privacy."""

SEEDS = (1, 2, 3)
TUNING_SEEDS = (101, 102)
TUNED_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)

FEDERATED, CENTRAL, LOCAL = WAYS = ("federated", "central", "local")


LEARNING_RATES = {
    FEDERATED: (0.25, 0.25, 0.5, 0.5),
    CENTRAL: (0.5, 0.5, 4.0, 0.5),
    LOCAL: (2.0, 4.0, 4.0, 4.0),
}
"""Way -> the one that `--tune` found for each of `EPSILONS`."""

DATA = "breast_cancer"


def configured_model() -> dict[str, Any]:
    """The model of the example's run file."""
    run = yaml.safe_load((REPOSITORY / "configs" / "health-dp.yaml").read_text())
    model: dict[str, Any] = run["task"]["model"]
    return model


class Documents(DataSource):
    """Records that are in memory already: of one site, or of several with a split of each."""

    def __init__(self, *sites: list[bytes]) -> None:
        super().__init__("records", "classifier", {})
        self._sites = sites

    def documents(self) -> Iterator[bytes]:
        return itertools.chain.from_iterable(self._sites)

    def parts(self) -> Sequence[DataSource]:
        return [self] if len(self._sites) == 1 else [Documents(site) for site in self._sites]


@dataclass(frozen=True)
class Values:
    """Weights in memory, as a task reads them."""

    values: Vector

    @property
    def num_elements(self) -> int:
        return self.values.size

    def read(self, start: int, out: Vector) -> object:
        out[:] = self.values[start : start + out.size]
        return out


class Silent:
    """A context for work that nobody watches."""

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Nobody is told."""

    def pause(self, seconds: float) -> None:
        """As it says."""
        time.sleep(seconds)


def split(seed: int) -> list[list[bytes]]:
    """Documents of each site. Seed 1 is the product's own split; others differ by the name that is hashed."""
    whole = [read_record(document) for document in bundled_records((f"{DATA}:1/1",), Path())]
    labels = [record.label for record in whole]
    homes = share(labels, SITES, SKEW, DATA if seed == 1 else f"{DATA} {seed}")
    sites: list[list[bytes]] = [[] for _ in range(SITES)]
    for record, home in zip(whole, homes, strict=True):
        sites[home].append(write_record(Record(record.label, "", record.features)))
    return sites


class Cell:
    """One split, one epsilon: trains in every way and measures on all held-out records."""

    def __init__(self, seed: int, noise: float) -> None:
        self._seed = seed
        self._plan = RecordPlan(CLIP, noise, RATE) if noise else None
        self._sites = split(seed)
        self._judges = [self._task(1.0, site) for site in self._sites]

    def accuracies(self, way: str, learning_rate: float) -> list[float]:
        """Accuracy of the one model, or of each site's."""
        if way == FEDERATED:
            return [self._judged(self._federated(learning_rate))]
        if way == CENTRAL:
            return [self._judged(self._alone(learning_rate, "central", *self._sites))]
        return [
            self._judged(self._alone(learning_rate, f"site-{index}", site))
            for index, site in enumerate(self._sites)
        ]

    def _task(self, learning_rate: float, *sites: list[bytes]) -> Classifier:
        training = {
            "optimizer": "sgd",
            "momentum": 0.0,
            "learning_rate": learning_rate,
            "batch_size": PLAIN_BATCH * len(sites),
        }
        return Classifier(TaskSpec("classifier", "records", configured_model(), training), Documents(*sites))

    def _first(self, task: Classifier) -> Vector:
        return np.concatenate([piece.copy() for piece in task.initial_weights(self._seed)])

    def _work(self, site: str, round_index: int, steps: int) -> Work:
        before = (round_index - 1) * steps
        return Work("health", self._seed, round_index, site, steps, before, self._plan)

    def _federated(self, learning_rate: float) -> Vector:
        tasks = [self._task(learning_rate, site) for site in self._sites]
        weights = self._first(tasks[0])
        average, mean = outer("average"), aggregator("mean")
        for round_index in range(1, ROUNDS + 1):
            updates, shares = [], []
            for index, task in enumerate(tasks):
                done = task.train(Values(weights), self._work(f"site-{index}", round_index, STEPS), Silent())
                updates.append(_taken(done.pseudo_gradient, weights.size))
                shares.append(float(done.weight))
            combined = np.empty_like(weights)
            mean.combine(updates, normalised_weights(shares, [0.0] * SITES, None), combined)
            average.step(weights, combined, {}, average.settings({}))
        return weights

    def _alone(self, learning_rate: float, name: str, *sites: list[bytes]) -> Vector:
        task = self._task(learning_rate, *sites)
        weights = self._first(task)
        done = task.train(Values(weights), self._work(name, 1, ROUNDS * STEPS), Silent())
        return weights - _taken(done.pseudo_gradient, weights.size)

    def _judged(self, weights: Vector) -> float:
        found = [judge.accuracy(Values(weights)) for judge in self._judges]
        return sum(share * count for share, count in found) / sum(count for _, count in found)


def _taken(pseudo_gradient: Callable[[int, Vector], None], size: int) -> Vector:
    out = np.empty(size, np.float32)
    pseudo_gradient(0, out)
    return out


@dataclass(frozen=True)
class Noise:
    """The noise multiplier for an epsilon, and what two accountants say of it."""

    multiplier: float
    by_pld: float
    by_rdp: float


def noise_for(epsilon: float | None) -> Noise:
    """Solved for the whole run, and reckoned back."""
    if epsilon is None:
        return Noise(0.0, 0.0, 0.0)
    found = solve_noise(epsilon, DELTA, RATE, ROUNDS * STEPS, limit_s=ACCOUNTANT_S)
    whole = [(Mechanism(POISSON_GAUSSIAN, "record", CLIP, found, RATE, ROUNDS * STEPS), 1)]
    spent = epsilon_pld(whole, DELTA, limit_s=ACCOUNTANT_S)
    if spent.epsilon > epsilon * (1 + 1e-6):
        raise RuntimeError(f"noise {found} spends {spent.epsilon}, more than {epsilon}")
    return Noise(found, spent.epsilon, epsilon_rdp(whole, DELTA))


Results = dict[float | None, dict[str, list[list[float]]]]
"""Epsilon -> way -> for each seed the accuracies."""


def measure(epsilons: list[float | None], seeds: list[int]) -> Results:
    """The whole grid."""
    noises = {epsilon: noise_for(epsilon) for epsilon in epsilons}
    results: Results = {}
    for epsilon, seed in itertools.product(epsilons, seeds):
        noise = noises[epsilon]
        cell = Cell(seed, noise.multiplier)
        began = time.monotonic()
        found = {way: cell.accuracies(way, LEARNING_RATES[way][EPSILONS.index(epsilon)]) for way in WAYS}
        for way, values in found.items():
            results.setdefault(epsilon, {}).setdefault(way, []).append(values)
        emit(
            {
                "benchmark": "health",
                "epsilon": epsilon,
                "epsilon_pld": round(noise.by_pld, 5),
                "epsilon_rdp": round(noise.by_rdp, 5),
                "delta": DELTA,
                "unit": "record",
                "noise_multiplier": noise.multiplier,
                "seed": seed,
                **{way: [round(value, 4) for value in values] for way, values in found.items()},
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    return results


def tune(epsilons: list[float | None]) -> None:
    """Mean accuracy of each learning rate on the tuning splits; the best one of each way."""
    noises = {epsilon: noise_for(epsilon) for epsilon in epsilons}
    for epsilon in epsilons:
        cells = [Cell(seed, noises[epsilon].multiplier) for seed in TUNING_SEEDS]
        for way in WAYS:
            found = {
                rate: statistics.fmean(value for cell in cells for value in cell.accuracies(way, rate))
                for rate in TUNED_RATES
            }
            emit(
                {
                    "benchmark": "health --tune",
                    "epsilon": epsilon,
                    "way": way,
                    "best": max(found, key=lambda rate: found[rate]),
                    "accuracy": {str(rate): round(value, 4) for rate, value in found.items()},
                }
            )


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """(epsilon, federated, central, local mean, local worst); mean (lowest-highest) over seeds."""
    for epsilon, ways in results.items():
        local = ways[LOCAL]
        yield (
            "without" if epsilon is None else f"{epsilon:g}",
            _spread([values[0] for values in ways[FEDERATED]]),
            _spread([values[0] for values in ways[CENTRAL]]),
            _spread([statistics.fmean(values) for values in local]),
            _spread([min(values) for values in local]),
        )


def _spread(values: list[float]) -> str:
    """In per cent."""
    low, high = min(values) * 100, max(values) * 100
    return f"{statistics.fmean(values) * 100:.1f} ({low:.1f}-{high:.1f})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Accuracy under record-level differential privacy.")
    parser.add_argument("--quick", action="store_true", help="one seed, epsilon 8 and without")
    parser.add_argument("--tune", action="store_true", help="choose learning rates on the tuning splits")
    parser.add_argument("--epsilon", type=float, action="append", choices=[e for e in EPSILONS if e])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    epsilons = list(options.epsilon or ((8.0, None) if options.quick else EPSILONS))
    if options.tune:
        tune(epsilons)
        return
    results = measure(epsilons, options.seeds[:1] if options.quick else options.seeds)
    print("\nAccuracy in % on all held-out records, mean (lowest-highest) over seeds\n")
    print("| epsilon per record | federated | central | one site alone, mean | worst site |")
    print("|---|---|---|---|---|")
    for row in rows(results):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
