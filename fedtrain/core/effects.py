"""What the coordinator's shell is to do. Every effect may be repeated without harm.

After a crash `resume(state)` names the effects that the state still calls for, whether or not they
had been carried out before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedtrain.core.masks import Advert, Opened
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
class Speak(Effect):
    """Say this document to the site, signed. What is said twice is answered twice alike."""

    site: str
    order: str
    topic: str
    document: str


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
class Unmasking:
    """What takes the masks off the sum of a round's updates.

    Attributes:
        shares: fewest shares that give a secret back.
        sharers: sites that masked with their neighbours among one another; `survivors` those in the sum.
        adverts: whose keys the pairs derive from, and whose digests tell a wrong secret.
        opened: survivor -> the shares that it gave.
    """

    session: str
    codec: str
    ring_bits: int
    shares: int
    sharers: tuple[str, ...]
    survivors: tuple[str, ...]
    neighbours: Mapping[str, tuple[str, ...]]
    adverts: Mapping[str, Advert]
    opened: Mapping[str, Opened]


@dataclass(frozen=True)
class Aggregate(Effect):
    """Compute version `base_version + 1` from exactly these contributions, in this order.

    With `masks` they are masked, and only their sum is had. The shell answers with `RoundAggregated`,
    `AggregationFailed`, or `SumRefused` where no honest updates can have had this sum.
    """

    run: str
    round: int
    attempt: int
    base_version: int
    contributions: tuple[Contribution, ...]
    outer: str
    snapshot: bool
    masks: Unmasking | None = None


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
