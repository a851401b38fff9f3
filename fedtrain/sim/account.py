"""One order in the auditor's account, and the words for what became of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedtrain.core.orders import Order
from fedtrain.core.spec import RunSpec
from fedtrain.sim.violation import demand


class Fate(enum.StrEnum):
    """What became of an order, in the words that a record uses."""

    INVITED = "invited"
    WORKING = "working"
    STORED = "stored"
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    LATE = "late"
    DONE = "done"


AT_WORK = (Fate.INVITED, Fate.WORKING)

KEPT = (*AT_WORK, Fate.STORED, Fate.DONE)
"""Fates that keep a seat when an attempt is abandoned."""


@dataclass
class Account:
    """One order. `seated` until its round is over or its seat was given up.

    `barred` says why it may never count any more: its site was taken out, or the run went back behind it.
    """

    order: Order
    fate: Fate = Fate.INVITED
    seated: bool = True
    blob: str = ""
    weight: int = 0
    outcome: str = ""
    barred: str = ""
    versions: list[int] = field(default_factory=list)


def check_quorum(
    spec: RunSpec, index: int, fresh: list[Account], seats: Mapping[str, Account], weights: Mapping[str, int]
) -> None:
    """I7: a round closes with enough sites, and with enough of the seated sites' data."""
    demand(len(fresh) >= spec.quorum, "I7", f"round {index} closed below its quorum")
    known = [weights[site] for site in seats if site in weights]
    mean = sum(known) / len(known)
    total = sum(weights.get(site, mean) for site in seats)
    held = sum(weights[account.order.site] for account in fresh)
    enough = held / total >= spec.quorum_share - 1e-6
    demand(enough, "I7", f"round {index} closed with a share of {held / total:.2f}")
