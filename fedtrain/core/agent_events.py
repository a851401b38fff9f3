"""What can happen to an agent, and what its shell is to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedtrain.core.budget import Spending
from fedtrain.core.contract import Contract, Verdict
from fedtrain.core.orders import Order, Result


@dataclass(frozen=True)
class AgentEvent:
    """Root of what can happen to an agent. `at_ms` is wall-clock UTC."""

    at_ms: int


@dataclass(frozen=True)
class AgentBooted(AgentEvent):
    """The agent started with this contract, read from its peer.yaml."""

    contract: Contract


@dataclass(frozen=True)
class EpochSeen(AgentEvent):
    """A coordinator showed a higher epoch than any before, or the evidence for the highest.

    `signed_ms` and `signature` are the evidence; a coordinator of protocol 1.0 shows none.
    """

    epoch: int
    signed_ms: int = 0
    signature: str = ""


@dataclass(frozen=True)
class OrderReceived(AgentEvent):
    """An invitation came, perhaps not for the first time.

    `day` and `minute` are the moment as the contract's zone tells it; rows of 0.1 before hours were
    judged have none (-1). `spending` is what the order would cost by the ledger, where it costs privacy.
    """

    order: Order
    day: int = 0
    minute: int = -1
    spending: Spending | None = None


@dataclass(frozen=True)
class OrderCancelled(AgentEvent):
    """The coordinator no longer wants this order."""

    order: str
    reason: str


@dataclass(frozen=True)
class ResultTaken(AgentEvent):
    """The trainer's result was checked and lies in the agent's own folder.

    `day` is the contract's, and `devices` the accelerators that the work took, 1 if there are none.
    """

    result: Result
    day: int = 0
    devices: int = 1


@dataclass(frozen=True)
class WorkAbandoned(AgentEvent):
    """The order cannot be done here: the model could not be had, or the trainer keeps dying."""

    order: str
    reason: str


@dataclass(frozen=True)
class UploadAcknowledged(AgentEvent):
    """The coordinator's signed receipt came; it is kept whole, as proof."""

    order: str
    blob: str
    outcome: str
    epoch: int
    signed_ms: int
    signature: str


@dataclass(frozen=True)
class AnswerDelivered(AgentEvent):
    """An answer without an upload (failure, evaluation) was taken by the coordinator's session."""

    order: str


@dataclass(frozen=True)
class UploadRefused(AgentEvent):
    """The coordinator will not take the upload: the round is over, or the update is not acceptable."""

    order: str
    reason: str


@dataclass(frozen=True)
class RoundPublished(AgentEvent):
    """The version of this round is out: updates that it counts will not be asked for again."""

    run: str
    round: int


@dataclass(frozen=True)
class HeadWitnessed(AgentEvent):
    """A signed head of the coordinator's journal; keeping it makes this site a witness."""

    consortium: str
    sequence: int
    hash: str
    signed_ms: int
    signature: str


@dataclass(frozen=True)
class RosterReceived(AgentEvent):
    """The coordinator says, signed, which organisation each site belongs to."""

    members: Mapping[str, str]
    signed_ms: int
    signature: str


@dataclass(frozen=True)
class RunDecided(AgentEvent):
    """A person of the site has spoken about a run."""

    run: str
    verdict: Verdict


@dataclass(frozen=True)
class Reconsidered(AgentEvent):
    """Time has passed: what was refused before may be allowed now."""

    day: int
    minute: int


@dataclass(frozen=True)
class UpdateReleased(AgentEvent):
    """A person has looked at a held update and lets it go."""

    order: str
    by: str
    day: int


@dataclass(frozen=True)
class UpdateWithheld(AgentEvent):
    """A person has looked at a held update, and it stays here."""

    order: str
    by: str
    reason: str


@dataclass(frozen=True)
class ContractSigned(AgentEvent):
    """The site's signature over the contract that it acts under, and over what its data sets hold."""

    contract: str
    examples: Mapping[str, int]
    signature: str


@dataclass(frozen=True)
class DataCounted(AgentEvent):
    """The trainer has counted: data set -> examples, in the unit of its task's weights."""

    examples: Mapping[str, int]


@dataclass(frozen=True)
class PrivacyReckoned(AgentEvent):
    """What a run's record-level promise means at this site, found once per run.

    Attributes:
        terms: digest of the promise, which also names the units counted (`record` or `group`).
        units: how many this data set has; 0 where the run gives the sampling rate.
        noise_multiplier: solved from the promise.
    """

    run: str
    terms: str
    units: int
    noise_multiplier: float


