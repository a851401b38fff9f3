"""The site's privacy ledger: what every data set was charged, for its lifetime, before the work was done.

One SQLite file with a hash chain, as the journal's, but shared: agents of one site in several consortia
charge the same data sets, so they append to one file, one at a time. `charge` returns when its rows are on
the disk. A power loss or a kill may leave a charge for work that never happened, never work without a charge.

A row holds a mechanism's parameters; epsilon is reckoned from them by whoever asks. Other kinds of rows:
`repair`, where nobody knows what was spent and a person has closed the data set's budget for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from fedtrain.core import canonical
from fedtrain.core.charges import CLOSED, Charge, Mechanism
from fedtrain.core.ports import Entry
from fedtrain.core.privacy import SITE_UNIT
from fedtrain.errors import IntegrityError, LocalError, RemoteError, StorageError
from fedtrain.storage import integrity
from fedtrain.storage.chain import GENESIS, Row, append_row, fault_of
from fedtrain.storage.database import (
    SELECT_ROWS,
    connect,
    database_errors,
    error_code,
    prepare,
    translate,
)
from fedtrain.storage.filesystem import disk_errors, network_type, sync_folder

WAIT_S = 30.0
"""How long to wait for another agent that writes: an append takes milliseconds, a start's look at the log
less than a second."""

POLL_S = 0.005
CHARGE, REPAIR = "charge", "repair"
HARMLESS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)
"""Refusals after which SQLite has rolled back cleanly, so that a later append may succeed."""

REMEDY = (
    "keep the file aside and put its newest copy in its place; what was charged since that copy is unknown, "
    "so close the data sets' budgets with `fedtrain ledger repair DIR DATASET --reason TEXT`"
)

_open_here: Counter[Path] = Counter()
_open_guard = threading.Lock()


class Head(NamedTuple):
    """The last row: (0, 64 zeros) of an empty ledger."""

    sequence: int
    hash: str


class LedgerRow(NamedTuple):
    """One row, read.

    Attributes:
        at_ms: wall clock of the agent that wrote it, milliseconds since 1970.
        charge: of a repair, a mechanism of kind `closed`, which bounds nothing.
        reason: of a repair, the owner's words; "" otherwise.
    """

    sequence: int
    at_ms: int
    hash: str
    charge: Charge
    reason: str


@dataclass(frozen=True)
class Repair:
    """Payload of a `repair` row."""

    dataset: str
    reason: str


class Ledger:
    """An open ledger. Safe to call from several threads, and beside other processes.

    Args:
        path: the file; a writer makes it, its folder must exist.
        writer: allow `charge` and `repair`.
        wait_s: how long to wait for another process that writes.
        clock: milliseconds since 1970, for the rows.

    Raises:
        StorageError: the disk refuses, or another process keeps the file locked.
        IntegrityError: the file is damaged, with the row and the remedy.
    """

    def __init__(
        self,
        path: Path,
        *,
        writer: bool = True,
        wait_s: float = WAIT_S,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.path = Path(path)
        self._wait_s = wait_s
        self._clock = clock
        self._guard = threading.RLock()
        self._poison = ""
        self._rows: list[LedgerRow] = []
        self._charges: dict[str, list[Charge]] = {}
        self._mechanisms: dict[tuple[object, ...], Mechanism] = {}
        self._lock: int | None = None
        self._held = contextlib.ExitStack()
        try:
            self._connection = self._open() if writer else connect(self.path, write=False)
            self._held.callback(self._disconnect)
            with database_errors(self.path, REMEDY), disk_errors(f"look at {self.path}"):
                self._inode = self.path.stat().st_ino
                integrity.check(self._connection, self.path, REMEDY)
            self._refresh()
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Head:
        """The last row, whoever wrote it."""
        with self._guard:
            self._refresh()
            return self._last()

    def charge(self, charges: Sequence[Charge]) -> Head:
        """Append all charges or none; returns the last row, when all are on the disk."""
        return self._append(
            [Entry(self._clock(), one.run, CHARGE, canonical.encode(one).decode()) for one in charges]
        )

    def repair(self, dataset: str, reason: str) -> Head:
        """Close the data set's budget for good: what it has spent is unknown, so nothing is left."""
        payload = canonical.encode(Repair(dataset, reason)).decode()
        return self._append([Entry(self._clock(), "", REPAIR, payload)])

    def rows(self) -> tuple[LedgerRow, ...]:
        """All rows, oldest first."""
        with self._guard:
            self._refresh()
            return tuple(self._rows)

    def spending(self, dataset: str) -> tuple[Charge, ...]:
        """All that this data set was charged, oldest first; a repair is a charge that bounds nothing."""
        with self._guard:
            self._refresh()
            return tuple(self._charges.get(dataset, ()))

    def holds(self, sequence: int, row_hash: str) -> bool:
        """Whether this row is one of the ledger's: one that is not was written to another copy."""
        with self._guard:
            self._refresh()
            if not 0 < sequence <= len(self._rows):
                return (sequence, row_hash) == (0, GENESIS)
            return self._rows[sequence - 1].hash == row_hash

    def verify(self) -> Head:
        """Hold the whole file against its chain once more; the last row. Raises `IntegrityError`."""
        with self._guard:
            self._refresh()
            found = integrity.check(self._connection, self.path, REMEDY)
            if not self.holds(*found):
                raise IntegrityError(f"privacy ledger {self.path}: its rows were rewritten; {REMEDY}")
            return Head(*found)

    def close(self) -> None:
        """Give up the file; closing twice is fine."""
        with self._guard:
            self._poison = self._poison or f"privacy ledger {self.path} is closed"
            self._held.close()

    # -- the file ---------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """A writer's connection, to a file whose log holds every commit that was acknowledged."""
        lock = self.path.with_name(self.path.name + ".lock")
        with disk_errors(f"open the lock {lock}"):
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._held.callback(os.close, self._lock)
        remote = network_type(self.path.parent)
        with self._locked():
            self._held.enter_context(_counted(self.path, lambda: integrity.check_log(self.path, REMEDY)))
            connection = connect(self.path, write=True)
            try:
                with database_errors(self.path, REMEDY), disk_errors(f"sync the folder {self.path.parent}"):
                    prepare(connection, self.path, rollback=bool(remote))
                    sync_folder(self.path.parent)
            except BaseException:
                connection.close()
                raise
        return connection

    def _disconnect(self) -> None:
        """The last connection writes the log back and deletes it, so nobody may look at it meanwhile."""
        if self._lock is None:
            self._connection.close()
            return
        with self._locked():
            self._connection.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all writers, for a moment."""
        assert self._lock is not None, "a writer has a lock"
        end = time.monotonic() + self._wait_s
        with disk_errors(f"lock the privacy ledger {self.path}"):
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise self._busy() from None
                time.sleep(POLL_S)
        try:
            with contextlib.suppress(OSError):  # the name of the holder is for messages only
                os.pwrite(self._lock, f"{os.getpid():<20}\n".encode(), 0)
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _busy(self) -> StorageError:
        assert self._lock is not None, "a writer has a lock"
        holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
        who = f"pid {holder}" if holder.isdigit() else "another process"
        return StorageError(
            f"privacy ledger {self.path}: {who} has kept it locked for {self._wait_s:g} s; if that agent "
            "hangs, end it, then try again"
        )

    # -- rows -------------------------------------------------------------------------------------

    def _append(self, entries: Sequence[Entry]) -> Head:
        with self._guard:
            if self._poison:
                raise StorageError(self._poison)
            if self._lock is None:
                raise LocalError(f"privacy ledger {self.path} was opened for reading only")
            with self._locked():
                self._hold_in_place()
                try:
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._refresh()
                    rows = self._chained(entries)
                    self._connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                    self._connection.execute("COMMIT")
                except sqlite3.Error as error:
                    raise self._give_up(error) from error
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            for row in rows:
                self._take(row)
            return self._last()

    def _chained(self, entries: Sequence[Entry]) -> list[Row]:
        sequence, previous = self._last()
        rows: list[Row] = []
        for entry in entries:
            row = append_row(entry, sequence + 1, previous)
            sequence, previous = row.sequence, row.hash
            rows.append(row)
        return rows

    def _last(self) -> Head:
        return Head(self._rows[-1].sequence, self._rows[-1].hash) if self._rows else Head(0, GENESIS)

    def _refresh(self) -> None:
        """Read what was appended since the last look, by us or by others, and hold it against the chain."""
        last = self._last()
        with database_errors(self.path, REMEDY):
            # The last known row too: a file that was rolled back under us does not have it.
            found = self._connection.execute(
                f"{SELECT_ROWS} WHERE sequence >= ? ORDER BY sequence", (max(1, last.sequence),)
            ).fetchall()
        rows = [Row(*values) for values in found]
        if last.sequence and (not rows or rows.pop(0).hash != last.hash):
            raise IntegrityError(
                f"privacy ledger {self.path}: row {last.sequence} is not there any more: the file was "
                f"put back to an older state while it was in use; {REMEDY}"
            )
        for row in rows:
            if fault := fault_of(row, *self._last()):
                raise IntegrityError(f"privacy ledger {self.path}: {fault}; {REMEDY}")
            self._take(row)

    def _take(self, row: Row) -> None:
        """Remember a row. Equal mechanisms become one object: there are few, and rows without end."""
        try:
            if row.kind == REPAIR:
                repair = canonical.decode(Repair, row.payload)
                charge, reason = closing(repair.dataset), repair.reason
            elif row.kind == CHARGE:
                charge, reason = canonical.decode(Charge, row.payload), ""
            else:
                raise RemoteError(f"the kind {row.kind!r} is unknown")
        except RemoteError as error:
            raise IntegrityError(
                f"privacy ledger {self.path}: row {row.sequence} cannot be read ({error}); read it with the "
                "version of fedtrain that wrote it"
            ) from error
        mechanism = self._mechanisms.setdefault(_parameters(charge.mechanism), charge.mechanism)
        if mechanism is not charge.mechanism:
            charge = replace(charge, mechanism=mechanism)
        self._rows.append(LedgerRow(row.sequence, row.at_ms, row.hash, charge, reason))
        self._charges.setdefault(charge.dataset, []).append(charge)

    def _hold_in_place(self) -> None:
        """A file that was replaced takes no more rows: they would go to the one that nobody sees."""
        try:
            inode = self.path.stat().st_ino
        except OSError:
            inode = 0
        if inode != self._inode:
            self._poison = (
                f"privacy ledger {self.path}: the file was moved or replaced while it was in use; "
                "put the newest copy back, then start again"
            )
            raise IntegrityError(self._poison)

    def _give_up(self, error: sqlite3.Error) -> Exception:
        """Roll back; unless that is clean, no later append may pretend to know the disk."""
        told = translate(self.path, error, REMEDY)
        clean = error_code(error) in HARMLESS
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            clean = False
        if not clean:
            self._poison = f"an earlier write failed, so nothing more is charged until a restart: {told}"
        return told


def closing(dataset: str) -> Charge:
    """The charge that a repair stands for. Its unit is the widest, so it counts for a budget of any unit."""
    return Charge("", 0, "", "", dataset, Mechanism(CLOSED, SITE_UNIT, 0.0, 0.0))


def _parameters(mechanism: Mechanism) -> tuple[object, ...]:
    return (
        mechanism.kind,
        mechanism.unit,
        mechanism.clip,
        mechanism.noise_multiplier,
        mechanism.sampling_rate,
        mechanism.steps,
        tuple(sorted(mechanism.detail.items())),
    )


@contextlib.contextmanager
def _counted(path: Path, first: Callable[[], None]) -> Iterator[None]:
    """One more writer of this process; `first` is called before the only one.

    The kernel drops a process' locks on a file when it closes any descriptor of it, so nobody may look at
    the log by hand while SQLite has it open here (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    """
    key = path.resolve()
    with _open_guard:
        if not _open_here[key]:
            first()
        _open_here[key] += 1
    try:
        yield
    finally:
        with _open_guard:
            _open_here[key] -= 1
