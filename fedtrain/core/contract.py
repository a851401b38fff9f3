"""A site's contract: what it allows. Default deny. `core.judgement` holds orders against it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rights:
    """What may be done with one data set.

    `discoverable`: the coordinator may know that it exists. `execute`: tasks that may train on it.
    `read`: records may leave the site. `write`: the run may change it. The three that are flags hold for
    every task; the lists beside them for the tasks that they name.
    """

    discoverable: bool = False
    execute: tuple[str, ...] = ()
    read: bool = False
    write: bool = False
    discoverable_to: tuple[str, ...] = ()
    readable_by: tuple[str, ...] = ()
    writable_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Models:
    """Which models may be trained.

    Attributes:
        size_max_bytes: of a whole model's file, None for no bound.
        layouts: digests of layouts; empty for any.
        limits: key of the task's `model` section -> largest number there, e.g. `layers: 12`. A model that
            does not state a limited key as a number is not allowed.
    """

    size_max_bytes: int | None = None
    layouts: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hours:
    """When orders are accepted: from `start_minute` to before `end_minute` of the day in `zone`; over
    midnight where the end comes first."""

    start_minute: int
    end_minute: int
    zone: str


@dataclass(frozen=True)
class Require:
    """What a round must have before this site takes part.

    `epsilon_max` bounds what one run may cost at this site, as promised and as charged; `unit` is the
    privacy unit that it must name.
    """

    masked: bool = False
    epsilon_max: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Budget:
    """What a data set may cost one `unit` in its lifetime: epsilon at `delta`, over all runs."""

    unit: str
    epsilon_max: float
    delta: float


class Approval(enum.StrEnum):
    """Who has the last word on an order."""

    AUTOMATIC = "automatic"  # the contract alone
    MANUAL = "manual"  # a person, once per run
    HOLD = "hold"  # the contract for the work, a person for every update that would leave


@dataclass(frozen=True)
class Contract:
    """The clauses. An empty list of runs or tasks allows nothing; a bound that is None does not bind.

    Attributes:
        runs: patterns of run names, e.g. `library-*`.
        tasks: names of tasks.
        cohort_min: fewest sites, this one included, that an order may be shared with.
        datasets: data set name -> rights.
        organisations_min: fewest distinct organisations among those sites.
        upload_max_per_day_bytes, upload_max_per_round_bytes: of updates and initial weights.
        gpu_hours_max: accelerator hours that this contract allows in all; a trainer without accelerators
            counts as one.
        use: `economic` allows any use, `non-economic` only what is not economic.
        licences: patterns of licences that the trained model may be put under; empty for any.
        budgets: data set name -> its lifetime budget; one without is charged and never refused.
        partners: site -> its public message key, hex, for those that this site knows by itself: under masks
            the coordinator cannot put another key, and so another reader, in such a site's place.
    """

    runs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    cohort_min: int = 1
    datasets: Mapping[str, Rights] = field(default_factory=dict)
    organisations_min: int = 1
    models: Models = field(default_factory=Models)
    hours: Hours | None = None
    upload_max_per_day_bytes: int | None = None
    upload_max_per_round_bytes: int | None = None
    gpu_hours_max: float | None = None
    use: str = "non-economic"
    licences: tuple[str, ...] = ()
    require: Require = field(default_factory=Require)
    approval: Approval = Approval.AUTOMATIC
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    partners: Mapping[str, str] = field(default_factory=dict)


class Word(enum.StrEnum):
    """What a person of the site has said about a run."""

    APPROVED = "approved"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Verdict:
    """A person's word on a run, and why."""

    word: Word
    reason: str
    by: str