@dataclass(frozen=True)
class ChargeMade(AgentEvent):
    """An execution of this order is in the ledger, durable, as the row of this sequence and hash.

    Only behind this the order may reach a trainer. `missing` are rows, as (sequence, hash), that the ledger
    held once and does not hold any more: it was rolled back, and this data set written off.
    """

    order: str
    execution: int
    sequence: int
    hash: str
    missing: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class StatementReceived(AgentEvent):
    """The coordinator has said a document on a topic of a masked round (`core.masks`).

    `fault` says which signature in or over it does not hold, "" if all do.
    """

    topic: str
    order: str
    document: str
    fault: str = ""


@dataclass(frozen=True)
class UpdateMasked(AgentEvent):
    """The masks are on: the file that may leave has this digest and size. `day` is the contract's."""

    order: str
    digest: str
    size_bytes: int
    day: int


@dataclass(frozen=True)
class BytesSent(AgentEvent):
    """What left this site, as the socket saw it: one upload, or the small talk of a while.

    Attributes:
        run, order: what it was for, "" if for none in particular.
        kind: `update`, `model`, `session`, ...
        messages, size_bytes: how many, and how large on the wire.
        digest: of the file that was sent, "" if none.
        clause: the clauses that allow it.
        norm: L2 norm of an update, 0 for everything else.
        counted: `kernel` where the sizes add up to what the kernel saw leave, `model` where it does not tell
            and they are what the protocol makes of the messages.
    """

    run: str
    order: str
    kind: str
    messages: int
    size_bytes: int
    digest: str
    clause: str
    norm: float = 0.0
    counted: str = ""


AGENT_EVENTS: dict[str, type[AgentEvent]] = {
    kind.__name__: kind
    for kind in (
        AgentBooted,
        EpochSeen,
        OrderReceived,
        OrderCancelled,
        ResultTaken,
        WorkAbandoned,
        UploadAcknowledged,
        AnswerDelivered,
        UploadRefused,
        RoundPublished,
        HeadWitnessed,
        RosterReceived,
        RunDecided,
        Reconsidered,
        UpdateReleased,
        UpdateWithheld,
        ContractSigned,
        DataCounted,
        PrivacyReckoned,
        ChargeMade,
        StatementReceived,
        UpdateMasked,
        BytesSent,
    )
}


@dataclass(frozen=True)
class AgentEffect:
    """Root of what an agent's shell is to do; all of it may be repeated."""


@dataclass(frozen=True)
class Reply(AgentEffect):
    """Send the contract's answer."""

    order: str
    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Prepare(AgentEffect):
    """Bring the public model up to the order's version and post the order to the mailbox."""

    order: Order


@dataclass(frozen=True)
class Submit(AgentEffect):
    """Upload the result's file and commit it, signed."""

    order: Order
    result: Result


@dataclass(frozen=True)
class Report(AgentEffect):
    """Tell the coordinator about an answer that has no file: an evaluation, or a failure."""

    order: Order
    result: Result


@dataclass(frozen=True)
class SayMasked(AgentEffect):
    """Answer in a masked session: make what the topic asks for, keep it, then say it; said once, the very
    same words again. Before `opened` is said nothing but those words is left of the session.
    """

    order: str
    topic: str


@dataclass(frozen=True)
class MaskUpdate(AgentEffect):
    """Put the masks on the result's file; the answer is `UpdateMasked`."""

    order: Order
    result: Result


@dataclass(frozen=True)
class BurnMasks(AgentEffect):
    """Destroy the secrets of the order's masked session."""

    order: str
    reason: str


@dataclass(frozen=True)
class Shelve(AgentEffect):
    """The trainer is done with this order; its answer's file stays in the outbox."""

    order: str


@dataclass(frozen=True)
class Discard(AgentEffect):
    """Nothing of this order is needed any more, in the mailbox or the outbox."""

    order: str


@dataclass(frozen=True)
class Withdraw(AgentEffect):
    """Tell the coordinator that the site takes its consent to this run back."""

    run: str
    reason: str


@dataclass(frozen=True)
class Reattach(AgentEffect):
    """Begin a new session, so that the coordinator asks again what was refused before."""

    reason: str
