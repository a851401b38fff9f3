"""What can happen to the coordinator. Every event is journaled before anything is done about it.

`at_ms` is wall-clock UTC in milliseconds, put there by the shell: the core never reads a clock.
The journal stores an event as its kind (the class name) and its canonical JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core.spec import RunSpec


@dataclass(frozen=True)
class Event:
    """Root of all events."""

    at_ms: int


# -- the coordinator's own life and its members ------------------------------------------------


@dataclass(frozen=True)
class Booted(Event):
    """A coordinator process started and owns the state directory.

    `epoch` is `epochs.next_epoch` of the one before; `place` is an opaque name of where the state
    lies, so that a start from a copy is noticed.
    """

    epoch: int
    place: str = ""


@dataclass(frozen=True)
class Fenced(Event):
    """A site proved that it follows a coordinator of a higher epoch: this one is not obeyed any more."""

    epoch: int
    site: str


@dataclass(frozen=True)
class MemberInvited(Event):
    """An operator made an invite. `invite` is the fingerprint of its bootstrap certificate."""

    name: str
    role: str
    invite: str
    expires_ms: int


@dataclass(frozen=True)
class MemberEnrolled(Event):
    """A member used its invite: its TLS key (digest), certificate (PEM) and message key are known."""

    name: str
    role: str
    invite: str
    key_digest: str
    certificate: str
    message_key: str


@dataclass(frozen=True)
class InviteMisused(Event):
    """An invite was shown again with another key. Nothing was issued."""

    name: str
    invite: str
    reason: str


@dataclass(frozen=True)
class SiteAttached(Event):
    """A site's agent opened its session. `session` tells this session from the site's earlier ones.

    `holding` are the orders that it is still working on.
    """

    site: str
    session: str
    version: str
    holding: tuple[str, ...]


@dataclass(frozen=True)
class SiteLost(Event):
    """Liveness gave the site up: no sign of life for its patience, or it said goodbye."""

    site: str
    reason: str


# -- a run ------------------------------------------------------------------------------------


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
class ConsentGiven(Event):
    """The site holds the order to be within its contract and works on it."""

    order: str


@dataclass(frozen=True)
class ConsentRefused(Event):
    """The site's contract forbids the order; each reason names its clause."""

    order: str
    reasons: tuple[str, ...]


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


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Booted,
        Fenced,
        MemberInvited,
        MemberEnrolled,
        InviteMisused,
        SiteAttached,
        SiteLost,
        RunSubmitted,
        RunPaused,
        RunResumed,
        RunStopped,
        ConsentGiven,
        ConsentRefused,
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
    )
}
"""Kind in the journal -> class."""
