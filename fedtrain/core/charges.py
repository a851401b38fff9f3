"""What a privacy mechanism costs, written down before it runs, and what it then may do.

A *charge* is one row of a site's ledger: the parameters of one mechanism, for one execution of one order.
It is durable before the order reaches a trainer, so whatever is computed is paid for. Each further
execution (a lost claim, a crash after the charge) is a new charge; sending stored bytes again is none.

A *permit* lies beside the order in the mailbox. The trainer does what the order's terms promise only if
the permit says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedtrain.core.orders import Order
from fedtrain.core.privacy import SITE_UNIT, RecordTerms, SiteTerms
from fedtrain.core.terms import read_asked

POISSON_GAUSSIAN, GAUSSIAN, DISCRETE_GAUSSIAN = KINDS = (
    "poisson-gaussian",
    "gaussian",
    "discrete-gaussian",
)

CHARGE, LEDGER = "charge", "ledger"
"""Topics of statements: a site's account of a run, and the same handed back to it when it attaches."""

EXACT = "exact"
"""Accountant of Gaussians without sampling, whose epsilon has a closed form."""

CLOSED = "closed"
"""Kind that stands for unknown spending, by which an owner closes a budget: it bounds nothing."""

BIT_CLIP = 0.5
"""A site's bit counts as +1/2 or -1/2, so that one that is absent differs from either by this much."""


@dataclass(frozen=True)
class Mechanism:
    """The parameters from which every accountant computes.

    Attributes:
        kind: `poisson-gaussian` (DP-SGD), `gaussian`, or `discrete-gaussian` (a sum of shares).
        unit: what it protects: `record`, `group` or `site`.
        clip: L2 sensitivity to one unit that is added or left out.
        noise_multiplier: standard deviation of the noise divided by `clip`.
        sampling_rate: probability with which a step takes a unit; 1 for all.
        steps: how many times.
        detail: further numbers of one kind, e.g. the shares of a discrete Gaussian.
    """

    kind: str
    unit: str
    clip: float
    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Charge:
    """One row of the ledger: one mechanism in one execution of an order. `execution` counts from 1."""

    order: str
    execution: int
    run: str
    consortium: str
    dataset: str
    mechanism: Mechanism


@dataclass(frozen=True)
class Permit:
    """What the trainer may do for an order: it is charged for, up to row `ledger_sequence`.

    Attributes:
        record, site: the mechanisms; None where the terms promise none.
        bit: of adaptive clipping, None without.
        units: the data set's records or groups that `record.sampling_rate` was reckoned with; 0 where the
            run's terms give the rate. With fewer the rate would be larger than what was charged.
    """

    order: str
    execution: int
    record: Mechanism | None = None
    site: Mechanism | None = None
    units: int = 0
    ledger_sequence: int = 0
    bit: Mechanism | None = None

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """All that is charged for."""
        return tuple(found for found in (self.record, self.site, self.bit) if found is not None)


@dataclass(frozen=True)
class Claim:
    """An epsilon with all that it means nothing without.

    Attributes:
        unit, delta: what is protected, and at which delta the epsilons are.
        epsilon_rdp, epsilon_pld: by two accountants. `pld_by` is `exact` where there is a closed form, and
            `rdp` where the tight one had no answer in time, as `note` says.
        mechanisms: what was charged, and how often each.
    """

    unit: str
    delta: float
    epsilon_rdp: float
    epsilon_pld: float
    pld_by: str
    note: str
    mechanisms: tuple[tuple[Mechanism, int], ...]


@dataclass(frozen=True)
class Account:
    """What a run has cost at one site so far: the document that the site signs (topic `charge`).

    Attributes:
        order, execution: the newest charge's.
        claims: one per unit that the run promises.
        sequence, hash: the ledger's head behind it. The coordinator hands them back at each attach, so a
            site whose ledger was restored from an old copy learns of it.
        within: the noised bit of adaptive clipping, once the update is made.
    """

    run: str
    order: str
    execution: int
    claims: tuple[Claim, ...]
    sequence: int = 0
    hash: str = ""
    within: float | None = None


def sampling_rate(terms: RecordTerms, batch_size: int, units: int) -> float:
    """Probability with which one step takes one unit; 1 where the batch is as large as the data."""
    if terms.sampling_rate is not None:
        return terms.sampling_rate
    return min(1.0, batch_size / units) if units > 0 else 1.0


def record_mechanism(terms: RecordTerms, rate: float, noise_multiplier: float, steps: int) -> Mechanism:
    """DP-SGD of so many steps."""
    return Mechanism(POISSON_GAUSSIAN, terms.unit, terms.clip, noise_multiplier, rate, steps)


