"""What a seed draws: how many sites and runs, how slow, who lies, who takes over, and when that ends."""

from __future__ import annotations

import enum
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedtrain.core.contract import Contract, Rights
from fedtrain.core.masks import SITES_MIN
from fedtrain.core.spec import LatePolicy, RunSpec
from fedtrain.sim.acts import SiteActs, WayBack, draw_acts
from fedtrain.sim.clock import JUMPS_MS, START_MS
from fedtrain.sim.faults import NEVER_MS, FaultRates, draw_rates
from fedtrain.sim.prices import Prices, draw_prices, promised

TASK = "tiny"
DATASET = "corpus"

PRIVATE = 1_000_000
"""Seeds behind this one are the worlds of the seeds from 1 on again, many of them with masks and prices."""

VEILED_MANY = 5
VEILED_OF_FEW, VEILED_OF_MANY = 0.35, 0.75
"""Share of the worlds that could have masked runs and do: more where a threshold leaves room for losses."""

VEILED_FAILS = 0.25
"""Of such a world's jobs: sites that have shared their secrets and then have no update."""

LINKS_MS = 20_000
"""What the slowest links take for a model and an update."""


@dataclass(frozen=True)
class SitePlan:
    """One site.

    Attributes:
        joins_ms: when it is enrolled and its agent starts.
        weight: tokens of its updates.
        step_ms: virtual time of one inner step.
        contract, later_contract: before faults end, and from its first start after that.
        link_bytes_per_s: how fast tensors pass, either way; 0 for at once.
        piece_bytes: of its uploads.
        lies: whether somebody speaks in its name beside its agent, until faults end.
        moves_ms: so long after a standby has taken over it follows.
    """

    name: str
    joins_ms: int
    weight: int
    step_ms: int
    contract: Contract
    later_contract: Contract
    link_bytes_per_s: int = 0
    piece_bytes: int = 24
    lies: bool = False
    moves_ms: int = 0


@dataclass(frozen=True)
class RunPlan:
    """One run and what its operator does: times in virtual milliseconds, None for never."""

    spec: RunSpec
    submitted_ms: int
    paused_ms: int | None
    resumed_ms: int | None
    stopped_ms: int | None


class Old(enum.StrEnum):
    """What the old coordinator does while another one takes over."""

    DEAD = "dead"
    ALIVE = "alive"
    CUT_OFF = "cut off"


@dataclass(frozen=True)
class SuccessionPlan:
    """A cold standby: a copy of the folder that is started somewhere else.

    Attributes:
        copied_ms, takes_over_ms: when the copy is made, and when it is started.
        old: what the other one does from then on.
        visitor, visits_ms: a site that goes back to the old one for a moment, and when.
    """

    copied_ms: int
    takes_over_ms: int
    old: Old
    visitor: str
    visits_ms: int


@dataclass(frozen=True)
class Plan:
    """A whole world.

    Attributes:
        clear_ms: when faults end; from here on every run has to come to its end.
        clock_offsets_ms: process -> by how much its wall clock is off at first.
        succession: None where no standby takes over.
        backup_gap_ms: between two backups of the coordinator's folder.
        acts: site -> what people decide about it, and in it.
        ways_back: run -> when its operator takes it back, in order.
        prices: what privacy costs; None where no run promises any.
    """

    seed: int
    sites: tuple[SitePlan, ...]
    runs: tuple[RunPlan, ...]
    rates: FaultRates
    clear_ms: int
    num_elements: int
    clock_offsets_ms: Mapping[str, int] = field(default_factory=dict)
    succession: SuccessionPlan | None = None
    backup_gap_ms: int = 30_000
    acts: Mapping[str, SiteActs] = field(default_factory=dict)
    ways_back: Mapping[str, tuple[WayBack, ...]] = field(default_factory=dict)
    prices: Prices | None = None


def draw(seed: int) -> Plan:
    """The world of a seed. Its own random source, so that a plan does not depend on the course of events."""
    private, seed = seed > PRIVATE, seed - PRIVATE if seed > PRIVATE else seed
    chance = random.Random(f"plan.{seed}")
    num_sites = chance.choice((2, 2, 3, 3, 3, 4, 4, 5, 6, 8))
    names = tuple(f"site-{letter}" for letter in "abcdefgh"[:num_sites])
    num_runs = chance.choice((1, 1, 1, 1, 1, 1, 1, 1, 2, 3))
    minimum = chance.randint(1, num_sites)
    runs = tuple(_run(chance, f"run-{index}", names, minimum) for index in range(1, num_runs + 1))
    spare = num_sites - minimum
    shared_by = min(run.spec.minimum for run in runs)
    sites = [_site(chance, name, shared_by, index < spare) for index, name in enumerate(names)]
    clear_ms = START_MS + chance.randint(40_000, 120_000)
    acts, ways_back = draw_acts(seed, names, names[:spare], [run.spec.run for run in runs], clear_ms)
    rates, veiled = draw_rates(chance), _veiled(seed, runs, sites, minimum) if private else runs
    if veiled != runs and num_sites >= VEILED_MANY:
        rates = replace(rates, trainer_fails=max(rates.trainer_fails, VEILED_FAILS))
    idle = rates.site_gap_ms >= NEVER_MS
    prices = draw_prices(seed, names, spare, [run.spec for run in veiled], idle) if private else None
    if prices is not None:
        prices = replace(prices, shared_by=shared_by)
        sites = [_priced(site, prices) for site in sites]
        veiled = tuple(replace(run, spec=promised(run.spec)) for run in veiled)
    return Plan(
        seed=seed,
        sites=tuple(sites),
        runs=veiled,
        rates=rates,
        clear_ms=clear_ms,
        num_elements=chance.randint(4, 16),
        clock_offsets_ms=_offsets(chance, names),
        succession=_succession(chance, names, clear_ms) if chance.random() < 0.2 else None,
        acts=acts,
        ways_back=ways_back,
        prices=prices,
    )


