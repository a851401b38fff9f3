"""May this order be done here? Every refusal names the clause that said no.

Pure: `judge(contract, order, circumstances) -> Decision`. All reasons are given at once, so that a person
at either end knows what to change.

What a run says of itself travels in the order's task, under `terms`: `use`, `licence` and `privacy`; and
under `access` what it asks of the data beyond training on it. What is absent is the most modest: no
economic use, no licence stated, no privacy mechanism, no access.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from fedtrain.core.contract import Approval, Contract, Hours, Models, Require, Verdict, Word
from fedtrain.core.orders import Order


@dataclass(frozen=True)
class Moment:
    """A time as the contract's zone tells it: days since 1970 and minutes since midnight."""

    day: int
    minute: int


@dataclass(frozen=True)
class Circumstances:
    """All that a judgement needs beside contract and order.

    Attributes:
        moment: None where the hour does not matter, as for work that was begun in time.
        verdicts: run -> what a person has said.
        organisations: site -> organisation, by the coordinator's signed roster.
        uploaded_bytes: what has left on this day.
        gpu_hours: accelerator hours used so far.
    """

    moment: Moment | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    organisations: Mapping[str, str] = field(default_factory=dict)
    uploaded_bytes: int = 0
    gpu_hours: float = 0.0


@dataclass(frozen=True)
class Decision:
    """Yes, or no with every clause that says so. `pending`: nothing but a person's word is missing."""

    accepted: bool
    reasons: tuple[str, ...] = ()
    pending: bool = False


def judge(contract: Contract, order: Order, circumstances: Circumstances | None = None) -> Decision:
    """Hold an order against the contract."""
    now = circumstances or Circumstances()
    asked = _Asked.of(order)
    reasons = [
        *_run_reasons(contract, order, asked),
        *_cohort_reasons(contract, order, now),
        *_dataset_reasons(contract, asked),
        *_model_reasons(contract.models, order, asked),
        *_bound_reasons(contract, now),
        *_privacy_reasons(contract.require, asked),
    ]
    verdict = now.verdicts.get(order.run)
    if verdict is not None and verdict.word is not Word.APPROVED:
        reasons.append(f"{verdict.by} has {verdict.word} run {order.run}: {verdict.reason}")
    elif verdict is None and contract.approval is Approval.MANUAL:
        waits = f"contract.approval is manual: run {order.run} waits for a person's word at the site"
        return Decision(False, (*reasons, waits), pending=not reasons)
    return Decision(not reasons, tuple(reasons))


def upload_fault(contract: Contract, size_bytes: int, uploaded_bytes: int) -> str:
    """The clause that keeps a finished file at the site; "" if it may leave today."""
    per_round, per_day = contract.upload_max_per_round_bytes, contract.upload_max_per_day_bytes
    if per_round is not None and size_bytes > per_round:
        return f"contract.upload_max_per_round is {per_round} bytes, this one has {size_bytes}"
    if per_day is not None and uploaded_bytes + size_bytes > per_day:
        return (
            f"contract.upload_max_per_day is {per_day} bytes: {uploaded_bytes} have left today, and this one "
            f"has {size_bytes}"
        )
    return ""


@dataclass(frozen=True)
class _Asked:
    """What the order's task section says, as far as it says it."""

    task: str
    dataset: str
    access: tuple[str, ...]
    model: Mapping[str, Any]
    use: str
    licence: str
    masked: bool
    record: Mapping[str, Any]

    @staticmethod
    def of(order: Order) -> _Asked:
        try:
            task = _mapping(json.loads(order.task))
        except (ValueError, RecursionError):
            task = {}
        terms = _mapping(task.get("terms"))
        privacy = _mapping(terms.get("privacy"))
        access = task.get("access")
        return _Asked(
            task=str(task.get("name", "")),
            dataset=str(task.get("data") or ""),
            access=tuple(map(str, access)) if isinstance(access, list) else (),
            model=_mapping(task.get("model")),
            use=str(terms.get("use", "non-economic")),
            licence=str(terms.get("licence", "unstated")),
            masked=bool(privacy.get("masked", False)),
            record=_mapping(privacy.get("record")),
        )


def _run_reasons(contract: Contract, order: Order, asked: _Asked) -> list[str]:
    reasons = []
    if not _matches(order.run, contract.runs):
        reasons.append(f"contract.runs does not allow run {order.run} (allowed: {_listed(contract.runs)})")
    if asked.task not in contract.tasks:
        reasons.append(
            f"contract.tasks does not allow task {asked.task} (allowed: {_listed(contract.tasks)})"
        )
    if contract.use != "economic" and asked.use != "non-economic":
        reasons.append(f"contract.use is {contract.use}, this run is for {asked.use} use")
    if contract.licences and not _matches(asked.licence, contract.licences):
        reasons.append(
            f"contract.licences does not allow a model under {asked.licence} "
            f"(allowed: {_listed(contract.licences)})"
        )
    return reasons


