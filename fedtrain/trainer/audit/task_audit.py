"""A run's own task under both attacks: its private step told apart, and planted secrets asked back.

What is attacked is the code that trains at a site, on the model and the settings of the run, with the
noise that the run's terms lead to. Two of the attacks are on single steps: one in which every unit takes
part, which is the sharpest look at clip and noise, and one with sampling. What is found for a step is
carried to the whole run by the same accountant that the claim comes from. Where the unit is the site,
clip and noise of the whole update are attacked likewise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from fedtrain.errors import ConfigError
from fedtrain.methods.accounting import epsilon_pld, solve_noise
from fedtrain.storage.mailbox import Asked, Mechanism, RecordTerms, SiteTerms, read_asked
from fedtrain.trainer.audit.bounds import epsilon_lower
from fedtrain.trainer.audit.distinguish import Finding, distinguish
from fedtrain.trainer.audit.exposure import CANARIES, CHANCE_BITS, Drawn, Extraction, Trained
from fedtrain.trainer.audit.subjects import UpdateSubject, find_target, step_subject
from fedtrain.trainer.data import DataSource
from fedtrain.trainer.privacy.plan import RecordPlan
from fedtrain.trainer.settings import TaskSpec
from fedtrain.trainer.tasks import build_task
from fedtrain.trainer.tasks.task import Auditable, Task, Weights, Work

SAMPLING_RATE = 0.5
"""Of the attack with sampling: the sampler is the same at every rate, and here it shows most."""

SITE_SHARE, STEP_SHARE, SAMPLING_SHARE = 0.1, 0.4, 0.2
"""Of the time; extraction gets the rest, half of it for each training."""

ATTACKS = 3
"""At most; they share the probability of failure."""

TRIAL_STEPS = 2

SITE = "audit"
SITE_UNIT = "site"

Told = Callable[[str, int, int], None]
"""(which attack, how much is done, of how much); what it raises ends the audit."""


@dataclass(frozen=True)
class Limits:
    """How much an audit may do.

    Attributes:
        runs: of each distinguishing attack, at most.
        seconds: in all, about.
        failure: probability that a right mechanism is called broken, over both attacks.
        repeats: how often each secret is planted.
    """

    runs: int
    seconds: float
    failure: float
    repeats: int


@dataclass(frozen=True)
class RunFacts:
    """What an audit needs of a run's file: its name, its seed, and its task section with the terms."""

    run: str
    seed: int
    task: str


def audit_task(facts: RunFacts, source: DataSource, limits: Limits, told: Told) -> dict[str, Any]:
    """Attack the task; the findings as a document, unit by unit; `broken` says whether a claim is refuted."""
    promise = promised(facts.task)
    began = time.monotonic()
    units: dict[str, Any] = {}
    extraction = None
    if promise.site is not None:
        units[SITE_UNIT] = _audit_site(promise.site, limits, told)
    if promise.record is not None:
        record = _RecordAudit(facts, promise.record, source, limits, told)
        units[promise.record.unit] = record.attack()
        extraction = record.extract(max(1.0, limits.seconds - (time.monotonic() - began)))
    attacks = [attack for unit in units.values() for attack in unit["attacks"].values()]
    return {
        "run": facts.run,
        "task": TaskSpec.from_json(facts.task).name,
        "dataset": source.name,
        "units": units,
        "extraction": extraction,
        "failure": limits.failure,
        "broken": any(attack["mu_lower"] > attack["mu_claimed"] for attack in attacks),
        "seconds": round(time.monotonic() - began, 1),
    }


def promised(task: str) -> Asked:
    """What a task section promises; `ConfigError` where there is nothing to audit."""
    asked = read_asked(task)
    if asked.fault:
        raise ConfigError(f"the task cannot be understood: {asked.fault}", key="task")
    if asked.site is not None and asked.site.noise != "site":
        raise ConfigError(
            "distributed noise is complete only in the masked sum of all sites, so no site's part can be"
            " audited by itself",
            key="privacy.site.noise",
        )
    if asked.record is None and asked.site is None:
        raise ConfigError(
            "there is nothing to audit: the run promises no noise; `record: {epsilon: 8.0}` would be such a"
            " promise",
            key="privacy.record",
        )
    return asked


def _audit_site(terms: SiteTerms, limits: Limits, told: Told) -> dict[str, Any]:
    """Clip and noise of a whole update."""
    mechanism = Mechanism("gaussian", SITE_UNIT, terms.clip, terms.noise_multiplier, 1.0, terms.rounds_total)
    finding = distinguish(
        UpdateSubject(terms),
        limits.runs,
        failure=limits.failure / ATTACKS,
        seconds=SITE_SHARE * limits.seconds,
        done=lambda made, of: told("update", made, of),
    )
    claimed = epsilon_pld([(mechanism, 1)], terms.delta).epsilon
    return {
        "claim": {**_claim(mechanism, claimed, terms.delta), "units": 1},
        "attacks": {"update": _finding(finding, mechanism, claimed, terms.delta)},
    }