def _priced(site: SitePlan, prices: Prices) -> SitePlan:
    first, later = (
        prices.contract(site.name, found, DATASET) for found in (site.contract, site.later_contract)
    )
    return replace(site, contract=first, later_contract=later)


def _veiled(
    seed: int, runs: tuple[RunPlan, ...], sites: Sequence[SitePlan], minimum: int
) -> tuple[RunPlan, ...]:
    """In some of the worlds that have sites enough, all runs are masked; drawn apart from all else.

    No seat outlives an attempt under masks, so a round has to last long enough for the slowest site.
    """
    chance = random.Random(f"masks.{seed}")
    share = VEILED_OF_FEW if len(sites) < VEILED_MANY else VEILED_OF_MANY
    if minimum < SITES_MIN or chance.random() >= share:
        return runs
    return tuple(_veiled_run(chance, run, sites, minimum) for run in runs)


def _veiled_run(chance: random.Random, run: RunPlan, sites: Sequence[SitePlan], minimum: int) -> RunPlan:
    terms = {"weight_max": chance.choice((0, 0, 65_536)), "dropouts_max": chance.choice((-1, -1, 0, 1))}
    slowest_ms = run.spec.steps * max(site.step_ms for site in sites)
    spec = replace(
        run.spec,
        task=json.dumps({"data": DATASET, "name": TASK, "terms": {"privacy": {"masked": terms}}}),
        minimum=chance.randint(SITES_MIN, minimum),
        deadline_ms=run.spec.deadline_ms + slowest_ms + 2 * run.spec.patience_ms + LINKS_MS,
        codec_up=f"fixed{chance.randint(8, 24)}s{chance.randint(6, 18)}",
        norm_max=None,
    )
    return replace(run, spec=spec)


def _offsets(chance: random.Random, names: tuple[str, ...]) -> dict[str, int]:
    """In a third of the worlds clocks are off, by seconds to a year, behind or ahead."""
    if chance.random() < 2 / 3:
        return {}
    return {name: chance.choice((-1, 1)) * chance.choice(JUMPS_MS) for name in ("coordinator", *names)}


def _succession(chance: random.Random, names: tuple[str, ...], clear_ms: int) -> SuccessionPlan:
    """Copied at any moment of most runs, started soon after or much later, while faults still go on."""
    last_ms = clear_ms - START_MS - 15_000
    copied_ms = chance.randint(1_500, min(20_000, last_ms - 5_000))
    takes_over_ms = min(copied_ms + chance.choice((500, 3_000, 12_000)), last_ms)
    return SuccessionPlan(
        copied_ms=START_MS + copied_ms,
        takes_over_ms=START_MS + takes_over_ms,
        old=chance.choice(tuple(Old)),
        visitor=chance.choice((*names, "")),
        visits_ms=START_MS + takes_over_ms + chance.randint(0, 20_000),
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


def _site(chance: random.Random, name: str, shared_by: int, spare: bool) -> SitePlan:
    """A site. One that is `spare` may refuse for a time, or for good, or lie: no run needs it.

    No cohort is below `shared_by`.
    """
    allows = Contract(("run-*",), (TASK,), shared_by, {DATASET: Rights(execute=(TASK,))})
    denies = chance.choice(
        (
            Contract(("other-*",), (TASK,), 1, allows.datasets),
            Contract(("run-*",), (), 1, allows.datasets),
            Contract(("run-*",), (TASK,), 9, allows.datasets),
            Contract(("run-*",), (TASK,), 1, {DATASET: Rights(discoverable=True)}),
        )
    )
    first = denies if spare and chance.random() < 0.4 else allows
    later = denies if spare and chance.random() < 0.4 else allows
    return SitePlan(
        name=name,
        joins_ms=START_MS + (0 if chance.random() < 0.8 else chance.randint(0, 40_000)),
        weight=chance.choice((1, 7, 64, 1_000, 1_000, 1_000, 65_536)),
        step_ms=chance.choice((20, 50, 100, 200, 500, 1_500)),
        contract=first,
        later_contract=later,
        link_bytes_per_s=chance.choice((0, 0, 0, 200, 40, 20)),
        piece_bytes=chance.choice((8, 16, 24)),
        lies=spare and chance.random() < 0.35,
        moves_ms=chance.randint(0, 12_000),
    )
