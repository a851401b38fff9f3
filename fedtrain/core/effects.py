"""What the coordinator's shell is to do. Every effect may be repeated without harm.

After a crash `resume(state)` names the effects that the state still calls for, whether or not they
had been carried out before.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core.orders import Order


@dataclass(frozen=True)
class Effect:
    """Root of all effects."""


@dataclass(frozen=True)
class Invite(Effect):
    """Hand this order to its site, now or as soon as it is attached."""

    order: Order


@dataclass(frozen=True)
class Cancel(Effect):
    """Tell the site that this order is no longer wanted."""

    site: str
    order: str
    reason: str


@dataclass(frozen=True)
class Acknowledge(Effect):
    """Tell the site what became of its upload: it now counts on us.

    `outcome`: stored | late_next_round | late_residual. `epoch` and `at_ms` are those of the first
    acknowledgement, so that a repeated receipt is the same receipt.
    """

    site: str
    order: str
    blob: str
    outcome: str
    epoch: int
    at_ms: int


@dataclass(frozen=True)
class SetTimer(Effect):
    """Submit `TimerFired(run, timer)` once the wall clock reaches `at_ms`."""

    run: str
    timer: str
    at_ms: int


@dataclass(frozen=True)
class Contribution:
    """One update that goes into a version, with the weight it goes in with."""

    site: str
    order: str
    blob: str
    weight: float
    norm: float


@dataclass(frozen=True)
class Aggregate(Effect):
    """Compute version `base_version + 1` from exactly these contributions, in this order.

    The shell answers with `RoundAggregated` or `AggregationFailed`.
    """

    run: str
    round: int
    attempt: int
    base_version: int
    contributions: tuple[Contribution, ...]
    outer: str
    snapshot: bool


@dataclass(frozen=True)
class Restore(Effect):
    """Make version `round`, whose public model is that of `version`; `base_version` is the newest so far.

    The shell answers with `VersionRestored` or `AggregationFailed`.
    """

    run: str
    round: int
    base_version: int
    version: int


@dataclass(frozen=True)
class Expel(Effect):
    """Cut the session and every call that this member has under way: it belongs here no more."""

    name: str
    reason: str


@dataclass(frozen=True)
class Publish(Effect):
    """Version `version` may be fetched. Sign the journal's head and hand it to every site."""

    run: str
    version: int
    outcomes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Collect(Effect):
    """Model files of versions older than `keep_version` may go, and blobs that no run needs any more
    (`versions.blobs_needed`).
    """

    run: str
    keep_version: int


@dataclass(frozen=True)
class Retire(Effect):
    """End this process: the coordinator of `epoch` has taken over. Nothing more is acknowledged."""

    epoch: int


@dataclass(frozen=True)
class Finish(Effect):
    """The run has ended; `reason` says how. Watchers are told."""

    run: str
    phase: str
    reason: str
