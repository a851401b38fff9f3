"""Where a version of a model comes from: a document per version, made from the journal and nothing else.

It names its parents, who contributed what and under which contract, with their signatures, the code and
the configuration, and the row of the journal at which it was published. The coordinator makes it from
events as they pass (`Provenance`), an auditor from a copy of the journal (`rebuild`); both get the same
bytes. A statement names its parents' statements by digest, so a changed past shows in every later one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fedtrain.core import canonical, events as ev
from fedtrain.core.driver import run_of
from fedtrain.core.effects import Aggregate
from fedtrain.core.masks import Signed
from fedtrain.core.orders import Order
from fedtrain.core.ports import Recorded
from fedtrain.core.spec import RunSpec
from fedtrain.core.state import ENDED, Member, RoundRecord, RunState, State
from fedtrain.core.transitions import step
from fedtrain.errors import IntegrityError, LocalError, RemoteError

T = TypeVar("T")

FORMAT = 1

PUBLISHING = ("ModelSeeded", "RoundAggregated", "VersionRestored")
"""Kinds of the rows at which a version comes into being."""

EVIDENCE = ("ConsentGiven", "ModelSeeded", "UpdateStored")
"""Kinds of the rows that say more about an order than the state keeps."""


class Placed(Recorded, Protocol):
    """What `rebuild` needs of a row of the journal, beside its event."""

    @property
    def sequence(self) -> int:
        """Its place, from 1."""

    @property
    def hash(self) -> str:
        """Its hash, 64 hex digits."""


@dataclass(frozen=True)
class Place:
    """A row of the journal."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Parent:
    """A version that this one was made from. `lineage` is the digest of its own document."""

    version: int
    model_digest: str
    lineage: str


@dataclass(frozen=True)
class Contributor:
    """One update that went into the version; for version 0, the initial model itself.

    Attributes:
        organisation: that the site belongs to; its own name where none was stated.
        message_key: verifies what the site has signed, 64 hex digits.
        order: that the update answers.
        update: digest of its blob, as it was sent.
        weight: tokens or examples behind it; `counted_weight` is what it went in with (less if late).
        norm: L2 norm of the decoded update, before any bound of the run.
        signature: the site's over its commit (`trust.statements.Commit`); "" for an initial model.
        contract: digest of the contract under which the site consented, "" for a site of protocol 1.0.
        consent: the site's signature over that agreement, "" for a site of protocol 1.0.
    """

    site: str
    organisation: str
    message_key: str
    order: str
    update: str
    size_bytes: int
    weight: int
    counted_weight: float
    steps: int
    norm: float
    signature: str
    contract: str
    consent: str


@dataclass(frozen=True)
class Share:
    """What a site has given to a version and all versions before it."""

    organisation: str
    updates: int
    weight: int
    steps: int


@dataclass(frozen=True)
class Lineage:
    """The document about one version.

    Attributes:
        kind: seeded | aggregated | restored (after a roll-back).
        reason: why the round closed as it did, or who went back.
        configuration: the run as it stood then; `configuration_digest` is over its canonical JSON.
        code_version, code_digest: of the coordinator that published it (`events.Booted`).
        journal: the row at which the version came into being.
        shares: site -> what went into this version and its ancestors.
        charges: site -> its signed account of what the run had cost it in privacy (`charges.Account`).
    """

    format: int
    run: str
    version: int
    round: int
    attempt: int
    kind: str
    reason: str
    published_ms: int
    epoch: int
    model_digest: str
    layout_digest: str
    num_elements: int
    parents: tuple[Parent, ...]
    contributors: tuple[Contributor, ...]
    shares: Mapping[str, Share]
    configuration: RunSpec
    configuration_digest: str
    code_version: str
    code_digest: str
    journal: Place
    charges: Mapping[str, Signed] = field(default_factory=dict)


@dataclass(frozen=True)
class SignedLineage:
    """The document with its coordinator's signature, hex (`trust.statements.Lineage`)."""

    consortium: str
    lineage: Lineage
    key_id: str
    signature: str


@dataclass(frozen=True)
class Draft:
    """All of a document but what its parent says. `base` is the parent's version, None for version 0."""

    base: int | None
    alone: Lineage


