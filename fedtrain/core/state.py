"""What the coordinator knows. Frozen: `step` returns a new one.

The state is a fold over the journal and nothing else, so it needs no storage of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from fedtrain.core.masks import Opened, Signed
from fedtrain.core.orders import ModelRef, Order
from fedtrain.core.spec import RunSpec

V = TypeVar("V")

Link = tuple[int, str, int]
"""(version that it leads to, blob digest, size in bytes), as in `ModelRef.chain`."""


class Phase(enum.StrEnum):
    """Where a run stands. Decision record 0002 shows where later phases join."""

    WAITING = "waiting"  # for enough sites
    SEEDING = "seeding"  # one site makes the initial weights
    TRAINING = "training"  # a round is open: consent, work, uploads
    UNMASKING = "unmasking"  # the round is closed, its survivors take the masks off the sum
    AGGREGATING = "aggregating"  # the round is closed, its version is being computed
    EVALUATING = "evaluating"  # the last version is measured at the sites
    RESTORING = "restoring"  # an earlier version is being made the newest
    DONE = "done"
    STOPPED = "stopped"


ENDED = frozenset({Phase.DONE, Phase.STOPPED})


class Standing(enum.StrEnum):
    """Where one invited site stands within a round."""

    INVITED = "invited"
    WORKING = "working"  # consented
    STORED = "stored"  # its update is durable and acknowledged
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    LATE = "late"  # the round was closed without it while it still worked
    DONE = "done"  # seeded or evaluated: nothing to aggregate


SETTLED = frozenset({Standing.STORED, Standing.DONE, Standing.REFUSED, Standing.FAILED, Standing.LOST})
"""Standings that a round does not wait for."""


@dataclass(frozen=True)
class Member:
    """An enrolled name.

    Attributes:
        key_digest, certificate: of its newest TLS key.
        message_key: verifies its statements.
        organisation: the institution that it belongs to; a site that names none is its own.
        previous_key: the TLS key before the newest; good until its certificate's own end.
        revoked: why the membership has ended, "" while it lasts.
    """

    name: str
    role: str
    invite: str
    key_digest: str
    certificate: str
    message_key: str
    organisation: str = ""
    previous_key: str = ""
    revoked: str = ""


@dataclass(frozen=True)
class Quarantine:
    """Why a site has no part in any run for now, and who decided it ("rule" for the coordinator itself)."""

    reason: str
    by: str
    since_ms: int


@dataclass(frozen=True)
class Declared:
    """What a site said of itself: its contract's digest, and its discoverable data sets' examples."""

    contract: str
    examples: Mapping[str, int]


@dataclass(frozen=True)
class PendingInvite:
    """An invite that was handed out."""

    name: str
    role: str
    expires_ms: int
    used_by: str = ""
    organisation: str = ""


@dataclass(frozen=True)
class Attached:
    """A site whose agent is in session."""

    session: str
    version: str
    since_ms: int


@dataclass(frozen=True)
class Update:
    """What the core knows of an update: never the tensor."""

    site: str
    order: str
    round: int
    base_version: int
    blob: str
    size_bytes: int
    weight: int
    steps: int
    norm: float
    train_loss: float | None
    eval_loss: float | None
    eval_count: int
    seconds: float


@dataclass(frozen=True)
class Seat:
    """One invited site within the open round."""

    order: Order
    standing: Standing
    reason: str = ""
    update: Update | None = None


class MaskStage(enum.StrEnum):
    """How far the masks of a round are, see `core.masks`."""

    ADVERTISE = "advertise"  # R0: the sites' keys are awaited
    SHARE = "share"  # R1: their sealed shares
    INPUT = "input"  # R2: masked updates
    AFFIRM = "affirm"  # R3: the survivors' signatures over their set
    OPEN = "open"  # R4: the shares that take the masks off
    BARE = "bare"  # all is here that the sum needs


@dataclass(frozen=True)
class MaskedRound:
    """The masks of the open round.

    Attributes:
        proposal: the document; `session` its digest.
        until_ms: when the stage ends without those who have not answered.
        adverts: site -> its signed advert; `keys` the document of those that take part, "" before.
        boxes: source -> neighbour -> sealed share.
        sharers: sites whose boxes are here when shares are handed out: they mask with one another.
        survivors: sites whose masked updates are summed.
        affirmations: survivor -> signature over their set; `opened` survivor -> the shares that it gave.
    """

    proposal: str
    session: str
    stage: MaskStage
    until_ms: int
    adverts: Mapping[str, Signed] = field(default_factory=dict)
    keys: str = ""
    boxes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    sharers: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    affirmations: Mapping[str, str] = field(default_factory=dict)
    opened: Mapping[str, Opened] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenRound:
    """The round in progress.

    `index` counts training rounds from 1; 0 is the seeding, one past the last is the final
    evaluation. A repeated round keeps its index and raises `attempt`; whoever has contributed or
    still works keeps its seat. `counted` is set when the round closes: the orders that go into
    the next version. `bound` are the sites that were asked to open the masks of a sum of this round: no
    attempt at it can have another set any more.
    """

    index: int
    attempt: int
    opened_ms: int
    deadline_ms: int
    base_version: int
    reason: str
    seats: Mapping[str, Seat]
    counted: tuple[str, ...] = ()
    masks: MaskedRound | None = None
    bound: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeatRecord:
    """How one invited site's part in a round ended."""

    standing: Standing
    reason: str
    weight: int = 0
    steps: int = 0
    size_bytes: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_count: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """A closed or abandoned attempt at a round: who contributed, was late, refused, failed, and why.

    `counted` lists the orders that went into `version`, in aggregation order: this round's and the
    late ones of earlier rounds. An abandoned attempt has version None and counts nothing. `restored` is
    the earlier version that this one repeats, after a roll-back; it counts nothing either.
    """

    index: int
    attempt: int
    opened_ms: int
    closed_ms: int
    reason: str
    seats: Mapping[str, SeatRecord]
    counted: tuple[str, ...] = ()
    version: int | None = None
    model_digest: str = ""
    update_norm: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    restored: int | None = None