def _cohort_reasons(contract: Contract, order: Order, now: Circumstances) -> list[str]:
    if order.site not in order.cohort:
        return ["contract.cohort_min cannot be judged: the order's cohort does not name this site"]
    reasons = []
    size = len(set(order.cohort))
    if size < contract.cohort_min:
        reasons.append(f"contract.cohort_min is {contract.cohort_min}, this order is shared by {size}")
    known = {now.organisations[site] for site in order.cohort if site in now.organisations}
    if contract.organisations_min > 1 and len(known) < contract.organisations_min:
        reasons.append(
            f"contract.organisations_min is {contract.organisations_min}, and the coordinator's roster names "
            f"{len(known)} for this order's sites"
        )
    return reasons


def _dataset_reasons(contract: Contract, asked: _Asked) -> list[str]:
    """Clauses of the data set. One that may not be discovered is denied like one that is not there."""
    name, task = asked.dataset, asked.task
    if not name:
        return []
    rights = contract.datasets.get(name)
    if rights is None or not (
        rights.discoverable or task in rights.discoverable_to or task in rights.execute
    ):
        return [f"no data set {name} here"]
    reasons = []
    if task not in rights.execute:
        reasons.append(f"datasets.{name}.rights.execute does not list task {task}")
    granted = {
        "read": rights.read or task in rights.readable_by,
        "write": rights.write or task in rights.writable_by,
    }
    for access in asked.access:
        if access not in granted:
            reasons.append(f"no right {access!r} can be had on data set {name}")
        elif not granted[access]:
            reasons.append(f"datasets.{name}.rights.{access} does not allow task {task}")
    return reasons


def _model_reasons(models: Models, order: Order, asked: _Asked) -> list[str]:
    reasons = []
    for key, most in models.limits.items():
        found = asked.model.get(key)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            reasons.append(f"contract.models.limits.{key} is {most:g}, and the model does not state a number")
        elif found > most:
            reasons.append(f"contract.models.limits.{key} is {most:g}, the model has {found:g}")
    if order.model is None:
        return reasons
    if models.layouts and order.model.layout_digest not in models.layouts:
        reasons.append(f"contract.models.layouts does not list layout {order.model.layout_digest[:16]}")
    size_bytes = max((size for _, _, size in order.model.chain[:1]), default=0)
    if models.size_max_bytes is not None and size_bytes > models.size_max_bytes:
        reasons.append(
            f"contract.models.size_max is {models.size_max_bytes} bytes, the model has {size_bytes}"
        )
    return reasons


def _bound_reasons(contract: Contract, now: Circumstances) -> list[str]:
    """Hours, traffic and effort."""
    reasons = []
    hours, moment = contract.hours, now.moment
    if hours is not None and moment is not None and not _within(hours, moment.minute):
        at = f"{moment.minute // 60:02d}:{moment.minute % 60:02d}"
        reasons.append(
            f"contract.hours are {_clock(hours.start_minute)}-{_clock(hours.end_minute)} {hours.zone}, "
            f"and it is {at} there"
        )
    per_day = contract.upload_max_per_day_bytes
    if per_day is not None and now.uploaded_bytes >= per_day:
        reasons.append(
            f"contract.upload_max_per_day is {per_day} bytes, and {now.uploaded_bytes} have left today"
        )
    if contract.gpu_hours_max is not None and now.gpu_hours >= contract.gpu_hours_max:
        reasons.append(
            f"contract.gpu_hours_max is {contract.gpu_hours_max:g}, and {now.gpu_hours:.2f} are used"
        )
    return reasons


def _privacy_reasons(require: Require, asked: _Asked) -> list[str]:
    """What the site demands, and what this version cannot give whoever promises it."""
    reasons = []
    if require.masked and not asked.masked:
        reasons.append("contract.require.masked is true, and this order asks for a plain update")
    if asked.masked or asked.record:
        reasons.append("this version has no privacy mechanisms, and the order promises one")
    epsilon = asked.record.get("epsilon")
    if require.epsilon_max is not None:
        if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
            reasons.append(
                f"contract.require.epsilon_max is {require.epsilon_max:g}, and this run has no record-level "
                "epsilon"
            )
        elif epsilon > require.epsilon_max:
            reasons.append(
                f"contract.require.epsilon_max is {require.epsilon_max:g}, this run's is {epsilon:g}"
            )
    unit = str(asked.record.get("unit", ""))
    if require.unit and unit != require.unit:
        reasons.append(f"contract.require.unit is {require.unit}, this run's is {unit or 'not stated'}")
    return reasons


def _within(hours: Hours, minute: int) -> bool:
    if hours.start_minute <= hours.end_minute:
        return hours.start_minute <= minute < hours.end_minute
    return minute >= hours.start_minute or minute < hours.end_minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
