"""What does a private step cost beside bare Opacus of the same mode?

    python benchmarks/dpsgd.py [--quick]

Both sides do the same step on the same draws: gradients of single records (or their norms), clip, sum, noise,
AdamW. Bare Opacus is its own module, loss and optimiser with torch's generator for the noise; ours adds the
noise by AES on a grid and checks every condition. Turn by turn, A B A B; the ratio is that of the medians of
core-milliseconds, which others on the machine disturb least. What was imported is frozen for Python's garbage
collector, whose whole runs of some 10 ms would fall on either side by chance.
Goal: at most 1.15, for models whose step takes at least 20 ms.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from fedtrain.trainer.privacy.layers import teach
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Units
from fedtrain.trainer.privacy.step import PrivateStep
from fedtrain.trainer.tasks.classifier import Form, Perceptron
from fedtrain.trainer.tasks.model import Shape, TiedEmbedding, TiedHead, Transformer

GOAL = 1.15
CLIP, NOISE, RATE = 1.0, 1.0, 0.125


def main() -> None:
    """Measure, print a line of JSON per case and a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teach(TiedEmbedding, nn.Embedding)
    teach(TiedHead, nn.Linear)
    rows = []
    for name, build in (("perceptron", _perceptron), ("transformer", _transformer)):
        for mode in ("per-example", "ghost"):
            row = {"model": name, "mode": mode, **measure(build, mode, 11 if options.quick else 41)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print("\n| model | parameters | records | mode | bare Opacus | ours | ratio | goal |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        met = "met" if row["ratio"] <= GOAL else "NOT met"
        print(
            f"| {row['model']} | {row['parameters']:,} | {row['records']} | {row['mode']} |"
            f" {row['bare_ms']:.1f} ms | {row['ours_ms']:.1f} ms | {row['ratio']:.2f} | {GOAL}, {met} |"
        )


Losses = Callable[[nn.Module, np.ndarray], Tensor]


def _perceptron() -> tuple[nn.Module, Losses, int]:
    """A classifier of 64 features, wide enough for a step of some ten milliseconds."""
    model = Perceptron(Form(64, 10, (512, 512), "none"))
    chance = torch.Generator().manual_seed(1)
    features = torch.randn(2048, 64, generator=chance)
    labels = torch.randint(0, 10, (2048,), generator=chance)

    def losses(forward: nn.Module, records: np.ndarray) -> Tensor:
        logits = forward(features[records])
        return nn.functional.cross_entropy(logits, labels[records], reduction="none")

    return model, losses, 2048


def _transformer() -> tuple[nn.Module, Losses, int]:
    """The example run's language model."""
    shape = Shape(layers=4, heads=4, width=64, context=64)
    windows = torch.randint(0, 256, (512, 65), generator=torch.Generator().manual_seed(1))

    def losses(forward: nn.Module, records: np.ndarray) -> Tensor:
        logits = forward(windows[records, :-1]).float().transpose(1, 2)
        return nn.functional.cross_entropy(logits, windows[records, 1:], reduction="none").mean(dim=1)

    return Transformer(shape), losses, 512


def measure(build: Callable[[], tuple[nn.Module, Losses, int]], mode: str, turns: int) -> dict[str, object]:
    """Medians of both sides in milliseconds, and their ratio."""
    chance = np.random.default_rng(7)
    model, _, count = build()
    draws = [np.flatnonzero(chance.random(count) < RATE) for _ in range(turns + 2)]
    sides = {"bare": _bare(*build(), mode), "ours": _ours(*build(), mode)}
    taken: dict[str, list[float]] = {"bare": [], "ours": []}
    gc.collect()
    gc.freeze()
    for turn, drawn in enumerate(draws):
        for name in ("bare", "ours") if turn % 2 == 0 else ("ours", "bare"):
            began = time.process_time()
            sides[name](drawn)
            if turn >= 2:  # the first ones fill caches
                taken[name].append(1e3 * (time.process_time() - began))
    bare, ours = (statistics.median(taken[name]) for name in ("bare", "ours"))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "records": round(RATE * count),
        "bare_ms": round(bare, 2),
        "ours_ms": round(ours, 2),
        "ratio": round(ours / bare, 3),
        "turns": turns,
    }


def _ours(model: nn.Module, losses: Losses, count: int, mode: str) -> Callable[[np.ndarray], object]:
    plan = RecordPlan(CLIP, NOISE, RATE, mode=mode)
    step = PrivateStep(model, lambda records: losses(model, records), plan, Units(count))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run(drawn: np.ndarray) -> None:
        step.draw = lambda stream, units, rate: drawn
        step.run()
        optimiser.step()

    return run


def _bare(model: nn.Module, losses: Losses, count: int, mode: str) -> Callable[[np.ndarray], object]:
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = {
        "noise_multiplier": NOISE,
        "max_grad_norm": CLIP,
        "expected_batch_size": round(RATE * count),
        "loss_reduction": "mean",
    }
    if mode == "per-example":
        wrapped = GradSampleModule(model, loss_reduction="mean")
        optimiser = DPOptimizer(inner, **settings)
        criterion: Callable[[Tensor], Tensor] = torch.mean
    else:
        wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, loss_reduction="mean")
        optimiser = DPOptimizerFastGradientClipping(inner, **settings)
        criterion = DPLossFastGradientClipping(wrapped, optimiser, _Given())

    def run(drawn: np.ndarray) -> None:
        optimiser.zero_grad()
        criterion(losses(wrapped, drawn)).backward()
        optimiser.step()

    return run


class _Given:
    """Opacus' criterion where the losses of single records are there already."""

    reduction = "mean"

    def __call__(self, losses: Tensor) -> Tensor:
        return losses


if __name__ == "__main__":
    main()
