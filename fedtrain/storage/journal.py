"""The journal: every decision's event, durable before anything is done about it.

One SQLite file per coordinator and per agent, appended by one writer and readable by anyone at the
same time. `append` returns when its rows are on the disk, or raises and none of them is there. After
a failed write or sync nobody can know what the disk holds, so the journal then refuses everything:
the process must stop, and a restart reads what really is there. A writer's start checks the whole
file, so what is damaged is found before anything is built on it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Self

from fedtrain.core.ports import Entry
from fedtrain.errors import FedtrainError, IntegrityError, LocalError, StorageError
from fedtrain.storage import integrity
from fedtrain.storage.chain import GENESIS, Row, SignedHead, Snapshot, append_row, fault_of
from fedtrain.storage.database import (
    RESTORE,
    SELECT_HEADS,
    SELECT_ROWS,
    SELECT_SNAPSHOTS,
    connect,
    database_errors,
    error_code,
    prepare,
    translate,
)
from fedtrain.storage.filesystem import disk_errors, network_type, sync_folder, take_lock

__all__ = ["Entry", "Journal", "Row", "SignedHead", "Snapshot"]

PAGE_ROWS = 1_000
"""Rows that `read` fetches at once: short statements, so that a reader never holds up a writer."""

SNAPSHOTS_KEPT = 2
"""The newest, and one more should that one be damaged."""

_HARMLESS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY)
"""Refusals after which SQLite has rolled back cleanly, so that a later append may succeed."""


class Journal:
    """An open journal; use `Journal.open`. Safe to call from several threads.

    Attributes:
        path: the file.
        note: what a person should know, e.g. that the file system is remote; "" if nothing.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, lock: int | None, note: str, remedy: str
    ) -> None:
        self.path = path
        self.note = note
        self._remedy = remedy
        self._connection = connection
        self._lock = lock
        self._guard = threading.Lock()
        self._poison = ""
        with database_errors(path, remedy):
            writer = lock is not None
            self._head = integrity.check(connection, path, remedy) if writer else _last_row(connection)

    @classmethod
    def open(cls, path: Path, writer: bool = True, lock: Path | None = None, remedy: str = RESTORE) -> Self:
        """Open the journal at `path`; a writer makes it if there is none, and checks it whole.

        Args:
            path: the file; its folder must exist.
            writer: take the lock and allow `append`. There is one writer at a time.
            lock: the lock's file, by default `path` with `.lock` behind it.
            remedy: what a person is told to do if the journal is damaged.

        Raises:
            StorageError: another process is the writer, or the disk refuses.
            IntegrityError: the file is damaged or is no journal.
        """
        path = Path(path)
        remote = network_type(path.parent)
        note = f"{path} lies on {remote}: a rollback journal is used, appends are slower" if remote else ""
        held = (
            take_lock(lock or path.with_name(path.name + ".lock"), f"writes journal {path}")
            if writer
            else None
        )
        connection = None
        try:
            if writer:
                integrity.check_log(path, remedy)
            connection = connect(path, write=writer)
            if writer:
                with database_errors(path, remedy), disk_errors(f"sync the folder {path.parent}"):
                    prepare(connection, path, rollback=bool(remote))
                    sync_folder(path.parent)
            return cls(path, connection, held, note, remedy)
        except BaseException:
            if connection is not None:
                connection.close()
            if held is not None:
                os.close(held)
            raise

    @property
    def head(self) -> tuple[int, str]:
        """(sequence, hash) of the last row; (0, 64 zeros) of an empty journal."""
        with self._guard:
            if self._lock is None:
                with database_errors(self.path, self._remedy):
                    self._head = _last_row(self._connection)
            return self._head

    def append(self, entries: Sequence[Entry]) -> int:
        """Write all entries or none; returns the last sequence, when they are on the disk."""
        with self._guard:
            sequence, previous = self._head
            rows: list[Row] = []
            for entry in entries:
                row = append_row(entry, sequence + 1, previous)
                sequence, previous = row.sequence, row.hash
                rows.append(row)
            self._write(("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", rows))
            self._head = sequence, previous
            return sequence

    def add_head(self, head: SignedHead) -> None:
        """Keep a signed head of this journal; the same head twice is kept once."""
        if [row[::6] for row in self._page(head.sequence - 1, None, 1)] != [(head.sequence, head.hash)]:
            raise LocalError(f"the head at row {head.sequence} is not one of journal {self.path}")
        with self._guard:
            self._write(("INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?)", [astuple(head)]))

    def heads(self) -> list[SignedHead]:
        """All signed heads, oldest first."""
        with self._guard, database_errors(self.path, self._remedy):
            return [SignedHead(*values) for values in self._connection.execute(SELECT_HEADS)]

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot of a state that this journal leads to, and the one before; drop older ones."""
        with self._guard:
            self._write(
                ("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)", [snapshot]),
                (
                    "DELETE FROM snapshots WHERE sequence NOT IN "
                    "(SELECT sequence FROM snapshots ORDER BY sequence DESC LIMIT ?)",
                    [(SNAPSHOTS_KEPT,)],
                ),
            )

    def snapshots(self) -> list[Snapshot]:
        """The kept snapshots, newest first, as they are: whether one fits is for its reader to check."""
        with self._guard, database_errors(self.path, self._remedy):
            return [Snapshot(*values) for values in self._connection.execute(SELECT_SNAPSHOTS)]

    def read(self, after: int = 0, kinds: Collection[str] | None = None) -> Iterator[Row]:
        """Rows behind sequence `after`, in order, of these kinds or of all.

        Every row is held against its hash on the way, and against the row before unless `kinds`
        leaves some out; the first one that does not fit is an `IntegrityError` that names it.
        """
        last = after
        last_hash = GENESIS if after == 0 else ""
        while page := self._page(last, kinds, PAGE_ROWS):
            for row in page:
                if kinds is not None:
                    last, last_hash = row.sequence - 1, row.previous
                fault = fault_of(row, last, last_hash or row.previous)
                if fault:
                    raise IntegrityError(f"journal {self.path}: {fault}; {self._remedy}")
                last, last_hash = row.sequence, row.hash
                yield row

    def newest(self, run: str, kinds: Collection[str]) -> Row | None:
        """The last row of a run that is of one of these kinds. Looks from the end, so it is found soon."""
        wanted = ",".join("?" * len(kinds))
        query = f"{SELECT_ROWS} WHERE run = ? AND kind IN ({wanted}) ORDER BY sequence DESC LIMIT 1"
        with self._guard, database_errors(self.path, self._remedy):
            found = self._connection.execute(query, (run, *kinds)).fetchone()
        return Row(*found) if found else None

    def hash_at(self, sequence: int) -> str:
        """The hash of one row, "" if there is none; 64 zeros for row 0, before the first."""
        if sequence == 0:
            return GENESIS
        found = self._page(sequence - 1, None, 1)
        return found[0].hash if found and found[0].sequence == sequence else ""

    def backup(self, target: Path) -> None:
        """Copy a consistent state into the one file `target`, replacing it when it is whole."""
        draft = target.with_name(f".{target.name}.part")
        with disk_errors(f"back up the journal to {target}"):
            draft.unlink(missing_ok=True)
            source, copy = connect(self.path, write=False), connect(draft, write=True)
            try:
                with database_errors(self.path):
                    source.backup(copy)
                    # Without a write-ahead log, so that the one file is the whole copy.
                    copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                source.close()
                copy.close()
            draft.replace(target)
            sync_folder(target.parent)

    def close(self) -> None:
        """Give up the file and the lock; closing twice is fine."""
        with self._guard:
            self._poison = self._poison or f"journal {self.path} is closed"
            self._connection.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _page(self, after: int, kinds: Collection[str] | None, limit: int) -> list[Row]:
        wanted = f" AND kind IN ({','.join('?' * len(kinds))})" if kinds is not None else ""
        query = f"{SELECT_ROWS} WHERE sequence > ?{wanted} ORDER BY sequence LIMIT ?"
        with self._guard, database_errors(self.path, self._remedy):
            return [Row(*r) for r in self._connection.execute(query, (after, *(kinds or ()), limit))]

    def _write(self, *statements: tuple[str, Sequence[tuple[object, ...]]]) -> None:
        """One durable transaction. The caller holds the guard."""
        if self._poison:
            raise StorageError(self._poison)
        if self._lock is None:
            raise LocalError(f"journal {self.path} was opened for reading only")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, rows in statements:
                self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._give_up(error) from error

    def _give_up(self, error: sqlite3.Error) -> FedtrainError:
        """Roll back; unless that is clean, no later append may pretend to know the disk."""
        told = translate(self.path, error, self._remedy)
        clean = error_code(error) in _HARMLESS
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            clean = False
        if not clean:
            self._poison = f"an earlier write failed, so nothing more is written until a restart: {told}"
        return told


def _last_row(connection: sqlite3.Connection) -> tuple[int, str]:
    found = connection.execute("SELECT sequence, hash FROM rows ORDER BY sequence DESC LIMIT 1").fetchone()
    return (int(found[0]), str(found[1])) if found else (0, GENESIS)
