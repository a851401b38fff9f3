"""What can happen to the coordinator. Every event is journaled before anything is done about it.

`at_ms` is wall-clock UTC in milliseconds, put there by the shell: the core never reads a clock.
The journal stores an event as its kind (the class name) and its canonical JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core.member_events import (
    AuthorityAdded as AuthorityAdded,
    AuthorityRetired as AuthorityRetired,
    Booted as Booted,
    Event as Event,
    Fenced as Fenced,
    InviteMisused as InviteMisused,
    MemberEnrolled as MemberEnrolled,
    MemberInvited as MemberInvited,
    MemberRenewed as MemberRenewed,
    MemberRevoked as MemberRevoked,
    SiteAttached as SiteAttached,
    SiteDeclared as SiteDeclared,
    SiteLost as SiteLost,
    SiteQuarantined as SiteQuarantined,
    SiteReleased as SiteReleased,
)
from fedtrain.core.spec import RunSpec


@dataclass(frozen=True)
class RunSubmitted(Event):
    """An operator started a run."""

    spec: RunSpec
    by: str


@dataclass(frozen=True)
class RunPaused(Event):
    """An operator paused a run; work that is out may still arrive and counts."""

    run: str
    by: str


@dataclass(frozen=True)
class RunResumed(Event):
    """An operator resumed a paused run."""

    run: str
    by: str


@dataclass(frozen=True)
class RunStopped(Event):
    """An operator stopped a run for good."""

    run: str
    by: str


@dataclass(frozen=True)
class RunRolledBack(Event):
    """An operator wants the run to go on from an earlier version."""

    run: str
    version: int
    by: str


@dataclass(frozen=True)
class VersionRestored(Event):
    """A new version is durable whose public model is that of the earlier one; it is a snapshot."""

    run: str
    round: int
    model_digest: str
    snapshot: str
    snapshot_bytes: int


@dataclass(frozen=True)
class ConsentGiven(Event):
    """The site holds the order to be within its contract and works on it.

    `contract` is the digest of that contract, and `signature` the site's over the agreement; both are
    "" for a site of protocol 1.0.
    """

    order: str
    contract: str = ""
    signature: str = ""


@dataclass(frozen=True)
class ConsentRefused(Event):
    """The site's contract forbids the order; each reason names its clause."""

    order: str
    reasons: tuple[str, ...]
    contract: str = ""
    signature: str = ""


@dataclass(frozen=True)
class ConsentWithdrawn(Event):
    """A site took its consent to a run back. What is not part of a version yet is taken out."""

    site: str
    run: str
    reason: str
    signature: str


@dataclass(frozen=True)
class StatementHeard(Event):
    """A site has said a document on a topic of an order, and its signature holds."""

    site: str
    topic: str
    order: str
    document: str
    signature: str


@dataclass(frozen=True)
class ModelSeeded(Event):
    """The initial weights are stored at the coordinator: version 0 of the public model."""

    order: str
    blob: str
    size_bytes: int
    model_digest: str
    layout: str
    layout_digest: str
    num_elements: int


@dataclass(frozen=True)
class UpdateStored(Event):
    """A verified update is durable at the coordinator. Only after this is it acknowledged.

    `signature` is the site's, over the commit statement: with it the journal proves who sent what.
    """

    order: str
    blob: str
    size_bytes: int
    weight: int
    steps: int
    norm: float
    train_loss: float | None
    eval_loss: float | None
    eval_count: int
    seconds: float
    signature: str


@dataclass(frozen=True)
class EvaluationStored(Event):
    """A site measured the public model on its held-out data."""

    order: str
    loss: float
    count: int


@dataclass(frozen=True)
class WorkFailed(Event):
    """The site tried and could not; the reason is its own words."""

    order: str
    reason: str


@dataclass(frozen=True)
class UpdateRejected(Event):
    """An update arrived and was not accepted: malformed, non-finite, unsigned, or a second story."""

    order: str
    blob: str
    reason: str


@dataclass(frozen=True)
class UploadRefused(Event):
    """A site offered what it was not asked for, or not any more. Nothing changes by it.

    `order` is what the site named, which may be another site's, or none that ever was.
    """

    site: str
    order: str
    blob: str
    reason: str


@dataclass(frozen=True)
class TimerFired(Event):
    """A timer that `SetTimer` asked for. A timer of a round that is over means nothing."""

    run: str
    timer: str


@dataclass(frozen=True)
class RoundAggregated(Event):
    """The next version is computed and durable, not yet published.

    `delta` and `snapshot` are blob digests; `snapshot` is "" unless this version has one.
    """

    run: str
    round: int
    attempt: int
    model_digest: str
    delta: str
    delta_bytes: int
    snapshot: str
    snapshot_bytes: int
    update_norm: float


@dataclass(frozen=True)
class BlobDamaged(Event):
    """The disk does not hold an acknowledged update any more as it was sent."""

    run: str
    blob: str
    reason: str


@dataclass(frozen=True)
class AggregationFailed(Event):
    """The aggregation could not be computed (disk full, memory): the run pauses and says why."""

    run: str
    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class SumRefused(Event):
    """Under the masks lay what no honest updates add up to, or a secret that is not the advertised one."""

    run: str
    round: int
    attempt: int
    reason: str


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Booted,
        Fenced,
        MemberInvited,
        MemberEnrolled,
        MemberRenewed,
        MemberRevoked,
        AuthorityAdded,
        AuthorityRetired,
        InviteMisused,
        SiteAttached,
        SiteLost,
        SiteDeclared,
        SiteQuarantined,
        SiteReleased,
        RunSubmitted,
        RunPaused,
        RunResumed,
        RunStopped,
        RunRolledBack,
        VersionRestored,
        ConsentGiven,
        ConsentRefused,
        ConsentWithdrawn,
        StatementHeard,
        ModelSeeded,
        UpdateStored,
        EvaluationStored,
        WorkFailed,
        UpdateRejected,
        UploadRefused,
        TimerFired,
        RoundAggregated,
        BlobDamaged,
        AggregationFailed,
        SumRefused,
    )
}
"""Kind in the journal -> class."""
