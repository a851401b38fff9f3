"""The two other columns of every learning claim: a site alone, and all data in one place.

`python -m fedtrain.trainer.baseline --run RUN.yaml --train A/peer.yaml [B/peer.yaml ...]
--evaluate A/peer.yaml B/peer.yaml ... --steps N --name X` trains one model on the union of the named sites'
training text, with the run's own task, seed and first weights, and prints one JSON line: the loss on
every site's held-out text, and the accuracy where the task classifies. `--model FILE --steps 0` measures an
exported model instead. `--private PLAN` trains with the run's own noise in every step; nobody charges for it.

This reads the data of several sites in one process, which federation exists to avoid: it is for
measuring what federation costs and gains where all data may be seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import yaml

from fedtrain.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError, FedtrainError
from fedtrain.methods.modelfile import ModelReader, ModelWriter
from fedtrain.trainer.data import Dataset, DataSource, read_datasets
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.task import Task, Vector, Weights, Work

PIECE_ELEMENTS = 1 << 18


class UnionSource(DataSource):
    """The same data set of several sites; each keeps its own split, so what it holds out stays unseen."""

    def __init__(self, sources: Sequence[DataSource]) -> None:
        super().__init__(sources[0].name, "", {})
        self._sources = sources

    def documents(self) -> Iterator[bytes]:
        for source in self._sources:
            yield from source.documents()

    def parts(self) -> Sequence[DataSource]:
        return self._sources


@dataclass(frozen=True)
class RunFile:
    """What a baseline needs of a run's file."""

    run: str
    seed: int
    spec: TaskSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedtrain.trainer.baseline")
    parser.add_argument("--run", type=Path, required=True, help="the run's YAML file")
    parser.add_argument(
        "--train", type=Path, nargs="*", default=[], help="peer.yaml of the sites to train on"
    )
    parser.add_argument(
        "--evaluate", type=Path, nargs="+", required=True, help="peer.yaml of the sites to measure on"
    )
    parser.add_argument("--steps", type=int, required=True, help="inner steps; 0 with --model")
    parser.add_argument("--name", required=True, help="of this baseline; its batches derive from it")
    parser.add_argument("--model", type=Path, help="start from this model file instead of the seed's weights")
    parser.add_argument("--seed", type=int, help="instead of the run's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--private", help="record plan as JSON: clip, noise_multiplier, sampling_rate, unit")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run, options.seed)
        outcome = measure(run, options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except FedtrainError as error:
        print(f"fedtrain baseline: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(outcome))
    return EXIT_DONE


def read_run(file: Path, seed: int | None) -> RunFile:
    """Name, seed and task of a run's YAML file; the other sections play no part."""
    try:
        plain = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(file)) from error
    if not isinstance(plain, Mapping) or not isinstance(plain.get("run"), str) or "task" not in plain:
        raise ConfigError("is not a run's file: `run` or `task` is missing", file=str(file))
    own_seed = plain.get("seed", 0)
    if type(own_seed) is not int:
        raise ConfigError(f"{own_seed!r} is not a whole number", file=str(file), key="seed")
    return RunFile(
        plain["run"], own_seed if seed is None else seed, TaskSpec.from_plain(plain["task"], str(file))
    )


def measure(run: RunFile, options: argparse.Namespace) -> dict[str, object]:
    """Train as the options say, then evaluate on each site; the document that is printed."""
    trained_on = [_source(run.spec, path) for path in options.train]
    if options.steps and not trained_on:
        raise ConfigError("steps need data: name sites with --train, or say --steps 0")
    evaluated = {site_name(path): build_task(run.spec, _source(run.spec, path)) for path in options.evaluate}
    task = build_task(run.spec, UnionSource(trained_on)) if trained_on else next(iter(evaluated.values()))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(options.threads)
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedtrain-baseline-")))
        start = stack.enter_context(ModelReader(options.model or _first_model(task, run, folder)))
        start.check_layout(task.layout())
        weights, weight, train_loss = start, 0, None
        if options.steps:
            plan = RecordPlan(**json.loads(options.private)) if options.private else None
            work = Work(run.run, run.seed, 0, options.name, options.steps, 0, plan)
            outcome = task.train(start, work, _Silent())
            weights = stack.enter_context(_trained_model(task, start, outcome.pseudo_gradient, folder))
            weight, train_loss = outcome.weight, outcome.loss
        losses = {site: site_task.evaluate(weights)[0] for site, site_task in evaluated.items()}
        accuracy = {
            site: site_task.accuracy(weights)[0]
            for site, site_task in evaluated.items()
            if isinstance(site_task, Classifying)
        }
    return {
        "name": options.name,
        "seed": run.seed,
        "steps": options.steps,
        "tokens": weight,
        "train_loss": train_loss,
        "loss": losses,
        "accuracy": accuracy,
        "mean": sum(losses.values()) / len(losses),
        "seconds": round(time.monotonic() - began, 3),
    }


def site_name(file: Path) -> str:
    """`site` of a peer.yaml."""
    plain = yaml.safe_load(file.read_bytes())
    if not isinstance(plain, Mapping) or not isinstance(plain.get("site"), str):
        raise ConfigError("is not a site's file: `site` is missing", file=str(file))
    return str(plain["site"])


def _source(spec: TaskSpec, peer_file: Path) -> DataSource:
    datasets: dict[str, Dataset] = read_datasets(peer_file)
    return DataSource(spec.data, spec.name, datasets)


def _first_model(task: Task, run: RunFile, folder: Path) -> Path:
    """The model file that a seed order of this run would make."""
    path = folder / "first.safetensors"
    writer = ModelWriter(path, task.layout(), run.run, 0)
    for piece in task.initial_weights(run.seed):
        writer.write(piece)
    writer.close()
    return path


def _trained_model(
    task: Task, start: Weights, pseudo_gradient: Callable[[int, Vector], None], folder: Path
) -> ModelReader:
    """End weights, piece by piece: the start less the pseudo-gradient."""
    path = folder / "trained.safetensors"
    writer = ModelWriter(path, task.layout(), "baseline", 1)
    values = np.empty(min(PIECE_ELEMENTS, start.num_elements), np.float32)
    change = np.empty_like(values)
    for position in range(0, start.num_elements, values.size):
        count = min(values.size, start.num_elements - position)
        start.read(position, values[:count])
        pseudo_gradient(position, change[:count])
        writer.write(values[:count] - change[:count])
    writer.close()
    return ModelReader(path)


@runtime_checkable
class Classifying(Protocol):
    """A task that can also tell how often it is right."""

    def accuracy(self, weights: Weights) -> tuple[float, int]:
        """(share of held-out records that are classified rightly, their number)."""


class _Silent:
    """A context for work that nobody watches."""

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Nobody is told."""

    def pause(self, seconds: float) -> None:
        """As it says."""
        time.sleep(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