def complete(draft: Draft, parent: Lineage | None) -> Lineage:
    """The document behind its parent's, which is None for version 0 only."""
    alone = draft.alone
    if draft.base is None:
        parents: tuple[Parent, ...] = ()
    elif parent is None or (parent.run, parent.version) != (alone.run, draft.base):
        raise LocalError(f"the lineage of {alone.run} version {alone.version} needs that of {draft.base}")
    else:
        parents = (Parent(parent.version, parent.model_digest, canonical.digest(parent)),)
    shares = dict(parent.shares) if parent is not None else {}
    for item in alone.contributors:
        if item.weight:
            before = shares.get(item.site, Share(item.organisation, 0, 0, 0))
            shares[item.site] = Share(
                item.organisation,
                before.updates + 1,
                before.weight + item.weight,
                before.steps + item.steps,
            )
    fields = {name: getattr(alone, name) for name in Lineage.__dataclass_fields__}
    return Lineage(**{**fields, "parents": parents, "shares": dict(sorted(shares.items()))})


class Provenance:
    """What the next versions' documents need beside the state, kept from events as they pass.

    It holds the orders of open rounds and late ones, so it does not grow with the journal.
    """

    def __init__(self) -> None:
        self._code = ("", "")
        self._consents: dict[str, ev.ConsentGiven] = {}
        self._updates: dict[str, ev.UpdateStored] = {}
        self._seeds: dict[str, ev.ModelSeeded] = {}
        self._plans: dict[str, Aggregate] = {}

    def observe(self, event: ev.Event) -> None:
        """Take note of an event; others than `Booted` and those of `EVIDENCE` mean nothing."""
        match event:
            case ev.Booted():
                self._code = (event.version, event.code)
            case ev.ConsentGiven():
                self._consents[event.order] = event
            case ev.UpdateStored():
                self._updates[event.order] = event
            case ev.ModelSeeded():
                self._seeds[run_of(event)] = event

    def plan(self, effect: Aggregate) -> None:
        """The inputs of the next version, of which the last ones named are those that count."""
        self._plans[effect.run] = effect

    def draft(self, state: State, run: str, record: RoundRecord, place: Place) -> Draft:
        """The document about the version of `record`, which the run has just published."""
        of_run = state.runs[run]
        assert of_run.model is not None and record.version is not None, "a published version exists"
        contributors: tuple[Contributor, ...] = ()
        if record.restored is not None:
            kind, base = "restored", record.restored
        elif record.version == 0:
            kind, base = "seeded", None
            contributors = (self._seed(state.members, _told(self._seeds, run)),)
        else:
            kind, base = "aggregated", record.version - 1
            contributors = self._contributors(state.members, _told(self._plans, run), record)
        lineage = Lineage(
            format=FORMAT,
            run=run,
            version=record.version,
            round=record.index,
            attempt=record.attempt,
            kind=kind,
            reason=record.reason,
            published_ms=record.closed_ms,
            epoch=state.epoch,
            model_digest=record.model_digest,
            layout_digest=of_run.model.ref.layout_digest,
            num_elements=of_run.model.num_elements,
            parents=(),
            contributors=contributors,
            shares={},
            configuration=of_run.spec,
            configuration_digest=canonical.digest(of_run.spec),
            code_version=self._code[0],
            code_digest=self._code[1],
            journal=place,
            charges=of_run.published_charges,
        )
        self.forget(of_run)
        return Draft(base, lineage)

    def _seed(self, members: Mapping[str, Member], seed: ev.ModelSeeded) -> Contributor:
        return self._contributor(members, seed.order, seed.blob, seed.size_bytes)

    def _contributors(
        self, members: Mapping[str, Member], plan: Aggregate, record: RoundRecord
    ) -> tuple[Contributor, ...]:
        if tuple(item.order for item in plan.contributions) != record.counted:
            raise LocalError(f"version {record.version} of {plan.run} counts others than were asked for")
        found = []
        for item in plan.contributions:
            stored = _told(self._updates, item.order)
            found.append(
                self._contributor(
                    members, item.order, item.blob, stored.size_bytes, update=stored, counted=item.weight
                )
            )
        return tuple(found)

    def _contributor(
        self,
        members: Mapping[str, Member],
        order: str,
        blob: str,
        size_bytes: int,
        update: ev.UpdateStored | None = None,
        counted: float = 0.0,
    ) -> Contributor:
        site = order.rsplit(".", 1)[-1]
        member = members.get(site)
        consent = self._consents.get(order)
        return Contributor(
            site=site,
            organisation=(member.organisation if member else "") or site,
            message_key=member.message_key if member else "",
            order=order,
            update=blob,
            size_bytes=size_bytes,
            weight=update.weight if update else 0,
            counted_weight=counted,
            steps=update.steps if update else 0,
            norm=update.norm if update else 0.0,
            signature=update.signature if update else "",
            contract=consent.contract if consent else "",
            consent=consent.signature if consent else "",
        )

    def forget(self, run: RunState) -> None:
        """Let go of what no later version can count."""
        name = run.spec.run
        kept = needed_orders(run)
        for book in (self._consents, self._updates):
            for order in [order for order in book if order.split(".", 1)[0] == name and order not in kept]:
                del book[order]
        self._seeds.pop(name, None)
        self._plans.pop(name, None)


