"""The account of what leaves the site: every byte over the agent's connections, in the site's own journal.

An upload is a row of its own each time its bytes leave, with the digest of the file, its norm and the clauses
that allow it. Everything else (what is said in sessions, calls, handshakes, keepalive) is summed by kind and
written now and then, never a row per heartbeat. The total is the kernel's count of what our sockets have sent
(`wire.traffic`); where the kernel does not tell, it is what the protocol makes of the messages, and each row
says which.

    state/egress.json    what is not in the journal yet, as the rows that it would make

That file is renewed every few seconds and taken into the journal by the next start, so a crash loses a few
seconds of small talk and of a transfer. It is not synced: a power loss may take the last half minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fedtrain.core import canonical
from fedtrain.core.agent import AgentEvent, AgentState, BytesSent
from fedtrain.core.contract import Approval, Contract
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.terms import read_asked
from fedtrain.errors import FedtrainError, RemoteError
from fedtrain.peer.jobs import in_thread
from fedtrain.storage.filesystem import disk_errors
from fedtrain.storage.journal import Journal
from fedtrain.wire.traffic import SocketMeter, Tally, wire_bytes
from fedtrain.wire.values import CHUNK_BYTES

_log = logging.getLogger("fedtrain.peer")

FILE = "egress.json"
FILE_BYTES_MAX = 4 << 20

LOOK_S = 1.0
LOOK_CLOSELY_S = 0.05
"""Between two looks at the sockets; closely while a connection may come and go, or an upload is on."""

SETTLED_S = 0.2
"""After a connection broke; by then gRPC has closed its socket, and the kernel has told its last count."""

KEEP_S = 5.0
WRITE_S = 600.0
"""Between two rows of one kind of small talk. A minute would be as many rows as an idle site says things."""

CHUNK_HEAD_BYTES = 16
"""Offset and length in front of a chunk's data."""

HANDSHAKE_BYTES = 2_400
"""What a TLS handshake with our certificate takes, and the settings of HTTP/2; only where nobody counts."""

CONNECTION = "connection"
"""Kind of what no message asked for: handshakes, HTTP/2's own frames, keepalive."""

ENROLMENT = "Enrolment.Enrol"

UPLOADS = {OrderKind.TRAIN: "update", OrderKind.SEED: "model"}

_MEMBERSHIP = "membership"
_CONSENT = "contract: the site's own word"
_ORDERS = "contract: orders that it accepted"
_CLAUSES = {
    "Session.Consent": _CONSENT,
    "Session.Agreement": _CONSENT,
    "Session.Answer": _CONSENT,
    "Session.Withdrawal": _CONSENT,
    "Session.Declaration": "datasets.*.rights.discoverable",
    "Session.Failure": _ORDERS,
    "Session.Evaluation": _ORDERS,
    "Session.Statement": f"{_ORDERS} (keys, shares and signatures of masked rounds, charges for privacy)",
    "Session.Heartbeat": f"{_MEMBERSHIP}; {_ORDERS} (steps and loss of work in hand)",
    "Transfer.Offer": _ORDERS,
    "Transfer.Commit": _ORDERS,
    "Transfer.Fetch": _ORDERS,
    "Transfer.Send": _ORDERS,
}


class Owner(Protocol):
    """What the account needs of its agent."""

    @property
    def state(self) -> AgentState:
        """What the agent knows."""

    def submit(self, *events: AgentEvent) -> None:
        """Journal, step, act."""


