"""One order in the auditor's account, and the words for what became of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from fedtrain.core.orders import Order


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
