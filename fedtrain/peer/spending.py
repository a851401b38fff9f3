"""What an order costs: mechanisms from its terms, epsilons from the ledger's rows. Slow; called in threads.

The accountants are asked the cheap question first: where the Renyi bound is within the budget, nobody waits
for the tight one, and where it is not, the tight one has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fedtrain.core import canonical
from fedtrain.core.agent import AgentState
from fedtrain.core.agent_state import Reckoned
from fedtrain.core.budget import Spending
from fedtrain.core.charges import (
    EXACT,
    GAUSSIAN,
    POISSON_GAUSSIAN,
    Account,
    Charge,
    Claim,
    Mechanism,
    Permit,
    bit_mechanism,
    record_mechanism,
    sampling_rate,
    serving,
    site_mechanism,
)
from fedtrain.core.contract import Budget, Contract
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.privacy import SITE_UNIT
from fedtrain.core.terms import Asked
from fedtrain.methods.accounting import (
    Bound,
    Composition,
    epsilon_pld,
    epsilon_rdp,
    exact_gaussian_epsilon,
    grouped,
)
from fedtrain.methods.codecs import codec

GATE_S = 10.0
"""For the tight bound of what an order leads to; without an answer the Renyi bound holds."""

ELEMENTS_UNKNOWN = 1_000_000
"""Numbers in an update, for a question that comes before there is a model."""

BYTES_PER_ELEMENT = 4
EPSILON_UNKNOWN = 1e9
"""Stands for an epsilon that nothing bounds: documents hold no infinity."""


def promise(asked: Asked) -> str:
    """Digest of the record-level promise, by which its noise is remembered."""
    return canonical.digest((asked.record, asked.batch_size, asked.dataset))


def reckoned(state: AgentState, run: str, asked: Asked) -> Reckoned | None:
    """The run's noise and units at this site, if they are known."""
    found = state.reckoned.get(run)
    return found if found is not None and found.terms == promise(asked) else None


def permit_of(order: Order, asked: Asked, found: Reckoned | None) -> Permit | None:
    """The mechanisms of one execution of this order; None while the run's noise is not reckoned.

    An order that is only asked about (`run check`) is taken for the training that it announces.
    """
    record, site = asked.record, asked.site
    trains = order.kind is OrderKind.TRAIN or (order.kind is OrderKind.SEED and order.steps > 0)
    if not trains:
        return Permit(order.id, 0)
    if record is not None and found is None:
        return None
    return Permit(
        order=order.id,
        execution=0,
        record=record_mechanism(
            record,
            sampling_rate(record, asked.batch_size, found.units),
            found.noise_multiplier,
            order.steps,
        )
        if record is not None and found is not None
        else None,
        site=site_mechanism(site, len(order.cohort), _step(order.codec), _elements(order)) if site else None,
        units=found.units if record is not None and found is not None else 0,
        bit=bit_mechanism(site) if site else None,
    )


def charges_of(permit: Permit, order: Order, consortium: str, dataset: str) -> tuple[Charge, ...]:
    """The permit as rows of the ledger."""
    return tuple(
        Charge(order.id, permit.execution, order.run, consortium, dataset, mechanism)
        for mechanism in permit.mechanisms
    )


def spending(
    past: Sequence[Charge],
    contract: Contract,
    order: Order,
    asked: Asked,
    consortium: str,
    found: Reckoned | None,
) -> Spending:
    """What the data set and the run have cost, and cost with this order.

    Args:
        past: all charges of the data set.
    """
    permit = permit_of(order, asked, found)
    coming = None if permit is None else charges_of(permit, order, consortium, asked.dataset)
    spent = Spending()
    if (budget := contract.budgets.get(asked.dataset)) is not None:
        before, after, unfit = _both(past, coming, budget.unit, budget.delta, budget.epsilon_max)
        spent = replace(spent, unit=budget.unit, delta=budget.delta, spent=before, after=after)
        if unfit or before >= EPSILON_UNKNOWN:
            spent = replace(spent, fault=_unknown(asked.dataset, budget.unit, unfit))
    unit, delta = run_unit(contract, asked)
    if not unit:
        return spent
    mine = [charge for charge in past if (charge.consortium, charge.run) == (consortium, order.run)]
    most = contract.require.epsilon_max
    before, after, _ = _both(mine, coming, unit, delta, most)
    promised = _promised(order, asked, unit, delta, most)
    return replace(
        spent, run_unit=unit, run_delta=delta, run_spent=before, run_after=after, promised=promised
    )


def total(past: Sequence[Charge], budget: Budget) -> float:
    """What the data set has cost, by its budget's unit and delta."""
    return _epsilon(serving(budget.unit, past)[0], budget.delta, budget.epsilon_max)


def run_unit(contract: Contract, asked: Asked) -> tuple[str, float]:
    """(unit, delta) in which a run's own epsilon is told; ("", 0) for one that promises none."""
    if asked.site is not None and (asked.record is None or contract.require.unit == SITE_UNIT):
        return SITE_UNIT, asked.site.delta
    return (asked.record.unit, asked.record.delta) if asked.record is not None else ("", 0.0)


