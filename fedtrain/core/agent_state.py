"""What a site's agent knows: the orders in hand, its people's words, and what its contract has cost."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedtrain.core.budget import Spending
from fedtrain.core.contract import Contract, Verdict
from fedtrain.core.judgement import Circumstances, Moment
from fedtrain.core.orders import Order, Result

_MS_PER_HOUR = 3_600_000


class Stage(enum.StrEnum):
    """How far an accepted order has come."""

    WORKING = "working"
    MASKING = "masking"  # the result is here, and its masks are not on yet
    HELD = "held"  # the result is here, and a person of the site has not let it go yet
    ANSWERED = "answered"  # the result is here, the coordinator does not have it yet
    DELIVERED = "delivered"  # acknowledged; the bytes stay until a version counts them


@dataclass(frozen=True)
class Held:
    """An order in hand. `outcome` is the receipt's, once there is one; `execution` the last that is charged
    for, 0 for none."""

    order: Order
    stage: Stage
    result: Result | None = None
    outcome: str = ""
    execution: int = 0


@dataclass(frozen=True)
class Refused:
    """The last order of a run that was refused. `pending`: only a person's word is missing; `spending` is
    what it would have cost."""

    order: Order
    reasons: tuple[str, ...]
    pending: bool
    spending: Spending | None = None


@dataclass(frozen=True)
class Reckoned:
    """A run's record-level promise at this site, see `agent_events.PrivacyReckoned`."""

    terms: str
    units: int
    noise_multiplier: float


@dataclass(frozen=True)
class LedgerHead:
    """The newest row of the ledger that this agent has written."""

    sequence: int = 0
    hash: str = ""


class SeatStage(enum.StrEnum):
    """What a site has said last in a masked session, see `core.masks`."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    READY = "ready"  # it knows who masks with whom
    AFFIRMED = "affirmed"
    OPENED = "opened"  # over: its shares are given
    BURNT = "burnt"  # over: its secrets are destroyed


@dataclass(frozen=True)
class MaskSeat:
    """A site's part in a masked session.

    Attributes:
        proposal: the document; `session` its digest.
        members: sites whose keys take part; `sharers` of them, those that mask with one another;
            `survivors` of these, those whose sum this site has affirmed.
        heard: topic -> digest of the document that was answered.
    """

    session: str = ""
    proposal: str = ""
    stage: SeatStage = SeatStage.ADVERTISED
    members: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    heard: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unmasked:
    """For which masked rounds of a run this site has opened shares.

    Attributes:
        round: the last one, and `survivors` whose sum that gave.
        sets: all of them, by their number as text -> digest of the survivors: an old round that is asked for
            once more is no new one.
    """

    round: int
    survivors: tuple[str, ...]
    sets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """What the contract's bounds are held against. `day` is the newest on which something left."""

    day: int = 0
    uploaded_bytes: int = 0
    gpu_ms: int = 0


@dataclass(frozen=True)
class AgentState:
    """What an agent knows.

    Attributes:
        held: accepted orders.
        refused: run -> its last refused order.
        verdicts: run -> what a person of the site has said.
        roster: site -> organisation, as the coordinator signed it last, at `roster_ms`.
        examples: data set -> examples, as the trainer counted.
        reckoned: run -> its record-level promise at this site.
        ledger: what a start holds the ledger against; one that is behind was rolled back.
        missing: rows that the ledger is known to have lost, see `agent_events.ChargeMade`.
        masks: order in hand -> its masked session; `unmasked` run -> what was opened.
        partners: site -> the message key with which it first came.
        left: run -> the masked session that was left last.
    """

    epoch: int = 0
    epoch_signed_ms: int = 0
    epoch_signature: str = ""
    contract: Contract = field(default_factory=Contract)
    held: Mapping[str, Held] = field(default_factory=dict)
    refused: Mapping[str, Refused] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    roster: Mapping[str, str] = field(default_factory=dict)
    roster_ms: int = 0
    examples: Mapping[str, int] = field(default_factory=dict)
    usage: Usage = Usage()
    reckoned: Mapping[str, Reckoned] = field(default_factory=dict)
    ledger: LedgerHead = LedgerHead()
    missing: tuple[tuple[int, str], ...] = ()
    masks: Mapping[str, MaskSeat] = field(default_factory=dict)
    unmasked: Mapping[str, Unmasked] = field(default_factory=dict)
    partners: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_hand(self) -> dict[str, Held]:
        """Orders that something is still to be done for."""
        return {name: held for name, held in self.held.items() if held.stage is not Stage.DELIVERED}


def circumstances(state: AgentState, moment: Moment, spending: Spending | None = None) -> Circumstances:
    """What an order that comes now is judged under."""
    return replace(
        in_progress(state, spending),
        moment=moment,
        uploaded_bytes=uploaded_on(state, moment.day),
        gpu_hours=state.usage.gpu_ms / _MS_PER_HOUR,
    )


def in_progress(state: AgentState, spending: Spending | None = None) -> Circumstances:
    """What an order in hand is judged under: hours and bounds were held when it was accepted."""
    return Circumstances(verdicts=state.verdicts, organisations=state.roster, spending=spending)


def uploaded_on(state: AgentState, day: int) -> int:
    """Bytes of updates and weights that have left, or are about to, on this day."""
    return state.usage.uploaded_bytes if state.usage.day == day else 0


def worked(state: AgentState, result: Result, devices: int) -> AgentState:
    """The accelerator time of a result is spent, whatever becomes of it."""
    spent_ms = round(result.seconds * 1000) * max(1, devices)
    return replace(state, usage=replace(state.usage, gpu_ms=state.usage.gpu_ms + spent_ms))


def leaving(state: AgentState, size_bytes: int, day: int) -> AgentState:
    """These bytes leave on this day."""
    usage = replace(state.usage, day=day, uploaded_bytes=uploaded_on(state, day) + size_bytes)
    return replace(state, usage=usage)
