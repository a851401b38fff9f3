"""What an update gives away: pictures taken back out of it, and what is left of that under a mask or noise.

    python benchmarks/inversion.py [--quick] [--image docs/images/inversion.png]

A small classifier takes one step on one, two and four digits (scikit-learn's 8x8 ones). The attacker is
a curious coordinator: it knows the weights, the batch size and the learning rate, and reads the update
as it arrives. It looks for a batch whose gradient is that update (Zhu, Liu & Han, Deep leakage from
gradients, 2019, arXiv 1906.08935), labels included. Three updates of the same step are attacked:

    plain      as sent today, int8
    masked     the same numbers as fixed-point levels under one site's pairwise mask, 16 bits a value
    noised     record-level privacy: clipped per record, Gaussian noise, by the trainer's own step

A digit counts as recovered if its picture correlates with the original by more than 0.9. One JSON line an
attack, then a table, then the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from fedtrain.methods.accounting import exact_gaussian_epsilon
from fedtrain.methods.codecs import block_seed, codec
from fedtrain.methods.ring import ring_bits, signed
from fedtrain.methods.summable import summable
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.privacy.sampling import Units
from fedtrain.trainer.privacy.step import PrivateStep
from fedtrain.trust.masking import CtrStream

SIDE, LABELS, WIDTH = 8, 10, 64
LEARNING_RATE = 0.1
CLIP, NOISE_MULTIPLIER, DELTA = 1.0, 1.0, 1e-5
SITES = 5
SUMMABLE = "fixed12s16"
RECOVERED = 0.9
CASES = ((10,), (21, 25), (47, 18, 3, 14))
"""Numbers of digits in scikit-learn's set; labels differ within a batch, as inferring them needs."""


@dataclass(frozen=True)
class Attack:
    """One attacked update: the pictures found, in the order of the originals, and their correlations."""

    update: str
    originals: Tensor
    found: Tensor
    correlations: tuple[float, ...]


class Classifier(nn.Module):
    """Two layers; the bend is smooth, because the attack differentiates gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(SIDE * SIDE, WIDTH)
        self.out = nn.Linear(WIDTH, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.hidden(x)))


def flat_gradient(model: nn.Module, x: Tensor, targets: Tensor, *, again: bool = False) -> Tensor:
    """Gradient of the mean loss over a batch, (elements,); `targets` are probabilities (batch, labels)."""
    loss = -(torch.log_softmax(model(x), 1) * targets).sum(1).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters(), create_graph=again)])


def plain_update(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """What the coordinator decodes today: the step, quantised to int8."""
    step = LEARNING_RATE * flat_gradient(model, x, nn.functional.one_hot(labels, LABELS).float())
    row, out = codec("int8"), np.empty(step.numel(), np.float32)
    row.decode(row.encode(step.numpy(), block_seed("inversion", 1, 1, "site", "up", 0)), out)
    return torch.from_numpy(out)


def masked_update(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The best reading of a masked update alone: its words as numbers of the codec's step."""
    step = LEARNING_RATE * flat_gradient(model, x, nn.functional.one_hot(labels, LABELS).float())
    row, bits = summable(SUMMABLE), ring_bits(12, SITES)
    levels = np.empty(step.numel(), np.int32)
    row.quantise(step.numpy(), block_seed("inversion", 1, 1, "site", "up", 0), 0, levels)
    mask = np.empty(step.numel(), np.uint32)
    CtrStream(os.urandom(32)).words(0, mask)
    words = levels.view(np.uint32) + mask
    return torch.from_numpy(signed(words, bits) * np.float32(row.step))


def noised_update(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """A private step on the same batch: every record in it, so no luck of sampling helps."""
    plan = RecordPlan(CLIP, NOISE_MULTIPLIER, 1.0)

    def losses(records: np.ndarray) -> Tensor:
        chosen = torch.from_numpy(records)
        return nn.functional.cross_entropy(model(x[chosen]), labels[chosen], reduction="none")

    step = PrivateStep(model, losses, plan, Units(len(x)))
    step.run()
    step.clipper.detach()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return LEARNING_RATE * found


UPDATES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "plain": plain_update,
    "masked": masked_update,
    "noised": noised_update,
}