class _RecordAudit:
    """Both attacks on the private step of one task, and the extraction of secrets."""

    def __init__(
        self, facts: RunFacts, terms: RecordTerms, source: DataSource, limits: Limits, told: Told
    ) -> None:
        self._facts, self._terms, self._source = facts, terms, source
        self._limits, self._told = limits, told
        self._spec = TaskSpec.from_json(facts.task)
        self._tasks = (_auditable(self._spec, source), _auditable(self._spec, source))
        self._units = self._tasks[0].units(terms.unit)
        rate = _rate(facts.task, terms, self._units)
        noise = solve_noise(terms.epsilon, terms.delta, rate, terms.steps_total, terms.accountant)
        self._plan = RecordPlan(terms.clip, noise, rate, terms.unit, terms.mode)

    def attack(self) -> dict[str, Any]:
        """Single steps, with every unit in them, and sampled."""
        plan, terms = self._plan, self._terms
        mechanism = Mechanism(
            "poisson-gaussian",
            terms.unit,
            terms.clip,
            plan.noise_multiplier,
            plan.sampling_rate,
            terms.steps_total,
        )
        start = Drawn(self._tasks[0], self._facts.seed)
        target = find_target(self._tasks[0], start, plan)
        attacks = {}
        for name, share, rate in (("step", STEP_SHARE, 1.0), ("sampling", SAMPLING_SHARE, SAMPLING_RATE)):
            subject = step_subject(self._tasks, start, replace(plan, sampling_rate=rate), target)
            finding = distinguish(
                subject,
                self._limits.runs,
                sampling_rate=rate,
                failure=self._limits.failure / ATTACKS,
                seconds=share * self._limits.seconds,
                done=partial(self._told, name),
            )
            subject.detach()
            attacks[name] = _finding(finding, mechanism, terms.epsilon, terms.delta)
        return {
            "claim": {**_claim(mechanism, terms.epsilon, terms.delta), "units": self._units},
            "attacks": attacks,
            "target": {
                "canary": target.canary,
                "company": target.company,
                "gradient_clips": target.length,
            },
        }

    def extract(self, seconds: float) -> dict[str, Any]:
        """Train with and without noise on data with planted secrets, and ask for them."""
        extraction = Extraction(self._spec, self._source, self._limits.repeats, self._facts.seed)
        found: dict[str, dict[str, Any]] = {}
        for left, (name, plan) in zip((2, 1), (("plain", None), ("private", self._plan)), strict=True):
            began = time.monotonic()
            task = build_task(self._spec, extraction.source)
            start = Drawn(task, self._facts.seed)
            steps = self._affordable(task, start, plan, seconds / left)
            told = partial(self._told, f"extraction, {name}")
            trained = Trained(task, start, self._work(steps, plan), lambda done, n=steps, t=told: t(done, n))  # type: ignore[misc]
            exposure = extraction.exposure(trained)
            found[name] = {"steps": steps, "of": self._terms.steps_total, **asdict(exposure)}
            seconds -= time.monotonic() - began
        return {
            "canaries": CANARIES,
            "repeats": self._limits.repeats,
            "chance_bits": CHANCE_BITS,
            "trainings": found,
        }

    def _affordable(self, task: Task, start: Weights, plan: RecordPlan | None, seconds: float) -> int:
        """So many steps of the run as fit into the time, at least one."""
        each = math.inf
        for _ in range(TRIAL_STEPS):  # the first step of a process is slower than all others
            began = time.monotonic()
            Trained(task, start, self._work(1, plan), lambda done: None)
            each = min(each, time.monotonic() - began)
        task.restore({})
        return max(1, min(self._terms.steps_total, int(seconds / max(each, 1e-9))))

    def _work(self, steps: int, plan: RecordPlan | None) -> Work:
        return Work(self._facts.run, self._facts.seed, 1, SITE, steps, 0, plan)


def _auditable(spec: TaskSpec, source: DataSource) -> Auditable:
    task = build_task(spec, source)
    if not (hasattr(task, "private_step") and hasattr(task, "record_losses")):
        raise ConfigError(
            f"the task {spec.name!r} cannot be audited: it has no `private_step` and `record_losses`",
            key="task.name",
        )
    return task  # type: ignore[return-value]


def _rate(task: str, terms: RecordTerms, units: int) -> float:
    """With which probability a step of the run takes a unit of this data."""
    if terms.sampling_rate is not None:
        return terms.sampling_rate
    return min(1.0, read_asked(task).batch_size / units) if units else 1.0


def _claim(mechanism: Mechanism, epsilon: float, delta: float) -> dict[str, Any]:
    return {
        "epsilon": epsilon,
        "delta": delta,
        "mu": 1 / mechanism.noise_multiplier,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip": mechanism.clip,
        "sampling_rate": mechanism.sampling_rate,
        "steps": mechanism.steps,
    }


def _finding(finding: Finding, mechanism: Mechanism, epsilon: float, delta: float) -> dict[str, Any]:
    """What an attack proves, beside the claim: of one step, and of a run whose steps are all like it."""
    proven = 0.0
    if finding.mu_lower > 0:
        proven = epsilon_pld([(replace(mechanism, noise_multiplier=1 / finding.mu_lower), 1)], delta).epsilon
    return {
        "runs": finding.runs,
        "mu_lower": finding.mu_lower,
        "mu_claimed": 1 / mechanism.noise_multiplier,
        "epsilon_lower": proven,
        "epsilon_claimed": epsilon,
        "epsilon_lower_step": epsilon_lower(finding.errors, finding.failure, delta),
        "errors": asdict(finding.errors),
    }