@dataclass
class _Upload:
    """A transfer under way, from byte `offset` of the file to byte `reached` so far.

    When it began, the kernel had counted `beyond_bytes` more than was told. `broken_s`: when it broke.
    """

    order: Order
    result: Result
    offset: int
    reached: int
    beyond_bytes: int
    broken_s: float = 0.0

    def reach(self, position: int) -> None:
        self.reached = position

    def wire_bytes(self, position: int) -> int:
        """Size on the wire of what is sent when it is at `position`."""
        if position <= self.offset:
            return 0
        chunks = self.chunks(position)
        return wire_bytes(position - self.offset + CHUNK_HEAD_BYTES * chunks, chunks)

    def chunks(self, position: int) -> int:
        return -(-(position - self.offset) // CHUNK_BYTES)


@dataclass(frozen=True)
class Unwritten:
    """Rows that are not in the journal, as of its row `after`."""

    after: int
    rows: tuple[BytesSent, ...]


class Account:
    """What leaves, as it leaves. Lives on the event loop's thread.

    Args:
        owner: the agent, in whose journal the rows are kept.
        address: `host:port` that is dialled: the coordinator's, or the proxy's.

    Attributes:
        tally: takes what is said; for `wire.connection.Connection.account`.
    """

    def __init__(self, owner: Owner, address: str) -> None:
        self.tally = Tally()
        self._owner = owner
        self._meter = SocketMeter(int(address.rpartition(":")[2]))
        self._written_bytes = 0
        self._moving: list[_Upload] = []
        self._broken: list[_Upload] = []
        self._file: Path | None = None
        self._journal: Journal | None = None
        self._kept: tuple[BytesSent, ...] = ()

    @contextlib.contextmanager
    def upload(self, order: Order, result: Result, offset: int) -> Iterator[Callable[[int], None]]:
        """Around one transfer of a result's file; yields what takes the position that it has reached.

        The row is written when the transfer ends; if it breaks, a moment later.
        """
        upload = _Upload(order, result, offset, offset, self._meter.look() - self._told_bytes())
        self._moving.append(upload)
        try:
            yield upload.reach
        except BaseException:
            self._moving.remove(upload)
            upload.broken_s = time.monotonic()
            self._broken.append(upload)
            raise
        self._moving.remove(upload)
        self._write([self._upload_row(upload, upload.wire_bytes(upload.reached))])

    def _settle(self, after_s: float = 0.0) -> None:
        """Write down the transfers that broke so long ago that the kernel's count of them is final."""
        while self._broken and time.monotonic() - self._broken[0].broken_s >= after_s:
            upload = self._broken.pop(0)
            if size_bytes := self._left_of(upload):
                self._write([self._upload_row(upload, size_bytes)])

    def _left_of(self, upload: _Upload) -> int:
        """How much of a broken transfer has left, by the kernel's count; what gRPC still had has not."""
        if not self._meter.look():
            return upload.wire_bytes(upload.reached)
        most = upload.wire_bytes(min(upload.result.size_bytes, upload.reached + 2 * CHUNK_BYTES))
        return min(max(0, self._meter.sent_bytes - self._told_bytes() - upload.beyond_bytes), most)

    def _told_bytes(self) -> int:
        """All that is attributed to something: written, said, or on its way in uploads."""
        moving = sum(upload.wire_bytes(upload.reached) for upload in self._moving)
        return self._written_bytes + self.tally.size_bytes + moving

    def write(self) -> None:
        """Put everything but transfers under way into the journal."""
        self._meter.look()
        self._settle()
        rows = self._small_rows()
        self.tally.kinds.clear()
        self._write(rows)

    def _write(self, rows: list[BytesSent]) -> None:
        self._written_bytes += sum(row.size_bytes for row in rows)
        if rows:
            self._owner.submit(*rows)

    def _small_rows(self) -> list[BytesSent]:
        rows = [
            self._row(kind, sent.messages, sent.size_bytes) for kind, sent in sorted(self.tally.kinds.items())
        ]
        hellos = self.tally.kinds.get("Session.Hello")
        if self._meter.sent_bytes:
            rest_bytes = self._meter.sent_bytes - self._told_bytes()
        else:
            rest_bytes = HANDSHAKE_BYTES * (hellos.messages if hellos else 0)
        if rest_bytes > 0:
            rows.append(self._row(CONNECTION, 0, rest_bytes))
        return rows

    def _row(self, kind: str, messages: int, size_bytes: int) -> BytesSent:
        clause = _CLAUSES.get(kind, _MEMBERSHIP)
        return BytesSent(_now_ms(), "", "", kind, messages, size_bytes, "", clause, counted=self._counted)

    def _upload_row(self, upload: _Upload, size_bytes: int) -> BytesSent:
        order, result = upload.order, upload.result
        return BytesSent(
            at_ms=_now_ms(),
            run=order.run,
            order=order.id,
            kind=UPLOADS[order.kind],
            messages=max(1, upload.chunks(upload.reached)),
            size_bytes=size_bytes,
            digest=result.digest,
            clause=allowing(self._owner.state, order),
            norm=result.norm if order.kind is OrderKind.TRAIN else 0.0,
            counted=self._counted,
        )

    @property
    def _counted(self) -> str:
        return "kernel" if self._meter.sent_bytes else "model"

    # -- what a crash must not lose -----------------------------------------------------------------

    def keep_in(self, file: Path, journal: Journal) -> None:
        """Take over what an earlier agent did not get to write, and keep the same file from now on."""
        unwritten = read_unwritten(file)
        if unwritten is not None:
            rows = not_in(journal, unwritten)
            if rows:
                _log.info(
                    "%d rows of the egress account that no agent had written are written now", len(rows)
                )
                self._owner.submit(*rows)
        with disk_errors(f"delete {file}"):
            file.unlink(missing_ok=True)
        self._file, self._journal = file, journal

    async def watch(self, quiet: Callable[[], bool]) -> None:
        """Look at the sockets for as long as the agent runs; rarely while nothing comes and goes."""
        kept_s = written_s = time.monotonic()
        while True:
            self._meter.look()
            if not self._moving:
                self._settle(SETTLED_S)
            now_s = time.monotonic()
            if now_s - written_s >= WRITE_S:
                written_s = now_s
                self.write()
            if now_s - kept_s >= KEEP_S:
                kept_s = now_s
                await self._keep()
            await asyncio.sleep(LOOK_S if quiet() and not self._moving else LOOK_CLOSELY_S)

    async def _keep(self) -> None:
        if self._file is None or self._journal is None:
            return
        moving = [self._upload_row(upload, upload.wire_bytes(upload.reached)) for upload in self._moving]
        broken = [self._upload_row(upload, self._left_of(upload)) for upload in self._broken]
        rows = (*self._small_rows(), *(row for row in (*broken, *moving) if row.size_bytes))
        if [_amount(row) for row in rows] == [_amount(row) for row in self._kept]:
            return
        self._kept = rows
        try:
            await in_thread(_keep_file, self._file, Unwritten(self._journal.head[0], rows))
        except FedtrainError as error:
            _log.warning("a crash now would lose a part of the egress account: %s", error)

    def close(self) -> None:
        """Write what is left. Behind this only the end of the connection leaves: under a hundred bytes."""
        self.write()
        self._meter.close()
        if self._file is not None:
            with disk_errors(f"delete {self._file}"):
                self._file.unlink(missing_ok=True)


def allowing(state: AgentState, order: Order) -> str:
    """The clauses under which an answer to this order may leave."""
    contract = state.contract
    asked = read_asked(order.task)
    clauses = [f"contract.runs ({order.run})", f"contract.tasks ({asked.task})"]
    if asked.dataset:
        clauses.append(f"datasets.{asked.dataset}.rights.execute")
    clauses.append(f"contract.cohort_min {contract.cohort_min} ({len(order.cohort)} sites)")
    clauses += _bounds(contract)
    seat = state.masks.get(order.id)
    if seat is not None:
        clauses.append(f"masked in session {seat.session[:16]} ({len(seat.sharers)} sites mask together)")
    verdict = state.verdicts.get(order.run)
    if contract.approval is Approval.HOLD:
        clauses.append("contract.approval hold (released)")
    elif verdict is not None:
        clauses.append(f"contract.approval {contract.approval} ({verdict.word} by {verdict.by})")
    return "; ".join(clauses)


def _bounds(contract: Contract) -> list[str]:
    per_day, per_round = contract.upload_max_per_day_bytes, contract.upload_max_per_round_bytes
    bounds = {"upload_max_per_day": per_day, "upload_max_per_round": per_round}
    return [f"contract.{name} {bound} bytes" for name, bound in bounds.items() if bound is not None]


def read_unwritten(file: Path) -> Unwritten | None:
    """What the file holds; None if there is none, or if it cannot be read, which is told."""
    try:
        with disk_errors(f"read {file}"), open(file, "rb") as source:
            data = source.read(FILE_BYTES_MAX)
        return canonical.decode(Unwritten, data)
    except FedtrainError as error:
        if file.exists():
            _log.warning("a part of the egress account is lost: %s", error)
        return None


def not_in(journal: Journal, unwritten: Unwritten) -> tuple[BytesSent, ...]:
    """The rows that a journal has not got to hold since they were kept."""
    written = set()
    for row in journal.read(unwritten.after, kinds=(BytesSent.__name__,)):
        sent = read_row(row.payload)
        # Small talk is written all at once, whatever its kind.
        written.add((sent.order, sent.digest))
    return tuple(row for row in unwritten.rows if (row.order, row.digest) not in written)


def read_row(payload: str) -> BytesSent:
    """A row of the account; `RemoteError` if it is none."""
    sent = canonical.decode(BytesSent, payload)
    if min(sent.messages, sent.size_bytes) < 0:
        raise RemoteError("a row of the egress account counts below zero")
    return sent


def keep_enrolment(file: Path, size_bytes: int) -> None:
    """Keep what `join` has sent, for the account of the site's first agent."""
    before = read_unwritten(file)
    size_bytes, counted = (size_bytes, "kernel") if size_bytes else (HANDSHAKE_BYTES, "model")
    row = BytesSent(_now_ms(), "", "", ENROLMENT, 1, size_bytes, "", _MEMBERSHIP, counted=counted)
    _keep_file(file, Unwritten(0, (*(before.rows if before else ()), row)))


def _keep_file(file: Path, unwritten: Unwritten) -> None:
    with disk_errors(f"keep {file}"):
        draft = file.with_name(f".{file.name}.part")
        draft.write_bytes(canonical.encode(unwritten))
        draft.chmod(0o600)
        draft.replace(file)


def _amount(row: BytesSent) -> BytesSent:
    """The row without its time."""
    return replace(row, at_ms=0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
