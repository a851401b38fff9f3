"""The account of what left a site, read back: by upload, kind, day and run, and held against receipts.

Everything comes out of the agent's journal, whose rows are held against its chain on the way, and of the
file with what is not in it yet. It works while the agent runs, and without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtrain.core import canonical
from fedtrain.core.agent import BytesSent, UpdateReleased, UploadAcknowledged
from fedtrain.core.orders import parse_order_id
from fedtrain.errors import IntegrityError, NotFoundError, RemoteError
from fedtrain.peer.egress import FILE, not_in, read_row, read_unwritten
from fedtrain.storage.journal import Journal
from fedtrain.trust import statements

_KINDS = tuple(kind.__name__ for kind in (BytesSent, UploadAcknowledged, UpdateReleased))

CRASH = (
    "after a crash, what left in the last 5 s before it is missing; after a power loss, up to half a minute"
)
APART = (
    "not in this account: name look-ups, what other commands (`peer check`) send beside the agent, a "
    "connection that came and went within 0.05 s, and where the kernel does not tell of ended sockets (Linux "
    "does since 4.7), what one sent in its last 0.05 s"
)
MODEL = (
    "this system does not tell what a socket has sent: rows counted by `model` are what the protocol makes "
    "of the messages, without keepalive and flow control"
)


@dataclass(frozen=True)
class Leave:
    """One row of the account. `written`: it is in the journal."""

    sent: BytesSent
    written: bool = True


@dataclass
class Outgoing:
    """A site's whole account.

    Attributes:
        leaves: oldest first.
        receipts: order -> the coordinator's last receipt.
        released: order -> who let its update go.
        before: orders with receipts from before the first row: an earlier version kept no account.
    """

    leaves: list[Leave] = field(default_factory=list)
    receipts: dict[str, UploadAcknowledged] = field(default_factory=dict)
    released: dict[str, str] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)

    def document(self, since_ms: int = 0, run: str | None = None) -> dict[str, Any]:
        """All of it, from a moment on, of one run or of all; small talk belongs to no run."""
        rows = [leave for leave in self.leaves if leave.sent.at_ms >= since_ms]
        if run is not None:
            rows = [leave for leave in rows if leave.sent.run == run]
        uploads = [leave for leave in rows if leave.sent.order]
        small = [leave for leave in rows if not leave.sent.order]
        notes = [CRASH, APART, *([MODEL] if any(leave.sent.counted == "model" for leave in rows) else [])]
        return {
            "uploads": [self._upload(leave) for leave in uploads],
            "kinds": _sums(small, lambda sent: sent.kind, "kind", clause=True),
            "days": _sums(rows, lambda sent: _day(sent.at_ms), "day"),
            "runs": _sums(uploads, lambda sent: sent.run, "run"),
            "uploaded_bytes": _total(uploads),
            "other_bytes": _total(small),
            "total_bytes": _total(rows),
            "unwritten_bytes": _total(leave for leave in rows if not leave.written),
            "notes": notes,
        }

    def _upload(self, leave: Leave) -> dict[str, Any]:
        sent = leave.sent
        receipt = self.receipts.get(sent.order)
        clause = sent.clause
        if sent.order in self.released:
            clause = clause.replace("(released)", f"(released by {self.released[sent.order]})")
        return {
            "at_ms": sent.at_ms,
            "run": sent.run,
            "round": parse_order_id(sent.order)[1],
            "order": sent.order,
            "kind": sent.kind,
            "size_bytes": sent.size_bytes,
            "messages": sent.messages,
            "digest": sent.digest,
            "norm": sent.norm,
            "clause": clause,
            "counted": sent.counted,
            "receipt": _standing(sent, receipt),
        }

    def problems(self, coordinator_public: str) -> list[str]:
        """Where what was sent and what the coordinator signed for differ, in words."""
        found = []
        sent: dict[str, set[str]] = {}
        for leave in self.leaves:
            if leave.sent.order:
                sent.setdefault(leave.sent.order, set()).add(leave.sent.digest)
        for order, receipt in self.receipts.items():
            if not _signed(receipt, coordinator_public):
                found.append(f"{order}: its receipt is not signed by the coordinator")
            if order not in sent:
                if order not in self.before:
                    found.append(f"{order}: the coordinator has its file, and no row tells that it left")
            elif sent[order] != {receipt.blob}:
                others = ", ".join(sorted(digest[:16] for digest in sent[order]))
                found.append(f"{order}: the coordinator signed for {receipt.blob[:16]}, and {others} left")
        return found


def read(state: Path) -> Outgoing:
    """The account in an agent's state folder.

    Raises `NotFoundError` if no agent has run there, `IntegrityError` if its journal is damaged.
    """
    path = state / "journal.db"
    if not path.is_file():
        raise NotFoundError(f"{path} is not there: the agent of this folder has never run")
    unwritten = read_unwritten(state / FILE)
    journal = Journal.open(path, writer=False)
    outgoing = Outgoing()
    try:
        for row in journal.read(kinds=_KINDS):
            _take(outgoing, row.kind, row.payload)
        # Read before the journal: what the agent has written meanwhile is left out here.
        fresh = not_in(journal, unwritten) if unwritten is not None else ()
    except RemoteError as error:
        raise IntegrityError(f"journal {path}: a row of the account cannot be read ({error})") from error
    finally:
        journal.close()
    outgoing.leaves += (Leave(row, written=False) for row in fresh)
    return outgoing


def _take(outgoing: Outgoing, kind: str, payload: str) -> None:
    if kind == BytesSent.__name__:
        outgoing.leaves.append(Leave(read_row(payload)))
    elif kind == UpdateReleased.__name__:
        released = canonical.decode(UpdateReleased, payload)
        outgoing.released[released.order] = released.by
    else:
        receipt = canonical.decode(UploadAcknowledged, payload)
        outgoing.receipts[receipt.order] = receipt
        if not outgoing.leaves:
            outgoing.before.add(receipt.order)


def _standing(sent: BytesSent, receipt: UploadAcknowledged | None) -> str:
    if receipt is None:
        return "none"
    return receipt.outcome if receipt.blob == sent.digest else "another file"


def _signed(receipt: UploadAcknowledged, public: str) -> bool:
    statement = statements.Receipt(
        receipt.order, receipt.blob, receipt.outcome, receipt.epoch, receipt.signed_ms
    )
    try:
        statements.verify(statement, public, statements.signature_bytes(receipt.signature, "the receipt"))
    except RemoteError:
        return False
    return True


def _sums(
    leaves: Iterable[Leave], key: Callable[[BytesSent], str], name: str, clause: bool = False
) -> list[dict[str, Any]]:
    """Messages and bytes by a key, in the order of the key."""
    sums: dict[str, dict[str, Any]] = {}
    for leave in leaves:
        sent = leave.sent
        entry = sums.setdefault(key(sent), {name: key(sent), "messages": 0, "size_bytes": 0})
        entry["messages"] += sent.messages
        entry["size_bytes"] += sent.size_bytes
        if clause:
            entry["clause"] = sent.clause
            entry["counted"] = sent.counted
    return [sums[value] for value in sorted(sums)]


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _total(leaves: Iterable[Leave]) -> int:
    return sum(leave.sent.size_bytes for leave in leaves)
