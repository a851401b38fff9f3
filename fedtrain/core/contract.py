"""A site's contract: what it allows, decided by the site itself. Default deny.

Pure: `judge(contract, rights, order) -> (accepted, reasons)`. Every reason names the clause that
said no, so that a person at either end knows what to change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fedtrain.core.orders import Order


@dataclass(frozen=True)
class Rights:
    """What may be done with one data set.

    `discoverable`: the coordinator may know that it exists. `execute`: tasks that may train on it.
    `read`: records may leave the site. `write`: the run may change it.
    """

    discoverable: bool = False
    execute: tuple[str, ...] = ()
    read: bool = False
    write: bool = False


@dataclass(frozen=True)
class Contract:
    """The clauses that this version enforces. An empty list allows nothing.

    Attributes:
        runs: patterns of run names, e.g. `library-*`.
        tasks: names of tasks.
        cohort_min: fewest sites, this one included, that an order may be shared with.
        datasets: data set name -> rights.
    """

    runs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    cohort_min: int = 1
    datasets: Mapping[str, Rights] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Yes, or no with every clause that says so."""

    accepted: bool
    reasons: tuple[str, ...] = ()


def judge(contract: Contract, order: Order) -> Decision:
    """Hold an order against the contract. All reasons are given at once."""
    task, dataset = _task_and_dataset(order)
    reasons = []
    if not any(fnmatchcase(order.run, pattern) for pattern in contract.runs):
        reasons.append(f"contract.runs does not allow run {order.run} (allowed: {_listed(contract.runs)})")
    if task not in contract.tasks:
        reasons.append(f"contract.tasks does not allow task {task} (allowed: {_listed(contract.tasks)})")
    if len(order.cohort) < contract.cohort_min:
        reasons.append(
            f"contract.cohort_min is {contract.cohort_min}, this order is shared by {len(order.cohort)}"
        )
    if order.site not in order.cohort:
        reasons.append("contract.cohort_min cannot be judged: the order's cohort does not name this site")
    reasons += _dataset_reasons(contract.datasets.get(dataset), dataset, task)
    return Decision(not reasons, tuple(reasons))


def _dataset_reasons(rights: Rights | None, dataset: str, task: str) -> list[str]:
    """Clauses of the data set. One that may not be discovered is denied like one that is not there."""
    if not dataset:
        return []
    if rights is None or not (rights.discoverable or task in rights.execute):
        return [f"no data set {dataset} here"]
    if task not in rights.execute:
        return [f"datasets.{dataset}.rights.execute does not list task {task}"]
    return []


def _task_and_dataset(order: Order) -> tuple[str, str]:
    """Names in the order's task section; "" where there is none. Tasks without data name no set."""
    try:
        task = json.loads(order.task)
    except ValueError:
        return "", ""
    if not isinstance(task, dict):
        return "", ""
    return str(task.get("name", "")), str(task.get("data") or "")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"