def account(
    past: Sequence[Charge], asked: Asked, order: Order, execution: int, within: float | None = None
) -> Account:
    """What this run has cost at this site so far, by two accountants, for each unit that it promises.

    Args:
        past: the run's charges.
    """
    deltas = {}
    if asked.record is not None:
        deltas[asked.record.unit] = asked.record.delta
    if asked.site is not None:
        deltas[SITE_UNIT] = asked.site.delta
    return Account(
        run=order.run,
        order=order.id,
        execution=execution,
        claims=tuple(_claim(past, unit, delta) for unit, delta in deltas.items()),
        within=within,
    )


def _claim(past: Sequence[Charge], unit: str, delta: float) -> Claim:
    counted = [charge.mechanism for charge in past if charge.mechanism.unit == unit]
    composition = grouped(_without_clips(counted))
    tight = _bound(composition, delta)
    return Claim(
        unit=unit,
        delta=delta,
        epsilon_rdp=_finite(epsilon_rdp(composition, delta)),
        epsilon_pld=_finite(tight.epsilon),
        pld_by=tight.by,
        note=tight.note,
        mechanisms=tuple(composition),
    )


def _without_clips(mechanisms: Sequence[Mechanism]) -> list[Mechanism]:
    """With the newest clip in all of one noise: an adaptive clip would make every round a line of its own."""
    newest = {_noise(mechanism): mechanism.clip for mechanism in mechanisms}
    return [replace(mechanism, clip=newest[_noise(mechanism)]) for mechanism in mechanisms]


def _noise(mechanism: Mechanism) -> tuple[object, ...]:
    return mechanism.kind, mechanism.noise_multiplier, tuple(sorted(mechanism.detail.items()))


def _both(
    past: Sequence[Charge],
    coming: Sequence[Charge] | None,
    unit: str,
    delta: float,
    most: float | None,
) -> tuple[float, float | None, int]:
    """(epsilon so far, with what is coming, charges that say nothing of this unit)."""
    before, unfit = serving(unit, past)
    if coming is None:
        return _epsilon(before, delta, most), None, len(unfit)
    after = [*before, *serving(unit, coming)[0]]
    # One accountant for both numbers, so that their difference means something.
    gate = epsilon_rdp(grouped(after), delta)
    if most is None or gate <= most:
        return _finite(epsilon_rdp(grouped(before), delta)), _finite(gate), len(unfit)
    return _epsilon(before, delta, most), _finite(_tight(after, delta)), len(unfit)


def _epsilon(mechanisms: Sequence[Mechanism], delta: float, most: float | None) -> float:
    gate = epsilon_rdp(grouped(mechanisms), delta)
    return _finite(gate if most is None or gate <= most else _tight(mechanisms, delta))


def _tight(mechanisms: Sequence[Mechanism], delta: float) -> float:
    return _bound(grouped(mechanisms), delta).epsilon


def _bound(composition: Composition, delta: float) -> Bound:
    """The tightest bound that there is time for. Gaussians without sampling have a closed form, so nobody
    waits for another process there."""
    precision = 0.0
    for mechanism, count in composition:
        continuous = mechanism.kind in (GAUSSIAN, POISSON_GAUSSIAN) and mechanism.sampling_rate == 1
        if not continuous or mechanism.noise_multiplier <= 0:
            return epsilon_pld(composition, delta, GATE_S)
        precision += mechanism.steps * count / mechanism.noise_multiplier**2
    if not precision:
        return Bound(0.0, EXACT)
    return Bound(exact_gaussian_epsilon(math.sqrt(precision), delta), EXACT)


def _promised(order: Order, asked: Asked, unit: str, delta: float, most: float | None) -> float:
    """Epsilon of the whole run; that of records is in its terms."""
    if unit != SITE_UNIT or asked.site is None:
        return asked.record.epsilon if asked.record is not None else 0.0
    rounds = asked.site.rounds_total
    site = site_mechanism(asked.site, len(order.cohort), _step(order.codec), _elements(order))
    bit = bit_mechanism(asked.site)
    each = [site] if bit is None else [site, bit]
    return _epsilon([replace(mechanism, steps=rounds) for mechanism in each], delta, most)


def _finite(epsilon: float) -> float:
    return epsilon if math.isfinite(epsilon) else EPSILON_UNKNOWN


def _unknown(dataset: str, unit: str, unfit: int) -> str:
    why = (
        f"{unfit} charges of the ledger are for other units than {unit}, and say nothing about it"
        if unfit
        else "the ledger was repaired, so what was spent is not known"
    )
    return f"datasets.{dataset}.privacy.epsilon_max: nothing is left, because {why}"


def _step(name: str) -> float:
    """The grid of a summable codec; 0 for any other."""
    row = codec(name)
    return float(getattr(row, "step", 0.0)) if row.summable else 0.0


def _elements(order: Order) -> int:
    """At most so many numbers has an update: the whole model's file holds no more."""
    if order.model is None or not order.model.chain:
        return ELEMENTS_UNKNOWN
    model = order.model
    snapshot = next((size for version, _, size in model.chain if version == model.snapshot_version), 0)
    return max(1, (snapshot or max(size for _, _, size in model.chain)) // BYTES_PER_ELEMENT)
