"""What a seed draws: how many sites and runs, how slow, how unreliable, and when that ends."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from fedtrain.core.contract import Contract, Rights
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.sim.clock import START_MS

TASK = "tiny"
DATASET = "corpus"


@dataclass(frozen=True)
class SitePlan:
    """One site.

    Attributes:
        joins_ms: when it is enrolled and its agent starts.
        weight: tokens of its updates.
        step_ms: virtual time of one inner step.
        contract, later_contract: before faults end, and from its first start after that.
    """

    name: str
    joins_ms: int
    weight: int
    step_ms: int
    contract: Contract
    later_contract: Contract


@dataclass(frozen=True)
class RunPlan:
    """One run and what its operator does: times in virtual milliseconds, None for never."""

    spec: RunSpec
    submitted_ms: int
    paused_ms: int | None
    resumed_ms: int | None
    stopped_ms: int | None


@dataclass(frozen=True)
class FaultRates:
    """Probabilities, each per message, per job or per aggregation; crash gaps in mean milliseconds."""

    lost: float
    doubled: float
    slow: float
    trainer_dies: float
    trainer_fails: float
    trainer_hangs: float
    not_finite: float
    aggregation_fails: float
    coordinator_gap_ms: int
    site_gap_ms: int
    partition_gap_ms: int
    leave_gap_ms: int


@dataclass(frozen=True)
class Plan:
    """A whole world."""

    seed: int
    sites: tuple[SitePlan, ...]
    runs: tuple[RunPlan, ...]
    rates: FaultRates
    clear_ms: int
    num_elements: int


def draw(seed: int) -> Plan:
    """The world of a seed. Its own random source, so that a plan does not depend on the course of events."""
    chance = random.Random(f"plan.{seed}")
    num_sites = chance.choice((2, 2, 3, 3, 3, 4, 4, 5, 6, 8))
    names = tuple(f"site-{letter}" for letter in "abcdefgh"[:num_sites])
    num_runs = chance.choice((1, 1, 1, 1, 1, 1, 1, 1, 2, 3))
    minimum = chance.randint(1, num_sites)
    runs = tuple(_run(chance, f"run-{index}", names, minimum) for index in range(1, num_runs + 1))
    spare = num_sites - minimum
    shared_by = min(run.spec.minimum for run in runs)
    sites = tuple(_site(chance, name, shared_by, refuses=index < spare) for index, name in enumerate(names))
    return Plan(
        seed=seed,
        sites=sites,
        runs=runs,
        rates=_rates(chance),
        clear_ms=START_MS + chance.randint(40_000, 160_000),
        num_elements=chance.randint(4, 16),
    )


def _run(chance: random.Random, name: str, sites: tuple[str, ...], minimum: int) -> RunPlan:
    """A run needs at most `minimum` sites, so that those who refuse for good cannot hold it up."""
    outer = chance.choice(("average", "nesterov"))
    spec = RunSpec(
        run=name,
        seed=chance.randint(0, 1 << 31),
        task=json.dumps({"data": DATASET, "name": TASK}),
        sites=() if chance.random() < 0.5 else sites,
        minimum=chance.randint(1, minimum),
        rounds=chance.randint(1, 5),
        steps=chance.randint(1, 20),
        quorum=chance.randint(1, minimum),
        quorum_share=chance.choice((0.0, 0.3, 0.5, 0.67, 0.9)),
        deadline_ms=chance.randint(8_000, 40_000),
        patience_ms=chance.randint(6_000, 15_000),
        heartbeat_ms=chance.choice((1_500, 2_000, 2_500)),
        late=chance.choice(tuple(LatePolicy)),
        outer=outer,
        outer_params={"eta": 0.5, "mu": 0.75} if outer == "nesterov" else {"eta": 1.0},
        outer_warmup_rounds=chance.choice((0, 0, 1)),
        codec_up="float32",
        codec_down="float32",
        aggregator="mean",
        norm_max=chance.choice((None, None, 1.5)),
        evaluate_every=chance.choice((0, 1, 2)),
        snapshot_every=chance.randint(1, 4),
        attempts_max=chance.randint(2, 6),
    )
    submitted_ms = START_MS + chance.randint(0, 5_000)
    paused_ms = resumed_ms = stopped_ms = None
    if chance.random() < 0.2:
        paused_ms = submitted_ms + chance.randint(1_000, 60_000)
        resumed_ms = paused_ms + chance.randint(1_000, 30_000)
    if chance.random() < 0.06:
        stopped_ms = submitted_ms + chance.randint(1_000, 90_000)
    return RunPlan(spec, submitted_ms, paused_ms, resumed_ms, stopped_ms)


def _site(chance: random.Random, name: str, shared_by: int, refuses: bool) -> SitePlan:
    """A site; one that `refuses` may do so for a time, or for good. No cohort is below `shared_by`."""
    allows = Contract(("run-*",), (TASK,), shared_by, {DATASET: Rights(execute=(TASK,))})
    denies = chance.choice(
        (
            Contract(("other-*",), (TASK,), 1, allows.datasets),
            Contract(("run-*",), (), 1, allows.datasets),
            Contract(("run-*",), (TASK,), 9, allows.datasets),
            Contract(("run-*",), (TASK,), 1, {DATASET: Rights(discoverable=True)}),
        )
    )
    first = denies if refuses and chance.random() < 0.4 else allows
    later = denies if refuses and chance.random() < 0.4 else allows
    return SitePlan(
        name=name,
        joins_ms=START_MS + (0 if chance.random() < 0.8 else chance.randint(0, 40_000)),
        weight=chance.choice((1, 7, 64, 1_000, 1_000, 1_000, 65_536)),
        step_ms=chance.choice((20, 50, 100, 200, 500, 1_500)),
        contract=first,
        later_contract=later,
    )


def _rates(chance: random.Random) -> FaultRates:
    """A third of the worlds have a good network, a third good machines: faults also come one at a time."""
    network = chance.choice((0.0, 1.0, 3.0))
    machines = chance.choice((0.0, 1.0, 2.0))
    never = 1 << 40
    return FaultRates(
        lost=0.02 * network,
        doubled=0.02 * network,
        slow=0.03 * network,
        trainer_dies=0.05 * machines,
        trainer_fails=0.05 * machines,
        trainer_hangs=0.03 * machines,
        not_finite=0.03 * machines,
        aggregation_fails=0.05 * machines,
        coordinator_gap_ms=int(25_000 / machines) if machines else never,
        site_gap_ms=int(60_000 / machines) if machines else never,
        partition_gap_ms=int(60_000 / network) if network else never,
        leave_gap_ms=int(90_000 / network) if network else never,
    )
