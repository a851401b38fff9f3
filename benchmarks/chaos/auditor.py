"""Judges a run from evidence alone: was anything lost, counted twice, hidden, or not the same?

The claims come from the sites' journals (orders that they were given, receipts that they hold), the
account that they are held against from the coordinator's. Numbers of invariants are those of the
project's list of faults. An empty list of findings is the verdict "held".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.chaos.evidence import Evidence
from fedtrain.core import events as ev, transitions
from fedtrain.core.agent import EpochSeen, OrderReceived, UploadAcknowledged
from fedtrain.core.orders import OrderKind, parse_order_id
from fedtrain.core.state import RoundRecord, RunState, Standing, State
from fedtrain.errors import FedtrainError
from fedtrain.trust import statements

LEAVING = (
    ev.ConsentWithdrawn,
    ev.MemberRevoked,
    ev.RunRolledBack,
    ev.SiteQuarantined,
    ev.UpdateRejected,  # the third in a row is a quarantine
)
"""Events by which an acknowledged update may lose its right to be counted."""


@dataclass(frozen=True)
class Finding:
    """An invariant that does not hold, and where."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


@dataclass
class Account:
    """What the coordinator's journal says about one run.

    Attributes:
        stored: order -> blobs that were stored for it, in order.
        versions: the rounds whose versions were computed, in order.
        counted: order -> how many versions count it.
        keys: member -> the key that its statements are held against.
        stored_by: version -> orders stored before it was computed.
        pending: orders whose updates are acknowledged and wait to be counted, or waited when an
            operator stopped the run.
        left: orders whose updates were taken out with their sites, or lie on a path that was left.
    """

    run: RunState
    stored: dict[str, list[ev.UpdateStored | ev.ModelSeeded]] = field(default_factory=dict)
    versions: list[ev.RoundAggregated | ev.VersionRestored] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    keys: dict[str, str] = field(default_factory=dict)
    stored_by: dict[int, frozenset[str]] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    left: frozenset[str] = frozenset()

    @property
    def published(self) -> list[RoundRecord]:
        """Records that led to a version, in order."""
        return [record for record in self.run.records if record.version is not None]


def account_of(events: tuple[ev.Event, ...], name: str) -> Account | None:
    """Fold the coordinator's journal, and note beside the fold what it is to be held against.

    None if the journal has no such run.
    """
    state = State()
    pending, left = frozenset[str](), frozenset[str]()
    for event in events:
        if isinstance(event, ev.RunStopped) and event.run == name:
            pending = _pending(state.runs[name])
        before = state
        state, _ = transitions.step(state, event)
        if isinstance(event, LEAVING):
            left |= _promised(before, name) - _promised(state, name)
    if name not in state.runs:
        return None
    account = Account(state.runs[name], pending=pending | _pending(state.runs[name]), left=left)
    for event in events:
        match event:
            case ev.MemberEnrolled():
                account.keys[event.name] = event.message_key
            case ev.UpdateStored() | ev.ModelSeeded() if parse_order_id(event.order)[0] == name:
                account.stored.setdefault(event.order, []).append(event)
            case ev.RoundAggregated() | ev.VersionRestored() if event.run == name:
                account.versions.append(event)
                account.stored_by[event.round] = frozenset(account.stored)
            case _:
                continue
    account.counted.update(order for record in account.published for order in record.counted)
    return account


def _pending(run: RunState) -> frozenset[str]:
    seats = run.round.seats.values() if run.round else ()
    seated = {seat.update.order for seat in seats if seat.update}
    return frozenset(seated | {update.order for update in run.late})


def _promised(state: State, name: str) -> frozenset[str]:
    """Orders of which something is to be counted yet, be it inside a later update."""
    run = state.runs.get(name)
    if run is None:
        return frozenset()
    return _pending(run) | {order for orders in run.returned.values() for order in orders}


def judge(evidence: Evidence, name: str) -> list[Finding]:
    """All that does not hold about the run `name`."""
    findings = [Finding("I8", fault) for fault in evidence.faults]
    account = account_of(evidence.events, name)
    if account is None:
        return [*findings, Finding("I8", f"the coordinator's journal has no run {name}")]
    return [*findings, *judge_account(evidence, account)]


