"""May this order be done here? Every refusal names the clause that said no.

Pure: `judge(contract, order, circumstances) -> Decision`. All reasons are given at once, so that a person
at either end knows what to change.

What a run says of itself travels in the order's task (`core.terms`). One that cannot be understood is
refused as a whole. Words of the other side come back in reasons short and in ASCII.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fedtrain.core.budget import Spending, budget_reasons, promise_reasons
from fedtrain.core.contract import Approval, Contract, Hours, Models, Verdict, Word
from fedtrain.core.orders import Order
from fedtrain.core.terms import Asked, read_asked, shown


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
        spending: what the order would cost by the ledger; None where that does not matter, as for work
            that was begun and is charged for.
    """

    moment: Moment | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    organisations: Mapping[str, str] = field(default_factory=dict)
    uploaded_bytes: int = 0
    gpu_hours: float = 0.0
    spending: Spending | None = None


@dataclass(frozen=True)
class Decision:
    """Yes, or no with every clause that says so. `pending`: nothing but a person's word is missing."""

    accepted: bool
    reasons: tuple[str, ...] = ()
    pending: bool = False


def judge(contract: Contract, order: Order, circumstances: Circumstances | None = None) -> Decision:
    """Hold an order against the contract."""
    now = circumstances or Circumstances()
    asked = read_asked(order.task)
    if asked.fault:
        return Decision(False, (f"the order's task cannot be judged: {asked.fault}",))
    reasons = [
        *_run_reasons(contract, order, asked),
        *_cohort_reasons(contract, order, now),
        *_dataset_reasons(contract, asked),
        *_model_reasons(contract.models, order, asked),
        *_bound_reasons(contract, now),
        *promise_reasons(contract.require, order, asked, now.spending),
        *budget_reasons(contract.budgets.get(asked.dataset), order, asked, now.spending, now.moment is None),
    ]
    verdict = now.verdicts.get(order.run)
    if verdict is not None and verdict.word is not Word.APPROVED:
        why = f": {verdict.reason}" if verdict.reason else ""
        reasons.append(f"run {order.run} is {verdict.word} by a person of this site{why}")
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


def _run_reasons(contract: Contract, order: Order, asked: Asked) -> list[str]:
    reasons = []
    if not _matches(order.run, contract.runs):
        reasons.append(f"contract.runs does not allow run {order.run} (allowed: {_listed(contract.runs)})")
    if asked.task not in contract.tasks:
        reasons.append(
            f"contract.tasks does not allow task {shown(asked.task)} (allowed: {_listed(contract.tasks)})"
        )
    if contract.use != "economic" and asked.use != "non-economic":
        reasons.append(f"contract.use is {contract.use}, this run is for {asked.use} use")
    if contract.licences and not _matches(asked.licence, contract.licences):
        reasons.append(
            f"contract.licences does not allow a model under {shown(asked.licence)} "
            f"(allowed: {_listed(contract.licences)})"
        )
    return reasons


def _cohort_reasons(contract: Contract, order: Order, now: Circumstances) -> list[str]:
    if order.site not in order.cohort:
        return ["contract.cohort_min cannot be judged: the order's cohort does not name this site"]
    reasons = []
    sites = set(order.cohort)
    members = sites & set(now.organisations) if now.organisations else sites
    if len(members) < contract.cohort_min:
        strangers = len(sites) - len(members)
        besides = f" (and {strangers} that the coordinator's roster does not name)" if strangers else ""
        reasons.append(
            f"contract.cohort_min is {contract.cohort_min}, this order is shared by {len(members)}{besides}"
        )
    known = {now.organisations[site] for site in order.cohort if site in now.organisations}
    if contract.organisations_min > 1 and len(known) < contract.organisations_min:
        reasons.append(
            f"contract.organisations_min is {contract.organisations_min}, and the coordinator's roster names "
            f"{len(known)} for this order's sites"
        )
    return reasons


def _dataset_reasons(contract: Contract, asked: Asked) -> list[str]:
    """Clauses of the data set. One that may not be discovered is denied like one that is not there."""
    name, task = asked.dataset, asked.task
    if not name:
        return ["the order asks for access and names no data set"] if asked.access else []
    rights = contract.datasets.get(name)
    if rights is None or not (
        rights.discoverable or task in rights.discoverable_to or task in rights.execute
    ):
        return [f"no data set {shown(name)} here"]
    reasons = []
    if task not in rights.execute:
        reasons.append(f"datasets.{name}.rights.execute does not list task {shown(task)}")
    granted = {
        "read": rights.read or task in rights.readable_by,
        "write": rights.write or task in rights.writable_by,
    }
    if unknown := sorted(set(asked.access) - set(granted)):
        reasons.append(f"no right {shown(unknown[0])} can be had on data set {name}")
    reasons += [
        f"datasets.{name}.rights.{access} does not allow task {shown(task)}"
        for access, given in granted.items()
        if access in asked.access and not given
    ]
    return reasons


def _model_reasons(models: Models, order: Order, asked: Asked) -> list[str]:
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
    # All links: what is called a delta may be as large as its sender likes.
    size_bytes = max((size for _, _, size in order.model.chain), default=0)
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


def _within(hours: Hours, minute: int) -> bool:
    if hours.start_minute <= hours.end_minute:
        return hours.start_minute <= minute < hours.end_minute
    return minute >= hours.start_minute or minute < hours.end_minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