@dataclass(frozen=True)
class Excluded:
    """Why a site is not invited for now. `session`: a new session of the site lifts it."""

    reason: str
    session: str


@dataclass(frozen=True)
class Acknowledged:
    """An upload that was acknowledged, and how (see `effects.Acknowledge`)."""

    order: str
    blob: str
    outcome: str
    epoch: int
    at_ms: int


@dataclass(frozen=True)
class Model:
    """The public model's newest version and how to get there.

    `past` is the way to the versions before the newest snapshot, back to the snapshot before it, so that
    a run can always go back by some versions. It does not travel.
    """

    ref: ModelRef
    layout: str
    num_elements: int
    past: tuple[Link, ...] = ()


@dataclass(frozen=True)
class RunState:
    """One run.

    Attributes:
        parents: site -> its last acknowledged order, whose checkpoint the next order continues.
        returned: site -> orders whose updates go back into its residual; kept until an order that
            names them is acknowledged.
        late: acknowledged late updates that count in the next aggregation.
        busy: site -> order of a closed round that it is still working on.
        weights: site -> last known weight, for quorum by share of data.
        evaluations: site -> (version, loss, count), the newest.
        receipts: site -> what was acknowledged last, so that a lost reply can be repeated.
        paused: why no new work is handed out, "" if the run is not paused. A pause lets work that
            is out finish: the phase underneath goes on to the end of the open round.
        restoring: the earlier version that is being made the newest, None in every other phase.
        charges: site -> its newest signed account of what the run has cost it, see `core.accounts`;
            `published_charges` those when the newest version was published, for its lineage.
        clip: with adaptive clipping, of the next orders; 0 for the task's own.
    """

    spec: RunSpec
    phase: Phase
    reason: str
    submitted_ms: int
    waiting_since_ms: int
    model: Model | None = None
    round: OpenRound | None = None
    records: tuple[RoundRecord, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)
    returned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    late: tuple[Update, ...] = ()
    busy: Mapping[str, Order] = field(default_factory=dict)
    excluded: Mapping[str, Excluded] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    evaluations: Mapping[str, tuple[int, float, int]] = field(default_factory=dict)
    receipts: Mapping[str, Acknowledged] = field(default_factory=dict)
    paused: str = ""
    restoring: int | None = None
    charges: Mapping[str, Signed] = field(default_factory=dict)
    published_charges: Mapping[str, Signed] = field(default_factory=dict)
    clip: float = 0.0

    @property
    def rounds_done(self) -> int:
        """Rounds that led to a version."""
        return self.model.ref.version if self.model else 0


@dataclass(frozen=True)
class State:
    """Everything. `now_ms` is the time of the last event.

    `place` is where the state lay at the last start (see `events.Booted`); `fenced` is the epoch of
    the coordinator that took over from this one, 0 if none did. `strikes` counts, per site, updates
    that were rejected since its last good one.
    """

    epoch: int = 0
    place: str = ""
    fenced: int = 0
    now_ms: int = 0
    booted_ms: int = 0
    members: Mapping[str, Member] = field(default_factory=dict)
    invites: Mapping[str, PendingInvite] = field(default_factory=dict)
    attached: Mapping[str, Attached] = field(default_factory=dict)
    runs: Mapping[str, RunState] = field(default_factory=dict)
    declared: Mapping[str, Declared] = field(default_factory=dict)
    quarantined: Mapping[str, Quarantine] = field(default_factory=dict)
    strikes: Mapping[str, int] = field(default_factory=dict)


def put(mapping: Mapping[str, V], key: str, value: V) -> Mapping[str, V]:
    """A read-only copy of `mapping` with `key` set."""
    return MappingProxyType({**mapping, key: value})


def without(mapping: Mapping[str, V], *keys: str) -> Mapping[str, V]:
    """A read-only copy of `mapping` without `keys`."""
    return MappingProxyType({k: v for k, v in mapping.items() if k not in keys})
