"""What a session and a transfer say, as plain values. `wire` turns them into protobuf and back.

A site's name never travels in these: it is the one in its certificate. Every message to a site
comes in an envelope with the coordinator's epoch, and a site refuses an epoch lower than the
highest that it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedtrain.core.orders import Order, Progress

PROTOCOL_VERSION = (1, 1)
"""(major, minor). Equal majors talk, if the minors are at most one apart; a minor adds only what the other
side may ignore."""


# -- site to coordinator ------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """First message of a session. `holding` are orders that the site is already working on."""

    protocol: tuple[int, int]
    version: str
    session: str
    tasks: tuple[str, ...]
    codecs: tuple[str, ...]
    holding: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """The agent lives; `progress` says how its orders do."""

    progress: tuple[Progress, ...] = ()


@dataclass(frozen=True)
class Consent:
    """The contract's answer to an order, signed with the site's message key."""

    order: str
    accepted: bool
    reasons: tuple[str, ...]
    signature: str


@dataclass(frozen=True)
class Failure:
    """The site could not do the order."""

    order: str
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """Loss of the public model on held-out data, for an `evaluate` order."""

    order: str
    loss: float
    count: int


@dataclass(frozen=True)
class Answer:
    """The contract's answer to an `Inquiry`; nothing is started by it."""

    inquiry: str
    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """As a consent, and it names the digest of the contract that was asked. Since 1.1."""

    order: str
    accepted: bool
    reasons: tuple[str, ...]
    contract: str
    signature: str


@dataclass(frozen=True)
class Declaration:
    """What the site says of itself: its contract's digest, and what its discoverable data sets hold."""

    contract: str
    examples: Mapping[str, int]
    signature: str


@dataclass(frozen=True)
class Withdrawal:
    """The site takes its consent to a run back: what is not part of a version yet may not become one."""

    run: str
    reason: str
    signature: str


@dataclass(frozen=True)
class Statement:
    """A signed document on a topic, of either side: a step of a masked round (`core.masks`), a charge for
    privacy. `order` is the order of the site that speaks or is spoken to, "" where it is about none.
    `document` is canonical JSON, and travels with the signature so that others can be shown it. Since 1.1.
    """

    topic: str
    order: str
    document: str
    signature: str


@dataclass(frozen=True)
class Goodbye:
    """The agent leaves on purpose."""

    reason: str


FromPeer = (
    Hello
    | Heartbeat
    | Consent
    | Failure
    | Evaluation
    | Answer
    | Goodbye
    | Agreement
    | Declaration
    | Withdrawal
    | Statement
)


# -- coordinator to site ------------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """The session is open."""

    consortium: str
    protocol: tuple[int, int]
    version: str
    at_ms: int
    heartbeat_ms: int


@dataclass(frozen=True)
class Invitation:
    """An order, to be held against the contract and worked on."""

    order: Order


@dataclass(frozen=True)
class Cancellation:
    """An order that is no longer wanted."""

    order: str
    reason: str


@dataclass(frozen=True)
class Inquiry:
    """Would the contract allow this order? Answered by `Answer`; nothing is started."""

    inquiry: str
    order: Order


@dataclass(frozen=True)
class Publication:
    """A version is out; `outcome` says what became of this site's part in its round."""

    run: str
    round: int
    version: int
    model_digest: str
    outcome: str


@dataclass(frozen=True)
class Head:
    """The journal's signed head, which the site keeps as a witness."""

    consortium: str
    sequence: int
    hash: str
    at_ms: int
    signature: str


@dataclass(frozen=True)
class Superseded:
    """This session ends because a newer one of the same site began, or the coordinator goes down."""

    reason: str


@dataclass(frozen=True)
class Roster:
    """Which organisation each site belongs to, signed by the coordinator."""

    members: Mapping[str, str] = field(default_factory=dict)
    at_ms: int = 0
    signature: str = ""


ToPeer = Welcome | Invitation | Cancellation | Inquiry | Publication | Head | Superseded | Roster | Statement


# -- transfers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """A site offers the blob that answers its order."""

    order: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Missing:
    """What the coordinator still lacks of an offered blob: everything from `offset` on."""

    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Commit:
    """The site's signed word that this blob is its answer. Only this makes an upload count.

    For a `seed` order `layout` is the layout's JSON and the numbers are zero.
    """

    order: str
    digest: str
    size_bytes: int
    weight: int
    steps: int
    norm: float
    train_loss: float | None
    eval_loss: float | None
    eval_count: int
    seconds: float
    layout: str
    signature: str


@dataclass(frozen=True)
class Receipt:
    """The coordinator's signed word that the blob is durable. `outcome` as in `effects.Acknowledge`."""

    order: str
    digest: str
    outcome: str
    epoch: int
    at_ms: int
    signature: str