def judge_account(evidence: Evidence, account: Account) -> list[Finding]:
    """What the sites' evidence says against the coordinator's account of the run."""
    findings: list[Finding] = []
    for check in (_receipts, _counts, _chain, _roll_call, _epochs, _models):
        findings += check(evidence, account)
    return findings


def _receipts(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """I1: what a site holds a receipt for was stored, and is in one version, or waits, or was given back."""
    name = account.run.spec.run
    for site, own in evidence.sites.items():
        blobs: dict[str, str] = {}
        given_back = {
            order
            for event in own.events
            if isinstance(event, OrderReceived) and event.order.run == name
            for order in event.order.returned
        } | set(account.run.returned.get(site, ()))
        for event in own.events:
            if not isinstance(event, UploadAcknowledged) or parse_order_id(event.order)[0] != name:
                continue
            where = f"{site} holds a receipt for {event.order}"
            if not _signed_receipt(event, own.coordinator_public):
                yield Finding("I1", f"{where} that the coordinator did not sign")
            if blobs.setdefault(event.order, event.blob) != event.blob:
                yield Finding("I1", f"{where} and another one for other bytes")
            if event.blob not in [row.blob for row in account.stored.get(event.order, ())]:
                yield Finding("I1", f"{where}, and the coordinator's journal does not have it")
            if isinstance(account.stored.get(event.order, [None])[0], ev.ModelSeeded):
                continue
            yield from _fate(account, event, given_back, where)


def _fate(account: Account, event: UploadAcknowledged, given_back: set[str], where: str) -> Iterator[Finding]:
    """What became of one acknowledged update."""
    times = account.counted[event.order]
    if event.order in account.left:
        if times:
            yield Finding("I5", f"{where}, whose site had left, and it was counted")
        return
    if event.outcome == "late_residual":
        if times:
            yield Finding("I1", f"{where} as given back, and it was counted")
        if event.order not in given_back:
            yield Finding("I1", f"{where} as given back, and it never was")
    elif times == 0 and event.order not in account.pending:
        yield Finding("I1", f"{where}, and no version counts it: it was lost")


def _counts(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """I1, I2: a version counts stored, signed updates, each once, and says how many there were."""
    for order, times in account.counted.items():
        if times > 1:
            yield Finding("I1", f"{order} is counted in {times} versions")
    for record in account.published:
        if record.index == 0:
            continue
        for order in record.counted:
            if order not in account.stored_by.get(record.index, ()):
                yield Finding("I2", f"version {record.version} counts {order}, which was not stored before")
    for order, rows in account.stored.items():
        for row in rows:
            if isinstance(row, ev.UpdateStored) and not _signed_commit(row, account):
                yield Finding("I1", f"the stored update of {order} is not signed by its site")


def _chain(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """I3: versions are 0, 1, 2 ... without a gap or a second one, each as it was computed."""
    told = [record.version for record in account.published]
    if told != list(range(len(told))):
        yield Finding("I3", f"the versions are {told}")
    rounds = [event.round for event in account.versions]
    if rounds != list(range(1, len(rounds) + 1)):
        yield Finding("I3", f"versions were computed for the rounds {rounds}")
    computed = {event.round: event.model_digest for event in account.versions}
    for record in account.published[1:]:
        if computed.get(record.index) != record.model_digest:
            yield Finding("I2", f"version {record.version} is not the one that was computed")
    if account.run.phase == "done" and len(told) != account.run.spec.rounds + 1:
        yield Finding("I3", f"the run is done with {len(told) - 1} of {account.run.spec.rounds} rounds")


def _roll_call(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """I7: whoever got an order, and whoever that order says was invited, is in the round's record."""
    records = {(record.index, record.attempt): record for record in account.run.records}
    opened = account.run.round
    still_open = (opened.index, opened.attempt) if opened else None
    for site, own in evidence.sites.items():
        for event in own.events:
            if not isinstance(event, OrderReceived) or event.order.run != account.run.spec.run:
                continue
            order = event.order
            place = (order.round, order.attempt)
            if place == still_open and place not in records:
                continue
            invited = {site} if order.kind is OrderKind.SEED else {site, *order.cohort}
            missing = invited - set(records[place].seats) if place in records else invited
            if missing:
                yield Finding("I7", f"{order.id}: no record of {', '.join(sorted(missing))}")
    for place, record in records.items():
        for site, seat in record.seats.items():
            silent = seat.standing not in (Standing.STORED, Standing.DONE)
            # An abandoned attempt's record may name a site at work: it keeps its seat in the next.
            at_work = record.version is None and seat.standing in (Standing.INVITED, Standing.WORKING)
            if silent and not at_work and not seat.reason:
                yield Finding("I7", f"round {place}: {site} is {seat.standing} for no reason")


def _epochs(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """Every start has a higher epoch; no site ever follows a lower one, or one that never was."""
    epochs = [event.epoch for event in evidence.events if isinstance(event, ev.Booted)]
    if epochs != sorted(set(epochs)):
        yield Finding("I3", f"the coordinator's epochs are {epochs}")
    for site, own in evidence.sites.items():
        seen = [event.epoch for event in own.events if isinstance(event, EpochSeen)]
        if seen != sorted(seen) or not set(seen) <= set(epochs):
            yield Finding("I3", f"{site} followed the epochs {seen}, and there were {epochs}")


def _models(evidence: Evidence, account: Account) -> Iterator[Finding]:
    """I11: the model that lies at a site is the version that it says it is; at the end all have the last."""
    name = account.run.spec.run
    digests = {record.version: record.model_digest for record in account.published}
    measured = {
        site
        for record in account.run.records
        if record.index > account.run.spec.rounds
        for site, seat in record.seats.items()
        if seat.standing is Standing.DONE
    }
    for site, own in evidence.sites.items():
        version, digest = own.held.get(name, (-1, ""))
        if version >= 0 and digests.get(version) != digest:
            yield Finding("I11", f"{site} holds a version {version} that was never published")
        if site in measured and version != len(digests) - 1:
            yield Finding("I11", f"{site} measured the last version and holds version {version}")


def differing(evidence: Evidence, quiet: Evidence, name: str, all_sites: bool = False) -> Iterator[Finding]:
    """I2: as long as the same sites contributed, a disturbed run has the bits of an undisturbed one.

    With `all_sites` every version has to count every site, so that nothing may differ to the end.
    """
    mine, theirs = (account_of(found.events, name) for found in (evidence, quiet))
    if mine is None or theirs is None:
        yield Finding("I8", f"one of the journals has no run {name}")
        return
    if all_sites and len(mine.published) != len(theirs.published):
        yield Finding("I2", f"{len(mine.published)} versions, {len(theirs.published)} in the undisturbed run")
    for here, there in zip(mine.published, theirs.published, strict=False):
        if _contributors(here) != _contributors(there):
            if all_sites:
                yield Finding("I2", f"version {here.version} counts other sites than in the undisturbed run")
            return
        if here.model_digest != there.model_digest:
            yield Finding("I2", f"version {here.version} has other bits than in the undisturbed run")
            return


def _contributors(record: RoundRecord) -> list[tuple[int, str]]:
    """(round, site) of every update that the version counts. Attempts do not change an update's bits."""
    return [(index, site) for _, index, _, site in map(parse_order_id, record.counted)]


def _signed_receipt(event: UploadAcknowledged, public: str) -> bool:
    receipt = statements.Receipt(event.order, event.blob, event.outcome, event.epoch, event.signed_ms)
    return _holds(receipt, public, event.signature)


def _signed_commit(row: ev.UpdateStored, account: Account) -> bool:
    run, _, _, site = parse_order_id(row.order)
    commit = statements.Commit(run, row.order, row.blob, row.size_bytes, row.weight, row.steps)
    return _holds(commit, account.keys.get(site, ""), row.signature)


def _holds(statement: statements.Statement, public: str, signature: str) -> bool:
    try:
        statements.verify(statement, public, bytes.fromhex(signature))
    except (FedtrainError, ValueError):
        return False
    return True