def _told(book: Mapping[str, T], key: str) -> T:
    if key not in book:
        raise LocalError(f"no event has told of {key}, and a version was made of it")
    return book[key]


def needed_orders(run: RunState) -> frozenset[str]:
    """Orders whose updates a later version may count."""
    if run.phase in ENDED:
        return frozenset()
    seats = {seat.order.id for seat in run.round.seats.values()} if run.round else set()
    late = {update.order for update in run.late} | {order.id for order in run.busy.values()}
    return frozenset(seats | late)


def published(run: RunState, known: int = 0) -> tuple[RoundRecord, ...]:
    """The records of versions behind the first `known` records, oldest first."""
    return tuple(record for record in run.records[known:] if record.version is not None)


def rebuild(
    rows: Iterable[Placed], runs: Collection[str], agreed: dict[str, str] | None = None
) -> Iterator[Lineage]:
    """The documents about all versions of these runs, from the journal's first row on.

    Args:
        agreed: is filled with order -> digest of the order as its site agreed to it.

    Raises `IntegrityError` for a row that this version of fedtrain cannot read.
    """
    state, provenance = State(), Provenance()
    places: dict[str, Place] = {}
    known = dict.fromkeys(runs, 0)
    made: dict[tuple[str, int], Lineage] = {}
    for row in rows:
        event = _event_of(row)
        run = run_of(event)
        provenance.observe(event)
        if row.kind in PUBLISHING:
            places[run] = Place(row.sequence, row.hash)
        if agreed is not None and isinstance(event, ev.ConsentGiven) and run in known:
            order = _order_of(state.runs.get(run), event.order)
            if order is not None:
                agreed[order.id] = canonical.digest(order)
        state, effects = step(state, event)
        for effect in effects:
            if isinstance(effect, Aggregate):
                provenance.plan(effect)
        for name in known:
            if name not in state.runs or len(state.runs[name].records) == known[name]:
                continue
            records = published(state.runs[name], known[name])
            known[name] = len(state.runs[name].records)
            for record in records:
                draft = provenance.draft(state, name, record, places[name])
                parent = None if draft.base is None else made[name, draft.base]
                lineage = made[name, draft.alone.version] = complete(draft, parent)
                yield lineage


def _order_of(run: RunState | None, order_id: str) -> Order | None:
    """The order of this id that is out."""
    if run is None:
        return None
    seats = run.round.seats.values() if run.round else ()
    out = [*(seat.order for seat in seats), *run.busy.values()]
    return next((order for order in out if order.id == order_id), None)


def _event_of(row: Placed) -> ev.Event:
    kind = ev.EVENTS.get(row.kind)
    if kind is None:
        raise IntegrityError(
            f"row {row.sequence} is a {row.kind!r}, which this version of fedtrain does not know: name a "
            "coordinator's journal, and use the version that wrote it or a newer one"
        )
    try:
        return canonical.decode(kind, row.payload)
    except RemoteError as error:
        raise IntegrityError(f"row {row.sequence} cannot be read: {error}") from error


def differences(made: Lineage, shown: Lineage) -> tuple[str, ...]:
    """Names of the fields in which two documents differ."""
    return tuple(name for name in Lineage.__dataclass_fields__ if getattr(made, name) != getattr(shown, name))