def invert(model: nn.Module, update: Tensor, batch: int, restarts: int) -> Tensor:
    """Pictures (batch, pixels) whose gradient comes nearest to the update, of several random starts."""
    gradient = update / LEARNING_RATE
    scale = gradient.square().sum()
    best, found = float("inf"), torch.zeros(batch, SIDE * SIDE)
    for restart in range(restarts):
        chance = torch.Generator().manual_seed(restart)
        x = torch.rand(batch, SIDE * SIDE, generator=chance).requires_grad_()
        y = torch.randn(batch, LABELS, generator=chance).requires_grad_()
        optimiser = torch.optim.LBFGS([x, y], max_iter=250, history_size=50, line_search_fn="strong_wolfe")

        def distance() -> Tensor:
            optimiser.zero_grad()  # noqa: B023 - called within this turn only
            guess = flat_gradient(model, x, torch.softmax(y, 1), again=True)  # noqa: B023
            apart = (guess - gradient).square().sum() / scale
            apart.backward()
            return apart

        optimiser.step(distance)
        reached = distance().item()
        if reached < best:
            best, found = reached, x.detach().clone()
    return found


def matched(found: Tensor, originals: Tensor) -> tuple[Tensor, tuple[float, ...]]:
    """The found pictures in the originals' order, best pairs first, and their correlations."""
    table = np.corrcoef(originals.numpy(), found.nan_to_num().numpy())[: len(originals), len(originals) :]
    table = np.nan_to_num(table)
    order, values = [0] * len(originals), [0.0] * len(originals)
    for _ in originals:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        order[row], values[row] = int(column), float(table[row, column])
        table[row, :] = table[:, column] = -2.0
    return found[order], tuple(values)


def digits() -> tuple[Tensor, Tensor]:
    """Pictures (1797, 64) from 0 to 1, and labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


def draw(attacks: Sequence[Attack], path: Path) -> None:
    """One row of pictures an update, originals on top; white edges part the batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = [len(attack.originals) for attack in attacks if attack.update == "plain"]
    rows = ["original", *UPDATES]
    titles = {
        "original": "the site's records",
        "plain": "from a plain update",
        "masked": "from a masked update",
        "noised": "from a noised update",
    }
    figure = pyplot.figure(figsize=(7.6, 3.9), dpi=100)
    widths = [width for size in sizes for width in ([1.0] * size + [0.35])][:-1]
    grid = figure.add_gridspec(
        4,
        len(widths),
        width_ratios=widths,
        left=0.22,
        right=0.99,
        top=0.93,
        bottom=0.01,
        wspace=0.08,
        hspace=0.1,
    )
    for r, row in enumerate(rows):
        column = 0
        for case, size in enumerate(sizes):
            attack = [a for a in attacks if a.update == (row if row in UPDATES else "plain")][case]
            pictures = attack.originals if row == "original" else attack.found
            for k in range(size):
                axes = figure.add_subplot(grid[r, column + k])
                low, high = (0.0, 1.0) if row in ("original", "plain") else (None, None)
                axes.imshow(pictures[k].reshape(SIDE, SIDE), cmap="gray_r", vmin=low, vmax=high)
                axes.set(xticks=[], yticks=[])
                if r == 0 and k == 0:
                    axes.set_title(f"batch of {size}", loc="left", fontsize=9)
                if column + k == 0:
                    axes.set_ylabel(titles[row], rotation=0, ha="right", va="center", fontsize=9)
            column += size + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Gradient inversion on plain, masked and noised updates.")
    parser.add_argument("--quick", action="store_true", help="fewer random starts")
    parser.add_argument("--image", type=Path, help="draw the pictures into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, (pictures, labels) = Classifier(), digits()
    attacks = []
    for case in CASES:
        x, y = pictures[list(case)], labels[list(case)]
        for name, make in UPDATES.items():
            found = invert(model, make(model, x, y), len(case), 3 if options.quick else 8)
            ordered, correlations = matched(found, x)
            attacks.append(Attack(name, x, ordered, correlations))
            line = {
                "benchmark": "inversion",
                "update": name,
                "batch": len(case),
                "correlations": [round(value, 3) for value in correlations],
                "recovered": sum(value > RECOVERED for value in correlations),
            }
            print(json.dumps(line), flush=True)
    epsilon = exact_gaussian_epsilon(1 / NOISE_MULTIPLIER, DELTA)
    print(f"\n{'update':8} {'batch':>5} {'recovered':>9} {'mean correlation':>17}")
    for attack in attacks:
        count = sum(value > RECOVERED for value in attack.correlations)
        mean = sum(attack.correlations) / len(attack.correlations)
        print(f"{attack.update:8} {len(attack.originals):5} {count:9} {mean:17.3f}")
    print(f"noised: this one step has epsilon {epsilon:.2f} at delta {DELTA:g} for each record")
    if options.image:
        draw(attacks, options.image)
        print(f"{options.image}: {options.image.stat().st_size} bytes")


if __name__ == "__main__":
    main()
