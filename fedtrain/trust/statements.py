"""What is signed: the few sentences that somebody must not be able to deny later.

A statement is a frozen dataclass with its kind. What is signed is the kind and the statement's
canonical JSON (`core.canonical`), so both ends sign and verify the same bytes without exchanging
them: each builds the statement from what it knows. The head of a journal is the one exception: the
journal spells it, and only the signature is made and checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedtrain.core import canonical
from fedtrain.errors import BadSignature
from fedtrain.trust import keys

_HEAD = "head"


@dataclass(frozen=True)
class Statement:
    """Root of all statements."""

    KIND: ClassVar[str]


@dataclass(frozen=True)
class Commit(Statement):
    """A site: this blob is my update for this order, and it weighs so much.

    Attributes:
        order: the order's id, which names run, round, attempt and site.
        digest, size_bytes: of the update's blob.
        weight: tokens or examples behind it: its weight in the mean.
        steps: inner steps really taken.
    """

    KIND: ClassVar[str] = "commit"

    run: str
    order: str
    digest: str
    size_bytes: int
    weight: int
    steps: int


@dataclass(frozen=True)
class Receipt(Statement):
    """The coordinator: this blob is durable here, and this became of it.

    Attributes:
        outcome: the word for it, e.g. `stored`.
        epoch: the coordinator's epoch, which grows with each of its starts.
        at_ms: UTC milliseconds of the first acknowledgement; a repeated receipt repeats it.
    """

    KIND: ClassVar[str] = "receipt"

    order: str
    digest: str
    outcome: str
    epoch: int
    at_ms: int


@dataclass(frozen=True)
class Consent(Statement):
    """A site: my contract allows, or forbids, exactly this order.

    Attributes:
        order_digest: SHA-256 of the order's canonical JSON, hex: an order of the same id with other
            contents is not the one that was agreed to.
        reasons: why not, each naming its clause; empty when accepted.
    """

    KIND: ClassVar[str] = "consent"

    order: str
    order_digest: str
    accepted: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Agreement(Statement):
    """A site: as `Consent`, and the contract that I judged the order by is this one.

    Sites that speak protocol 1.0 sign a `Consent` instead.

    Attributes:
        contract: SHA-256 of the contract's canonical JSON, hex.
    """

    KIND: ClassVar[str] = "agreement"

    order: str
    order_digest: str
    accepted: bool
    reasons: tuple[str, ...]
    contract: str


@dataclass(frozen=True)
class Declaration(Statement):
    """A site: this is my contract, and so much data stands behind it.

    Attributes:
        contract: SHA-256 of the contract's canonical JSON, hex.
        examples: data set -> records in it; only what the site lets the coordinator know of.
    """

    KIND: ClassVar[str] = "declaration"

    site: str
    contract: str
    examples: Mapping[str, int]


@dataclass(frozen=True)
class Withdrawal(Statement):
    """A site: I take my consent to this run back; what is not yet aggregated may not count."""

    KIND: ClassVar[str] = "withdrawal"

    site: str
    run: str
    reason: str


@dataclass(frozen=True)
class Roster(Statement):
    """The coordinator: these sites are members, and of these organisations.

    Attributes:
        members: (site, organisation), sorted by site; "" for an organisation that nobody stated.
        at_ms: UTC milliseconds of the event that made it so.
    """

    KIND: ClassVar[str] = "roster"

    consortium: str
    members: tuple[tuple[str, str], ...]
    at_ms: int


@dataclass(frozen=True)
class Said(Statement):
    """Either side: on this topic of this order I have said exactly this document.

    Attributes:
        site: the site that speaks, or that the coordinator speaks to; topics never serve both ways.
        order: the site's order, "" where the document is about none.
        digest: SHA-256 of the document as it is spelled, hex.
    """

    KIND: ClassVar[str] = "said"

    consortium: str
    site: str
    topic: str
    order: str
    digest: str


@dataclass(frozen=True)
class Lineage(Statement):
    """The coordinator: this document says where that version of the run's model comes from.

    Attributes:
        digest: SHA-256 of the document's canonical JSON (`core.lineage`), hex.
    """

    KIND: ClassVar[str] = "lineage"

    consortium: str
    run: str
    version: int
    digest: str


@dataclass(frozen=True)
class Epoch(Statement):
    """The coordinator: in this epoch I am the consortium's coordinator, and of no earlier one after it.

    Whoever holds it can show it to a coordinator of an earlier epoch, which then steps down.

    Attributes:
        at_ms: UTC milliseconds of the start that began the epoch.
    """

    KIND: ClassVar[str] = "epoch"

    consortium: str
    epoch: int
    at_ms: int


def sign(statement: Statement, key: keys.MessageKey) -> bytes:
    """The signature, 64 bytes, over the statement."""
    return key.sign(statement.KIND, canonical.encode(statement))


def verify(statement: Statement, public: str, signature: bytes) -> None:
    """Holds that the owner of `public` made this very statement; else `BadSignature`."""
    keys.verify(public, statement.KIND, canonical.encode(statement), signature)


def said(consortium: str, site: str, topic: str, order: str, document: str) -> Said:
    """What is signed for a document that travels beside its signature."""
    return Said(consortium, site, topic, order, hashlib.sha256(document.encode()).hexdigest())


def signature_bytes(text: str, what: str) -> bytes:
    """A signature as messages and documents spell it; `BadSignature` that names `what` if it is none."""
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise BadSignature(f"{what} carries no signature") from error


def sign_head(message: bytes, key: keys.MessageKey) -> bytes:
    """The signature, 64 bytes, over a journal's head as the journal spells it."""
    return key.sign(_HEAD, message)


def verify_head(message: bytes, public: str, signature: bytes) -> None:
    """Holds that the owner of `public` signed this head; else `BadSignature`."""
    keys.verify(public, _HEAD, message, signature)


def head_check(publics: Collection[str]) -> Callable[[bytes, bytes, str], bool]:
    """A check for audits, `(message, signature, key id) -> holds`, that trusts these public keys only."""
    by_id = {keys.key_id(public): public for public in publics}

    def check(message: bytes, signature: bytes, key_id: str) -> bool:
        if key_id not in by_id:
            return False
        try:
            verify_head(message, by_id[key_id], signature)
        except BadSignature:
            return False
        return True

    return check


def epoch_check(consortium: str, public: str) -> Callable[[int, int, str], None]:
    """A check of `(epoch, at_ms, signature in hex)` that raises `BadSignature` unless the owner of `public`
    has said so of this consortium."""

    def check(epoch: int, at_ms: int, signature: str) -> None:
        verify(Epoch(consortium, epoch, at_ms), public, bytes.fromhex(signature))

    return check
