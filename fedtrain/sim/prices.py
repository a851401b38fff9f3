"""What a seed draws of privacy charges: runs that promise it, budgets of sites, and what befalls ledgers.

Epsilon is counted in whole inner steps, an exact stand-in for the accountants: what is to be held is that
nothing is worked on unpaid, not what a step costs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedtrain.core.contract import Budget, Contract
from fedtrain.core.spec import RunSpec
from fedtrain.sim.faults import NEVER_MS

PRICED = 0.13
"""Share of the worlds whose runs promise privacy of records."""

STEPS_PER_EPSILON = 64
"""A power of two, so that sums of floats are exact."""

DELTA = 1e-5
AMPLE = float(1 << 20)


@dataclass(frozen=True)
class Prices:
    """Of a world whose runs cost privacy.

    Attributes:
        budgets: site -> what its data set may cost; one that is not here has no budget.
        needed: sites that no other fault keeps away for good.
        crash: per charge, that the agent dies amid it.
        roll_back_gap_ms: between two times that a ledger is put back to an old copy.
        shared_by: fewest sites of an order that the sites' contracts accept.
    """

    budgets: Mapping[str, float]
    needed: tuple[str, ...]
    crash: float
    roll_back_gap_ms: int
    shared_by: int = 1

    def contract(self, site: str, contract: Contract, dataset: str) -> Contract:
        """The contract with the site's budget."""
        if site not in self.budgets:
            return contract
        return replace(contract, budgets={dataset: Budget("record", self.budgets[site], DELTA)})


def draw_prices(
    seed: int, names: Sequence[str], spare: int, specs: Sequence[RunSpec], quiet: bool
) -> Prices | None:
    """Drawn apart from all else; None in most worlds. `quiet`: no machine of this world ever crashes.

    Each budget holds some executions of the dearest run: a few, more than enough, or as many as come.
    """
    chance = random.Random(f"charges.{seed}")
    if chance.random() >= PRICED:
        return None
    dearest = max(spec.steps for spec in specs)
    rounds = sum(spec.rounds for spec in specs)
    sizes = {
        "tight": lambda: chance.randint(dearest, (rounds + 2) * dearest) / STEPS_PER_EPSILON,
        "roomy": lambda: 3 * rounds * dearest / STEPS_PER_EPSILON,
        "ample": lambda: AMPLE,
    }
    needed = tuple(names[spare:])
    scarce = chance.random() < 0.3
    budgets = {}
    for name in names:
        kinds = ("tight", "roomy") if scarce or name not in needed else ("roomy", "ample", "ample", "")
        kind = chance.choice(kinds)
        if kind:
            budgets[name] = sizes[kind]()
    gap_ms = chance.choice((NEVER_MS, 40_000, 15_000))
    return Prices(budgets, needed, 0.0 if quiet else chance.choice((0.0, 0.15, 0.3)), gap_ms)


def promised(spec: RunSpec) -> RunSpec:
    """The run with a promise of privacy of records beside what its task says already."""
    task = json.loads(spec.task)
    record = {
        "epsilon": 8.0,
        "delta": DELTA,
        "clip": 1.0,
        "steps_total": spec.rounds * spec.steps,
        "sampling_rate": 0.02,
    }
    privacy = {**task.get("terms", {}).get("privacy", {}), "record": record}
    return replace(spec, task=json.dumps({**task, "terms": {"privacy": privacy}}))