def site_mechanism(terms: SiteTerms, sites: int, step: float = 0.0, elements: int = 0) -> Mechanism:
    """One noised update, or one site's part in a noised sum.

    Args:
        sites: how many share the order.
        step, elements: of a sum on an integer grid: its spacing, and the numbers in an update.
    """
    if terms.noise != "distributed":
        return Mechanism(GAUSSIAN, SITE_UNIT, terms.clip, terms.noise_multiplier)
    detail = {
        "sites": float(sites),
        "dropouts_max": float(terms.dropouts_max),
        "step": step,
        "elements": float(elements),
    }
    return Mechanism(DISCRETE_GAUSSIAN, SITE_UNIT, terms.clip, terms.noise_multiplier, detail=detail)


def bit_mechanism(terms: SiteTerms) -> Mechanism | None:
    """The noised bit of adaptive clipping."""
    if terms.adaptive is None:
        return None
    return Mechanism(GAUSSIAN, SITE_UNIT, BIT_CLIP, terms.adaptive.noise / BIT_CLIP)


def permit_fault(permit: Permit | None, order: Order) -> str:
    """Why this order may not be worked on with this permit, "" if it may.

    An order that promises nothing needs none. What the trainer has to hold beside it: that the data set
    has no fewer than `permit.units` units.
    """
    asked = read_asked(order.task)
    if asked.fault:
        return f"the order's task cannot be understood: {asked.fault}"
    record, site = asked.record, asked.site
    if record is None and site is None:
        return ""
    if permit is None:
        return "the order promises privacy, and no permit lies beside it: the agent has not charged for it"
    if permit.order != order.id:
        return f"the permit is for {permit.order[:80]}"
    if record is not None and not _fits_record(permit, record, order.steps):
        return "the permit's record-level mechanism is not the one that the order promises"
    if record is None and permit.record is not None:
        return "the permit has a record-level mechanism, and the order promises none"
    expected = site_mechanism(site, len(order.cohort)) if site else None
    if _core(permit.site) != _core(expected) or permit.bit != (bit_mechanism(site) if site else None):
        return "the permit's site-level mechanism is not the one that the order promises"
    return ""


def _fits_record(permit: Permit, terms: RecordTerms, steps: int) -> bool:
    found = permit.record
    if found is None or found.noise_multiplier <= 0 or not 0 < found.sampling_rate <= 1:
        return False
    rate = found.sampling_rate if terms.sampling_rate is None else terms.sampling_rate
    return found == record_mechanism(terms, rate, found.noise_multiplier, steps)


def _core(mechanism: Mechanism | None) -> Mechanism | None:
    """Without what follows from the model's size, which only the agent knows before the work."""
    if mechanism is None:
        return None
    kept = {key: value for key, value in mechanism.detail.items() if key not in ("step", "elements")}
    return replace(mechanism, detail=kept)


def serving(unit: str, charges: Sequence[Charge]) -> tuple[list[Mechanism], list[Charge]]:
    """What these charges cost one `unit`, and the charges that say nothing about it.

    A site's mechanism bounds what any record or group costs, with half the noise: changing one moves the
    clipped update by up to twice the clip. So does changing one record of a group, whose mechanism is also
    sampled; that has no bound as simple, so a group's mechanism serves groups alone. Where one execution
    has a mechanism for the unit, the others work on what is noised already and cost nothing.
    """
    own = (unit,)
    # A ledger is long, and its mechanisms are few: one object for equal rows stays one object.
    others = {charge.order for charge in charges if charge.mechanism.unit not in own}
    paid = {
        _execution(charge) for charge in charges if charge.order in others and charge.mechanism.unit in own
    }
    halved: dict[int, Mechanism] = {}
    counted: list[Mechanism] = []
    unfit: list[Charge] = []
    for charge in charges:
        mechanism = charge.mechanism
        if mechanism.unit in own:
            counted.append(mechanism)
        elif _execution(charge) in paid:
            continue
        elif mechanism.unit == SITE_UNIT:
            if id(mechanism) not in halved:
                halved[id(mechanism)] = _halved(mechanism)
            counted.append(halved[id(mechanism)])
        else:
            unfit.append(charge)
    return counted, unfit


def _execution(charge: Charge) -> tuple[str, str, int]:
    return charge.consortium, charge.order, charge.execution


def _halved(mechanism: Mechanism) -> Mechanism:
    """For two clipped updates of which one takes the other's place."""
    detail = mechanism.detail
    if mechanism.kind == DISCRETE_GAUSSIAN:
        detail = {**detail, "parts": 2.0}  # each is rounded to the grid by itself
    half = mechanism.noise_multiplier / 2
    return replace(mechanism, clip=2 * mechanism.clip, noise_multiplier=half, detail=detail)
