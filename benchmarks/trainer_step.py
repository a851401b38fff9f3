"""P9: the trainer's step against a bare PyTorch loop of the same model, same batches' size, same threads.

    python benchmarks/trainer_step.py [--quick]

The bare loop is what one would write without fedtrain: `nn.Module`, `torch.optim.AdamW` over its
parameters, `clip_grad_norm_`, random windows of one text. Both run alternately in one process; the figure
is the median of the ratios. One JSON line a measurement, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.vectors import Floats
from fedtrain.trainer.data import Dataset, DataSource
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks.causal_lm import CausalLanguageModel
from fedtrain.trainer.tasks.model import Shape, Transformer, initialise
from fedtrain.trainer.tasks.task import Work

SHAPE = Shape(layers=2, heads=4, width=96, context=64)
BATCH_SIZE = 16
LEARNING_RATE = 3e-3


class Memory:
    """Weights in memory, as a task reads them."""

    def __init__(self, values: Floats) -> None:
        self._values = values

    @property
    def num_elements(self) -> int:
        return self._values.size

    def read(self, start: int, out: Floats) -> None:
        out[:] = self._values[start : start + out.size]


class Unwatched:
    """A context that nobody reads."""

    def step_done(self, steps: int, loss: float | None, weight: int) -> None:
        """Nobody is told."""

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


def trainer_loop(source: DataSource) -> Callable[[int], float]:
    """Takes steps by the task itself; returns the loss."""
    spec = TaskSpec(
        "causal_lm",
        source.name,
        {"layers": SHAPE.layers, "heads": SHAPE.heads, "width": SHAPE.width, "context": SHAPE.context},
        {"learning_rate": LEARNING_RATE, "batch_size": BATCH_SIZE},
    )
    task = CausalLanguageModel(spec, source)
    start = Memory(next(task.initial_weights(1)).copy())
    task.train(start, Work("bench", 1, 0, "site", 1, 0), Unwatched())
    return lambda steps: task.train(start, Work("bench", 1, 0, "site", steps, 0), Unwatched()).loss or 0.0


def bare_loop(source: DataSource) -> Callable[[int], float]:
    """Takes steps as a plain script would; returns the loss."""
    text = torch.from_numpy(np.frombuffer(b"\n".join(source.documents()), np.uint8).copy())
    model = Transformer(SHAPE)
    initialise(model, SHAPE.layers, torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    window = torch.arange(SHAPE.context + 1)

    def run(steps: int) -> float:
        losses = 0.0
        for _ in range(steps):
            starts = torch.randint(len(text) - SHAPE.context, (BATCH_SIZE, 1))
            optimiser.zero_grad()
            loss = model.loss(text[starts + window].long())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses += loss.item()
        return losses / steps

    return run


def main() -> None:
    """Alternate the two loops and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 pairs of 10 steps instead of 15 of 40")
    options = parser.parse_args()
    pairs, steps = (5, 10) if options.quick else (15, 40)
    torch.set_num_threads(1)
    dataset = Dataset("corpus", ("asyncio", "json"), "python-library", ("causal_lm",), Path())
    source = DataSource("corpus", "causal_lm", {"corpus": dataset})
    loops = {"trainer": trainer_loop(source), "bare": bare_loop(source)}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for pair in range(pairs):
        # Who goes first alternates, so that a machine that slows down favours neither.
        for name in sorted(loops, reverse=bool(pair % 2)):
            began = time.perf_counter()
            loops[name](steps)
            seconds[name].append((time.perf_counter() - began) / steps)
    ratio = statistics.median(a / b for a, b in zip(seconds["trainer"], seconds["bare"], strict=True))
    for name, taken in seconds.items():
        median_ms = 1e3 * statistics.median(taken)
        print(json.dumps({"id": "P9", "loop": name, "step_ms": round(median_ms, 3), "pairs": pairs}))
    print(json.dumps({"id": "P9", "ratio": round(ratio, 4), "goal": 1.02}))
    print(f"\n{'loop':10} {'ms a step':>10}")
    for name, taken in seconds.items():
        print(f"{name:10} {1e3 * statistics.median(taken):10.2f}")
    print(f"{'ratio':10} {ratio:10.3f}   (goal: at most 1.02)")


if __name__ == "__main__":
    main()
